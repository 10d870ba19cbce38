"""The graphics layer: blocks of a picture that are stored exactly, over the decoded picture.

Text, flat colours and pixel art cost fewer bits without a network. The layer marks blocks of 16×16
pixels, one for each latent, and holds their pixels as lossless WebP pictures (webp.py). Marked
latents are not coded: decoders take their means (latents.py). Where every block is marked, the
stream has no latents at all, and the layer may hold the alpha plane too.

    flags | length of the map, map | pieces

The map has a bit for each block, row by row, each row exclusive-or the row above, and is deflated;
it is absent where every block is marked. Pixels outside marked blocks are black in the pieces. A
piece without a marked block has no bytes.

This module does not decide which blocks to mark: see runtime/graphics_search.py.

Idea: palette and block copy tools of screen content coding (HEVC-SCC, VVC, AV1) for what photograph
coders are bad at, here as a layer of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.codec import webp
from service.codec.byte_reader import ByteReader, inflate, join_pieces, split_pieces, varint
from service.codec.tiles import PATCH, Box, latent_box, latents_under
from service.errors import BadStream
from service.picture import U8, Picture

Mask = NDArray[np.bool_]

MAP = "map of the graphics layer"


class LayerFlags(IntFlag):
    """Bits of the layer's first byte."""

    COMPLETE = 1
    """Every block is marked, and there is no map."""
    ALPHA = 2
    """Pieces are RGBA and hold the alpha plane; only in a complete layer."""


@dataclass(frozen=True, eq=False)
class GraphicsLayer:
    """A layer over a picture.

    Attributes:
        width, height: of the picture in pixels.
        marked: [ceil(H/16), ceil(W/16)] bool, the blocks that the layer holds.
        has_alpha: whether the pieces hold the alpha plane; then every block is marked.
        pieces: coded pixels of each piece, row by row; empty where no block of it is marked.
    """

    width: int
    height: int
    marked: Mask
    has_alpha: bool
    pieces: tuple[bytes, ...]

    @cached_property
    def is_complete(self) -> bool:
        """Whether every block is marked."""
        return bool(self.marked.all())

    @property
    def share(self) -> float:
        """Share of the blocks that are marked, 0–1."""
        return float(self.marked.mean())

    def covers(self, pixels: Box) -> bool:
        """Whether every block under a box of pixels is marked."""
        return bool(self.marked[latents_under(pixels).slices].all())

    def lay_over(self, rgb: U8, pixels: Box) -> None:
        """Replace the marked pixels of part of a picture.

        Args:
            rgb: [pixels.height, pixels.width, 3] uint8, which is changed.
            pixels: its place in the picture.

        Raises:
            BadStream: a piece is no picture of its size.
        """
        for box, samples in self._decoded(pixels):
            target = rgb[box.relative(pixels).slices]
            inside = marked_pixels(self.marked, box)
            np.copyto(target, samples[..., :3], where=inside[..., None])

    def lay_over_scaled(self, rgb: U8, cells: Box, scale: int) -> None:
        """Replace the marked part of a smaller picture by the layer's pixels, shrunk by Lanczos.

        Args:
            rgb: [cells.height, cells.width, 3] uint8, which is changed.
            cells: its place in the picture of 1/scale the size.
            scale: divides 16, so each of its pixels is marked as a whole or not at all.

        Raises:
            BadStream: a piece is no picture of its size.
        """
        pixels = cells.scaled(scale).cut(Box(0, 0, self.height, self.width))
        for box, samples in self._decoded(pixels):
            place = box.cells(scale)
            target = rgb[place.relative(cells).slices]
            over = np.repeat(np.repeat(target, scale, 0), scale, 1)
            pad = ((0, len(over) - box.height), (0, over.shape[1] - box.width))
            inside = np.pad(marked_pixels(self.marked, box), pad, mode="edge")
            exact = np.pad(samples[..., :3], (*pad, (0, 0)), mode="edge")
            np.copyto(over, exact, where=inside[..., None])
            small = Image.fromarray(over).resize(target.shape[1::-1], Image.Resampling.LANCZOS)
            np.copyto(target, np.asarray(small), where=inside[::scale, ::scale, None])

    def alpha_plane(self, pixels: Box) -> U8:
        """Alpha of part of the picture, [pixels.height, pixels.width], where `has_alpha`.

        Raises:
            BadStream: a piece is no picture of its size.
        """
        alpha = np.empty((pixels.height, pixels.width), np.uint8)
        for box, samples in self._decoded(pixels):
            alpha[box.relative(pixels).slices] = samples[..., 3]
        return alpha

    def _decoded(self, pixels: Box) -> Iterator[tuple[Box, U8]]:
        """The part of the box in each piece that has bytes, and its samples."""
        for piece, data in zip(webp.pieces(self.width, self.height), self.pieces, strict=True):
            part = piece.cut(pixels)
            if data and not part.empty:
                samples = webp.decode(data, piece.height, piece.width, self.has_alpha)
                yield part, samples[part.relative(piece).slices]


