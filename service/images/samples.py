"""From the samples of a file that Pillow opened to 8-bit RGB and alpha, upright.

What has to be done is planned from the header and the profile; then pixels leave Pillow in bands,
each converted and put where it belongs in the upright picture. So a photograph is held once by
Pillow and once as an array, whatever its mode and orientation.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms
from PIL.Image import Image, fromarray
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from service.errors import BadImage
from service.images import colour
from service.images.colour import SRGB_CURVE, Curve
from service.images.colours import ColourDescription
from service.picture import U8

_BAND_PIXELS: Final = 1 << 20
_MODES_16: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_MODES_GREY: Final = _MODES_16 | {"1", "L", "LA", "La"}
_MODES_COLOUR: Final = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_WHY_REFUSED: Final[Mapping[str, str]] = {
    "F": "its samples are floating-point numbers; save it with 8 or 16 bits a sample",
    "I": "its samples are signed or 32-bit integers; save it with 8 or 16 bits a sample",
    "LAB": "its colours are CIE Lab; save it as RGB",
}
_TIFF_BITS: Final = 258
_TIFF_PHOTOMETRIC: Final = 262
_SPACES: Final[Mapping[colour.Mode, str]] = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Samples:
    """What the samples of a file are.

    Attributes:
        grey: one colour channel.
        bits: of a sample in the file, as far as Pillow tells.
        white: largest value of a sample in the file.
        inverted: 0 is white, in grey samples of more than 8 bits.
        alpha: some pixels may be transparent.
    """

    grey: bool
    bits: int
    white: int
    inverted: bool
    alpha: bool


@dataclass(frozen=True)
class Conversion:
    """What is done to the colours.

    Attributes:
        mode: of Pillow, for colours without alpha before the transform.
        transform: to sRGB, None to take colours as they are.
        icc: the profile that the picture keeps.
        notes: what a user should know of it.
        curve: of the samples; they become those of sRGB's curve before they are reduced to 8 bits
            and transformed. None to take them as they are.
    """

    mode: colour.Mode
    transform: ImageCms.ImageCmsTransform | None = None
    icc: bytes | None = None
    notes: tuple[str, ...] = ()
    curve: Curve | None = None


def examine(image: ImageFile) -> Samples:
    """Return what the header says of the samples, before they are decoded.

    Raises:
        BadImage: samples that have no natural place in 8 bits.
    """
    raw_mode, decoder = _raw_mode(image)
    deep_pnm = image.format == "PPM" and image.mode == "I"
    if image.format == "PPM" and decoder != "raw":
        raise BadImage("PPM files are read in binary with 8 bits, or grey with 16, a sample")
    if image.mode not in _MODES_GREY | _MODES_COLOUR and not deep_pnm:
        why = _WHY_REFUSED.get(image.mode, f"its samples are of the kind {image.mode}")
        raise BadImage(f"this {image.format} file is not read: {why}")
    grey = image.mode in _MODES_GREY or deep_pnm or raw_mode.startswith("LA")
    bits = _bits(image, raw_mode, deep_pnm)
    inverted = image.format == "TIFF" and _tiff_tag(image, _TIFF_PHOTOMETRIC) == 0
    return Samples(grey, bits, (1 << bits) - 1, inverted, image.has_transparency_data)


def has_grey_palette(image: Image) -> bool:
    """Whether a loaded image has a palette of nothing but greys."""
    if image.mode != "P":
        return False
    entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((entries == entries[:, :1]).all())


def plan_colours(
    image: Image,
    samples: Samples,
    told: ColourDescription | None,
    *,
    keep: bool,
    verbatim: bool,
    max_bytes: int,
) -> Conversion:
    """Return what to do with the colours of a loaded image and with its profile.

    Args:
        image: as decoded.
        samples: as examined.
        told: what the file says of its colours otherwise, which goes before its profile.
        keep: keep a profile that says more than sRGB; else convert to sRGB.
        verbatim: keep also one that says no more than sRGB.
        max_bytes: of a profile that is kept; with a larger one, colours are converted.
    """
    mode = _colour_mode(image, samples)
    if told is not None and mode != "CMYK":
        return _plan_described(told, mode, keep)
    icc = image.info.get("icc_profile")
    naive = ("CMYK without a profile converted to RGB",) if mode == "CMYK" else ()
    if not isinstance(icc, bytes) or not icc:
        return Conversion(mode, notes=naive)
    space = colour.space(icc)
    fits = space == _SPACES[mode]
    if mode == "L" and space == "RGB":
        mode = "RGB"
    transform = colour.to_srgb(icc, mode) if space == _SPACES[mode] else None
    if transform is None:
        dropped = "the colour profile is damaged or of another colour space and was left out"
        return Conversion(mode, notes=(dropped, *naive))
    if mode == "CMYK":
        return Conversion(mode, transform, notes=("CMYK converted to sRGB by its profile",))
    plain = colour.is_srgb(transform, mode)
    if fits and len(icc) <= max_bytes and (verbatim or (keep and not plain)):
        return Conversion(mode, icc=icc)
    if plain:
        return Conversion(mode)
    return Conversion(mode, transform, notes=("colours converted to sRGB by the file's profile",))


def _plan_described(told: ColourDescription, mode: Literal["L", "RGB"], keep: bool) -> Conversion:
    """What to do with colours that are told without a profile.

    Those of a wider space than sRGB get a profile, others are converted: no colour is lost, and a
    profile costs more than they do. Linear samples, which would be coded badly, get sRGB's curve.
    """
    if told.space is None:
        return Conversion(mode, notes=(f"the colours told by {told.by} are not known: left out",))
    space, curve = told.space, None
    if space.curve.is_far_from_srgb:
        space, curve = replace(space, curve=SRGB_CURVE), space.curve
    icc = space.profile(grey=mode == "L")
    transform = colour.to_srgb(icc, mode)
    if transform is None:
        return Conversion(mode, notes=(f"the colours told by {told.by} cannot be used",))
    if colour.is_srgb(transform, mode):
        if curve is None:
            return Conversion(mode)
        transform = None
    elif keep and mode == "RGB" and space.is_wider:
        made = f"colour profile made from {told.by}"
        recoded = () if curve is None else ("samples converted to the transfer curve of sRGB",)
        return Conversion(mode, icc=icc, notes=(made, *recoded), curve=curve)
    notes = (f"colours converted to sRGB from {told.by}",)
    return Conversion(mode, transform, notes=notes, curve=curve)


def low_bytes(image: ImageFile, samples: Samples, data: bytes) -> Image | None:
    """Return the low bytes of a PNG's colours of 16 bits, which Pillow drops; None if it does not.

    Args:
        image: loaded. samples: as examined. data: the whole file.
    """
    animated = getattr(image, "is_animated", False)
    if image.format != "PNG" or samples.bits <= 8 or image.mode in _MODES_16 or animated:
        return None
    with PngImageFile(io.BytesIO(data)) as again:
        # Read as if of the other byte order, so that Pillow keeps the other byte. For grey with
        # alpha it has no such reader: its four bytes are read as four channels.
        raw_mode = "RGBA" if samples.grey else f"{again.mode};16L"
        again.tile = [tile._replace(args=raw_mode) for tile in again.tile]
        again.load()
        return again.getchannel("G") if samples.grey else again.convert("RGB")


def unpack(
    image: Image, low: Image | None, samples: Samples, conversion: Conversion, orientation: int
) -> tuple[U8, U8 | None]:
    """Return the upright colours [H, W, 3] and alpha [H, W] of a loaded image.

    Alpha is None when every pixel is opaque. `low` has the low bytes of colours of 16 bits.
    """
    width, height = image.size
    upright = (height, width) if orientation <= 4 else (width, height)
    rgb = np.empty((*upright, 3), np.uint8)
    alpha = np.empty(upright, np.uint8) if samples.alpha else None
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        place = (0, top, width, bottom)
        low_band = None if low is None else low.crop(place)
        channels, transparency = _unpack_band(image.crop(place), low_band, samples, conversion)
        as_in_file(rgb, orientation)[top:bottom] = channels
        if alpha is not None and transparency is not None:
            as_in_file(alpha, orientation)[top:bottom] = transparency
    return rgb, unless_opaque(alpha)


def as_in_file(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return a view of an upright picture that is indexed as the file's rows and columns are.

    Orientations are those of TIFF and Exif: 6 is a file whose first row is the right side.
    """
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    return upright.swapaxes(0, 1) if orientation >= 5 else upright


