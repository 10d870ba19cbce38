"""Whether Exif can be written: tried, on one pixel, with the writers that will write it.

Pillow's writer of AVIF reads the block, and takes it apart where it has an orientation; libavif
looks at its beginning; JPEG has room for 64 KiB. A block that is kept with a picture should fit all
of them, so that no format fails later. A stream that was made elsewhere may hold any bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from PIL import ExifTags, Image

from service.errors import BadImage
from service.images import exif
from service.images.faults import PILLOW_ERRORS
from service.images.limits import check_exif

_QUICK: Final[Mapping[str, Mapping[str, Any]]] = {
    "PNG": {},
    "WEBP": {"method": 0},
    "JPEG": {},
    "AVIF": {"speed": 10, "max_threads": 1},
}
"""Formats, by Pillow's names, and options that make their writers quick."""

_JPEG_BYTES: Final = 65533 - len(exif.PREFIX)
"""Longest block that JPEG can hold."""


def takes_exif(format: str, block: bytes) -> bool:
    """Whether the writer of a format, by Pillow's name, takes an Exif block without prefix."""
    if not exif.is_exif(block):
        return False
    try:
        check_exif(block)
        one = Image.new("L", (1, 1))
        one.save(io.BytesIO(), format, exif=exif.PREFIX + block, **_QUICK[format])
    except (BadImage, *PILLOW_ERRORS):
        return False
    return True


def is_sound_exif(block: bytes) -> bool:
    """Whether an Exif block without prefix can be written in every format; JPEG if it is short."""
    formats = [name for name in _QUICK if name != "JPEG" or len(block) <= _JPEG_BYTES]
    return all(takes_exif(format, block) for format in formats)


def orientation_in(block: bytes) -> object:
    """Return the orientation of a sound block that the writer of AVIF turns into boxes, if any.

    Pillow takes values of other types and counts than images/exif.py does.
    """
    pillow = Image.Exif()
    pillow.load(block)
    return pillow.get(ExifTags.Base.Orientation)
