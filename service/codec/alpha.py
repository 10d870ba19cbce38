"""Alpha planes: lossless coding, and smooth colours where the alpha plane hides the picture.

A coded plane is a filter byte and the pieces of a lossless picture (webp.py), whose green is the
plane or, in each piece, the differences to the left or to the row above. The encoder keeps the
smallest of the three: masks are smallest as they are, soft edges as differences, which WebP's own
prediction does not find.

Colours under alpha 0 are invisible, so encoders replace them with colours that cost few bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codec import webp
from service.codec.byte_reader import ByteReader, join_pieces, split_pieces
from service.codec.tiles import Box
from service.errors import BadStream

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

NONE, LEFT, UP = range(3)


def pack(alpha: U8) -> bytes:
    """Encode a plane, [H, W] uint8."""
    return min((_pack(alpha, kind) for kind in (NONE, LEFT, UP)), key=len)


def _pack(alpha: U8, kind: int) -> bytes:
    coded = []
    for box in webp.pieces(alpha.shape[1], alpha.shape[0]):
        piece = alpha[box.slices]
        if kind != NONE:
            piece = _difference(piece, 1 if kind == LEFT else 0)
        coded.append(webp.encode(np.repeat(piece[..., None], 3, 2), webp.FAST))
    return bytes([kind]) + join_pieces(coded)


def unpack(data: bytes, height: int, width: int, pixels: Box) -> U8:
    """Decode part of a plane of height × width samples.

    Args:
        pixels: the part.

    Returns:
        [pixels.height, pixels.width] uint8.

    Raises:
        BadStream: the bytes are no coded plane of that size.
    """
    reader = ByteReader(data)
    kind = reader.take(1, "filter of the alpha plane")[0]
    if kind not in (NONE, LEFT, UP):
        raise BadStream(f"the filter of the alpha plane is {kind}, expected 0 to 2")
    coded = split_pieces(reader, webp.piece_count(width, height), "the alpha plane")
    out = np.empty((pixels.height, pixels.width), np.uint8)
    for box, one in zip(webp.pieces(width, height), coded, strict=True):
        part = box.cut(pixels)
        if part.empty:
            continue
        piece = webp.decode(one, box.height, box.width, has_alpha=False)[..., 1]
        if kind != NONE:
            piece = np.add.accumulate(piece, axis=1 if kind == LEFT else 0, dtype=np.uint8)
        out[part.relative(pixels).slices] = piece[part.relative(box).slices]
    return out


def fill_hidden(rgb: U8, alpha: U8) -> U8:
    """Continue the visible colours smoothly under alpha 0, so that few bits are spent there.

    2x2 pixels are averaged, weighted by alpha, until one pixel is left; on the way back, a pixel
    without a visible part takes the interpolated coarser level (push-pull: Gortler et al., "The
    Lumigraph", 1996). If nothing at all is visible, the result is grey.

    Args:
        rgb: [H, W, 3]. alpha: [H, W].

    Returns:
        [H, W, 3], equal to `rgb` where alpha is above 0; hidden colours have no effect.
    """
    hidden = alpha == 0
    if not hidden.any():
        return rgb
    weight = alpha[..., None].astype(np.float32)
    smooth = _pull(rgb * weight, weight)
    return np.where(hidden[..., None], np.rint(smooth).astype(np.uint8), rgb)


def _pull(colour: F32, weight: F32) -> F32:
    """Colours [H, W, 3] at every pixel, from sums of weighted colours and of weights [H, W, 1]."""
    height, width = weight.shape[:2]
    if height == width == 1:
        return colour / weight if weight.any() else np.full_like(colour, 128)
    coarse = _doubled(_pull(_summed(colour), _summed(weight)))[:height, :width]
    return np.divide(colour, weight, out=coarse, where=np.broadcast_to(weight > 0, colour.shape))


def _summed(plane: F32) -> F32:
    """Sum 2x2 pixels; an odd last row or column is summed alone."""
    height, width = plane.shape[:2]
    plane = np.pad(plane, ((0, height % 2), (0, width % 2), (0, 0)))
    rows = plane[::2] + plane[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _doubled(plane: F32) -> F32:
    """Double rows and columns by linear interpolation between the centres of pixels."""
    for axis in (0, 1):
        near = np.repeat(plane, 2, axis)
        own = np.arange(plane.shape[axis])
        neighbours = [np.take(plane, i, axis, mode="clip") for i in (own - 1, own + 1)]
        far = np.stack(neighbours, axis + 1).reshape(near.shape)
        plane = 0.75 * near + 0.25 * far
    return plane


def _difference(plane: U8, axis: int) -> U8:
    """Differences modulo 256 along an axis; the first sample stays as it is."""
    return np.diff(plane, axis=axis, prepend=np.zeros_like(plane.take([0], axis)))
