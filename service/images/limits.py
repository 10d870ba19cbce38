"""Limits on the work that an image file may cost before its pixels are decoded.

Pillow reads headers in Python, part by part, and its libraries do not limit the number of parts: a
file of some megabytes can take minutes before it is refused or a pixel is decoded. So the parts are
counted in the bytes before Pillow reads them. The limits are far above what cameras and programs
write. Work on the pixels themselves is limited by their number, see read.py.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Mapping
from typing import Final

from PIL import features

from service.errors import BadImage
from service.images import parts

MAX_METADATA_BYTES: Final = 4 << 20
"""Bytes of the largest profile or Exif block that is kept with a picture."""

MAX_SEGMENTS: Final = 5000
"""Segments of a JPEG file before its pixels; 1,024 of the largest are 64 MiB."""
MAX_SCANS: Final = 100
"""Scans of a JPEG picture, each of which may be a few bytes long. Cameras and programs use 10,
scripts of cjpeg at most 100."""
MAX_EXIF_SEGMENTS: Final = 100
"""Segments of a JPEG file's Exif block, which Pillow joins one by one."""
_MAX_FILL_BYTES: Final = 1 << 16
"""Bytes between two segments of a JPEG header; Pillow reads them one by one."""
_MAX_BYTES_OF_SEGMENTS: Final[Mapping[int, int]] = {
    0xDB: 1 << 16,  # quantisation tables: four of at most 129 bytes
    0xE1: 1 << 20,  # Exif
    0xED: 1 << 22,  # Photoshop's resources
}
"""Bytes of all segments of a kind together, for kinds that may hold thousands of parts each."""

MAX_CHUNKS: Final = 10_000
"""Chunks of a PNG file, in addition to one per KiB."""
MAX_PACKED_CHUNKS: Final = 64
"""Compressed texts and profiles of a PNG file; Pillow unpacks each to at most 1 MiB."""
MAX_PACKED_BYTES: Final = 4 << 20
"""Bytes of compressed texts and profiles together: inflating takes up to 0.1 us a byte."""
_RAW_PROFILE: Final = b"Raw profile type "

MAX_TAG_WORK: Final = 500_000
"""Work to read the tags of a directory of a TIFF file or Exif block, in units of about 0.5 us."""
MAX_ENTRIES: Final = 50_000
"""Entries of all directories together."""
_ENTRY_WORK: Final = 50.0
_WORK_BY_TYPE: Final[Mapping[int, float]] = {
    **dict.fromkeys((3, 4, 6, 8, 9, 11, 12, 13, 16, 17, 18), 1.0),  # numbers
    **dict.fromkeys((5, 10), 15.0),  # fractions
}
"""Work to read and write again one value of a type; bytes and texts take none for each."""
_STRIPS: Final = frozenset({273, 324})
_STRIP_WORK: Final = 5.0
"""Work for each strip or tile, which is read and decoded alone."""
_DIRECTORIES: Final = frozenset({0x8769, 0x8825, 0xA005})
"""Tags that point to the directories of the camera, of GPS and of interoperability."""

_SMALL_EXIF_BYTES: Final = 1 << 16
"""Bytes of a block that is fast to read whatever is in it. Blocks of JPEG are not larger."""
_EXIF_PREFIXES: Final = re.compile(rb"\A(?:Exif\0\0){1,2}")

_MAX_BOX_BYTES: Final[Mapping[bytes, int]] = {
    **dict.fromkeys((b"iinf", b"iloc", b"iref", b"ipma"), 1 << 15),
    b"moov": 1 << 18,  # the tables of an image sequence
}
"""Bytes of boxes that list a HEIF file's items; libavif searches the lists for each item."""
_PARENTS: Final = frozenset({b"meta", b"iprp", b"ipco"})
_MAX_PROPERTIES: Final = 1000

_APP1: Final = 0xE1


