"""Alpha planes, losslessly: a filter byte, then deflate.

Mattes are mostly flat, so each of three filters is tried (none, difference to the left, difference
to the row above) and the smallest result kept. All three undo as cumulative sums modulo 256.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from service.errors import BadStream

U8 = NDArray[np.uint8]

NONE, LEFT, UP = range(3)


def pack(alpha: U8) -> bytes:
    """[H, W] uint8 -> bytes."""
    planes = {NONE: alpha, LEFT: _difference(alpha, 1), UP: _difference(alpha, 0)}
    packed = [bytes([k]) + zlib.compress(p.tobytes(), 9) for k, p in planes.items()]
    return min(packed, key=len)


def unpack(data: bytes, height: int, width: int) -> U8:
    """Bytes -> [H, W] uint8.

    Raises:
        BadStream: not what `pack` writes for a plane of that size.
    """
    size = height * width
    if not data or data[0] not in (NONE, LEFT, UP):
        raise BadStream("alpha section does not start with a known filter")
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


def _difference(plane: U8, axis: int) -> U8:
    out = plane.copy()
    tail = [slice(None), slice(None)]
    head = [slice(None), slice(None)]
    tail[axis], head[axis] = slice(1, None), slice(None, -1)
    out[tuple(tail)] -= plane[tuple(head)]
    return out
