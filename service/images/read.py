"""Image files to pictures and back: formats, orientation, alpha, colour profiles, pixel limit.

Nothing is known here of streams or requests. The pixel limit is checked against the header, before
any pixel is decoded. kinds.py tells files apart, samples.py takes their pixels, exif.py and
colour.py read what comes with them. Pillow reports harmless flaws in files through `warnings`; a
program silences those once, at its start.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from service.errors import BadImage, BadParameter, NotAcceptable, TooManyPixels
from service.images import colour, exif
from service.images.colours import describe_colours, is_adobe_rgb
from service.images.cost import Format as Format
from service.images.cost import effort_for
from service.images.faults import (
    PILLOW_ERRORS,
    has_damaged_pixels,
    lacks_end_marker,
    why_not_read,
    with_end_marker,
)
from service.images.kinds import Kind, choose_frame, recognise
from service.images.limits import MeteredFile, check_exif, check_limits
from service.images.metadata import is_sound_exif, orientation_in, takes_exif
from service.images.samples import (
    Samples,
    examine,
    has_grey_palette,
    low_bytes,
    plan_colours,
    unless_opaque,
    unpack,
)
from service.picture import Picture

Metadata = Literal["none", "icc", "all"]

MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "avif": "image/avif",
}
MAX_METADATA_BYTES: Final = 4 << 20
"""A larger profile or Exif block is not kept."""
_PNG_QUICK: Final[Mapping[str, int]] = {"compress_level": 1, "compress_type": zlib.Z_RLE}
"""For PNGs that somebody waits for: only runs are looked for.

Decoded photographs of Kodak take 60 ms and 1.60 MB a megapixel, 76 and 1.56 at level 2, 288 and
1.56 at level 6; decoded drawings and screenshots 3 to 6 % more bytes than at level 6, and fewer
than at level 2.
"""
_PNG_SMALL: Final[Mapping[str, int]] = {"compress_level": 6}
"""For PNGs that are kept."""

_LONGEST_SIDE: Final[Mapping[Format, int]] = {"webp": 16383, "jpeg": 65500, "avif": 65535}
OPAQUE: Final[frozenset[Format]] = frozenset({"jpeg"})
"""Formats without alpha."""

_QUALITY: Final[Mapping[Format, int]] = {"jpeg": 90, "avif": 80}
"""Where none is asked for."""

_DAMAGED_EXIF: Final = "the Exif block is damaged and was left out"
_GREY_PROFILE: Final = frozenset({"png", "jpeg"})
_TURNED_BY_BOXES: Final = frozenset({"AVIF", "HEIC"})
"""Kinds in which XMP has no say in the orientation. Pillow has brought them into Exif."""


@dataclass(frozen=True, eq=False)
class WrittenImage:
    """An image file, and sentences on the metadata of its picture that it does not have."""

    data: bytes
    notes: tuple[str, ...] = ()


def read_image(
    data: bytes, *, max_pixels: int, metadata: Metadata = "icc", frame: int | None = None
) -> Picture:
    """Return the picture in an image file: upright, 8 bits a sample, RGB and alpha.

    PNG, JPEG (also CMYK and MPO), WebP, AVIF, GIF, TIFF, BMP and PPM are read, and HEIC where
    pillow-heif is installed. Grey files give three equal channels and `grey`. Deeper samples are
    reduced to 8 bits and CMYK is converted to sRGB, both noted. A profile that does nothing but
    say sRGB is not kept except by "all".

    Args:
        data: the whole file.
        max_pixels: width x height that is accepted.
        metadata: "icc" keeps the colour profile; "none" converts to sRGB instead; "all" keeps the
            profile as it is and the Exif block, its orientation set to upright.
        frame: number, from 0, of the frame or page of a file that may have several.

    Raises:
        TooManyPixels: more than `max_pixels`; nothing was decoded.
        BadParameter: there is no such frame.
        BadImage: not an image file that is read, damaged, cut short, of several frames without one
            that is chosen, or of samples that have no place in 8 bits. The message says which.
    """
    kind = recognise(data)
    try:
        with _opened(kind, data) as image:
            _check_size(kind, image, max_pixels)
            choose_frame(kind, image, data, frame, max_pixels)
            _check_size(kind, image, max_pixels)  # pages differ in size
            if kind.name == "PNG" and has_damaged_pixels(data):
                raise BadImage("the PNG file is damaged: its pixels differ from their checksums")
            if kind.name == "JPEG" and lacks_end_marker(data):
                data = with_end_marker(data)
                return read_image(data, max_pixels=max_pixels, metadata=metadata, frame=frame)
            return _read_open(kind, image, data, metadata)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(
            f"the {kind.name} file has more pixels, or larger tiles, than are read of its kind"
        ) from error
    except MemoryError as error:
        raise BadImage(f"the {kind.name} file needs more memory than there is") from error
    except PILLOW_ERRORS as error:
        raise BadImage(f"the {kind.name} file {why_not_read(kind.name, data, error)}") from error


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the header says, before any turning; None where it cannot be read."""
    try:
        with _opened(recognise(data), data) as image:
            width, height = image.size
            return width, height
    except (BadImage, MemoryError, Image.DecompressionBombError, *PILLOW_ERRORS):
        return None


