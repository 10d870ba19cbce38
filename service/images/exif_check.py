"""Whether an Exif block can be written, tried on one pixel with the writers themselves.

Pillow's writer of AVIF parses the block and changes it where it has an orientation; libavif checks
its first bytes; JPEG has room for 64 KiB. A block that is kept with a picture should suit all
writers, so that no format fails later. A stream that was made elsewhere may hold any bytes.
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

DAMAGED_EXIF: Final = "the Exif block is damaged and was left out"
"""Note on a picture."""

_WRITERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "PNG": {},
    "WEBP": {"method": 0},
    "JPEG": {},
    "AVIF": {"speed": 10, "max_threads": 1},
}
"""Formats, by Pillow's names, and options that make their writers fast."""

_JPEG_BYTES: Final = 65533 - len(exif.PREFIX)
"""Bytes of the longest block that JPEG can hold."""


def takes_exif(format: str, block: bytes) -> bool:
    """Return whether the writer of a format, by Pillow's name, accepts a block without prefix."""
    if not exif.is_exif(block):
        return False
    try:
        check_exif(block)
        pixel = Image.new("L", (1, 1))
        pixel.save(io.BytesIO(), format, exif=exif.PREFIX + block, **_WRITERS[format])
    except (BadImage, *PILLOW_ERRORS):
        return False
    return True


def is_sound_exif(block: bytes) -> bool:
    """Return whether every writer accepts a block without prefix; JPEG's only if it is short."""
    formats = [name for name in _WRITERS if name != "JPEG" or len(block) <= _JPEG_BYTES]
    return all(takes_exif(format, block) for format in formats)


def orientation_in(block: bytes) -> object:
    """Return the orientation in a sound block as the writer of AVIF reads it, None if none.

    Pillow accepts values of more types and counts than exif.py does.
    """
    tags = Image.Exif()
    tags.load(block)
    return tags.get(ExifTags.Base.Orientation)
