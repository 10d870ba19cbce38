"""The samples of a file that Pillow opened, converted to upright 8-bit RGB and alpha.

`examine` describes the samples from the header. After decoding, `unpack` takes the pixels out of
Pillow in bands, converts each (see conversion.py) and puts it where it belongs in the upright
picture. So memory holds a photograph once in Pillow and once as an array, whatever its mode and
orientation.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin
from PIL.Image import Image, fromarray
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from service.errors import BadImage
from service.images.colour import TransferCurve
from service.images.conversion import Conversion
from service.picture import U8

_BAND_PIXELS: Final = 1 << 20
"""Pixels that are converted at a time."""
_MODES_16: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_MODES_GREY: Final = _MODES_16 | {"1", "L", "LA", "La"}
_MODES_COLOUR: Final = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_WHY_REFUSED: Final[Mapping[str, str]] = {
    "F": "its samples are floating-point numbers; save it with 8 or 16 bits a sample",
    "I": "its samples are signed or 32-bit integers; save it with 8 or 16 bits a sample",
    "LAB": "its colours are CIE Lab; save it as RGB",
}
"""Modes of Pillow whose samples have no natural place in 8 bits."""


@dataclass(frozen=True)
class Samples:
    """Description of the samples of a file.

    Attributes:
        grey: whether there is only one colour channel.
        bits: of a sample in the file, as far as Pillow reports them.
        inverted: whether 0 is white, in grey samples of more than 8 bits.
        alpha: whether some pixels may be transparent.
    """

    grey: bool
    bits: int
    inverted: bool
    alpha: bool

    @property
    def white(self) -> int:
        """Largest value of a sample in the file."""
        return (1 << self.bits) - 1


def examine(image: ImageFile) -> Samples:
    """Return the samples by the header. Raises BadImage if they have no natural place in 8 bits."""
    raw_mode, decoder = _raw_mode(image)
    deep_pnm = image.format == "PPM" and image.mode == "I"
    if image.format == "PPM" and decoder != "raw":
        raise BadImage("PPM files must be binary, with 8 bits a sample, or grey with 16 bits")
    if image.mode not in _MODES_GREY | _MODES_COLOUR and not deep_pnm:
        why = _WHY_REFUSED.get(image.mode, f"its samples are of the kind {image.mode}")
        raise BadImage(f"this {image.format} file cannot be read: {why}")
    grey = image.mode in _MODES_GREY or deep_pnm or raw_mode.startswith("LA")
    bits = _bits(image, raw_mode, deep_pnm)
    photometric = _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    inverted = image.format == "TIFF" and photometric == 0
    return Samples(grey, bits, inverted, image.has_transparency_data)


def has_grey_palette(image: Image) -> bool:
    """Return whether a loaded image has a palette of greys only."""
    if image.mode != "P":
        return False
    entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return bool((entries == entries[:, :1]).all())


def low_bytes(image: ImageFile, samples: Samples, data: bytes) -> Image | None:
    """Return the low bytes of a loaded PNG's 16-bit colours; None if Pillow dropped none."""
    animated = getattr(image, "is_animated", False)
    if image.format != "PNG" or samples.bits <= 8 or image.mode in _MODES_16 or animated:
        return None
    with PngImageFile(io.BytesIO(data)) as again:
        # Read with the other byte order, Pillow keeps the other byte. It has no such reader for
        # grey with alpha: the four bytes of a pixel are read as four channels.
        raw_mode = "RGBA" if samples.grey else f"{again.mode};16L"
        again.tile = [tile._replace(args=raw_mode) for tile in again.tile]
        again.load()
        return again.getchannel("G") if samples.grey else again.convert("RGB")


def unpack(
    image: Image, low: Image | None, samples: Samples, conversion: Conversion, orientation: int
) -> tuple[U8, U8 | None]:
    """Return the upright colours [H, W, 3] and alpha [H, W], both uint8, of a loaded image.

    Alpha is None when every pixel is opaque. The orientation, 1 to 8 as in Exif, is the one that is
    still to be applied; `low` comes from `low_bytes`.
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
    """Return a view of an upright picture that is indexed by the rows and columns of the file.

    In a file of orientation 6, the first row is the right side of the picture.
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
    """Return colours [h, w, 3], or [h, w, 1] if they are grey, and alpha [h, w]."""
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
        band = _recode(band.convert(conversion.mode), low, conversion.curve)
    if conversion.transform is not None:
        band = conversion.transform.apply(band.convert(conversion.mode))
        colours = np.asarray(band)
        # The three channels of a grey sample are equal but for rounding: take green.
        return (colours[..., 1:2] if samples.grey else colours), alpha
    colours = np.asarray(band.convert("L" if samples.grey else "RGB"))
    return colours.reshape(band.height, band.width, -1), alpha


def _recode(band: Image, low: Image | None, curve: TransferCurve) -> Image:
    """Return samples of a transfer curve as 8-bit samples of sRGB's; `low` has their low bytes."""
    samples, white = np.asarray(band), 255
    if low is not None:
        samples, white = samples.astype(np.uint16) << 8 | np.asarray(low), 65535
    return fromarray(_to_srgb_curve(samples, white, curve))


def _to_8_bits(deep: NDArray[Any], samples: Samples, curve: TransferCurve | None) -> U8:
    """Scale 0…white to 0…255, rounding to nearest; convert samples of another curve to sRGB's."""
    clipped = np.clip(deep, 0, samples.white).astype(np.uint32)
    if samples.inverted:
        clipped = samples.white - clipped
    if curve is not None:
        return _to_srgb_curve(clipped, samples.white, curve)
    reduced: U8 = ((clipped * 255 + samples.white // 2) // samples.white).astype(np.uint8)
    return reduced


def _to_srgb_curve(samples: NDArray[Any], white: int, curve: TransferCurve) -> U8:
    """Return samples 0…white of a transfer curve as 8-bit samples of sRGB's curve."""
    table = np.rint(255 * curve.to_srgb(np.arange(white + 1) / white)).astype(np.uint8)
    converted: U8 = table[samples]
    return converted


def _raw_mode(image: ImageFile) -> tuple[str, str]:
    """Return Pillow's names of the samples in the file and of their decoder."""
    if not image.tile:
        return image.mode, "raw"
    tile = image.tile[0]
    args = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return (args if isinstance(args, str) else image.mode), tile.codec_name


def _bits(image: ImageFile, raw_mode: str, deep_pnm: bool) -> int:
    tagged = _tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE) if image.format == "TIFF" else None
    if isinstance(tagged, int):
        return tagged
    if ";16" in raw_mode or deep_pnm:
        return 16
    return {"L;2": 2, "L;4": 4}.get(raw_mode, 8)


def _tiff_tag(image: ImageFile, tag: int) -> object:
    """Return the value of a tag, or the first of its values."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value
