"""Exif blocks: their orientation, changes to them, and new ones from the tags of TIFF files.

An Exif block is a small TIFF file (CIPA DC-008): byte order, 42, the offset of the first directory;
a directory is a count and entries of 12 bytes. In the block of a whole picture, only orientation,
size and colour space are changed, each in place, so that maker notes, whose offsets point across
the block, stay readable. Pillow's own writer builds a new block without them. A picture that was
cut or scaled gets such a new block, because the old maker notes describe the whole picture.

A block that is kept with a picture should suit all writers, so that no format fails later: libavif
checks its first bytes, Pillow's writer of AVIF parses it, and JPEG has room for 64 KiB. So whether
a block can be written is tried on one pixel with the writers themselves.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from PIL import ExifTags, Image

from service.errors import BadImage
from service.images.faults import PILLOW_ERRORS
from service.images.limits import check_exif
from service.images.parts import TiffLayout

DAMAGED_EXIF: Final = "the Exif block is damaged and was left out"

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

_DESCRIPTIVE_NAMES: Final = (
    "ImageDescription Make Model Software DateTime Artist Copyright "
    "XPTitle XPComment XPAuthor XPKeywords XPSubject"
)
_DESCRIPTIVE: Final = tuple(ExifTags.Base[name] for name in _DESCRIPTIVE_NAMES.split())
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

_WRITERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "PNG": {},
    "WEBP": {"method": 0},
    "JPEG": {},
    "AVIF": {"speed": 10, "max_threads": 1},
}
"""Formats, by Pillow's names, and options that make their writers fast."""

_JPEG_BYTES: Final = 65533 - len(PREFIX)
"""Bytes of the longest block that JPEG can hold."""


def orientation(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8, in a block; None when there is none."""
    value = _number(exif, _find(exif, ExifTags.Base.Orientation))
    return value if value is not None and 1 <= value <= 8 else None


def orientation_by_xmp(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, by the XMP in Pillow's `info`; 1 if there is none."""
    for name in _XMP_TEXTS:
        text = info.get(name, b"")
        match = _XMP_ORIENTATION.search(text if isinstance(text, bytes) else str(text).encode())
        if match is not None:
            return int(match[1])
    return 1


def block_of(info: Mapping[Any, Any]) -> bytes:
    """Return the Exif block in Pillow's `info`, without prefix; empty if there is none."""
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
    exif = _with(exif, _find(exif, ExifTags.Base.Orientation), 1)
    exif = _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageWidth), width)
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageHeight), height)


def as_srgb(exif: bytes) -> bytes:
    """Return a block with its colour space, if any, set to sRGB."""
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ColorSpace), _SRGB)


def rebuild(exif: bytes, width: int, height: int) -> bytes | None:
    """Return a new block for a picture that was cut or scaled; None if it would be empty.

    It has neither maker notes nor a thumbnail, which would show the whole picture. Pillow's
    exceptions are raised where the block is damaged.
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


def is_writable(format: str, block: bytes) -> bool:
    """Return whether the writer of a format, by Pillow's name, accepts a block."""
    if not is_exif(block):
        return False
    try:
        check_exif(block)
        pixel = Image.new("L", (1, 1))
        pixel.save(io.BytesIO(), format, exif=PREFIX + block, **_WRITERS[format])
    except (BadImage, *PILLOW_ERRORS):
        return False
    return True


def is_sound(block: bytes) -> bool:
    """Return whether every writer accepts a block; JPEG's only if it is short."""
    formats = [name for name in _WRITERS if name != "JPEG" or len(block) <= _JPEG_BYTES]
    return all(is_writable(format, block) for format in formats)


def orientation_in_avif(block: bytes) -> object:
    """Return the orientation in a sound block, in any type and count that the AVIF writer reads."""
    tags = Image.Exif()
    tags.load(block)
    return tags.get(ExifTags.Base.Orientation)


def from_tiff(image: Image.Image) -> bytes | None:
    """Return descriptive tags, Exif and GPS of an open TIFF file as a block; None if empty."""
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


def _number(exif: bytes, where: tuple[str, int] | None) -> int | None:
    """Return the number at a place of `_find`; None if there is no place."""
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
    camera = _number(exif, _find(exif, ExifTags.IFD.Exif))
    return None if camera is None else _find(exif, tag, camera)


def _find(exif: bytes, tag: int, directory: int | None = None) -> tuple[str, int] | None:
    """Return format and position of the number of a tag in the first or another directory."""
    if not is_exif(exif):
        return None
    layout = TiffLayout.of(exif)
    begin, end = layout.directory(exif, layout.first(exif) if directory is None else directory)
    for number, (entry_tag, type_, count, _) in enumerate(layout.entries(exif, begin, end)):
        if entry_tag == tag and type_ in _FORMATS and count == 1:
            return layout.entry_format[0] + _FORMATS[type_], begin + 12 * number + 8
    return None
