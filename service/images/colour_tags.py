"""Descriptions of colours in image files by other means than an ICC profile.

PNG has chunks: cICP overrides iCCP, which overrides sRGB, which overrides gAMA and cHRM (PNG, third
edition, 4.3). AVIF and HEIC have code points (ITU-T H.273) in a `colr` box, and cameras write
"Adobe RGB" into Exif. A profile overrides all of these but cICP. The curve of BT.709, which is that
of cameras, is taken for that of sRGB, as in web browsers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal

from PIL import ExifTags
from PIL.Image import Image
from PIL.ImageFile import ImageFile

from service.errors import BadImage
from service.images import colour
from service.images.colour import SRGB_CURVE, ColourSpace, Primaries, TransferCurve
from service.images.parts import box_inside, boxes, png_chunks

_P3: Final[Primaries] = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_NTSC: Final[Primaries] = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_C: Final = (0.310, 0.316)
_PRIMARIES: Final[Mapping[int, tuple[Primaries, tuple[float, float]]]] = {
    1: (colour.SRGB_PRIMARIES, colour.D65),
    2: (colour.SRGB_PRIMARIES, colour.D65),  # 2 means "unspecified"
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), _C),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), colour.D65),
    6: (_NTSC, colour.D65),
    7: (_NTSC, colour.D65),
    8: (((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)), _C),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), colour.D65),
    11: (_P3, (0.314, 0.351)),
    12: (_P3, colour.D65),
    22: (((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)), colour.D65),
}
"""Red, green and blue, and the white point, by ColourPrimaries of H.273."""

_CURVES: Final[Mapping[int, TransferCurve]] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE),
    4: TransferCurve(2.2),
    5: TransferCurve(2.8),
    8: TransferCurve(1.0),
}
"""Curves by TransferCharacteristics of H.273; 2 means "unspecified"."""

_UNSPECIFIED: Final = 2
_RGB_OF_FULL_RANGE: Final = b"\0\1"
"""Matrix and range of a cICP chunk that are supported: PNG has no others in practice."""

_HDR: Final[Mapping[int, str]] = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of pictures of high dynamic range."""

_ADOBE_RGB: Final = ColourSpace(
    TransferCurve(563 / 256), ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
)
_UNCALIBRATED: Final = 0xFFFF
_ADOBE_COLOR_SPACE: Final = 2
_INTEROPERABILITY_INDEX: Final = 1
_MAX_ASSOCIATIONS: Final = 10_000
"""Associations that are read; later ones are ignored."""


@dataclass(frozen=True)
class ColourDescription:
    """The colour space that a part of a file names, for a note; None where it is not known."""

    source: str
    space: ColourSpace | None


def describe_colours(name: str, image: ImageFile, data: bytes) -> ColourDescription | None:
    """Return the description of colours without a profile, if any. Raises BadImage for HDR."""
    by_code_points = _by_cicp(data) if name == "PNG" else _by_nclx(name, data)
    icc = bool(image.info.get("icc_profile"))
    known = by_code_points is not None and by_code_points.space is not None
    if known and (name == "PNG" or not icc):
        return by_code_points
    return None if icc else describe_by_info(image) or by_code_points


def describe_by_info(image: Image) -> ColourDescription | None:
    """Return the description in Pillow's `info`, which has no code points; None if none."""
    if "srgb" in image.info:
        return None
    description = _by_gamma(image)
    if description is None and is_adobe_rgb(image):
        return ColourDescription("Exif (Adobe RGB)", _ADOBE_RGB)
    return description


def profile_by_info(image: Image, *, grey: bool) -> bytes | None:
    """Return a profile of the space of `describe_by_info`; None for sRGB and unknown spaces."""
    description = describe_by_info(image)
    if description is None or description.space is None:
        return None
    mode: Literal["L", "RGB"] = "L" if grey else "RGB"
    icc = description.space.profile(grey)
    transform = colour.to_srgb(icc, mode)
    return None if transform is None or colour.is_srgb(transform, mode) else icc


def _by_cicp(png: bytes) -> ColourDescription | None:
    header = takewhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(png))
    cicp = next((png[begin:end] for kind, begin, end in header if kind == b"cICP"), None)
    if cicp is None:
        return None
    description = _by_code_points("PNG cICP", cicp[0], cicp[1]) if len(cicp) == 4 else None
    return description if cicp[2:] == _RGB_OF_FULL_RANGE else ColourDescription("PNG cICP", None)


