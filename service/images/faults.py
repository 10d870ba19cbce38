"""Why an image file cannot be read, and JPEG files that lack nothing but their end marker.

Pillow says much the same of a file that is damaged, one that is cut short and one of a variant that
it does not know. Here they are told apart: by what it says, and by the lengths that files state.
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
"""Whatever Pillow and the libraries under it raise on damaged bytes."""

_CUT_SHORT: Final = re.compile(r"truncat|unexpected end|\beof\b|buffer of at least|no more images")
_NOT_KNOWN: Final = re.compile(
    r"^keyerror\(|unsupported|not supported|unknown|unrecogni[sz]ed|cannot handle|invalid mode"
)
_TIFF_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8}
"""Bytes of one value by its type (TIFF 6.0, section 2)."""

_END: Final = b"\xff\xd9"
_OTHER_DATA: Final = b"\xa5\x5a" * 512
"""Coded data whose first bit is 1, where a decoder that lacks data goes on with zeros."""

_BAND_ROWS: Final = 64
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE: Final = 0xC2
_SCAN: Final = 0xDA
_SCAN_MARKER: Final = b"\xff\xda"
_RESTARTS: Final = tuple(bytes((0xFF, kind)) for kind in range(0xD0, 0xD8))


def why_not_read(name: str, data: bytes, error: BaseException) -> str:
    """Return what is wrong with a file that Pillow could not read, as the end of a sentence.

    Args:
        name: of its kind. data: the whole file. error: that Pillow raised.
    """
    said = (repr(error.args[0]) if error.args else str(error)).lower()
    if isinstance(error, EOFError) or _CUT_SHORT.search(said) or _ends_early(name, data):
        return "is cut short"
    if isinstance(error, NotImplementedError) or _NOT_KNOWN.search(said):
        return "is of a variant that is not read"
    return "is damaged"


def lacks_end_marker(jpeg: bytes) -> bool:
    """Whether no end marker follows the last scan of a JPEG file."""
    return jpeg.find(_END, max(0, jpeg.rfind(_SCAN_MARKER))) < 0


def with_end_marker(jpeg: bytes) -> bytes:
    """Return a JPEG file that lacks nothing but its end marker with one.

    Zeros at its end may stand in the place of data that never came, and a decoder would take them
    for pixels. They are only taken for data where each of them is needed.

    Raises:
        BadImage: it lacks more. What Pillow raises: it is damaged.
    """
    bare = jpeg.rstrip(b"\0")
    if bare.endswith(b"\xff") and bare != jpeg:
        bare += b"\0"  # 255 0 is coded data, 255 alone half a marker
    if _is_complete(bare):
        return bare.rstrip(b"\xff") + _END
    if bare != jpeg and _is_complete(jpeg) and not _is_complete(jpeg[:-1]):
        return jpeg + _END
    raise BadImage("the JPEG file is cut short")


def has_damaged_pixels(png: bytes) -> bool:
    """Whether pixel data of a PNG differ from their checksums; Pillow paints what it can."""
    view, position = memoryview(png), 8
    while position + 12 <= len(png):
        size, kind = struct.unpack_from(">I4s", png, position)
        after = position + 12 + size
        if kind == b"IEND" or after > len(png):
            return False
        if kind in (b"IDAT", b"fdAT"):
            (told,) = struct.unpack_from(">I", png, after - 4)
            if zlib.crc32(view[position + 4 : after - 4]) != told:
                return True
        position = after
    return False


def _is_complete(jpeg: bytes) -> bool:
    """Whether all pixels of a JPEG file without end marker are coded in it.

    A decoder fills in what is missing without a word. So the file is decoded twice, ended at once
    and after other data: the pixels differ if any of them depend on what is not there. The other
    data come once more after a restart marker, for files that end where one is due.
    """
    coded = jpeg.rstrip(b"\xff")
    if not _has_all_scans(coded):
        return False
    longer = coded + _OTHER_DATA + _next_restart(coded) + _OTHER_DATA
    with _opened(coded + _END) as one, _opened(longer + _END) as other:
        one.load()
        other.load()
        return _are_equal(one, other)


def _next_restart(jpeg: bytes) -> bytes:
    """The restart marker that is due after those of the last scan."""
    begin = max(0, jpeg.rfind(_SCAN_MARKER))
    places = [jpeg.rfind(marker, begin) for marker in _RESTARTS]
    last = max(range(8), key=places.__getitem__)
    return _RESTARTS[(last + 1) % 8 if max(places) >= 0 else 0]


def _opened(data: bytes) -> JpegImageFile:
    return JpegImageFile(io.BytesIO(data))


def _are_equal(one: Image, other: Image) -> bool:
    """Whether two images of one size have the same pixels, compared in bands to save memory."""
    return all(
        one.crop(band).tobytes() == other.crop(band).tobytes()
        for band in (
            (0, top, one.width, min(top + _BAND_ROWS, one.height))
            for top in range(0, one.height, _BAND_ROWS)
        )
    )


def _has_all_scans(data: bytes) -> bool:
    """Whether scans for all coefficients of all components of a JPEG have begun (ITU-T T.81, B.2).

    In a progressive one, each of the 64 coefficients must have come to its last bit.
    """
    waiting: dict[int, set[int]] = {}
    progressive, position, segments = False, 2, 0
    while (found := JPEG_MARKER.search(data, position)) is not None and segments < MAX_SEGMENTS:
        segments += 1
        kind, begin = found[1][0], found.end()
        length = int.from_bytes(data[begin : begin + 2], "big")
        body = data[begin + 2 : begin + length]
        if kind in _FRAMES and len(body) >= 6:
            progressive = kind == _PROGRESSIVE
            waiting = {part: set(range(64)) for part in body[6 : 6 + 3 * body[5] : 3]}
        elif kind == _SCAN and len(body) >= 4 and len(body) >= 4 + 2 * body[0]:
            parts, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
            if not progressive or bits & 15 == 0:
                done = set(range(first, last + 1)) if progressive else set(range(64))
                for part in parts:
                    waiting[part] = waiting.get(part, set()) - done
        position = begin + max(length, 0)
    return bool(waiting) and not any(waiting.values())


def _ends_early(name: str, data: bytes) -> bool:
    """Whether a file states a length that it does not have."""
    if name == "WebP":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if name == "PNG":
        return b"IEND" not in data
    if name in ("AVIF", "HEIC"):
        return ends_within_a_box(data)
    return name == "TIFF" and _lacks_values(data)


def _lacks_values(tiff: bytes) -> bool:
    """Whether a directory of a TIFF file, or a value that one points to, is not all there."""
    if len(tiff) < 16:
        return True
    entry = struct.Struct(TiffLayout.of(tiff).entry_format)
    inline = (entry.size - 4) // 2  # bytes of a value that stands in its entry
    for begin, end in tiff_directories(tiff):
        if end + 4 > len(tiff):
            return True
        for position in range(begin, end, entry.size):
            _, kind, count, place = entry.unpack_from(tiff, position)
            size = _TIFF_BYTES.get(kind, 0) * count
            if size > inline and place + size > len(tiff):
                return True
    return False
