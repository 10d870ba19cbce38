"""Random crops of tiles that lie on the device: downscaled, flipped, transposed, with grain.

Draws use torch's generator of the device, which the caller seeds for each step: a crop is a
function of (seed, step), on the CPU, in eager CUDA and in a replayed CUDA graph. Nothing here looks
at a value on the host, so a graph can hold it: a crop that is downscaled and one that is not go
through the same two products with a matrix of filter taps, of the identity in the second case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.errors import BadParameter
from service.train.world import World

GRAIN_MAX = 2.5 / 255
"""Largest standard deviation of the grain."""

SMALLEST = 0.5
"""Smallest scale that crops are reduced to."""


@dataclass(frozen=True, eq=False)
class Source:
    """Tiles of one kind.

    Attributes:
        tiles: [N, S, S, 3] uint8, on the device. share: of the crops that are drawn from it.
        photographs: whether grain suits it.
    """

    tiles: Tensor
    share: float
    photographs: bool


class Sampler:
    """Draws batches of crops from tiles."""

    def __init__(
        self,
        sources: Sequence[Source],
        crop: int,
        groups: int,
        per_group: int,
        downscaled: float = 0.0,
        grain: float = 0.0,
        world: World | None = None,
    ) -> None:
        """Draw from tiles.

        Args:
            sources: all with tiles of one size, at least the crop's.
            crop: side in pixels, a multiple of 64.
            groups: of a batch. per_group: crops of each, over all processes.
            downscaled: share of the crops that are reduced in size.
            grain: share of the photographs' crops that grain is added to.
            world: the processes that share the batch.

        Raises:
            BadParameter: the crop does not fit, or processes cannot share a group.
        """
        sides = {source.tiles.shape[1] for source in sources}
        side = min(sides)
        if len(sides) > 1:
            raise BadParameter(f"tiles are of sides {sorted(sides)}, expected one size")
        if crop % 64 or not 64 <= crop <= side:
            raise BadParameter(
                f"crops are {crop} pixels wide, expected a multiple of 64 up to the tiles' {side}"
            )
        self._world = world or World()
        self._world.share(per_group)
        self._side, self._crop, self._groups = side, crop, groups
        self._batch = groups * per_group
        self._downscaled, self._grain = downscaled, grain
        device = sources[0].tiles.device
        counts = torch.tensor([len(s.tiles) for s in sources])
        shares = torch.tensor([s.share for s in sources], dtype=torch.float64)
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._bounds = (shares.cumsum(0) / shares.sum())[:-1].float().to(device)
        self._photographs = torch.tensor([s.photographs for s in sources], device=device)
        tiles = [s.tiles.reshape(-1, 3) for s in sources]
        self._pixels = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        self._reach = crop if not downscaled else min(side, int(crop / SMALLEST))
        self._make = self._crops
        self._line = torch.arange(crop, device=device)
        self._wide = torch.arange(self._reach, device=device)

    def compile(self) -> None:
        """Have what comes after the draws compiled when it is first called."""
        self._make = torch.compile(self._crops, dynamic=False)

    def draw(self) -> Tensor:
        """This process's crops, group by group: [groups · n, crop, crop, 3] float32 in [0, 1]."""
        device, crop = self._pixels.device, self._crop
        uniform = torch.rand(11, self._batch, device=device)
        if not self._grain:
            return self._make(uniform, None)
        noise = torch.randn(self._batch, crop, crop, 3, device=device)
        return self._make(uniform, self._part(noise))

    def _crops(self, uniform: Tensor, noise: Tensor | None) -> Tensor:
        """Crops from uniform draws [11, batch] of the whole batch, and noise for their grain."""
        flips = uniform[:2] < 0.5
        transpose = uniform[2] < 0.5
        source = torch.bucketize(uniform[3], self._bounds, right=True)
        tile = self._starts[source] + _whole(uniform[4], self._counts[source])
        scale = 1 / (SMALLEST + (1 - SMALLEST) * uniform[5])
        scale = torch.where(uniform[6] < self._downscaled, scale, torch.ones_like(scale))
        scale = scale.clamp_max(self._reach / self._crop)
        room = self._side - (scale * self._crop).ceil().long() + 1
        top, left = _whole(uniform[7], room), _whole(uniform[8], room)
        mine = [self._part(t) for t in (tile, top, left, scale, transpose, *flips.unbind())]
        x = self._resampled(*mine)
        if noise is not None:
            grainy = (uniform[9] < self._grain) & self._photographs[source]
            deviation = torch.where(grainy, GRAIN_MAX * uniform[10], torch.zeros_like(scale))
            x = x + noise * self._part(deviation)[:, None, None, None]
        return (x * 255).round().clamp(0, 255) / 255

    def _part(self, whole: Tensor) -> Tensor:
        return self._world.part(whole, self._groups)

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
        """Windows of tiles, reduced by `scale` (1 to 2), [n, crop, crop, 3] in [0, 1]."""
        last, side = self._side - 1, self._side
        rows = (top[:, None] + self._wide).clamp_max(last)
        columns = (left[:, None] + self._wide).clamp_max(last)
        swap = transpose[:, None, None]
        row = torch.where(swap, rows[:, None], rows[:, :, None])
        column = torch.where(swap, columns[:, :, None], columns[:, None])
        window = self._pixels[(tile[:, None, None] * side + row) * side + column]
        window = window.float()
        down, along = self._taps(scale, flip_y) / 255, self._taps(scale, flip_x)
        reach, crop = self._reach, self._crop
        x = torch.bmm(down, window.reshape(-1, reach, reach * 3)).reshape(-1, crop, reach, 3)
        x = torch.bmm(along, x.transpose(1, 2).reshape(-1, reach, crop * 3))
        return x.reshape(-1, crop, crop, 3).transpose(1, 2)

    def _taps(self, scale: Tensor, flip: Tensor) -> Tensor:
        """Bicubic filters, as wide as the reduction: [n, crop, reach], rows that sum to 1."""
        place = torch.where(flip[:, None], self._crop - 1 - self._line, self._line)
        s = scale[:, None, None]
        centre = (place[:, :, None] + 0.5) * s - 0.5
        taps = _cubic(((self._wide - centre) / s).abs())
        taps = torch.where(self._wide < self._crop * s, taps, torch.zeros_like(taps))
        return taps / taps.sum(-1, keepdim=True)


def _cubic(d: Tensor) -> Tensor:
    """Keys' cubic kernel (a = -1/2) at distances d >= 0."""
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _whole(uniform: Tensor, count: Tensor) -> Tensor:
    """Uniform in [0, 1) -> whole numbers below a count."""
    return torch.minimum((uniform * count).long(), count - 1)