def write_image(
    picture: Picture, format: Format, *, quality: int | None = None, small_png: bool = False
) -> bytes:
    """Return the picture as an image file, as `write_with_notes` does."""
    return write_with_notes(picture, format, quality=quality, small_png=small_png).data


def write_with_notes(
    picture: Picture, format: Format, *, quality: int | None = None, small_png: bool = False
) -> WrittenImage:
    """Return the picture as an image file with its profile and Exif block.

    PNG is lossless, and WebP is unless a quality is given. JPEG (quality 90) and AVIF (quality 80)
    keep colour at full resolution. JPEG has no alpha: the picture is laid on white. Grey pictures
    are written as grey in PNG, JPEG and AVIF. A profile or Exif block that the format cannot carry,
    or that is damaged, is left out and noted, a grey profile after converting to sRGB. Large
    pictures are written with less effort, see images/cost.py.

    Args:
        picture: what to write.
        format: "png", "webp", "jpeg" or "avif".
        quality: 1 (smallest) to 100, for the lossy formats.
        small_png: take five times as long for a PNG some 3 % smaller.

    Raises:
        BadParameter: a quality out of range, or for PNG.
        NotAcceptable: the picture is wider or higher than the format can be, or its encoder cannot
            write it (WebP has a limit on what its first part may take).
    """
    _check_writable(picture, format, quality)
    image, icc, notes = _for_writing(picture, format)
    options = _options(format, quality, small_png, picture.width * picture.height)
    if icc is not None:
        options["icc_profile"] = icc
    if picture.exif is not None:
        # Greys may have been converted on the way.
        converted = icc is None and picture.icc is not None
        block = exif.as_srgb(picture.exif) if converted else picture.exif
        if takes_exif(format.upper(), block):
            options["exif"] = exif.PREFIX + block
        else:
            notes += (f"the Exif block is damaged, or too large for {format}, and was left out",)
    out = io.BytesIO()
    try:
        image.save(out, format=format.upper(), **options)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise NotAcceptable(
            f"the {format} encoder cannot write this picture of {picture.width}x{picture.height} "
            f"pixels: {error}"
        ) from error
    return WrittenImage(out.getvalue(), notes)


def shrink(picture: Picture, max_size: int) -> Picture:
    """Return the picture with its longest side at most `max_size` pixels; never larger than it is.

    Lanczos resampling, colours weighted by alpha.

    Raises:
        BadParameter: max_size is below 1.
    """
    if max_size < 1:
        raise BadParameter(f"max_size is {max_size}, expected at least 1")
    size = size_within(picture.width, picture.height, max_size)
    if size == (picture.width, picture.height):
        return picture
    # Pillow weights LA and RGBA by alpha on its own.
    small = np.asarray(_to_pillow(picture).resize(size, Image.Resampling.LANCZOS))
    alpha = small[..., -1] if picture.alpha is not None else None
    channels = small if picture.alpha is None else small[..., :-1]
    rgb = np.empty((size[1], size[0], 3), np.uint8)
    rgb[...] = channels.reshape(size[1], size[0], -1)
    return of_another_view(replace(picture, rgb=rgb, alpha=unless_opaque(alpha)))