def unless_opaque(alpha: U8 | None) -> U8 | None:
    """Return alpha, or None when every pixel is opaque."""
    return None if alpha is None or bool((alpha == 255).all()) else alpha


def _unpack_band(
    band: Image, low: Image | None, samples: Samples, conversion: Conversion
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return colours [h, w, 3], or [h, w, 1] to be repeated, and alpha [h, w]."""
    alpha: NDArray[np.uint8] | None = None
    is_deep = band.mode in _MODES_16 or band.mode == "I"
    if is_deep:
        deep = np.asarray(band)
        if samples.alpha:
            alpha = np.where(deep == band.info["transparency"], 0, 255).astype(np.uint8)
        band = fromarray(_to_8_bits(deep, samples, conversion.curve))
    elif samples.alpha:
        band = band.convert("LA" if samples.grey else "RGBA")
        alpha = np.asarray(band.getchannel("A"))
    if conversion.curve is not None and not is_deep:
        band = _by_curve(band.convert(conversion.mode), low, conversion.curve)
    if conversion.transform is not None:
        band = colour.apply(conversion.transform, band.convert(conversion.mode))
        first = 1 if samples.grey else 0  # green, of three that are equal but for rounding
        colours = np.asarray(band)
        return (colours[..., first : first + 1] if samples.grey else colours), alpha
    colours = np.asarray(band.convert("L" if samples.grey else "RGB"))
    return colours.reshape(band.height, band.width, -1), alpha


def _by_curve(band: Image, low: Image | None, curve: Curve) -> Image:
    """Return samples of a curve as 8-bit ones of sRGB's; of 16 bits where their low bytes are."""
    high = np.asarray(band)
    if low is None:
        return fromarray(_to_srgb_curve(high, 255, curve))
    deep = high.astype(np.uint16) << 8 | np.asarray(low)
    return fromarray(_to_srgb_curve(deep, 65535, curve))


def _to_8_bits(deep: NDArray[Any], samples: Samples, curve: Curve | None) -> U8:
    """Scale 0…white to 0…255, rounding to nearest; samples of another curve as sRGB's."""
    clipped = np.clip(deep, 0, samples.white).astype(np.uint32)
    if samples.inverted:
        clipped = samples.white - clipped
    if curve is not None:
        return _to_srgb_curve(clipped, samples.white, curve)
    reduced: U8 = ((clipped * 255 + samples.white // 2) // samples.white).astype(np.uint8)
    return reduced


def _to_srgb_curve(samples: NDArray[Any], white: int, curve: Curve) -> U8:
    table = np.rint(255 * curve.to_srgb(np.arange(white + 1) / white)).astype(np.uint8)
    converted: U8 = table[samples]
    return converted


def _colour_mode(image: Image, samples: Samples) -> colour.Mode:
    if image.mode == "CMYK":
        return "CMYK"
    return "L" if samples.grey else "RGB"


def _raw_mode(image: ImageFile) -> tuple[str, str]:
    """Return Pillow's name for the samples in the file, and for what decodes them."""
    if not image.tile:
        return image.mode, "raw"
    tile = image.tile[0]
    args = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return (args if isinstance(args, str) else image.mode), tile.codec_name


def _bits(image: ImageFile, raw_mode: str, deep_pnm: bool) -> int:
    tagged = _tiff_tag(image, _TIFF_BITS) if image.format == "TIFF" else None
    if isinstance(tagged, int):
        return tagged
    if ";16" in raw_mode or deep_pnm:
        return 16
    return {"L;2": 2, "L;4": 4}.get(raw_mode, 8)


def _tiff_tag(image: ImageFile, tag: int) -> object:
    """Return the tag's value, of several the first."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value
