"""Exif blocks: their orientation, changes to them, and new ones from the tags of TIFF files.

An Exif block is a small TIFF file (CIPA DC-008): byte order, 42, the offset of the first directory;
a directory is a count and entries of 12 bytes. In the block of a whole picture, only orientation,
size and colour space are changed, each in place, so that maker notes, whose offsets point across
the block, stay readable. Pillow's own writer builds a new block without them. A picture that was
cut or scaled gets such a new block, because the old maker notes describe the whole picture.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from PIL import ExifTags, Image

PREFIX: Final = b"Exif\x00\x00"
"""Bytes that JPEG puts before the block; blocks in this module are without them."""

_FORMATS: Final = {3: "H", 4: "I"}
"""Formats of `struct` by type of tag: SHORT, and LONG, which some writers use instead."""

_SRGB: Final = 1
"""Value of the tag ColorSpace."""

_RAW_PROFILES: Final = ("Raw profile type exif", "Raw profile type APP1")
"""Texts in which ImageMagick keeps the Exif block of a PNG, in hex after three line ends."""
_XMP_TEXTS: Final = ("XML:com.adobe.xmp", "xmp")
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_DESCRIPTIVE: Final = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
)
"""Tags that do not depend on the pixels. Others describe how pixels lie in the file, or contain
pictures: XMP, Photoshop's resources, previews of raw files."""

_SUBJECT_AREA: Final = 0x9214  # SubjectLocation in Pillow
_OF_SENSOR: Final = (
    ExifTags.Base.MakerNote,
    _SUBJECT_AREA,
    ExifTags.Base.SubjectLocation,
    ExifTags.Base.FocalPlaneXResolution,
    ExifTags.Base.FocalPlaneYResolution,
)
"""Tags of the camera's directory that refer, or may refer, to pixels of the sensor."""


def orientation(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8, in a block; None when there is none."""
    value = _number(exif, _find(exif, _first_directory(exif), ExifTags.Base.Orientation))
    return value if value is not None and 1 <= value <= 8 else None


def orientation_by_xmp(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, by the XMP in Pillow's `info` of an image; 1 if none."""
    for name in _XMP_TEXTS:
        text = info.get(name, b"")
        match = _XMP_ORIENTATION.search(text if isinstance(text, bytes) else str(text).encode())
        if match is not None:
            return int(match[1])
    return 1


def block_of(info: Mapping[Any, Any]) -> bytes:
    """Return the Exif block in Pillow's `info` of an image, without prefix; empty if none."""
    block = info.get("exif")
    if isinstance(block, bytes):
        return block.removeprefix(PREFIX)
    for name in _RAW_PROFILES:
        lines = str(info.get(name, "")).split("\n")[3:]
        with suppress(ValueError):
            block = bytes.fromhex("".join(lines)).removeprefix(PREFIX)
            if is_exif(block):
                return block
    return b""


def upright(exif: bytes, width: int, height: int) -> bytes:
    """Return a block for a picture that was turned upright: orientation 1 and the new size."""
    exif = _with(exif, _find(exif, _first_directory(exif), ExifTags.Base.Orientation), 1)
    exif = _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageWidth), width)
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageHeight), height)


def as_srgb(exif: bytes) -> bytes:
    """Return a block with its colour space, if any, set to sRGB."""
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ColorSpace), _SRGB)


def rebuild(exif: bytes, width: int, height: int) -> bytes | None:
    """Return a new block for a picture that was cut or scaled; None if it would be empty.

    It has the new size, and neither maker notes nor a thumbnail, which would show the whole
    picture. Pillow's exceptions are raised where the block is damaged.
    """
    block = Image.Exif()
    block.load(exif)
    camera = block.get_ifd(ExifTags.IFD.Exif)
    for tag in _OF_SENSOR:
        camera.pop(tag, None)
    sizes = {ExifTags.Base.ExifImageWidth: width, ExifTags.Base.ExifImageHeight: height}
    camera.update({tag: size for tag, size in sizes.items() if tag in camera})
    return _descriptive(block, ExifTags.Base.Orientation)


def is_exif(exif: bytes) -> bool:
    """Return whether bytes begin as an Exif block without prefix does."""
    return len(exif) >= 8 and exif[:4] in (b"II*\x00", b"MM\x00*")


def from_tiff(image: Image.Image) -> bytes | None:
    """Return descriptive tags, Exif and GPS of an open TIFF file as a block; None if empty.

    Tags that describe how pixels lie in the file are left out.
    """
    return _descriptive(image.getexif())


def _descriptive(tags: Image.Exif, *more: int) -> bytes | None:
    """Return a new block of the descriptive tags, `more` tags, and the Exif and GPS directories."""
    kept = Image.Exif()
    for tag in (*_DESCRIPTIVE, *more):
        if tag in tags:
            kept[tag] = tags[tag]
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        # Of the interoperability directory, Pillow has read the offset only.
        entries = {t: v for t, v in tags.get_ifd(directory).items() if t != ExifTags.IFD.Interop}
        if entries:
            kept[directory] = entries
    return kept.tobytes().removeprefix(PREFIX) if len(kept) else None


def _order(exif: bytes) -> str:
    return "<" if exif[:2] == b"II" else ">"


def _first_directory(exif: bytes) -> int | None:
    """Return the position of the first directory."""
    if not is_exif(exif):
        return None
    place: int = struct.unpack_from(_order(exif) + "I", exif, 4)[0]
    return place


def _number(exif: bytes, where: tuple[str, int] | None) -> int | None:
    """Return the number at a place that `_find` returned."""
    if where is None:
        return None
    value: int = struct.unpack_from(where[0], exif, where[1])[0]
    return value


def _with(exif: bytes, where: tuple[str, int] | None, number: int) -> bytes:
    """Return a block with another number at a place of `_find`; unchanged if it does not fit."""
    if where is None or number >= 1 << 8 * struct.calcsize(where[0]):
        return exif
    new = struct.pack(where[0], number)
    return exif[: where[1]] + new + exif[where[1] + len(new) :]


def _find_of_camera(exif: bytes, tag: int) -> tuple[str, int] | None:
    """Find a tag in the camera's directory, which the first directory points to."""
    camera = _number(exif, _find(exif, _first_directory(exif), ExifTags.IFD.Exif))
    return _find(exif, camera, tag)


def _find(exif: bytes, directory: int | None, tag: int) -> tuple[str, int] | None:
    """Return format and position of the number of a tag in a directory; None if it has none."""
    if directory is None or directory + 2 > len(exif):
        return None
    order = _order(exif)
    entries: int = struct.unpack_from(order + "H", exif, directory)[0]
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if entry + 12 > len(exif):
            return None
        entry_tag, type_, count = struct.unpack_from(order + "HHI", exif, entry)
        if entry_tag == tag and type_ in _FORMATS and count == 1:
            return order + _FORMATS[type_], entry + 8
    return None
