"""Pictures <-> streams with one loaded model, tile by tile.

Memory beyond the picture, its latents (int16) and the stream is bounded by one tile's window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec import alpha, container
from service.codec.latents import LatentCoder
from service.codec.tiles import PATCH, Box, hyper_shape, latent_box, tiles
from service.errors import MissingExtra
from service.picture import U8, Picture
from service.store import StoredModel


class Synthesis(Protocol):
    """g_s of one model."""

    def synthesise(self, y_hat: NDArray[np.int16]) -> U8:
        """y_hat [h, w, M] in units of 2^-Y_FRAC -> pixels [16h, 16w, 3]."""
        ...


class Analysis(Protocol):
    """g_a and h_a of one model."""

    def analyse(self, pixels: U8) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        ...

    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]."""
        ...


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run; `analysis` is None where only decoding is installed."""

    stored: StoredModel
    coder: LatentCoder
    synthesis: Synthesis
    analysis: Analysis | None
    build: Callable[[StoredModel], LoadedModel] | None = None
    """Makes the same model ready at another rate; None when only this one is wanted."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Decoded latents of part of a picture.

    Attributes:
        box: which latents. y_hat: [box.height, box.width, M] int16.
    """

    box: Box
    y_hat: NDArray[np.int16]
    code_s: float


def encode(model: LoadedModel, picture: Picture, rate16: int) -> tuple[bytes, Latents]:
    """Analyse and code tile by tile; returns the stream and the latents it holds."""
    if model.analysis is None:
        raise MissingExtra("compressing needs torch: pip install 'rankpress[server]'")
    box = latent_box(picture.width, picture.height)
    sizes = model.stored.sizes
    y_hat = np.empty((box.height, box.width, sizes.M), np.int16)
    coded, code_s = [], 0.0
    for tile in tiles(box):
        window = tile.grown(sizes.halo, box)
        y = model.analysis.analyse(_pixels(picture.rgb, window))[tile.relative(window).slices]
        z = model.analysis.hyper_analyse(y[None])
        assert z.shape[1:3] == hyper_shape(tile)
        result = model.coder.encode(y[None], z)
        y_hat[tile.slices] = result.y_hat[0]
        coded.append(result.data[0])
        code_s += result.code_s
    flags = container.Flags.GREY if picture.grey else 0
    stream = container.Stream(
        container.Header(model.stored.identity[:4], rate16, flags, picture.width, picture.height),
        tuple(coded),
        None if picture.alpha is None else alpha.pack(picture.alpha),
        picture.icc,
        picture.exif,
    )
    return container.write_stream(stream), Latents(box, y_hat, code_s)


def _pixels(rgb: U8, window: Box) -> U8:
    """The pixels under a window of latents; edge pixels are repeated beyond the picture."""
    height, width, _ = rgb.shape
    px = window.scaled(PATCH)
    inside = rgb[px.cut(Box(0, 0, height, width)).slices]
    pad = (px.height - inside.shape[0], px.width - inside.shape[1])
    if pad == (0, 0):
        return inside.copy()  # torch wants arrays that it could write to
    return np.pad(inside, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")


def decode_latents(model: LoadedModel, stream: container.Stream, want: Box) -> Latents:
    """Decode the tiles that the pixels of `want` depend on."""
    header, sizes = stream.header, model.stored.sizes
    box = latent_box(header.width, header.height)
    need = _latents_of(want).grown(sizes.halo, box)
    chosen = [
        (tile, data)
        for tile, data in zip(tiles(box), stream.tiles, strict=True)
        if not tile.cut(need).empty
    ]
    cover = Box(chosen[0][0].top, chosen[0][0].left, chosen[-1][0].bottom, chosen[-1][0].right)
    y_hat: NDArray[np.int16] | None = None
    code_s = 0.0
    for tile, data in chosen:
        decoded = model.coder.decode([data], tile)
        if y_hat is None:  # allocated only once the first tile proved sound
            y_hat = np.empty((cover.height, cover.width, sizes.M), np.int16)
        y_hat[tile.relative(cover).slices] = decoded.y_hat[0]
        code_s += decoded.code_s
    assert y_hat is not None
    return Latents(cover, y_hat, code_s)


def paint(model: LoadedModel, latents: Latents, want: Box, grey: bool) -> U8:
    """The pixels of `want`, [want.height, want.width, 3]."""
    out = np.empty((want.height, want.width, 3), np.uint8)
    for box, rgb in painted_tiles(model, latents, want, grey):
        out[box.relative(want).slices] = rgb
    return out


def painted_tiles(
    model: LoadedModel, latents: Latents, want: Box, grey: bool
) -> Iterator[tuple[Box, U8]]:
    """Synthesise window by window; yields the part of `want` in each tile and its pixels."""
    halo = model.stored.sizes.halo
    for tile in tiles(latents.box):
        inner = tile.cut(_latents_of(want))
        if inner.empty:
            continue
        window = inner.grown(halo, latents.box)
        rgb = model.synthesis.synthesise(latents.y_hat[window.relative(latents.box).slices])
        box = inner.scaled(PATCH).cut(want)
        rgb = rgb[box.relative(window.scaled(PATCH)).slices]
        if grey:
            mean = (rgb.sum(-1, dtype=np.uint16, keepdims=True) + 1) // 3
            rgb = np.broadcast_to(mean.astype(np.uint8), rgb.shape)
        yield box, rgb


def _latents_of(want: Box) -> Box:
    """The latents under a box of pixels."""
    return Box(
        want.top // PATCH, want.left // PATCH, -(-want.bottom // PATCH), -(-want.right // PATCH)
    )


def alpha_plane(stream: container.Stream, want: Box) -> U8 | None:
    if stream.alpha is None:
        return None
    plane = alpha.unpack(stream.alpha, stream.header.height, stream.header.width)
    return plane[want.slices]
