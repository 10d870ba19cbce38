"""Pictures to streams and back with one loaded model, tile by tile.

Memory beyond the pictures, their latents (int16) and streams is bounded by that of one window, and
by `tiles_at_once` tiles of each picture where several are coded together. The entropy networks
take such pictures as a batch: they are exact, so no picture's stream depends on the others. The
transforms take one picture at a time: their sums are rounded, a product of another size may be
summed in another order, and a latent close to a rounding threshold would then become another
symbol. (Measured in bfloat16 and float32 on a CPU: batches of 2 and 4 change latents of pictures of
many sizes, and so their bytes.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.codec import alpha, container
from service.codec.graphics import GraphicsLayer, Mask, beneath
from service.codec.latents import CodedTiles, DecodedTiles, LatentCoder
from service.codec.lowrank import PARTS, Share, Update, merge_transforms
from service.codec.model_stream import read_update
from service.codec.tiles import (
    PATCH,
    Box,
    Pieces,
    hyper_shape,
    latent_box,
    latents_under,
    tiles,
    windows,
)
from service.errors import MissingExtra, UnsupportedStream
from service.picture import U8, Picture
from service.runtime.interruption import allow_interruption, map_tiles
from service.store.model import StoredModel, Tensors, layer_shapes
from service.transforms.interfaces import AnalysisTransform, SynthesisTransform
from service.transforms.synthesis_numpy import NumpyPreviews

PREVIEW_WINDOW = 32
"""Latents along the side of a window of the preview network, whose features stay in the cache."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run; `analysis` is None where it can only decode."""

    stored: StoredModel
    coder: LatentCoder
    synthesis: SynthesisTransform
    analysis: AnalysisTransform | None
    build: Callable[[StoredModel], LoadedModel] | None = None
    """Makes the same model ready at another rate; None where it has only this one."""
    build_synthesis: Callable[[StoredModel], SynthesisTransform] | None = None
    """Makes g_s alone ready, for a stream with an update of it."""
    tiles_at_once: int = 1
    """Tiles whose latents are coded at the same time, each in a thread of its own."""
    previews: NumpyPreviews | None = None
    """Makes small pictures without g_s; None where the model has no preview network."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Decoded latents of part of a picture.

    Attributes:
        box: of the latents. y_hat: [box.height, box.width, M] int16, in units of 2^-Y_FRAC.
        code_s: seconds of entropy coding, for all pictures of a batch together.
        bits: [box.height, box.width] float32, ideal code length of each position; None where they
            were decoded and it was not asked for.
    """

    box: Box
    y_hat: NDArray[np.int16]
    code_s: float
    bits: NDArray[np.float32] | None = None


def encode(
    model: LoadedModel,
    picture: Picture,
    rate16: int,
    tune: str = container.PSNR,
    layer: GraphicsLayer | None = None,
    under: U8 | None = None,
) -> tuple[bytes, Latents]:
    """Analyse and code a picture tile by tile; returns the stream and the latents that it holds.

    The model is merged for the rate; rate and tune are for the header only. Blocks that a layer
    marks are stored exactly; the networks see the colours of `under` there ([H, W, 3]), or, without
    it, smooth colours.

    Raises:
        MissingExtra: the model has no analysis.
    """
    return encode_all(model, [picture], rate16, tune, layer, under)[0]


def encode_all(
    model: LoadedModel,
    pictures: Sequence[Picture],
    rate16: int,
    tune: str = container.PSNR,
    layer: GraphicsLayer | None = None,
    under: U8 | None = None,
) -> list[tuple[bytes, Latents]]:
    """What `encode` returns for each of several pictures of one `latent_box`, coded as a batch.

    A layer is that of all of them, so pictures with a layer are coded alone.
    """
    if model.analysis is None:
        raise MissingExtra("compressing needs torch: pip install 'rankpress[server]'")
    box = latent_box(pictures[0].width, pictures[0].height)
    sizes = model.stored.sizes
    visible = [p if layer is None else beneath(p, layer.marked, under) for p in pictures]
    y_hat = np.empty((len(pictures), box.height, box.width, sizes.M), np.int16)
    bits = np.empty(y_hat.shape[:3], np.float32)
    coded: list[tuple[Pieces, ...]] = []
    code_s = 0.0

    def encode_tile(tile: Box) -> CodedTiles:
        assert model.analysis is not None
        window = sizes.read_by(tile, box)
        inner = tile.relative(window)
        y = [model.analysis.analyse(pixels_under(p, window))[inner.slices] for p in visible]
        z = np.concatenate([model.analysis.hyper_analyse(one[None]) for one in y])
        assert z.shape[1:3] == hyper_shape(tile)
        return model.coder.encode(np.stack(y), z, marked_in(layer, tile))

    every = list(tiles(box))
    results = map_tiles(encode_tile, every, model.tiles_at_once)
    for tile, result in zip(every, results, strict=True):
        y_hat[:, *tile.slices] = result.y_hat
        bits[:, *tile.slices] = result.bits
        coded.append(result.data)
        code_s += result.code_s
    streams = [
        container.write_stream(assemble(model, p, rate16, tune, data, layer))
        for p, data in zip(pictures, zip(*coded, strict=True), strict=True)
    ]
    return [
        (data, Latents(box, latents, code_s, costs))
        for data, latents, costs in zip(streams, y_hat, bits, strict=True)
    ]


