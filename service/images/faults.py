"""Why an image file cannot be read, and JPEG files that lack only their end marker.

Pillow raises similar exceptions for a damaged file, one that is cut short and one of an unknown
variant. They are distinguished here by Pillow's message and by the lengths that files state.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Final

from PIL import ImageCms
from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.errors import BadImage
from service.images.boxes import ends_within_a_box
from service.images.kinds import TiffLayout, tiff_directories
from service.images.limits import JPEG_MARKER, MAX_SEGMENTS

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
_TIFF_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8}
"""Bytes of one value by its type (TIFF 6.0, section 2)."""

_END_MARKER: Final = b"\xff\xd9"
_OTHER_DATA: Final = b"\xa5\x5a" * 512
"""Coded data whose first bit is 1; a decoder that runs out of data continues with zeros."""

_BAND_ROWS: Final = 64
"""Rows that are compared at a time."""
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
"""Kinds of segments that begin a baseline, extended or progressive frame."""
_PROGRESSIVE: Final = 0xC2
_SCAN: Final = 0xDA
_SCAN_MARKER: Final = b"\xff\xda"
_RESTARTS: Final = tuple(bytes((0xFF, kind)) for kind in range(0xD0, 0xD8))


def why_not_read(name: str, data: bytes, error: BaseException) -> str:
    """Return what is wrong with a file that Pillow could not read, as the end of a sentence.

    Args:
        name: of the kind of file. data: the whole file. error: that Pillow raised.
    """
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
    view, position = memoryview(png), 8
    while position + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        after = position + 12 + size
        if kind == b"IEND" or after > len(png):
            return False
        if kind in (b"IDAT", b"fdAT"):
            (checksum,) = struct.unpack_from(">I", png, after - 4)
            if zlib.crc32(view[position + 4 : after - 4]) != checksum:
                return True
        position = after
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
    return all(
        one.crop(band).tobytes() == other.crop(band).tobytes()
        for band in (
            (0, top, one.width, min(top + _BAND_ROWS, one.height))
            for top in range(0, one.height, _BAND_ROWS)
        )
    )


def _has_all_scans(data: bytes) -> bool:
    """Return whether scans of all coefficients of all components have begun (ITU-T T.81, B.2).

    In a progressive JPEG, scans down to the last bit of all 64 coefficients must have begun.
    """
    missing: dict[int, set[int]] = {}
    progressive, position, segments = False, 2, 0
    while (marker := JPEG_MARKER.search(data, position)) is not None and segments < MAX_SEGMENTS:
        segments += 1
        kind, begin = marker[1][0], marker.end()
        length = int.from_bytes(data[begin : begin + 2], "big")
        body = data[begin + 2 : begin + length]
        if kind in _FRAMES and len(body) >= 6:
            progressive = kind == _PROGRESSIVE
            missing = {part: set(range(64)) for part in body[6 : 6 + 3 * body[5] : 3]}
        elif kind == _SCAN and len(body) >= 4 and len(body) >= 4 + 2 * body[0]:
            parts, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
            if not progressive or bits & 15 == 0:
                complete = set(range(first, last + 1)) if progressive else set(range(64))
                for part in parts:
                    missing[part] = missing.get(part, set()) - complete
        position = begin + max(length, 0)
    return bool(missing) and not any(missing.values())


def _ends_early(name: str, data: bytes) -> bool:
    """Return whether a file is shorter than it states."""
    if name == "WebP":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if name == "PNG":
        return b"IEND" not in data
    if name in ("AVIF", "HEIC"):
        return ends_within_a_box(data)
    return name == "TIFF" and _lacks_values(data)


def _lacks_values(tiff: bytes) -> bool:
    """Return whether a directory of a TIFF file, or a value in one, exceeds the file."""
    if len(tiff) < 16:
        return True
    entry = struct.Struct(TiffLayout.of(tiff).entry_format)
    inline = (entry.size - 4) // 2  # bytes of a value that is in its entry
    for begin, end in tiff_directories(tiff):
        if end + 4 > len(tiff):
            return True
        for position in range(begin, end, entry.size):
            _, kind, count, place = entry.unpack_from(tiff, position)
            size = _TIFF_BYTES.get(kind, 0) * count
            if size > inline and place + size > len(tiff):
                return True
    return False
