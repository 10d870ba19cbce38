"""The orientation in an Exif block, and Exif of TIFF files, whose own tags it is.

An Exif block here is a small TIFF file (CIPA DC-008): byte order, 42, the offset of the first
directory; directories are a count, then entries of 12 bytes. Only the orientation is touched, two
bytes in place, so that maker notes, whose offsets point across the block, survive. Pillow's own
writer would rebuild the block and lose them.
"""

from __future__ import annotations

import struct
from typing import Final

from PIL import ExifTags, Image

PREFIX: Final = b"Exif\x00\x00"
"""What JPEG puts before the block; not part of it here."""

_SHORT: Final = 3
_KEPT_TIFF_TAGS: Final = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)


def orientation(exif: bytes) -> int:
    """Return the orientation 1–8 of a block without prefix; 1 when there is none to be found."""
    where = _find_orientation(exif)
    if where is None:
        return 1
    order, position = where
    value: int = struct.unpack_from(order + "H", exif, position)[0]
    return value if 1 <= value <= 8 else 1


def reset_orientation(exif: bytes) -> bytes:
    """Return the block with its orientation, if any, set to upright."""
    where = _find_orientation(exif)
    if where is None:
        return exif
    order, position = where
    upright = struct.pack(order + "H", 1)
    return exif[:position] + upright + exif[position + 2 :]


def is_exif(exif: bytes) -> bool:
    """Whether the bytes begin as an Exif block without prefix does."""
    return len(exif) >= 8 and exif[:4] in (b"II*\x00", b"MM\x00*")


def from_tiff(image: Image.Image) -> bytes | None:
    """Return the descriptive tags, Exif and GPS of an open TIFF file as a block, None if empty.

    The tags that say how the pixels lie in the file are left out.
    """
    own = image.getexif()
    kept = Image.Exif()
    for tag in _KEPT_TIFF_TAGS:
        if tag in own:
            kept[tag] = own[tag]
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        entries = own.get_ifd(directory)
        if entries:
            kept[directory] = dict(entries)
    return kept.tobytes().removeprefix(PREFIX) if len(kept) else None


def _find_orientation(exif: bytes) -> tuple[str, int] | None:
    """Return the byte order for struct and the position of the orientation's two bytes."""
    if not is_exif(exif):
        return None
    order = "<" if exif[:2] == b"II" else ">"
    directory: int = struct.unpack_from(order + "I", exif, 4)[0]
    if directory + 2 > len(exif):
        return None
    entries: int = struct.unpack_from(order + "H", exif, directory)[0]
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if entry + 12 > len(exif):
            return None
        tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ExifTags.Base.Orientation and kind == _SHORT and count == 1:
            return order, entry + 8
    return None