class MeteredFile(io.BytesIO):
    """A file in memory that counts its `reads` and limits their number."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads, self._max_reads = 0, parts.work_limit(len(data))

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes as `io.BytesIO` does. Raises BadImage after too many calls."""
        self.reads += 1
        if self.reads > self._max_reads:
            raise BadImage("the image file is damaged: it consists of too many small parts")
        return super().read(size)


def check_limits(name: str, data: bytes) -> None:
    """Raise BadImage if reading a kind of file, without its pixels, would take too much work."""
    if name in _CHECKS:
        _CHECKS[name](data)


def check_exif(block: bytes) -> None:
    """Raise BadImage if reading all tags of an Exif block without prefix takes too much work."""
    block = _EXIF_PREFIXES.sub(b"", block)
    if len(block) > _SMALL_EXIF_BYTES and block[:4] in (b"II*\0", b"MM\0*"):
        layout = parts.TiffLayout.of(block)
        _check_tags(block, layout, [layout.directory(block, layout.first(block))])


def _check_tiff(data: bytes) -> None:
    _check_tags(data, parts.TiffLayout.of(data), list(parts.tiff_directories(data)))


def _check_tags(data: bytes, layout: parts.TiffLayout, directories: list[tuple[int, int]]) -> None:
    """Raise BadImage if some directories, and those that they point to, take too much work."""
    entries, pointers = 0, set[int]()
    while directories:
        work = 0.0
        for tag, type_, count, value in layout.entries(data, *directories.pop()):
            entries, work = entries + 1, work + _ENTRY_WORK
            size = parts.TIFF_BYTES_BY_TYPE.get(type_, 0) * count
            if size <= len(data):  # else no values can be read
                work += count * (_STRIP_WORK if tag in _STRIPS else _WORK_BY_TYPE.get(type_, 0.0))
            if work > MAX_TAG_WORK or entries > MAX_ENTRIES:
                raise BadImage("the image file is damaged: it has too many tags, or values in them")
            if tag in _DIRECTORIES and value not in pointers:
                pointers.add(value)
                directories.append(layout.directory(data, value))


def _check_jpeg(data: bytes) -> None:
    """Count the segments that Pillow reads, and the scans after them that libjpeg reads."""
    end, exif_parts = 2, list[bytes]()
    sizes = dict.fromkeys(_MAX_BYTES_OF_SEGMENTS, 0)
    for number, (kind, begin, end) in enumerate(parts.jpeg_segments(data, 2, _MAX_FILL_BYTES), 1):
        is_exif = kind == _APP1 and data.startswith(b"Exif\0\0", begin)
        if is_exif:
            exif_parts.append(data[begin + 6 : end])
        if kind in sizes and (is_exif or kind != _APP1):
            sizes[kind] += end - begin
        too_many = number > MAX_SEGMENTS or len(exif_parts) > MAX_EXIF_SEGMENTS
        if too_many or any(sizes[k] > most for k, most in _MAX_BYTES_OF_SEGMENTS.items()):
            raise BadImage("the JPEG file is damaged: it has too many segments before its pixels")
        if kind == parts.JPEG_SCAN:
            break
    else:
        if len(data) - end > _MAX_FILL_BYTES:
            raise BadImage("the JPEG file is damaged: a segment is missing before its pixels")
    check_exif(b"".join(exif_parts))
    if data.count(b"\xff\xda", end) >= MAX_SCANS:
        _check_scans(data, end)


def _check_scans(data: bytes, position: int) -> None:
    """Count the scans of a JPEG after its first, and the segments between them."""
    scans = 1
    for number, (kind, _, _) in enumerate(parts.jpeg_segments(data, position), 1):
        if kind == parts.JPEG_END:
            return
        scans += kind == parts.JPEG_SCAN
        if scans > MAX_SCANS or number > MAX_SEGMENTS:
            raise BadImage(f"the JPEG file has more than {MAX_SCANS} scans, or parts between them")


