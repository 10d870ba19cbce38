"""Fitting a latent stream to one picture: grids and small networks for an autoencoder's latents.

The loss is R + lmbda·D: the bits of the grids by the autoregressive network and about those of the
networks, and the error of the latents as the decoder would show it, or that of decoded pixels
(`LatentTask.distortion`). For the first, D is the sum of e' M e over positions, with e the error of
a latent [C] and M [C, C] the mean of J'J, where J has the derivatives of all pixels by the latent,
multiplied by a measured ratio (`measure_sensitivity`). This takes no pass of the decoder in a step.

As in adaptation.py, a stream is judged by measurement: halfway and at the end all is rounded,
coded by the exact path, decoded, and kept if R + lmbda·D over real bytes and real 8-bit pixels is
the lowest so far. Each tensor of the networks is sent at the step that pays, or not at all.

Pictures larger than a tile are worked on tile by tile, in turn, so a step's memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.adapt import plan
from service.adapt.checkpoint import (
    DAMAGED,
    MOMENTS,
    AdaptationState,
    Checkpoint,
    damaged,
    read_checkpoint,
    write_checkpoint,
)
from service.adapt.latent_networks import (
    LatentNetworksTorch,
    UsedGrids,
    pyramid,
    rounded,
)
from service.adapt.latent_start import (
    lmbda_of_quality,
    measure_sensitivity,
    starting_networks,
    used_grids,
    weighted_inverse,
)
from service.adapt.plan import decayed
from service.adapt.task import Adaptation, digest_of
from service.autoencoders.interfaces import (
    Autoencoder,
    DifferentiableAutoencoder,
    encode_picture,
    paint,
)
from service.codec import alpha, container
from service.codec.entropy_model import SYMBOL_MAX
from service.codec.overfit import (
    PARAMETER_STEPS,
    TENSORS,
    VALUE_MAX,
    FittedLatents,
    LatentNetworks,
    best_level,
    decode_fitted,
    encode_latents,
    level_shapes,
    quantised_difference,
    synthesise,
)
from service.codec.tiles import Box
from service.errors import CheckFailed, MissingExtra
from service.picture import Picture, squared_error

GRID_LR: Final = 0.03
NETWORK_LR: Final = 0.003
"""Learning rates of Adam, at the start."""
MAX_FITTED: Final = 1024
"""Largest number of weights of a tensor that is fitted. Larger ones, of autoencoders with hundreds
of channels, would take more bytes than they save."""
FINE: Final = 16.0
"""Weights change by multiples of about 1 / FINE; their bits are counted so."""

TILE: Final = 128
"""Latents along the side of a tile: a multiple of every pyramid level's cell."""
MAX_PIXELS: Final = 2**18
"""Most pixels that a step decodes."""

STEPS: Final[Mapping[int, int]] = dict(enumerate(plan.STEPS))
"""Steps by effort, as of the other adaptations."""

Distortion = Literal["latents", "pixels"]


@dataclass(frozen=True)
class LatentTask:
    """A picture to fit a latent stream to, and how.

    Attributes:
        picture: to fit to. quality16: in sixteenths, from 1 to 8.
        steps: for each tile. seed: of the random numbers.
        max_seconds: the fit is shortened to about that long; results then depend on the machine's
            speed. None sets no limit.
        distortion: how the error is measured in a step.
    """

    picture: Picture
    quality16: int
    steps: int
    seed: int = 0
    max_seconds: float | None = None
    distortion: Distortion = "latents"

    @property
    def lmbda(self) -> float:
        """Weight of the error in the loss, in bits per pixel and squared 8-bit step."""
        return lmbda_of_quality(self.quality16)

    @property
    def pixels(self) -> int:
        """Pixels of the picture."""
        return self.picture.width * self.picture.height

    def digest(self, identity: bytes) -> str:
        """SHA-256 in hex of all that a checkpoint must agree with, and of the autoencoder's."""
        p = self.picture
        values = ["latent", p.width, p.height, p.grey, self.quality16, self.seed, self.steps]
        return digest_of(identity, (values, self.distortion), p)


@dataclass(frozen=True, eq=False)
class FitTile:
    """Part of a picture's latents while it is fitted.

    Attributes:
        box: in latents of the whole picture.
        target: [rows, columns, C], latents of the autoencoder.
        grids: of each level, [1, used grids, rows, columns], in steps, not rounded.
    """

    box: Box
    target: Tensor
    grids: tuple[Tensor, ...]