def marked_in(layer: GraphicsLayer | None, tile: Box) -> Mask | None:
    """The blocks of a tile that a layer holds, for the coder of latents; None without a layer."""
    return None if layer is None else layer.marked[tile.slices]


def assemble(
    model: LoadedModel,
    picture: Picture,
    rate16: int,
    tune: str,
    coded: tuple[Pieces, ...],
    layer: GraphicsLayer | None = None,
) -> container.Stream:
    """A stream of coded tiles with the picture's alpha plane, metadata and graphics layer."""
    flags = container.Flags.GREY * picture.grey
    flags |= container.Flags.MS_SSIM * (tune == container.MS_SSIM)
    allow_interruption()
    return container.Stream(
        container.Header(model.stored.identity[:4], rate16, flags, picture.width, picture.height),
        coded,
        None if picture.alpha is None else alpha.pack(picture.alpha),
        picture.icc,
        picture.exif,
        graphics=layer,
    )


def lossless_stream(picture: Picture, layer: GraphicsLayer) -> container.Stream:
    """The stream of a picture that a complete layer holds exactly."""
    flags = container.Flags.GREY * picture.grey
    header = container.Header(
        container.NO_MODEL, container.LOSSLESS16, flags, picture.width, picture.height
    )
    return container.Stream(header, (), icc=picture.icc, exif=picture.exif, graphics=layer)