def _by_nclx(name: str, file: bytes) -> ColourDescription | None:
    points = _nclx(file) if name in ("AVIF", "HEIC") else None
    return None if points is None else _by_code_points(f"{name} nclx", *points)


def _by_code_points(source: str, primaries: int, transfer: int) -> ColourDescription | None:
    if primaries == transfer == _UNSPECIFIED:
        return None
    if transfer in _HDR:
        raise BadImage(
            f"the picture is HDR ({_HDR[transfer]} by {source}), expected one of standard dynamic "
            "range: convert it first"
        )
    known, curve = _PRIMARIES.get(primaries), _CURVES.get(transfer)
    if known is None or curve is None:
        return ColourDescription(f"{source} {primaries}, {transfer}", None)
    return ColourDescription(source, ColourSpace(curve, *known))


def _by_gamma(image: Image) -> ColourDescription | None:
    """Return the description by the chunks gAMA and cHRM; gamma 1/2.2 stands for sRGB's curve."""
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    chunks = [n for n, v in (("gAMA", gamma), ("cHRM", points)) if v is not None]
    if not chunks:
        return None
    source = f"PNG {' and '.join(chunks)}"
    try:
        curve = SRGB_CURVE
        if gamma is not None and abs(gamma - 1 / 2.2) >= 0.005:
            curve = TransferCurve(1 / gamma)
        if points is None:
            return ColourDescription(source, ColourSpace(curve))
        white, *corners = zip(points[::2], points[1::2], strict=True)
        red, green, blue = corners
        return ColourDescription(source, ColourSpace(curve, (red, green, blue), white))
    except (ValueError, ZeroDivisionError):
        return ColourDescription(source, None)


def is_adobe_rgb(image: Image) -> bool:
    """Return whether Exif says Adobe RGB: colour space 2, or "uncalibrated" with the index R03."""
    try:
        tags = image.getexif()
        space = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = tags.get_ifd(ExifTags.IFD.Interop).get(_INTEROPERABILITY_INDEX)
    except Exception:  # Pillow raises whatever damaged bytes lead to
        return False
    is_r03 = isinstance(index, str | bytes) and index[:3] in ("R03", b"R03")
    return space == _ADOBE_COLOR_SPACE or (space == _UNCALIBRATED and is_r03)


def _nclx(file: bytes) -> tuple[int, int] | None:
    """Return primaries and transfer in the `colr` box of the primary item; None if there is none.

    Thumbnails, alpha and gain maps may have boxes of their own (ISO/IEC 23008-12, 6.5.5 and 9.3).
    """
    primary = box_inside(file, b"meta", b"pitm")
    properties = box_inside(file, b"meta", b"iprp", b"ipco")
    associations = box_inside(file, b"meta", b"iprp", b"ipma")
    if primary is None or properties is None or associations is None:
        return None
    try:
        item = struct.unpack_from(">I" if file[primary[0]] else ">H", file, primary[0] + 4)[0]
        numbered = dict(enumerate(boxes(file, *properties), 1))
        for number in _properties_of(file, associations[0], item):
            kind, begin, end = numbered.get(number, (b"", 0, 0))
            if kind == b"colr" and file[begin : begin + 4] == b"nclx" and end - begin >= 8:
                primaries, transfer = struct.unpack_from(">HH", file, begin + 4)
                return primaries, transfer
    except struct.error:  # the boxes end too early
        pass
    return None


def _properties_of(file: bytes, begin: int, item: int) -> Iterator[int]:
    """Yield the numbers, from 1, of an item's properties in an `ipma` box."""
    head, items = struct.unpack_from(">2I", file, begin)
    entry = ">IB" if head >> 24 else ">HB"
    number, mask = (">H", 0x7FFF) if head & 1 else (">B", 0x7F)  # the top bit says "essential"
    position = begin + 8
    for _ in range(min(items, _MAX_ASSOCIATIONS)):
        of, count = struct.unpack_from(entry, file, position)
        position += struct.calcsize(entry)
        numbers = struct.unpack_from(f">{count}{number[1]}", file, position)
        position += struct.calcsize(number) * count
        if of == item:
            yield from (each & mask for each in numbers)