def make_layer(picture: Picture, marked: Mask, effort: webp.Effort = webp.NORMAL) -> GraphicsLayer:
    """Code the marked blocks of a picture.

    Args:
        picture: to take pixels from. Colours under alpha 0 are not kept.
        marked: [ceil(H/16), ceil(W/16)] bool.
        effort: see `webp.encode`.
    """
    has_alpha = picture.alpha is not None and bool(marked.all())
    pieces = tuple(
        _code_piece(picture, marked, box, has_alpha, effort)
        for box in webp.pieces(picture.width, picture.height)
    )
    return GraphicsLayer(picture.width, picture.height, marked, has_alpha, pieces)


def write_layer(layer: GraphicsLayer) -> bytes:
    """Serialise a layer."""
    flags = LayerFlags.COMPLETE * layer.is_complete | LayerFlags.ALPHA * layer.has_alpha
    map_ = b""
    if not layer.is_complete:
        packed = _pack_map(layer.marked)
        map_ = varint(len(packed)) + packed
    return bytes([flags]) + map_ + join_pieces(layer.pieces)


def read_layer(data: bytes, width: int, height: int) -> GraphicsLayer:
    """Read a layer without decoding its pieces.

    Args:
        data: as `write_layer` returns it. width, height: of the picture in pixels.

    Raises:
        BadStream: the bytes are no layer of a picture of that size.
    """
    reader = ByteReader(data)
    flags = reader.take(1, "flags of the graphics layer")[0]
    if flags not in (0, LayerFlags.COMPLETE, LayerFlags.COMPLETE | LayerFlags.ALPHA):
        raise BadStream(f"flags of the graphics layer are {flags}, expected 0, 1 or 3")
    box = latent_box(width, height)
    if flags & LayerFlags.COMPLETE:
        marked = np.ones((box.height, box.width), np.bool_)
    else:
        packed = reader.take(reader.varint("map length"), MAP)
        marked = _unpack_map(packed, box.height, box.width)
    pieces = split_pieces(reader, webp.piece_count(width, height), "the graphics layer")
    for piece, coded in zip(webp.pieces(width, height), pieces, strict=True):
        if bool(coded) != bool(marked[latents_under(piece).slices].any()):
            raise BadStream(
                f"piece of the graphics layer at {piece.left},{piece.top} has {len(coded)} bytes, "
                "which does not agree with its map"
            )
    return GraphicsLayer(width, height, marked, bool(flags & LayerFlags.ALPHA), pieces)


def hide(picture: Picture, marked: Mask) -> Picture:
    """A picture whose marked blocks are transparent, so that the networks spend nothing there."""
    alpha = np.full(picture.rgb.shape[:2], 255, np.uint8)
    if picture.alpha is not None:
        alpha = picture.alpha.copy()
    alpha[marked_pixels(marked, Box(0, 0, picture.height, picture.width))] = 0
    return replace(picture, alpha=alpha)


def beneath(picture: Picture, marked: Mask, under: U8 | None) -> Picture:
    """The picture that the networks analyse beneath a layer.

    Args:
        under: [H, W, 3] colours of the marked blocks; None hides them, see `hide`.
    """
    if under is None:
        return hide(picture, marked)
    shown = marked_pixels(marked, Box(0, 0, picture.height, picture.width))
    return replace(picture, rgb=np.where(shown[..., None], under, picture.rgb))


def visible_colours(picture: Picture) -> U8:
    """Colours with black under alpha 0, [H, W, 3] uint8."""
    if picture.alpha is None:
        return picture.rgb
    return np.where(picture.alpha[..., None] > 0, picture.rgb, np.uint8(0))


def marked_pixels(marked: Mask, pixels: Box) -> Mask:
    """The marked pixels in a box of pixels, [pixels.height, pixels.width] bool."""
    rows = np.arange(pixels.top, pixels.bottom) // PATCH
    columns = np.arange(pixels.left, pixels.right) // PATCH
    return marked[rows][:, columns]


def _code_piece(
    picture: Picture, marked: Mask, piece: Box, has_alpha: bool, effort: webp.Effort
) -> bytes:
    if not marked[latents_under(piece).slices].any():
        return b""
    shown = marked_pixels(marked, piece)
    alpha = None if picture.alpha is None else picture.alpha[piece.slices]
    if alpha is not None:
        shown &= alpha > 0
    samples = np.where(shown[..., None], picture.rgb[piece.slices], np.uint8(0))
    if has_alpha and alpha is not None:
        samples = np.concatenate([samples, alpha[..., None]], axis=2)
    return webp.encode(samples, effort)


def _pack_map(marked: Mask) -> bytes:
    difference = marked.copy()
    difference[1:] ^= marked[:-1]
    return zlib.compress(np.packbits(difference).tobytes(), 9)


def _unpack_map(packed: bytes, rows: int, columns: int) -> Mask:
    count = rows * columns
    size = -(-count // 8)
    raw = inflate(packed, MAP, size + size // 16 + 64, size)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if len(raw) != size or bits[count:].any():
        raise BadStream(f"{MAP} does not unpack to {columns}x{rows} blocks")
    return np.logical_xor.accumulate(bits[:count].reshape(rows, columns), axis=0)
