"""Alpha planes: coded losslessly, and what they say of the colours beside them.

A plane is a filter byte, then deflate. Mattes are mostly flat, so each of three filters is tried
(none, difference to the left, difference to the row above) and the smallest result kept. All three
undo as cumulative sums modulo 256.

A colour under alpha 0 is never seen, so encoders replace it with what costs few bits.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from service.errors import BadStream

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

NONE, LEFT, UP = range(3)


def pack(alpha: U8) -> bytes:
    """[H, W] uint8 -> bytes."""
    planes = {NONE: alpha, LEFT: _difference(alpha, 1), UP: _difference(alpha, 0)}
    packed = [bytes([k]) + zlib.compress(p.tobytes(), 9) for k, p in planes.items()]
    return min(packed, key=len)


def max_packed_bytes(size: int) -> int:
    """Return the largest section for a plane of `size` samples: deflate adds less than 1/16.

    More bytes than that inflate to nothing, at up to 0.1 microseconds each.
    """
    return size + size // 16 + 64


def unpack(data: bytes, height: int, width: int) -> U8:
    """Bytes -> [H, W] uint8.

    Raises:
        BadStream: not what `pack` writes for a plane of that size.
    """
    size = height * width
    if not data or data[0] not in (NONE, LEFT, UP):
        raise BadStream("alpha section does not start with a known filter")
    if len(data) > max_packed_bytes(size):
        many = f"{len(data)} bytes, too many for {width}x{height} samples"
        raise BadStream(f"alpha section has {many}")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data[1:], size + 1)
    except zlib.error as error:
        raise BadStream("alpha section is not valid deflate data") from error
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        raise BadStream(f"alpha section does not unpack to {width}x{height} samples")
    plane = np.frombuffer(raw, np.uint8).reshape(height, width)
    if data[0] == NONE:
        return plane
    axis = 1 if data[0] == LEFT else 0
    return np.add.accumulate(plane, axis=axis, dtype=np.uint8)


def fill_hidden(rgb: U8, alpha: U8) -> U8:
    """Continue the visible colours smoothly under alpha 0, so that few bits are spent there.

    Averages of 2x2 pixels, weighted by alpha, are taken until one is left; on the way back each
    pixel that nothing visible went into takes the interpolated coarser level (push-pull:
    Gortler et al., "The Lumigraph", 1996). Where nothing at all is visible, the result is grey.

    Args:
        rgb: [H, W, 3]; it is not changed. alpha: [H, W].

    Returns:
        [H, W, 3], equal to `rgb` wherever alpha is above 0, and the same for any `rgb` elsewhere.
    """
    hidden = alpha == 0
    if not hidden.any():
        return rgb
    weight = alpha[..., None].astype(np.float32)
    smooth = _pull(rgb * weight, weight)
    return np.where(hidden[..., None], np.rint(smooth).astype(np.uint8), rgb)


def _pull(colour: F32, weight: F32) -> F32:
    """Colours [H, W, 3], everywhere, of sums of weighted colours and of weights [H, W, 1]."""
    height, width = weight.shape[:2]
    if height == width == 1:
        return colour / weight if weight.any() else np.full_like(colour, 128)
    coarse = _doubled(_pull(_summed(colour), _summed(weight)))[:height, :width]
    return np.divide(colour, weight, out=coarse, where=np.broadcast_to(weight > 0, colour.shape))


def _summed(plane: F32) -> F32:
    """Sums of 2x2 pixels; an odd last row or column counts alone."""
    height, width = plane.shape[:2]
    plane = np.pad(plane, ((0, height % 2), (0, width % 2), (0, 0)))
    rows = plane[::2] + plane[1::2]
    return rows[:, ::2] + rows[:, 1::2]


def _doubled(plane: F32) -> F32:
    """Twice as many rows and columns, linearly interpolated between the centres of pixels."""
    for axis in (0, 1):
        near = np.repeat(plane, 2, axis)
        own = np.arange(plane.shape[axis])
        neighbours = [np.take(plane, i, axis, mode="clip") for i in (own - 1, own + 1)]
        far = np.stack(neighbours, axis + 1).reshape(near.shape)
        plane = 0.75 * near + 0.25 * far
    return plane


def _difference(plane: U8, axis: int) -> U8:
    out = plane.copy()
    tail = [slice(None), slice(None)]
    head = [slice(None), slice(None)]
    tail[axis], head[axis] = slice(1, None), slice(None, -1)
    out[tuple(tail)] -= plane[tuple(head)]
    return out
