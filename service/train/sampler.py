"""Training data of a backbone, tiles on the device, and random crops of them.

Tiles are of photographs, of further folders, and of generated pictures. Crops are downscaled,
flipped and transposed, and get grain, at random.

Random draws use the generator of the device, which the caller seeds for each step: a crop is a
function of (seed, step), on the CPU, in eager CUDA and in a replayed CUDA graph. Nothing here reads
a value on the host, so a graph can contain it: every crop is computed with the same two products by
matrices of filter taps, which are identities for crops that are not downscaled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from service.datasets.procedural import procedural_tiles
from service.datasets.tile_file import TileRecord
from service.errors import BadParameter
from service.train.recipe import BackboneRecipe
from service.train.world import ALONE, World

GRAIN_MAX = 2.5 / 255
"""Largest standard deviation of the grain, of pixels in [0, 1]."""

SMALLEST = 0.5
"""Smallest factor by which crops are reduced."""

GENERATED: Final = 512
"""Number of generated pictures that a run draws crops from."""


@dataclass(frozen=True, eq=False)
class Source:
    """Tiles of one kind."""

    tiles: Tensor  # [N, S, S, 3] uint8, on the device
    share: float  # share of the crops that are drawn from these tiles
    photographs: bool  # whether crops of them may get grain


class Sampler:
    """Draws the crops of a recipe's steps from tiles."""

    def __init__(
        self, sources: Sequence[Source], recipe: BackboneRecipe, world: World = ALONE
    ) -> None:
        """Prepare to draw; the tiles of all sources have one size.

        Raises:
            BadParameter: the crop does not fit the tiles, or the processes cannot share a group.
        """
        sides = {source.tiles.shape[1] for source in sources}
        side, crop = min(sides), recipe.crop
        if len(sides) > 1:
            raise BadParameter(f"tiles have sides of {sorted(sides)} pixels, expected one size")
        if crop % 64 or not 64 <= crop <= side:
            raise BadParameter(
                f"crops are {crop} pixels wide, expected a multiple of 64 up to the tiles' {side}"
            )
        world.share(recipe.batch // recipe.groups)
        self._recipe, self._world, self._side = recipe, world, side
        device = sources[0].tiles.device
        counts = torch.tensor([len(s.tiles) for s in sources])
        shares = torch.tensor([s.share for s in sources], dtype=torch.float64)
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._bounds = (shares.cumsum(0) / shares.sum())[:-1].float().to(device)
        self._photographs = torch.tensor([s.photographs for s in sources], device=device)
        tiles = [s.tiles.reshape(-1, 3) for s in sources]
        self._pixels = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        self._reach = crop if not recipe.downscaled else min(side, int(crop / SMALLEST))
        self._compute = self._crops
        self._outputs = torch.arange(crop, device=device)
        self._inputs = torch.arange(self._reach, device=device)

    def compile(self) -> None:
        """Compile the computation of crops, on its first call."""
        self._compute = torch.compile(self._crops, dynamic=False)

    def draw(self) -> Tensor:
        """Draw this process's crops, by group: [groups · n, crop, crop, 3] float32 in [0, 1]."""
        device, batch, crop = self._pixels.device, self._recipe.batch, self._recipe.crop
        uniform = torch.rand(11, batch, device=device)
        if not self._recipe.grain:
            return self._compute(uniform, None)
        noise = torch.randn(batch, crop, crop, 3, device=device)
        return self._compute(uniform, self._part(noise))

    def _crops(self, uniform: Tensor, noise: Tensor | None) -> Tensor:
        """Compute crops from uniform draws [11, batch] of the whole batch, and noise for grain."""
        crop, flips = self._recipe.crop, uniform[:2] < 0.5
        transpose = uniform[2] < 0.5
        source = torch.bucketize(uniform[3], self._bounds, right=True)
        tile = self._starts[source] + _whole(uniform[4], self._counts[source])
        scale = 1 / (SMALLEST + (1 - SMALLEST) * uniform[5])
        scale = torch.where(uniform[6] < self._recipe.downscaled, scale, torch.ones_like(scale))
        scale = scale.clamp_max(self._reach / crop)
        room = self._side - (scale * crop).ceil().long() + 1
        top, left = _whole(uniform[7], room), _whole(uniform[8], room)
        draws = (tile, top, left, scale, transpose, *flips.unbind())
        x = self._resampled(*(self._part(t) for t in draws))
        if noise is not None:
            grainy = (uniform[9] < self._recipe.grain) & self._photographs[source]
            deviation = torch.where(grainy, GRAIN_MAX * uniform[10], torch.zeros_like(scale))
            x = x + noise * self._part(deviation)[:, None, None, None]
        return (x * 255).round().clamp(0, 255) / 255

    def _part(self, whole: Tensor) -> Tensor:
        return self._world.part(whole, self._recipe.groups)

    def _resampled(
        self,
        tile: Tensor,
        top: Tensor,
        left: Tensor,
        scale: Tensor,
        transpose: Tensor,
        flip_y: Tensor,
        flip_x: Tensor,
    ) -> Tensor:
        """Cut windows out of tiles and reduce them by `scale` (1 to 2): [n, crop, crop, 3]."""
        last, side = self._side - 1, self._side
        rows = (top[:, None] + self._inputs).clamp_max(last)
        columns = (left[:, None] + self._inputs).clamp_max(last)
        swap = transpose[:, None, None]
        row = torch.where(swap, rows[:, None], rows[:, :, None])
        column = torch.where(swap, columns[:, :, None], columns[:, None])
        window = self._pixels[(tile[:, None, None] * side + row) * side + column]
        window = window.float()
        down, along = self._taps(scale, flip_y) / 255, self._taps(scale, flip_x)
        reach, crop = self._reach, self._recipe.crop
        x = torch.bmm(down, window.reshape(-1, reach, reach * 3)).reshape(-1, crop, reach, 3)
        x = torch.bmm(along, x.transpose(1, 2).reshape(-1, reach, crop * 3))
        return x.reshape(-1, crop, crop, 3).transpose(1, 2)

    def _taps(self, scale: Tensor, flip: Tensor) -> Tensor:
        """Taps of bicubic filters as wide as the reduction, [n, crop, reach]; rows sum to 1."""
        place = torch.where(flip[:, None], self._recipe.crop - 1 - self._outputs, self._outputs)
        s = scale[:, None, None]
        centre = (place[:, :, None] + 0.5) * s - 0.5
        taps = _cubic(((self._inputs - centre) / s).abs())
        taps = torch.where(self._inputs < self._recipe.crop * s, taps, torch.zeros_like(taps))
        return taps / taps.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The tiles of a run, on the device that trains, and their entry in the run's record."""

    sources: Sequence[Source]
    record: Mapping[str, Any]


def gather_data(
    photographs: tuple[TileRecord, Tensor],
    mixed: Mapping[str, tuple[TileRecord, Tensor]],
    recipe: BackboneRecipe,
    device: torch.device,
) -> TrainingData:
    """Copy tiles to a device, and generate the pictures that a recipe requires.

    Args:
        photographs: record of the tile file, and its tiles [N, S, S, 3] uint8.
        mixed: record and tiles of each further folder, by its name in the recipe.

    Raises:
        BadParameter: the folders are not those that the recipe names.
    """
    if mixed.keys() != recipe.mixed.keys():
        raise BadParameter(
            f"the run mixes in the folders {sorted(recipe.mixed)}, but {sorted(mixed)} were given"
        )
    photograph_record, tiles = photographs
    rest = 1 - recipe.procedural - sum(recipe.mixed.values())
    sources = [Source(tiles.to(device), rest, True)]
    record: dict[str, Any] = {"tiles": len(tiles), **asdict(photograph_record)}
    for name, (mixed_record, mixed_tiles) in mixed.items():
        sources.append(Source(mixed_tiles.to(device), recipe.mixed[name], False))
        record[f"mixed {name}"] = {"tiles": len(mixed_tiles), **asdict(mixed_record)}
    if recipe.procedural:
        size = photograph_record.size
        generated = torch.from_numpy(procedural_tiles(GENERATED, size, recipe.seed))
        sources.append(Source(generated.to(device), recipe.procedural, False))
        record["generated"] = GENERATED
    return TrainingData(sources, record)


def _cubic(d: Tensor) -> Tensor:
    """Keys' cubic kernel (a = -1/2) at distances d >= 0."""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _whole(uniform: Tensor, count: Tensor) -> Tensor:
    """Convert uniform draws in [0, 1) to whole numbers below a count."""
    return torch.minimum((uniform * count).long(), count - 1)
