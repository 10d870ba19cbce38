"""The orientation in an Exif block, and Exif of TIFF files, whose own tags it is.

An Exif block here is a small TIFF file (CIPA DC-008): byte order, 42, the offset of the first
directory; directories are a count, then entries of 12 bytes. In the block of a
whole picture, only the orientation, the size and the colour space are changed, each in place: maker
notes, whose offsets point across the block, stay readable. Pillow's own writer builds a new block
without them. A picture that was cut or scaled gets such a new block, because the old maker notes
describe the whole picture.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from PIL import ExifTags, Image

PREFIX: Final = b"Exif\x00\x00"
"""What JPEG puts before the block; not part of it here."""

_FORMATS: Final = {3: "H", 4: "I"}
"""struct's formats of the types that numbers here have: SHORT, and LONG of some writers."""

_SRGB: Final = 1

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
"""Tags that hold whatever the pixels are. Others say how those lie in the file, or have pictures
of their own: XMP, Photoshop's resources, previews of raw files."""

_SUBJECT_AREA: Final = 0x9214  # SubjectLocation in Pillow
_OF_ANOTHER_VIEW: Final = (
    ExifTags.Base.MakerNote,
    _SUBJECT_AREA,
    ExifTags.Base.SubjectLocation,
    ExifTags.Base.FocalPlaneXResolution,
    ExifTags.Base.FocalPlaneYResolution,
)
"""Tags of the camera's directory that speak of the sensor's pixels, or may."""


def orientation(exif: bytes) -> int | None:
    """Return the orientation 1–8 of a block without prefix; None when there is none to be found."""
    value = _number(exif, _find(exif, _first_directory(exif), ExifTags.Base.Orientation))
    return value if value is not None and 1 <= value <= 8 else None


def orientation_by_xmp(info: Mapping[Any, Any]) -> int:
    """Return the orientation 1–8 that XMP tells of what Pillow read with an image; 1 if none."""
    for name in _XMP_TEXTS:
        text = info.get(name, b"")
        found = _XMP_ORIENTATION.search(text if isinstance(text, bytes) else str(text).encode())
        if found is not None:
            return int(found[1])
    return 1


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


def upright(exif: bytes, width: int, height: int) -> bytes:
    """Return the block for a picture that was turned upright: its orientation and size, if any."""
    exif = _with(exif, _find(exif, _first_directory(exif), ExifTags.Base.Orientation), 1)
    exif = _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageWidth), width)
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ExifImageHeight), height)


def as_srgb(exif: bytes) -> bytes:
    """Return the block with its colour space, if any, set to sRGB: for pixels converted to that."""
    return _with(exif, _find_of_camera(exif, ExifTags.Base.ColorSpace), _SRGB)


def of_another_view(exif: bytes, width: int, height: int) -> bytes | None:
    """Return the block for a picture that was cut from the one it is of, or scaled; None if empty.

    It has no thumbnail, which would show the whole picture, no maker notes, and the right size.
    Raises whatever Pillow raises where the block is damaged.
    """
    block = Image.Exif()
    block.load(exif)
    camera = block.get_ifd(ExifTags.IFD.Exif)
    for tag in _OF_ANOTHER_VIEW:
        camera.pop(tag, None)
    sizes = {ExifTags.Base.ExifImageWidth: width, ExifTags.Base.ExifImageHeight: height}
    camera.update({tag: size for tag, size in sizes.items() if tag in camera})
    return _descriptive(block, ExifTags.Base.Orientation)


def is_exif(exif: bytes) -> bool:
    """Whether the bytes begin as an Exif block without prefix does."""
    return len(exif) >= 8 and exif[:4] in (b"II*\x00", b"MM\x00*")


def from_tiff(image: Image.Image) -> bytes | None:
    """Return the descriptive tags, Exif and GPS of an open TIFF file as a block, None if empty.

    The tags that say how the pixels lie in the file are left out.
    """
    return _descriptive(image.getexif())


def _descriptive(own: Image.Exif, *more: int) -> bytes | None:
    """Return a new block of the descriptive tags, some more, and the Exif and GPS directories."""
    kept = Image.Exif()
    for tag in (*_DESCRIPTIVE, *more):
        if tag in own:
            kept[tag] = own[tag]
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        # That of interoperability is left out: Pillow has read no more than its place.
        entries = {t: v for t, v in own.get_ifd(directory).items() if t != ExifTags.IFD.Interop}
        if entries:
            kept[directory] = entries
    return kept.tobytes().removeprefix(PREFIX) if len(kept) else None


def _order(exif: bytes) -> str:
    return "<" if exif[:2] == b"II" else ">"


def _first_directory(exif: bytes) -> int | None:
    """Position of the first directory."""
    if not is_exif(exif):
        return None
    place: int = struct.unpack_from(_order(exif) + "I", exif, 4)[0]
    return place


def _number(exif: bytes, where: tuple[str, int] | None) -> int | None:
    """The number at a place that `_find` returned."""
    if where is None:
        return None
    value: int = struct.unpack_from(where[0], exif, where[1])[0]
    return value


def _with(exif: bytes, where: tuple[str, int] | None, number: int) -> bytes:
    """The block with another number at a place that `_find` returned; as it is if none fits."""
    if where is None or number >= 1 << 8 * struct.calcsize(where[0]):
        return exif
    new = struct.pack(where[0], number)
    return exif[: where[1]] + new + exif[where[1] + len(new) :]


def _find_of_camera(exif: bytes, wanted: int) -> tuple[str, int] | None:
    """What `_find` returns for the camera's directory, which the first one points to."""
    camera = _number(exif, _find(exif, _first_directory(exif), ExifTags.IFD.Exif))
    return _find(exif, camera, wanted)


def _find(exif: bytes, directory: int | None, wanted: int) -> tuple[str, int] | None:
    """Return struct's format of the number under a tag of a directory, and its position."""
    if directory is None or directory + 2 > len(exif):
        return None
    order = _order(exif)
    entries: int = struct.unpack_from(order + "H", exif, directory)[0]
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if entry + 12 > len(exif):
            return None
        tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
        if tag == wanted and kind in _FORMATS and count == 1:
            return order + _FORMATS[kind], entry + 8
    return None
