"""The loss of an adaptation, R + lmbda·D, in floats that gradients flow through.

It is computed tile by tile. A tile's window reaches into its neighbours, whose latents are taken
from `canvas`, as they were last coded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from service.adapt.decoder_update import DecoderUpdate
from service.adapt.latents import RateModel, annealed
from service.adapt.synthesis import updatable
from service.codec.graphics import Mask, beneath, hide
from service.codec.sizes import conv_sizes
from service.codec.tiles import PATCH, Box, latent_box, tiles
from service.picture import U8, Picture
from service.runtime.pipeline import LoadedModel, pixels_under
from service.transforms.interfaces import AnalysisTransform
from service.transforms.synthesis_torch import device_and_dtype

PRUNE_TILES = 2
"""Tiles that pruning measures the distortion on, at most."""


@dataclass(frozen=True, eq=False)
class LatentTile:
    """One tile: its box, the window of latents that g_s needs for it, and its variables.

    Attributes:
        y: [h, w, M] latents in units of units[0], [M].
        z: [ceil(h/4), ceil(w/4), Cz] hyper-latents in units of units[1], [Cz].
        skipped: [h, w] bool, positions under the graphics layer; None without one.
    """

    box: Box
    window: Box
    y: Tensor
    z: Tensor
    units: tuple[Tensor, Tensor]
    skipped: Tensor | None

    @property
    def latents(self) -> tuple[Tensor, Tensor]:
        """y and z in the coder's unit."""
        return self.y * self.units[0], self.z * self.units[1]


class Objective:
    """The picture's tiles in storing order, and the loss of each.

    Attributes:
        canvas: [h, w, M] latents of the whole picture, from which windows take other tiles.
        weights: of g_s, by their names inside it, used in place of the model's without an update.
    """

    def __init__(
        self,
        model: LoadedModel,
        picture: Picture,
        lmbda: float,
        marked: Mask | None = None,
        under: U8 | None = None,
    ) -> None:
        """Analyse a picture; the canvas is zero until the caller fills it.

        Args:
            marked: [h, w], blocks that a graphics layer holds: no bits and no error count there.
            under: see `codec.graphics.beneath`.
        """
        assert model.analysis is not None
        self._picture = picture if marked is None else hide(picture, marked)
        self._lmbda = lmbda
        self._device, self._dtype = device_and_dtype(model.analysis)
        self._rate = RateModel(model.stored, self._device, self._dtype)
        self._g_s = updatable(conv_sizes(model.stored.sizes), self._rate.net.g_s, self._dtype)
        box = latent_box(picture.width, picture.height)
        units = _powers(self._rate.y_step), _powers(self._rate.z_step)
        analysed = picture if marked is None else beneath(picture, marked, under)
        plain = partial(_tile, model.analysis, analysed, marked, units)
        self.tiles = [plain(t, model.stored.sizes.read_by(t, box)) for t in tiles(box)]
        self.canvas = torch.zeros(box.height, box.width, model.stored.sizes.M, device=self._device)
        self.weights: dict[str, Tensor] = {}

    def loss(
        self,
        tile: LatentTile,
        update: DecoderUpdate | None,
        tau: float | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """R and lmbda·D of a tile in bits per pixel, both scalars.

        Args:
            update: of g_s, all of whose bits count; None without one.
            tau: temperature of the annealing; None takes the latents from the canvas, at no bits.
        """
        pixels = self._pixels([tile])
        rate = torch.zeros((), device=self._device)
        y_hat = self.canvas[tile.window.slices]
        if tau is not None:
            relax = annealed(tau, generator)
            coded = self._rate.code(*tile.latents, relax, tile.skipped)
            rate = coded.bits / pixels
            y_hat = y_hat.clone()
            y_hat[tile.box.relative(tile.window).slices] = coded.y_hat
            self.canvas[tile.box.slices] = coded.y_hat.detach()
        if update is not None:
            rate = rate + update.bits(generator) / (self._picture.width * self._picture.height)
        error = self._squared_error(tile, y_hat, update)
        return rate, self._lmbda * error / (3 * pixels)

    @torch.no_grad()
    def distortion(self, update: DecoderUpdate | None) -> float:
        """lmbda·D in bits of the whole picture, estimated from PRUNE_TILES tiles."""
        chosen = self.tiles[:: max(1, len(self.tiles) // PRUNE_TILES)][:PRUNE_TILES]
        error = sum(
            float(self._squared_error(t, self.canvas[t.window.slices], update)) for t in chosen
        )
        whole = self._picture.width * self._picture.height
        return self._lmbda * error / (3 * self._pixels(chosen)) * whole

    def _inside(self, tile: LatentTile) -> Box:
        """The tile's pixels that lie in the picture."""
        return tile.box.scaled(PATCH).cut(Box(0, 0, self._picture.height, self._picture.width))

    def _pixels(self, chosen: list[LatentTile]) -> int:
        return sum(self._inside(t).height * self._inside(t).width for t in chosen)

    def _squared_error(
        self, tile: LatentTile, y_hat: Tensor, update: DecoderUpdate | None
    ) -> Tensor:
        """Sum of squared errors of a tile's samples in 8-bit steps, weighted by alpha."""
        weights = self.weights if update is None else update.parameters()
        changed = {name: tensor.to(self._dtype) for name, tensor in weights.items()}
        y_hat = y_hat[None].to(self._dtype)
        x_hat: Tensor = torch.func.functional_call(self._g_s, changed, (y_hat,))[0]
        inside = self._inside(tile)
        x_hat = x_hat[inside.relative(tile.window.scaled(PATCH)).slices].float() + 0.5
        x_hat = x_hat.clamp(0, 1)  # as decoders do: values beyond white are no error
        if self._picture.grey:
            x_hat = x_hat.mean(-1, keepdim=True)
        rgb = torch.from_numpy(self._picture.rgb[inside.slices].copy()).to(self._device)
        error = x_hat * 255 - rgb
        if self._picture.alpha is not None:  # as picture.squared_error does
            alpha = torch.from_numpy(self._picture.alpha[inside.slices].copy()).to(self._device)
            error = error * (alpha[..., None] / 255)
        return error.square().sum()


def _powers(steps: Tensor) -> Tensor:
    """The nearest powers of two: exact units, in which one learning rate suits all rates."""
    return steps.log2().round().exp2()


def _tile(
    analysis: AnalysisTransform,
    picture: Picture,
    marked: Mask | None,
    units: tuple[Tensor, Tensor],
    box: Box,
    window: Box,
) -> LatentTile:
    """A tile with the latents that analysis gives."""
    analysed = analysis.analyse(pixels_under(picture, window))
    y = analysed[box.relative(window).slices]
    z = analysis.hyper_analyse(y[None])[0]
    y_t, z_t = (
        torch.from_numpy(v.copy()).to(unit.device) / unit
        for v, unit in zip((y, z), units, strict=True)
    )
    skipped = None
    if marked is not None:
        skipped = torch.from_numpy(marked[box.slices].copy()).to(y_t.device)
    return LatentTile(box, window, y_t.requires_grad_(), z_t.requires_grad_(), units, skipped)
