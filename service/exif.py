"""The orientation in an Exif block, and Exif of TIFF files, whose own tags it is.

An Exif block here is a small TIFF file (CIPA DC-008): byte order, 42, the offset of the first
directory; directories are a count, then entries of 12 bytes. Of a whole picture only the
orientation is touched, in place: maker notes, whose offsets point across the block, survive so.
Pillow's own writer would rebuild the block and lose them; a picture that was cut or scaled, whose
maker notes tell of another one, gets such a block.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from PIL import ExifTags, Image

PREFIX: Final = b"Exif\x00\x00"
"""What JPEG puts before the block; not part of it here."""

_FORMATS: Final = {3: "H", 4: "I"}
"""struct's formats of the types that an orientation has: SHORT, and LONG of some writers."""

_RAW_PROFILES: Final = ("Raw profile type exif", "Raw profile type APP1")
"""Texts in which ImageMagick keeps the Exif block of a PNG, in hex after three line ends."""
_DIRECTORIES: Final = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)
_OF_THE_FILE: Final = frozenset(
    {
        ExifTags.Base.ImageWidth,
        ExifTags.Base.ImageLength,
        ExifTags.Base.StripOffsets,
        ExifTags.Base.StripByteCounts,
        ExifTags.Base.JpegIFOffset,
        ExifTags.Base.JpegIFByteCount,
    }
)
"""Tags that say how pixels lie in a file, which is another one."""

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
    value: int = struct.unpack_from(where[0], exif, where[1])[0]
    return value if 1 <= value <= 8 else 1


def block_of(info: Mapping[Any, Any]) -> bytes:
    """Return the Exif block, without prefix, of what Pillow read with an image; empty if none."""
    found = info.get("exif")
    if isinstance(found, bytes):
        return found.removeprefix(PREFIX)
    for name in _RAW_PROFILES:
        lines = str(info.get(name, "")).split("\n")[3:]
        with suppress(ValueError):
            block = bytes.fromhex("".join(lines)).removeprefix(PREFIX)
            if is_exif(block):
                return block
    return b""


def reset_orientation(exif: bytes) -> bytes:
    """Return the block with its orientation, if any, set to upright."""
    where = _find_orientation(exif)
    if where is None:
        return exif
    upright = struct.pack(where[0], 1)
    return exif[: where[1]] + upright + exif[where[1] + len(upright) :]


def of_another_view(exif: bytes, width: int, height: int) -> bytes | None:
    """Return the block for a picture that was cut from the one it is of, or scaled; None if empty.

    It has no thumbnail, which would show the whole picture, no maker notes, and the right size.
    """
    block = Image.Exif()
    try:
        block.load(exif)
        directories = {ifd: block.get_ifd(ifd) for ifd in _DIRECTORIES}
    except Exception:  # Pillow raises whatever damaged bytes lead to
        return None
    kept = Image.Exif()
    for tag, value in block.items():
        if tag not in _OF_THE_FILE and tag not in _DIRECTORIES:
            kept[tag] = value
    camera = directories[ExifTags.IFD.Exif]
    camera.pop(ExifTags.Base.MakerNote, None)
    sizes = {ExifTags.Base.ExifImageWidth: width, ExifTags.Base.ExifImageHeight: height}
    camera.update({tag: size for tag, size in sizes.items() if tag in camera})
    for ifd, entries in directories.items():
        if entries and ifd != ExifTags.IFD.Interop:
            kept[ifd] = dict(entries)
    try:
        return kept.tobytes().removeprefix(PREFIX) if len(kept) else None
    except Exception:  # of values that Pillow read and cannot write
        return None


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
    """Return struct's format of the orientation and its position."""
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
        if tag == ExifTags.Base.Orientation and kind in _FORMATS and count == 1:
            return order + _FORMATS[kind], entry + 8
    return None
