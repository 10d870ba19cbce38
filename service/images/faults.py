"""Why an image file cannot be read, and JPEG files that lack only their end marker.

Pillow raises similar exceptions for a damaged file, one that is cut short and one of an unknown
variant. They are distinguished here by Pillow's message and by the lengths that files state.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from itertools import islice
from typing import Final

from PIL import ImageCms
from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.errors import BadImage
from service.images import parts
from service.images.limits import MAX_SEGMENTS

PILLOW_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)
"""Exceptions that Pillow and its libraries raise on damaged bytes."""

_CUT_SHORT: Final = re.compile(r"truncat|unexpected end|\beof\b|buffer of at least|no more images")
_UNKNOWN_VARIANT: Final = re.compile(
    r"^keyerror\(|unsupported|not supported|unknown|unrecogni[sz]ed|cannot handle|invalid mode"
)
_END_MARKER: Final = b"\xff\xd9"
_OTHER_DATA: Final = b"\xa5\x5a" * 512
"""Coded data whose first bit is 1; a decoder that runs out of data continues with zeros."""

_BAND_ROWS: Final = 64
"""Rows that are compared at a time."""
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
"""Kinds of segments that begin a baseline, extended or progressive frame."""
_PROGRESSIVE: Final = 0xC2
_SCAN_MARKER: Final = b"\xff\xda"
_RESTARTS: Final = tuple(bytes((0xFF, kind)) for kind in range(0xD0, 0xD8))


def why_not_read(name: str, data: bytes, error: BaseException) -> str:
    """Return why Pillow raised an error for a kind of file, as the end of a sentence."""
    message = (repr(error.args[0]) if error.args else str(error)).lower()
    if isinstance(error, EOFError) or _CUT_SHORT.search(message) or _ends_early(name, data):
        return "is cut short"
    if isinstance(error, NotImplementedError) or _UNKNOWN_VARIANT.search(message):
        return "is of a variant that cannot be read"
    return "is damaged"


def lacks_end_marker(jpeg: bytes) -> bool:
    """Return whether no end marker follows the last scan of a JPEG file."""
    return jpeg.find(_END_MARKER, max(0, jpeg.rfind(_SCAN_MARKER))) < 0


def with_end_marker(jpeg: bytes) -> bytes:
    """Return a JPEG file that lacks only its end marker, with the marker.

    Zeros at the end may stand for data that never arrived, and a decoder would take them for
    pixels. They count as data only where each of them is needed.

    Raises:
        BadImage: the file lacks more. Any of PILLOW_ERRORS: it is damaged.
    """
    bare = jpeg.rstrip(b"\0")
    if bare.endswith(b"\xff") and bare != jpeg:
        bare += b"\0"  # 255 and 0 are coded data, 255 alone is half a marker
    if _is_complete(bare):
        return bare.rstrip(b"\xff") + _END_MARKER
    if bare != jpeg and _is_complete(jpeg) and not _is_complete(jpeg[:-1]):
        return jpeg + _END_MARKER
    raise BadImage("the JPEG file is cut short")


def has_damaged_pixels(png: bytes) -> bool:
    """Return whether pixel data of a PNG differ from their checksums, which Pillow ignores."""
    view = memoryview(png)
    for kind, begin, end in parts.png_chunks(png):
        if kind in (b"IDAT", b"fdAT") and end + 4 <= len(png):
            (checksum,) = struct.unpack_from(">I", png, end)
            if zlib.crc32(view[begin - 4 : end]) != checksum:
                return True
    return False


def _is_complete(jpeg: bytes) -> bool:
    """Return whether all pixels of a JPEG file without end marker are coded in it.

    A decoder fills in missing data silently. So the file is decoded twice, ended at once and after
    other data: the pixels differ if any of them depend on missing data. The other data are repeated
    after a restart marker, for files that end where a restart marker must follow.
    """
    coded = jpeg.rstrip(b"\xff")
    if not _has_all_scans(coded):
        return False
    longer = coded + _OTHER_DATA + _next_restart(coded) + _OTHER_DATA
    with _open(coded + _END_MARKER) as one, _open(longer + _END_MARKER) as other:
        one.load()
        other.load()
        return _are_equal(one, other)


def _next_restart(jpeg: bytes) -> bytes:
    """Return the restart marker that follows the last one of the last scan."""
    begin = max(0, jpeg.rfind(_SCAN_MARKER))
    places = [jpeg.rfind(marker, begin) for marker in _RESTARTS]
    last = max(range(8), key=places.__getitem__)
    return _RESTARTS[(last + 1) % 8 if max(places) >= 0 else 0]


def _open(data: bytes) -> JpegImageFile:
    return JpegImageFile(io.BytesIO(data))


def _are_equal(one: Image, other: Image) -> bool:
    """Return whether two images of one size have the same pixels; bands save memory."""
    for top in range(0, one.height, _BAND_ROWS):
        band = (0, top, one.width, top + _BAND_ROWS)  # rows beyond the edge are black in both
        if one.crop(band).tobytes() != other.crop(band).tobytes():
            return False
    return True


def _has_all_scans(data: bytes) -> bool:
    """Return whether scans of all coefficients of all components have begun (ITU-T T.81, B.2).

    In a progressive JPEG, scans down to the last bit of all 64 coefficients must have begun.
    """
    missing: dict[int, set[int]] = {}
    progressive = False
    for kind, begin, end in islice(parts.jpeg_segments(data), MAX_SEGMENTS):
        body = data[begin:end]
        if kind in _FRAMES and len(body) >= 6:
            progressive = kind == _PROGRESSIVE
            missing = {part: set(range(64)) for part in body[6 : 6 + 3 * body[5] : 3]}
        elif kind == parts.JPEG_SCAN and len(body) >= 4 and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[-3:]
            if not progressive or bits & 15 == 0:
                complete = set(range(first, last + 1)) if progressive else set(range(64))
                for part in body[1 : 1 + 2 * body[0] : 2]:
                    missing[part] = missing.get(part, set()) - complete
    return bool(missing) and not any(missing.values())


def _ends_early(name: str, data: bytes) -> bool:
    """Return whether a file is shorter than it states."""
    if name == "WebP":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if name == "PNG":
        return b"IEND" not in data
    if name in ("AVIF", "HEIC"):
        return _ends_within_a_box(data)
    return name == "TIFF" and _lacks_values(data)


def _ends_within_a_box(file: bytes) -> bool:
    """Return whether the file ends before the last of its outermost boxes does."""
    end = max((end for _, _, end in parts.boxes(file, 0, len(file))), default=0)
    return end < len(file) and file[end + 4 : end + 8].isalnum()


def _lacks_values(tiff: bytes) -> bool:
    """Return whether a directory of a TIFF file, or a value in one, exceeds the file."""
    if len(tiff) < 16:
        return True
    layout = parts.TiffLayout.of(tiff)
    inline_bytes = struct.calcsize(layout.next_format)  # of a value that is in its entry
    for begin, end in parts.tiff_directories(tiff):
        if end + 4 > len(tiff):
            return True
        for _, kind, count, place in layout.entries(tiff, begin, end):
            size = parts.TIFF_BYTES_BY_TYPE.get(kind, 0) * count
            if size > inline_bytes and place + size > len(tiff):
                return True
    return False