def pixels_under(picture: Picture, window: Box, cell: int = PATCH) -> U8:
    """The pixels under a window of latents, for analysis: [cell height, cell width, 3].

    Colours under alpha 0 are replaced (`alpha.fill_hidden`), and edge pixels are repeated beyond
    the picture.
    """
    px = window.scaled(cell)
    place = px.cut(Box(0, 0, picture.height, picture.width)).slices
    inside = picture.rgb[place]
    if picture.alpha is not None:
        inside = alpha.fill_hidden(inside, picture.alpha[place])
    pad = (px.height - inside.shape[0], px.width - inside.shape[1])
    if pad == (0, 0):
        return inside.copy()  # torch accepts only writable arrays
    return np.pad(inside, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")


def with_update(model: LoadedModel, stream: container.Stream) -> LoadedModel:
    """The model with the updates of g_s that a stream names and carries merged in afresh.

    `model` is not changed.

    Raises:
        BadStream: the update does not fit the model.
        UnknownUpdate: the stream names one that is not in the store.
        UnsupportedStream: the model was loaded without support for updates.
    """
    updates = _updates_of(model, stream)
    if not updates:
        return model
    if model.build_synthesis is None:
        raise UnsupportedStream("this decoder does not take updates of the decoder's weights")
    transforms = _merged(model, updates)
    synthesis = model.build_synthesis(replace(model.stored, transforms=transforms))
    return replace(model, synthesis=synthesis)


def ready_weights(model: LoadedModel, reference: bytes) -> Tensors:
    """The weights of g_s with a ready update merged in afresh.

    Raises:
        UnknownUpdate: it is not in the store.
    """
    return _merged(model, [model.stored.ready_update(reference, model.coder.tables)])


def _updates_of(model: LoadedModel, stream: container.Stream) -> list[Update]:
    """The updates that a stream names and carries, if any."""
    updates = []
    if stream.ready is not None:
        updates.append(model.stored.ready_update(stream.ready, model.coder.tables))
    if stream.update is not None:
        shapes = layer_shapes(model.stored.synthesis)
        updates.append(read_update(stream.update, shapes, model.coder.tables))
    return updates


def _merged(model: LoadedModel, updates: Sequence[Update]) -> Tensors:
    """The weights of g_s with updates merged in, all in units of the weights without updates."""
    return merge_transforms(model.stored.synthesis, [Share(u, PARTS) for u in updates])


def decode_latents(
    model: LoadedModel,
    stream: container.Stream,
    pixels: Box,
    halo: int | None = None,
    *,
    with_bits: bool = False,
) -> Latents:
    """Decode the tiles that the pixels in a box depend on.

    `halo` is how many latents around them are read, by default by g_s. `with_bits` asks for the
    code length of each position, too.
    """
    return decode_all(model, [stream], pixels, halo, with_bits=with_bits)[0]


def decode_all(
    model: LoadedModel,
    streams: Sequence[container.Stream],
    pixels: Box,
    halo: int | None = None,
    *,
    with_bits: bool = False,
) -> list[Latents]:
    """What `decode_latents` returns for each of several streams of one `latent_box`, as a batch.

    Streams with a graphics layer are decoded alone.

    Raises:
        BadStream: one of them is damaged; the error does not say which.
    """
    header, sizes = streams[0].header, model.stored.sizes
    box = latent_box(header.width, header.height)
    shown = latents_under(pixels)
    need = sizes.read_by(shown, box) if halo is None else shown.grown(halo, box)
    chosen = [
        (tile, data)
        for tile, *data in zip(tiles(box), *(s.tiles for s in streams), strict=True)
        if not tile.cut(need).empty
    ]
    cover = Box(chosen[0][0].top, chosen[0][0].left, chosen[-1][0].bottom, chosen[-1][0].right)
    y_hat: NDArray[np.int16] | None = None
    bits = np.empty((len(streams), cover.height, cover.width), np.float32) if with_bits else None
    code_s = 0.0

    def decode_tile(chosen: tuple[Box, list[Pieces]]) -> DecodedTiles:
        tile, data = chosen
        decode = model.coder.decode_with_bits if with_bits else model.coder.decode
        return decode(data, tile, marked_in(streams[0].graphics, tile))

    results = map_tiles(decode_tile, chosen, model.tiles_at_once)
    for (tile, _), decoded in zip(chosen, results, strict=True):
        if y_hat is None:  # allocated only once the first tile proved sound
            y_hat = np.empty((len(streams), cover.height, cover.width, sizes.M), np.int16)
        y_hat[:, *tile.relative(cover).slices] = decoded.y_hat
        if bits is not None:
            bits[:, *tile.relative(cover).slices] = decoded.bits
        code_s += decoded.code_s
    assert y_hat is not None
    return [
        Latents(cover, one, code_s, None if bits is None else bits[i])
        for i, one in enumerate(y_hat)
    ]


def paint(model: LoadedModel, latents: Latents, pixels: Box, grey: bool) -> U8:
    """The pixels in a box, [pixels.height, pixels.width, 3]; grey where the picture is."""
    out = np.empty((pixels.height, pixels.width, 3), np.uint8)
    for box, rgb in painted_windows(model, latents, pixels, grey):
        out[box.relative(pixels).slices] = rgb
    return out


def painted_windows(
    model: LoadedModel, latents: Latents, pixels: Box, grey: bool
) -> Iterator[tuple[Box, U8]]:
    """Synthesise window by window; yields the part of the box in each window, and its pixels."""
    for inner in windows(latents_under(pixels)):
        allow_interruption()
        window = model.stored.sizes.read_by(inner, latents.box)
        y_hat = latents.y_hat[window.relative(latents.box).slices]
        rgb = model.synthesis.synthesise(y_hat, inner.relative(window))
        box = inner.scaled(PATCH).cut(pixels)
        rgb = rgb[box.relative(inner.scaled(PATCH)).slices]
        yield box, greyed(rgb) if grey else rgb


def paint_scaled(model: LoadedModel, latents: Latents, cells: Box, scale: int, grey: bool) -> U8:
    """What `paint` gives for a box in a picture of 1/scale the size, by the preview network.

    Args:
        cells: the box, in pixels of the small picture. scale: one of SCALES.
    """
    assert model.previews is not None
    side = PATCH // scale
    out = np.empty((cells.height, cells.width, 3), np.uint8)
    for inner in windows(cells.cells(side), PREVIEW_WINDOW):
        allow_interruption()
        window = inner.grown(model.previews.halo, latents.box)
        y_hat = latents.y_hat[window.relative(latents.box).slices]
        rgb = model.previews.synthesise(y_hat, inner.relative(window), scale)
        box = inner.scaled(side).cut(cells)
        out[box.relative(cells).slices] = rgb[box.relative(inner.scaled(side)).slices]
    return greyed(out) if grey else out


def greyed(rgb: U8) -> U8:
    """Pixels [H, W, 3] with all channels set to their mean."""
    mean = (rgb.sum(-1, dtype=np.uint16, keepdims=True) + 1) // 3
    return np.repeat(mean.astype(np.uint8), 3, axis=-1)


def alpha_plane(stream: container.Stream, pixels: Box) -> U8 | None:
    """Alpha of the pixels in a box, [pixels.height, pixels.width]; None where all are opaque."""
    if stream.graphics is not None and stream.graphics.has_alpha:
        return stream.graphics.alpha_plane(pixels)
    if stream.alpha is None:
        return None
    return alpha.unpack(stream.alpha, stream.header.height, stream.header.width, pixels)
