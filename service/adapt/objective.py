"""What adapting to one picture minimises, in floats that gradients flow through: R + lmbda·D.

The picture is seen tile by tile. A tile's window reaches into its neighbours, whose latents are
taken as they were last coded: `canvas` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from service.adapt.decoder import DecoderUpdate
from service.adapt.latents import RateModel, annealed
from service.adapt.synthesis import updatable
from service.codec.tiles import PATCH, Box, latent_box, tiles
from service.picture import Picture
from service.runtime.pipeline import Analysis, LoadedModel, pixels_under
from service.runtime.synthesis_torch import place_of

PRUNE_TILES = 2
"""Tiles that gates are decided on."""


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile's place, the window that g_s needs for it, and its variables.

    Attributes:
        y: [h, w, M], z: [h', w', Cz]: latents in `units`, [M] and [Cz].
    """

    box: Box
    window: Box
    y: Tensor
    z: Tensor
    units: tuple[Tensor, Tensor]

    @property
    def latents(self) -> tuple[Tensor, Tensor]:
        """y and z as the coder takes them."""
        return self.y * self.units[0], self.z * self.units[1]


class Objective:
    """The picture's tiles, and the loss of each.

    Attributes:
        tiles: in storing order. canvas: [h, w, M], what windows see of other tiles.
        weights: of g_s by their names inside it, where there is no update; others are the model's.
    """

    def __init__(self, model: LoadedModel, picture: Picture, lmbda: float) -> None:
        """Analyse the picture; the canvas is zero until someone fills it.

        Args:
            model: merged for the rate, with analysis. lmbda: of the rate.
        """
        assert model.analysis is not None
        self._picture, self._lmbda = picture, lmbda
        self._device, self._dtype = place_of(model.analysis)
        self._rate = RateModel(model.stored, self._device, self._dtype)
        self._g_s = updatable(model.stored.sizes, self._rate.net.g_s, self._dtype)
        box = latent_box(picture.width, picture.height)
        halo = model.stored.sizes.halo
        units = _powers(self._rate.y_step), _powers(self._rate.z_step)
        plain = partial(_tile, model.analysis, picture, units)
        self.tiles = [plain(t, t.grown(halo, box)) for t in tiles(box)]
        self.canvas = torch.zeros(box.height, box.width, model.stored.sizes.M, device=self._device)
        self.weights: dict[str, Tensor] = {}

    def loss(
        self,
        tile: Tile,
        update: DecoderUpdate | None,
        tau: float | None,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """R and lmbda·D per pixel: of a tile, and of the whole update.

        Args:
            update: of g_s, None without one. tau: of the annealing; None leaves latents alone.
            generator: of what is drawn.
        """
        pixels = self._pixels([tile])
        rate = torch.zeros((), device=self._device)
        y_hat = self.canvas[tile.window.slices]
        if tau is not None:
            coded = self._rate.code(*tile.latents, annealed(tau, generator))
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
        """lmbda·D in bits of the whole picture, from a tile or two."""
        chosen = self.tiles[:: max(1, len(self.tiles) // PRUNE_TILES)][:PRUNE_TILES]
        error = sum(
            float(self._squared_error(t, self.canvas[t.window.slices], update)) for t in chosen
        )
        whole = self._picture.width * self._picture.height
        return self._lmbda * error / (3 * self._pixels(chosen)) * whole

    def _inside(self, tile: Tile) -> Box:
        """The tile's pixels that the picture has."""
        return tile.box.scaled(PATCH).cut(Box(0, 0, self._picture.height, self._picture.width))

    def _pixels(self, chosen: list[Tile]) -> int:
        return sum(self._inside(t).height * self._inside(t).width for t in chosen)

    def _squared_error(self, tile: Tile, y_hat: Tensor, update: DecoderUpdate | None) -> Tensor:
        """Sum of squared errors over a tile's samples, in 8-bit steps, weighted as they are seen.
        """
        weights = self.weights if update is None else update.parameters()
        changed = {name: tensor.to(self._dtype) for name, tensor in weights.items()}
        y_hat = y_hat[None].to(self._dtype)
        x_hat: Tensor = torch.func.functional_call(self._g_s, changed, (y_hat,))[0]
        inside = self._inside(tile)
        x_hat = x_hat[inside.relative(tile.window.scaled(PATCH)).slices].float() + 0.5
        x_hat = x_hat.clamp(0, 1)  # as decoders do: what is beyond white is no error
        if self._picture.grey:
            x_hat = x_hat.mean(-1, keepdim=True)
        rgb = torch.from_numpy(self._picture.rgb[inside.slices].copy()).to(self._device)
        error = x_hat * 255 - rgb
        if self._picture.alpha is not None:  # as picture.squared_error does
            alpha = torch.from_numpy(self._picture.alpha[inside.slices].copy()).to(self._device)
            error = error * (alpha[..., None] / 255)
        return error.square().sum()


def _powers(steps: Tensor) -> Tensor:
    """The nearest powers of two: units that Adam's steps suit at every rate, and exact."""
    return steps.log2().round().exp2()


def _tile(
    analysis: Analysis, picture: Picture, units: tuple[Tensor, Tensor], box: Box, window: Box
) -> Tile:
    """A tile with its plain latents."""
    seen = analysis.analyse(pixels_under(picture, window))
    y = seen[box.relative(window).slices]
    z = analysis.hyper_analyse(y[None])[0]
    y_t, z_t = (
        torch.from_numpy(v.copy()).to(unit.device) / unit
        for v, unit in zip((y, z), units, strict=True)
    )
    return Tile(box, window, y_t.requires_grad_(), z_t.requires_grad_(), units)