class LatentAdaptation(Adaptation):
    """A fit in progress."""

    def __init__(
        self, autoencoder: Autoencoder, task: LatentTask, checkpoint: bytes | None = None
    ) -> None:
        """Encode the picture and code its latents plainly, or go on from a checkpoint.

        Args:
            autoencoder: which can encode and has gradients. task: what to do.
            checkpoint: from `checkpoint()` of the same task.

        Raises:
            BadParameter: the checkpoint is damaged or of another task.
            MissingExtra: the autoencoder has no gradients, because torch is not installed.
        """
        super().__init__(task.pixels)
        self._autoencoder = differentiable(autoencoder)
        self._task = task
        self._digest = task.digest(autoencoder.identity)
        saved = None if checkpoint is None else read_checkpoint(checkpoint, self._digest)
        target = torch.from_numpy(encode_picture(autoencoder, task.picture))
        self._rows, self._columns = target.shape[:2]
        self._sensitivity = measure_sensitivity(
            self._autoencoder, target, task.quality16, task.seed
        )
        self._start = starting_networks(
            autoencoder.networks, target, self._sensitivity, task.quality16
        )
        self._networks = LatentNetworksTorch(self._start)
        self._fitted_names = [
            name
            for name, tensor in autoencoder.networks.tensors.items()
            if name != "gain" and tensor.size <= MAX_FITTED
        ]
        self._defaults = {
            name: torch.from_numpy(autoencoder.networks.weight(name)) for name in TENSORS
        }
        self._tiles, self._used = self._first_tiles(target)
        variables = [grid for tile in self._tiles for grid in tile.grids]
        weights = [self._networks.weight(name) for name in self._fitted_names]
        for name in TENSORS:
            if name != "gain":
                self._networks.weight(name).requires_grad_(name in self._fitted_names)
        groups = [{"params": variables, "lr": GRID_LR}, {"params": weights, "lr": NETWORK_LR}]
        self._adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self._peaks = [group["lr"] for group in self._adam.param_groups]
        self._state = AdaptationState()
        if saved is None:
            self._begin()
        else:
            self._resume(saved)

    def checkpoint(self) -> bytes:
        """Everything that is needed to go on, as safetensors."""
        return write_checkpoint(
            self._digest, self._state, self._best, self._variables(), self._adam, with_update=False
        )

    @property
    def _phase(self) -> str:
        return "latents"

    @property
    def _planned(self) -> int:
        return self._task.steps * len(self._tiles)

    def _first_tiles(self, target: Tensor) -> tuple[list[FitTile], UsedGrids]:
        """A pyramid of grids that makes the latents as well as it can."""
        networks, levels = self._networks, self._start.levels
        skip = networks.weight("syn.skip").detach()[:, : levels[0]]
        projection = weighted_inverse(skip, self._sensitivity)
        features = (target - networks.weight("syn.b2").detach()) @ projection.T
        taps = networks.weight("up").detach()
        whole_grids = pyramid(features.permute(2, 0, 1)[None], levels, networks.gain, taps)
        used = used_grids(whole_grids, levels)
        whole = Box(0, 0, self._rows, self._columns)
        boxes = [
            Box(top, left, top + TILE, left + TILE).cut(whole)
            for top in range(0, self._rows, TILE)
            for left in range(0, self._columns, TILE)
        ]
        tiles = [
            FitTile(box, target[box.slices].contiguous(), self._part(whole_grids, used, box))
            for box in boxes
        ]
        return tiles, used

    def _part(self, grids: Sequence[Tensor], used: UsedGrids, box: Box) -> tuple[Tensor, ...]:
        """The used grids in a box of latents, as variables."""
        levels, parts = self._start.levels, []
        shapes = level_shapes(levels, box.height, box.width)
        for level, (grid, (rows, columns)) in enumerate(zip(grids, shapes, strict=True)):
            top, left, first = box.top >> level, box.left >> level, sum(levels[:level])
            own = [place - first for place in used.levels[level]]
            part = grid[:, own, top : top + rows, left : left + columns]
            parts.append(part.clamp(-VALUE_MAX, VALUE_MAX).clone().requires_grad_())
        return tuple(parts)

    def _begin(self) -> None:
        s = self._state
        data, psnr_db, loss = self._measure(self._networks_as_sent(self._start))
        self._best, s.bytes_before = data, len(data)
        s.psnr_before = s.psnr_best = psnr_db
        s.first_loss = s.loss_best = loss
        s.done = self._planned == 0

    def _resume(self, saved: Checkpoint) -> None:
        self._state, self._best = saved.state, saved.best
        try:
            for name, tensor in self._variables().items():
                with torch.no_grad():
                    tensor.copy_(saved.tensors[name])
                if name in saved.moments:
                    moments: dict[str, Any] = {m: saved.moments[name][m] for m in MOMENTS}
                    self._adam.state[tensor] = moments
        except DAMAGED as error:
            raise damaged(error) from error

    def _variables(self) -> dict[str, Tensor]:
        """All that the optimiser moves, by name."""
        grids = {
            f"grid.{i}.{level}": grid
            for i, tile in enumerate(self._tiles)
            for level, grid in enumerate(tile.grids)
        }
        return grids | {name: self._networks.weight(name) for name in self._fitted_names}

    def _advance_one(self) -> None:
        """One step on one tile, and what is due after it."""
        s, task = self._state, self._task
        tile = self._tiles[s.step % len(self._tiles)]
        share = s.step / self._planned
        if task.max_seconds is not None:
            share = max(share, s.elapsed_s / task.max_seconds)
        generator = torch.Generator().manual_seed(1000003 * task.seed + s.step)
        grids = rounded(tile.grids, share, generator)
        loss = self._loss(tile, grids, generator) + self._network_bits() / task.pixels
        for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
            group["lr"] = peak * max(decayed(share), 0.05)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        s.step += 1
        if s.step == self._planned // 2:
            self._keep_if_best()
        if s.step >= self._planned or share >= 1:
            self._keep_if_best()
            s.done = True

    def _loss(
        self, tile: FitTile, grids: Sequence[Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """Bits of grids and lmbda times the error, per pixel of the tile's latents."""
        pixels = tile.box.area * self._autoencoder.cell**2
        bits = self._networks.bits(grids, self._used)
        latents = self._networks.latents(grids, self._used)
        if self._task.distortion == "pixels" and generator is not None:
            error = self._pixel_error(tile, latents, generator)
        else:
            difference = (latents[0] - tile.target).flatten(0, 1)
            error = ((difference @ self._sensitivity) * difference).sum() / (3 * pixels)
        return bits / pixels + self._task.lmbda * 255**2 * error

    def _pixel_error(self, tile: FitTile, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of pixels in [0, 1], in a random window of the tile if it is large."""
        cell, halo = self._autoencoder.cell, self._autoencoder.halo
        whole = Box(0, 0, tile.box.height, tile.box.width)
        side = int(math.isqrt(MAX_PIXELS)) // cell
        inner = whole
        if halo is not None and whole.area * cell**2 > MAX_PIXELS:
            top, left = (
                int(torch.randint(max(1, n - side + 1), (1,), generator=generator))
                for n in (whole.height, whole.width)
            )
            inner = Box(top, left, top + side, left + side).cut(whole)
        window = whole if halo is None else inner.grown(halo, whole)
        decoded = self._autoencoder.decode_tensor(latents[:, *window.slices])
        shown = decoded[0][inner.relative(window).scaled(cell).slices]
        place = Box(
            inner.top + tile.box.top,
            inner.left + tile.box.left,
            inner.bottom + tile.box.top,
            inner.right + tile.box.left,
        ).scaled(cell)
        picture = self._task.picture
        part = place.cut(Box(0, 0, picture.height, picture.width))
        rgb = picture.rgb[part.slices]
        if picture.alpha is not None:
            rgb = alpha.fill_hidden(rgb, picture.alpha[part.slices])
        original = torch.from_numpy(rgb.astype(np.float32) / 255)
        return (shown[: part.height, : part.width] - original).square().mean()

    def _network_bits(self) -> Tensor:
        """About the bits of all weights that differ from their defaults."""
        total = torch.zeros(())
        for name in self._fitted_names:
            change = (self._networks.weight(name) - self._defaults[name]).abs()
            total = total + torch.log2(1 + FINE * change).sum()
        return total

    def _keep_if_best(self) -> None:
        data, psnr_db, loss = self._measure(self._networks_as_sent(self._chosen_networks()))
        s = self._state
        if loss < s.loss_best:
            self._best, s.loss_best, s.psnr_best = data, loss, psnr_db

    @torch.no_grad()
    def _chosen_networks(self) -> LatentNetworks:
        """Each tensor at the step that pays, or as it is by default, one after the other."""
        floats, defaults = self._networks.integers(), self._autoencoder.networks.tensors
        backup = {name: self._networks.weight(name).clone() for name in self._fitted_names}
        whole = [
            (tile, [grid.round() for grid in tile.grids])
            for tile in self._tiles[:: max(1, len(self._tiles) // 2)]
        ]

        def cost(bits: float) -> float:
            losses = [float(self._loss(tile, grids, None)) for tile, grids in whole]
            return float(np.mean(losses)) + bits / self._task.pixels

        for name in self._fitted_names:
            candidates = [(0.0, defaults[name])]
            for exponent in range(PARAMETER_STEPS):
                symbols = quantised_difference(floats[name] - defaults[name], exponent)
                if symbols.any():
                    _, bits = best_level(symbols.reshape(-1))
                    candidates.append((bits, defaults[name] + symbols * 2 ** (2 + exponent)))
            costs = []
            for bits, tensor in candidates:
                self._networks.set_integers({name: tensor})
                costs.append(cost(bits))
            self._networks.set_integers({name: candidates[int(np.argmin(costs))][1]})
        chosen = self._networks.rounded(self._start.levels)
        for name, value in backup.items():
            self._networks.weight(name).copy_(value)
        return chosen

    def _networks_as_sent(self, networks: LatentNetworks) -> LatentNetworks:
        """Networks whose differences from the default ones are those that a stream can hold."""
        tensors = dict(networks.tensors)
        for name, default in self._autoencoder.networks.tensors.items():
            if name != "gain":
                difference = tensors[name].astype(np.int64) - default
                exponent = 0
                while exponent < PARAMETER_STEPS - 1 and not fits(difference, exponent):
                    exponent += 1
                step = 2 ** (2 + exponent)
                whole = quantised_difference(difference.astype(np.float64), exponent) * step
                tensors[name] = (default + whole).astype(np.int32)
        return LatentNetworks(networks.levels, tensors)

    def _values(self) -> tuple[np.ndarray | None, ...]:
        """The rounded grids of the whole picture."""
        shapes = level_shapes(self._start.levels, self._rows, self._columns)
        values: list[np.ndarray | None] = [None] * self._start.grids
        for level, (places, shape) in enumerate(zip(self._used.levels, shapes, strict=True)):
            whole = np.zeros((len(places), *shape), np.int32)
            for tile in self._tiles:
                grid = tile.grids[level].detach()[0].round().clamp(-VALUE_MAX, VALUE_MAX)
                top, left = tile.box.top >> level, tile.box.left >> level
                whole[:, top : top + grid.shape[1], left : left + grid.shape[2]] = grid.numpy()
            for place, value in zip(places, whole, strict=True):
                if value.any() or place == 0:
                    values[place] = value
        return tuple(values)

    def _measure(self, networks: LatentNetworks) -> tuple[bytes, float, float]:
        """A whole stream, its PSNR in dB, and R + lmbda·D over its bytes and pixels."""
        task, picture, autoencoder = self._task, self._task.picture, self._autoencoder
        fitted = FittedLatents(networks, self._values())
        payload = encode_latents(networks, autoencoder.networks, fitted.values)
        decoded = decode_fitted(payload, self._rows, self._columns, autoencoder.networks)
        for coded, back in zip(fitted.values, decoded.values, strict=True):
            if coded is None and back is None:
                continue
            if coded is None or back is None or not np.array_equal(coded, back):
                raise CheckFailed("the latent stream did not decode to the grids that were coded")
        latents = synthesise(decoded, self._rows, self._columns)
        data = container.write_stream(latent_stream(autoencoder, task, payload))
        box = Box(0, 0, picture.height, picture.width)
        rgb = paint(autoencoder, latents, box, picture.grey)
        squared = squared_error(rgb, picture.rgb, picture.alpha)
        bpp = 8 * len(data) / task.pixels
        loss = bpp + task.lmbda * squared / picture.rgb.size
        return data, picture.psnr_db(squared), loss


def fits(difference: NDArray[np.int64], exponent: int) -> bool:
    """Whether the symbols of a tensor's difference are in range at a step."""
    largest = int(np.abs(difference).max())
    return largest <= SYMBOL_MAX << (2 + exponent)


def differentiable(autoencoder: Autoencoder) -> DifferentiableAutoencoder:
    """The same autoencoder. Raises MissingExtra: its decoder has no gradients here."""
    if not hasattr(autoencoder, "decode_tensor"):
        raise MissingExtra("fitting needs torch: pip install 'rankpress[server]'")
    return cast(DifferentiableAutoencoder, autoencoder)


def latent_stream(autoencoder: Autoencoder, task: LatentTask, payload: bytes) -> container.Stream:
    """The stream of a fitted picture."""
    picture = task.picture
    flags = container.Flags.GREY * picture.grey
    header = container.Header(
        autoencoder.identity[: container.MODEL_BYTES],
        task.quality16,
        flags,
        picture.width,
        picture.height,
    )
    packed = None if picture.alpha is None else alpha.pack(picture.alpha)
    return container.Stream(header, (), packed, picture.icc, picture.exif, overfit=payload)