def _check_png(data: bytes) -> None:
    """Count the chunks, and the bytes of those that take much work."""
    packed, packed_bytes, pixel_bytes, max_pixel_bytes = 0, 0, 0, 0
    for number, (kind, begin, end) in enumerate(parts.png_chunks(data), 1):
        size = end - begin
        if kind in (b"iCCP", b"zTXt") or (kind == b"iTXt" and _is_packed(data, begin, end)):
            packed, packed_bytes = packed + 1, packed_bytes + size
        elif kind == b"IHDR" and size >= 13:
            max_pixel_bytes = _max_pixel_bytes(data, begin)
        elif kind in (b"IDAT", b"fdAT"):
            pixel_bytes += size
        elif kind == b"fcTL":  # another frame
            pixel_bytes = 0
        elif kind == b"eXIf":
            check_exif(data[begin:end])
        elif kind == b"tEXt":
            _check_text(data, begin, end)
        if number > MAX_CHUNKS + (len(data) >> 10):
            raise BadImage("the PNG file is damaged: it consists of too many small chunks")
        if packed > MAX_PACKED_CHUNKS or packed_bytes > MAX_PACKED_BYTES:
            raise BadImage("the PNG file is damaged: it has too many compressed texts or profiles")
        if pixel_bytes > max_pixel_bytes and max_pixel_bytes:
            raise BadImage("the PNG file is damaged: it has more data than its pixels can take")


def _max_pixel_bytes(png: bytes, header: int) -> int:
    """Return the most bytes of compressed pixels: twice their bytes without compression."""
    width, height, bits, colour = struct.unpack_from(">IIBB", png, header)
    channels = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    rows: int = height * (1 + (width * channels * bits + 7) // 8)
    return 2 * rows + (1 << 16)


def _is_packed(png: bytes, begin: int, end: int) -> bool:
    """Return whether the text of an iTXt chunk is compressed."""
    flag = png.find(b"\0", begin, end) + 1
    return 0 < flag < end and png[flag] != 0


def _check_text(png: bytes, begin: int, end: int) -> None:
    """Check a tEXt chunk of a name that means Exif to Pillow."""
    if png.startswith(b"exif\0", begin):
        check_exif(png[begin + 5 : end].removeprefix(b"Exif\0\0"))
    elif png.startswith(_RAW_PROFILE, begin) and end - begin > MAX_PACKED_BYTES:
        raise BadImage("the PNG file is damaged: it has a profile of too many bytes in a text")


def _check_bmp(data: bytes) -> None:
    """Limit the runs of a compressed BMP, which Pillow unpacks in Python and which may be empty."""
    if len(data) < 34 or struct.unpack_from("<I", data, 14)[0] < 40:
        return
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression in (1, 2) and len(data) > 2 * (abs(width) + 1) * abs(height) + (1 << 17):
        raise BadImage("the BMP file is damaged: it has more data than its pixels can take")


def _check_avif(data: bytes) -> None:
    """Check Exif before Pillow reads and writes all of it where a picture is turned."""
    _check_boxes(data)
    if features.check("avif"):  # a Pillow built without AVIF does not open the file
        from PIL import _avif

        _, _, _, _, block, *_ = _avif.AvifDecoder(data, "auto", 1).get_info()
        check_exif(block or b"")


def _check_boxes(data: bytes) -> None:
    """Count the boxes of a HEIF file that libavif and libheif make lists of."""
    pending = [(b"", 0, len(data))]
    while pending:
        parent, begin, end = pending.pop()
        max_boxes = _MAX_PROPERTIES if parent == b"ipco" else parts.MAX_BOXES - 1
        for number, box in enumerate(parts.boxes(data, begin, end, parent)):
            kind, size = box[0], box[2] - box[1]
            too_long = size > _MAX_BOX_BYTES.get(kind, size)
            if too_long or number >= max_boxes:
                raise BadImage("the HEIF file is damaged: it has too many boxes, or items in them")
            if kind in _PARENTS:
                pending.append(box)


_CHECKS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "TIFF": _check_tiff,
    "BMP": _check_bmp,
    "AVIF": _check_avif,
    "HEIC": _check_boxes,
}
