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

from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.image_colours import ends_within_a_box

_CUT_SHORT: Final = re.compile(r"truncat|unexpected end|\beof\b|buffer of at least|no more images")
_NOT_KNOWN: Final = re.compile(
    r"^keyerror\(|unsupported|not supported|unknown|unrecogni[sz]ed|cannot handle|invalid mode"
)
_TIFF_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8}
"""Bytes of one value by its type (TIFF 6.0, section 2)."""

_END: Final = b"\xff\xd9"
_OTHER_DATA: Final = b"\x5a\xa5" * 512
"""Coded data that decodes to something else than what a decoder puts where data are missing."""

_BAND_ROWS: Final = 64
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE: Final = 0xC2
_SCAN: Final = 0xDA


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


def with_end_marker(data: bytes) -> bytes | None:
    """Return a JPEG file that only lacked its end marker with one; None if more is missing.

    A decoder fills in what is missing without a word. So the file is decoded twice, ended at once
    and after other data: the pixels differ if any of them depend on what is not there.
    """
    if data.rstrip(b"\0").endswith(_END) or not _has_all_scans(data):
        return None
    coded = data.rstrip(b"\xff")  # half a marker
    ended = coded + _END
    with _opened(ended) as one, _opened(coded + _OTHER_DATA + _END) as other:
        one.load()
        other.load()
        return ended if _are_equal(one, other) else None


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
    progressive, position = False, 2
    while (found := _MARKER.search(data, position)) is not None:
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
    return name == "TIFF" and _directory_ends_early(data)


def _directory_ends_early(tiff: bytes) -> bool:
    if len(tiff) < 8 or tiff[2:4] not in (b"*\0", b"\0*"):
        return len(tiff) < 8
    order = "<" if tiff[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    if offset + 2 > len(tiff):
        return True
    (entries,) = struct.unpack_from(order + "H", tiff, offset)
    if offset + 2 + 12 * entries + 4 > len(tiff):
        return True
    for entry in range(offset + 2, offset + 2 + 12 * entries, 12):
        kind, count, place = struct.unpack_from(order + "HII", tiff, entry + 2)
        size = _TIFF_BYTES.get(kind, 0) * count
        if size > 4 and place + size > len(tiff):
            return True
    return False