def size_within(width: int, height: int, max_size: int) -> tuple[int, int]:
    """Return the size of a picture whose longest side is shrunk to at most `max_size` pixels."""
    scale = min(1, max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def fits(format: Format, width: int, height: int) -> bool:
    """Whether a format can hold a picture of that size."""
    return max(width, height) <= _LONGEST_SIDE.get(format, max(width, height))


def of_another_view(picture: Picture) -> Picture:
    """Return a picture that was cut or scaled, with an Exif block that tells of it alone."""
    if picture.exif is None:
        return picture
    try:
        check_exif(picture.exif)
        block = exif.of_another_view(picture.exif, picture.width, picture.height)
    except (BadImage, *PILLOW_ERRORS):
        return replace(picture, exif=None, notes=(*picture.notes, _DAMAGED_EXIF))
    return replace(picture, exif=block)


def _opened(kind: Kind, data: bytes) -> ImageFile:
    """Read a file's header, if that takes no more work than its size allows."""
    check_limits(kind.name, data)
    # Pillow reads the runs of a compressed BMP byte by byte; those are limited by its pixels.
    image = kind.open(io.BytesIO(data) if kind.name == "BMP" else MeteredFile(data))
    check_exif(exif.block_of(image.info))
    return image


def _check_size(kind: Kind, image: ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the {kind.name} file says it is {width}x{height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the {kind.name} file has {width}x{height} = {width * height} pixels, "
            f"the limit is {max_pixels}"
        )


def _read_open(kind: Kind, image: ImageFile, data: bytes, metadata: Metadata) -> Picture:
    """Decode a file whose header was accepted."""
    samples, told = examine(image), describe_colours(kind.name, image, data)
    image.load()
    if has_grey_palette(image):
        samples = replace(samples, grey=True)
    _match_transparency(image, samples)
    conversion = plan_colours(
        image,
        samples,
        told,
        keep=metadata != "none",
        verbatim=metadata == "all",
        max_bytes=MAX_METADATA_BYTES,
    )
    found, orientation = _orientation(kind, image)
    low = None if conversion.curve is None else low_bytes(image, samples, data)
    rgb, alpha = unpack(image, low, samples, conversion, orientation)
    kept, notes = _kept_exif(kind, image, found) if metadata == "all" else (None, ())
    if kept is not None:
        kept = exif.upright(kept, rgb.shape[1], rgb.shape[0])
        if conversion.icc is None and is_adobe_rgb(image):
            kept = exif.as_srgb(kept)
        if not is_sound_exif(kept) or orientation_in(kept) not in (None, 1):
            kept, notes = None, (_DAMAGED_EXIF,)
    bits = image.info["bit_depth"] if kind.name == "HEIC" else samples.bits
    if bits > 8:
        notes = (f"{bits}-bit samples reduced to 8 bits", *notes)
    return Picture(rgb, alpha, samples.grey, conversion.icc, kept, conversion.notes + notes)


def _match_transparency(image: ImageFile, samples: Samples) -> None:
    """Bring the transparent colour of a PNG to the 8 bits that Pillow has made of its samples."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and samples.bits > 8 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    elif image.mode == "L" and samples.bits < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * 255 // samples.white


def _orientation(kind: Kind, image: ImageFile) -> tuple[bytes, int]:
    """Return the Exif block without prefix, and the orientation that is left to apply."""
    if kind.name == "TIFF":  # Pillow has turned it upright
        return b"", 1
    found = exif.block_of(image.info)
    orientation = exif.orientation(found)
    if orientation is None and kind.name not in _TURNED_BY_BOXES:
        orientation = exif.orientation_by_xmp(image.info)
    return found, orientation or 1


def _kept_exif(kind: Kind, image: ImageFile, found: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the Exif block to keep, if any, and a note if one is left out."""
    if kind.name == "TIFF":
        try:
            found = exif.from_tiff(image) or b""
        except PILLOW_ERRORS:
            return None, ("the Exif tags are damaged and were left out",)
    if not found:
        return None, ()
    if not exif.is_exif(found):
        return None, (_DAMAGED_EXIF,)
    if len(found) > MAX_METADATA_BYTES:
        return None, (f"the Exif block of {len(found)} bytes is too large and was left out",)
    return found, ()


def _to_pillow(picture: Picture) -> Image.Image:
    """Return the picture as Pillow's L, LA, RGB or RGBA."""
    samples = picture.samples()
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def _check_writable(picture: Picture, format: Format, quality: int | None) -> None:
    if quality is not None and format == "png":
        raise BadParameter("PNG is lossless: quality is for webp, jpeg and avif")
    if quality is not None and not 1 <= quality <= 100:
        raise BadParameter(f"quality is {quality}, expected 1 to 100")
    if not fits(format, picture.width, picture.height):
        raise NotAcceptable(
            f"{format} holds at most {_LONGEST_SIDE[format]} pixels a side, "
            f"the picture is {picture.width}x{picture.height}"
        )


def _for_writing(
    picture: Picture, format: Format
) -> tuple[Image.Image, bytes | None, tuple[str, ...]]:
    """Return the pixels as the format has them, the profile that fits those, and notes."""
    if format == "jpeg":
        picture = picture.on_white()
    image, icc = _to_pillow(picture), picture.icc
    if icc is None:
        return image, None, ()
    space = colour.space(icc) if len(icc) <= MAX_METADATA_BYTES else ""
    if space == ("GRAY" if picture.grey else "RGB") and (space == "RGB" or format in _GREY_PROFILE):
        return image, icc, ()
    grey = _grey_to_srgb(image, icc, space) if picture.grey else None
    if grey is not None:
        return grey, None, ()
    return image, None, ("the colour profile cannot be used and was left out",)


def _grey_to_srgb(image: Image.Image, icc: bytes, space: str) -> Image.Image | None:
    """Return a grey picture as grey in sRGB; None when the profile is damaged."""
    mode: colour.Mode = "L" if space == "GRAY" else "RGB"
    transform = colour.to_srgb(icc, mode) if space in ("GRAY", "RGB") else None
    if transform is None:
        return None
    grey = colour.apply(transform, image.convert(mode)).getchannel("G")
    return Image.merge("LA", (grey, image.getchannel("A"))) if image.mode == "LA" else grey


def _options(format: Format, quality: int | None, small_png: bool, pixels: int) -> dict[str, Any]:
    """Return Pillow's options for a picture of so many pixels in the format."""
    options = dict(effort_for(format, quality, pixels).options)
    if format == "png":
        return options | dict(_PNG_SMALL if small_png else _PNG_QUICK)
    quality = quality or _QUALITY.get(format)
    return options if quality is None else options | {"quality": quality}
