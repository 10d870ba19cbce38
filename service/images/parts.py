"""Parts of image files, found in their bytes: boxes, chunks, segments, directories and frames.

Every walk takes an amount of work that the size of the file bounds; Pillow's readers do not.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import BadImage

MAX_BOXES: Final = 10_000
"""Boxes next to each other that are read; later ones are ignored."""
MAX_COUNTED_FRAMES: Final = 1000
"""Frames that are counted at most; later ones cannot be chosen."""

JPEG_SCAN: Final = 0xDA
JPEG_END: Final = 0xD9
_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The last byte 255 before a segment, and the kind of the segment. A run of 255 is not part of the
pattern, because the search would try it again from each of its bytes."""
_WITH_LENGTH: Final = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}) - {0xC8}

TIFF_BYTES_BY_TYPE: Final[Mapping[int, int]] = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
"""Bytes of one value by its type (TIFF 6.0, section 2, and BigTIFF)."""


def boxes(
    file: bytes, begin: int, end: int, parent: bytes = b""
) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of content of each box in a parent (ISO/IEC 14496-12).

    AVIF and HEIC files consist of boxes. In a `meta` box, four bytes stand before them.
    """
    if parent == b"meta":
        begin += 4
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


def box_inside(file: bytes, *path: bytes) -> tuple[int, int] | None:
    """Return begin and end of the content of a nested box, by the kinds from the outermost on."""
    parent, begin, end = b"", 0, len(file)
    for name in path:
        inner = boxes(file, begin, end, parent)
        box = next((box for box in inner if box[0] == name), None)
        if box is None:
            return None
        parent, begin, end = box
    return begin, end


def png_chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of content of each chunk; the last may end beyond the file."""
    position = 8
    while position + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        begin, end = position + 8, position + 8 + size
        yield kind, begin, end
        if kind == b"IEND":
            return
        position = end + 4  # after the checksum


def jpeg_segments(
    jpeg: bytes, position: int = 2, max_gap: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield kind, begin and end of content of each segment from a position on.

    They end where no marker begins within `max_gap` bytes; None is for any number.
    """
    gap = len(jpeg) if max_gap is None else max_gap
    while (marker := _JPEG_MARKER.search(jpeg, position, position + gap)) is not None:
        kind, position = marker[1][0], marker.end()
        begin = position + 2
        if kind in _WITH_LENGTH:
            position += max(int.from_bytes(jpeg[position:begin], "big"), 2)
        yield kind, begin, position


def work_limit(size: int) -> int:
    """Return the number of reads in which a file of `size` bytes may be read.

    A GIF has a byte of length for at most 255 bytes of data, and each of the two takes a read.
    """
    return 50_000 + size // 64


def count_gif_frames(data: bytes) -> int:
    """Count a GIF's pictures, at most `MAX_COUNTED_FRAMES`. Raises BadImage for too many blocks."""
    frames, position, left = 0, 13 + _palette_bytes(data[10]), work_limit(len(data))
    while position < len(data) and frames < MAX_COUNTED_FRAMES:
        block, left = data[position], left - 1
        if left < 0:
            raise BadImage("the GIF file is damaged: it consists of too many small parts")
        if block == 0x3B:  # trailer
            break
        if block == 0x2C:  # picture: nine bytes, a palette, the code size
            frames += 1
            if position + 9 >= len(data):
                break
            position += 11 + _palette_bytes(data[position + 9])
        elif block == 0x21:  # extension: its label
            position += 2
        else:
            position += 1
            continue
        while position < len(data) and data[position] and left >= 0:  # sub-blocks
            position, left = position + data[position] + 1, left - 1
        position += 1
    return frames


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


@dataclass(frozen=True)
class TiffLayout:
    """Formats for `struct` of the numbers in TIFF directories; those of BigTIFF are longer.

    Attributes:
        start: position of the offset of the first directory. count_format: of the count of entries.
        entry_format: of tag, type, count and value. next_format: of the next directory's offset.
    """

    start: int
    count_format: str
    entry_format: str
    next_format: str

    @classmethod
    def of(cls, data: bytes) -> TiffLayout:
        """Return the layout by the header of a file."""
        order = "<" if data[:2] == b"II" else ">"
        start, *numbers = (8, "Q", "HHQQ", "Q") if 43 in data[2:4] else (4, "H", "HHII", "I")
        return cls(start, *(order + number for number in numbers))

    def first(self, data: bytes) -> int:
        """Return the offset of the first directory."""
        offset: int = struct.unpack_from(self.next_format, data, self.start)[0]
        return offset

    def directory(self, data: bytes, offset: int) -> tuple[int, int]:
        """Return begin and end of a directory's entries; they may be beyond the end of the file."""
        begin = end = offset + struct.calcsize(self.count_format)
        if begin <= len(data):
            (count,) = struct.unpack_from(self.count_format, data, offset)
            end += count * struct.calcsize(self.entry_format)
        return begin, end

    def entries(self, data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield tag, type, count and value of each entry between two positions of the file."""
        size = struct.calcsize(self.entry_format)
        for position in range(begin, min(end, len(data) - size + 1), size):
            yield struct.unpack_from(self.entry_format, data, position)


def tiff_directories(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the entries of each directory, at most `MAX_COUNTED_FRAMES`.

    A directory that reaches beyond the end of the file is the last.

    Raises:
        BadImage: the directories take more bytes than the file has. They overlap, and the work to
            read them would not be bounded by the size of the file.
    """
    layout = TiffLayout.of(data)
    after = struct.Struct(layout.next_format)
    total_bytes, offsets, offset = 0, set[int](), layout.first(data)
    while offset and offset not in offsets and len(offsets) < MAX_COUNTED_FRAMES:
        offsets.add(offset)
        begin, end = layout.directory(data, offset)
        total_bytes += end - offset
        if total_bytes > len(data) >= end:
            raise BadImage(
                f"the TIFF file is damaged: its directories take {total_bytes} bytes of {len(data)}"
            )
        yield begin, end
        if end + after.size > len(data):
            return
        (offset,) = after.unpack_from(data, end)
