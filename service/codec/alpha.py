"""Alpha planes: lossless coding, and smooth colours where the alpha plane hides the picture.

A coded plane is a filter byte and a zlib stream. Alpha planes are mostly flat, so the encoder tries
three filters (none, difference to the left, difference to the row above) and keeps the smallest
result. Cumulative sums modulo 256 undo the filters.

Colours under alpha 0 are invisible, so encoders replace them with colours that cost few bits.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from service.codec.byte_reader import inflate
from service.errors import BadStream

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

NONE, LEFT, UP = range(3)


def pack(alpha: U8) -> bytes:
    """Encode a plane, [H, W] uint8."""
    planes = {NONE: alpha, LEFT: _difference(alpha, 1), UP: _difference(alpha, 0)}
    packed = [bytes([k]) + zlib.compress(p.tobytes(), 9) for k, p in planes.items()]
    return min(packed, key=len)


def max_packed_bytes(size: int) -> int:
    """Largest section in bytes for a plane of `size` samples.

    Deflate enlarges incompressible data by less than 1/16, so a longer section holds blocks that
    inflate to nothing, each of which costs a reader time.
    """
    return size + size // 16 + 64


def unpack(data: bytes, height: int, width: int) -> U8:
    """Decode a plane, [height, width] uint8.

    Raises:
        BadStream: the bytes are no coded plane of that size.
    """
    size = height * width
    if not data or data[0] not in (NONE, LEFT, UP):
        raise BadStream("alpha section does not start with a known filter")
    raw = inflate(data[1:], "alpha section", max_packed_bytes(size) - 1, size)
    if len(raw) != size:
        raise BadStream(f"alpha section does not inflate to {width}x{height} samples")
    plane = np.frombuffer(raw, np.uint8).reshape(height, width)
    if data[0] == NONE:
        return plane
    axis = 1 if data[0] == LEFT else 0
    return np.add.accumulate(plane, axis=axis, dtype=np.uint8)


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
