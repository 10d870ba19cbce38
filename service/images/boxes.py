"""Boxes of the ISO base media file format (ISO/IEC 14496-12), which AVIF and HEIC consist of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

MAX_BOXES: Final = 10_000
"""Boxes next to each other that are read; later ones are ignored."""


def boxes(file: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of content of each box between two positions of a file."""
    for _ in range(MAX_BOXES):
        if begin + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", file, begin)
        content = begin + 8
        if size == 1 and begin + 16 <= end:
            (size,) = struct.unpack_from(">Q", file, content)
            content += 8
        after = end if size == 0 else begin + size
        if after > end or after < content:
            return
        yield kind, content, after
        begin = after


def box_inside(file: bytes, path: tuple[bytes, ...]) -> tuple[int, int] | None:
    """Return begin and end of the content of a nested box; None if there is no such box.

    Args:
        file: the whole file. path: kinds of the boxes, from the outermost on.
    """
    place = 0, len(file)
    for name in path:
        box = next((box for box in boxes(file, *place) if box[0] == name), None)
        if box is None:
            return None
        place = nested_content(*box)
    return place


def nested_content(kind: bytes, begin: int, end: int) -> tuple[int, int]:
    """Return begin and end of the boxes in a box; in `meta` there are four bytes before them."""
    return begin + 4 * (kind == b"meta"), end


def ends_within_a_box(file: bytes) -> bool:
    """Return whether the file ends before the last of its outermost boxes does."""
    end = max((end for _, _, end in boxes(file, 0, len(file))), default=0)
    return end < len(file) and file[end + 4 : end + 8].isalnum()
