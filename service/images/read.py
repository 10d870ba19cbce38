"""Image files to pictures: upright, 8 bits a sample, RGB and alpha, within a limit of pixels.

Nothing here knows of streams or requests. The limit of pixels is checked against the header, before
any pixel is decoded. kinds.py recognises files, samples.py converts their pixels, exif.py and
colour.py read their metadata. Pillow reports harmless flaws in files through `warnings`; a program
silences those once, when it starts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from PIL import Image
from PIL.ImageFile import ImageFile

from service.errors import BadImage, TooManyPixels
from service.files import IMAGE_SUFFIXES, files_in
from service.images import exif, faults
from service.images.colour_tags import describe_colours, is_adobe_rgb
from service.images.conversion import Metadata as Metadata
from service.images.conversion import plan_conversion
from service.images.kinds import FileKind, choose_frame, recognise
from service.images.limits import MAX_METADATA_BYTES, MeteredFile, check_exif, check_limits
from service.images.samples import Samples, examine, has_grey_palette, low_bytes, unpack
from service.picture import Picture

_TURNED_BY_BOXES: Final = frozenset({"AVIF", "HEIC"})
"""Kinds of file whose boxes tell the orientation, not XMP. Pillow puts it into Exif."""


def read_image(
    data: bytes, *, max_pixels: int, metadata: Metadata = "icc", frame: int | None = None
) -> Picture:
    """Return the picture in an image file: upright, 8 bits a sample, RGB and alpha.

    PNG, JPEG (also CMYK and MPO), WebP, AVIF, GIF, TIFF, BMP and PPM are read, and HEIC where
    pillow-heif is installed. Grey files give three equal channels and set `grey`. Deeper samples
    are reduced to 8 bits and CMYK is converted to sRGB, each with a note. A profile that does not
    differ from sRGB is kept only by "all".

    Args:
        data: the whole file.
        max_pixels: largest width x height that is accepted.
        metadata: "icc" keeps the colour profile; "none" converts to sRGB instead; "all" keeps the
            profile as it is and the Exif block, its orientation set to upright.
        frame: number, from 0, of the frame or page of a file that may have several.

    Raises:
        TooManyPixels: the picture has more than `max_pixels`; nothing was decoded.
        BadParameter: there is no such frame.
        BadImage: the file is of an unknown kind, damaged or cut short; it has several frames and
            `frame` is None; or its samples have no place in 8 bits. The message says which.
    """
    kind = recognise(data)
    try:
        with _open(kind, data) as image:
            _check_size(kind, image, max_pixels)
            choose_frame(kind, image, data, frame, max_pixels)
            _check_size(kind, image, max_pixels)  # pages differ in size
            if kind.name == "PNG" and faults.has_damaged_pixels(data):
                raise BadImage("the PNG file is damaged: its pixels differ from their checksums")
            if kind.name == "JPEG" and faults.lacks_end_marker(data):
                data = faults.with_end_marker(data)
                return read_image(data, max_pixels=max_pixels, metadata=metadata, frame=frame)
            return _decode(kind, image, data, metadata)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(
            f"the {kind.name} file has more pixels, or larger tiles, than can be read"
        ) from error
    except MemoryError as error:
        raise BadImage(f"the {kind.name} file needs more memory than there is") from error
    except faults.PILLOW_ERRORS as error:
        reason = faults.why_not_read(kind.name, data, error)
        raise BadImage(f"the {kind.name} file {reason}") from error


def read_folder(
    folder: Path,
    on_skip: Callable[[Path], None] | None = None,
    *,
    max_pixels: int = 10**8,
) -> Iterator[tuple[Path, Picture]]:
    """Read the pictures of a folder and of the folders in it, in order, without metadata.

    Args:
        folder: to read. max_pixels: largest width x height of a picture.
        on_skip: if given, every file is tried, and this is called with each that is no picture.
            If None, only files with the suffix of a picture are tried, and all must be pictures.

    Raises:
        BadParameter: `folder` is no folder. BadImage: a file is no picture; the message names it.
        OSError: a folder or file cannot be read.
    """
    for path in files_in(folder):
        if on_skip is None and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            picture = read_image(path.read_bytes(), max_pixels=max_pixels, metadata="none")
        except BadImage as error:
            if on_skip is None:
                raise BadImage(f"{path}: {error}") from error
            on_skip(path)
        else:
            yield path, picture


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height by the header, before any turning; None if it cannot be read."""
    try:
        with _open(recognise(data), data) as image:
            return image.size
    except (BadImage, MemoryError, Image.DecompressionBombError, *faults.PILLOW_ERRORS):
        return None


def _open(kind: FileKind, data: bytes) -> ImageFile:
    """Read the header of a file, within the limits of work for its size."""
    check_limits(kind.name, data)
    # Pillow reads the runs of a compressed BMP byte by byte; check_limits has limited those.
    image = kind.open(io.BytesIO(data) if kind.name == "BMP" else MeteredFile(data))
    check_exif(exif.block_of(image.info))
    return image


def _check_size(kind: FileKind, image: ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the {kind.name} file has a size of {width}x{height} pixels")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the {kind.name} file has {width}x{height} = {width * height} pixels, "
            f"the limit is {max_pixels}"
        )


def _decode(kind: FileKind, image: ImageFile, data: bytes, metadata: Metadata) -> Picture:
    """Decode a file whose header was accepted."""
    samples, description = examine(image), describe_colours(kind.name, image, data)
    image.load()
    if has_grey_palette(image):
        samples = replace(samples, grey=True)
    _match_transparency(image, samples)
    conversion = plan_conversion(image, description, metadata, grey=samples.grey)
    block, orientation = _orientation(kind, image)
    low = None if conversion.curve is None else low_bytes(image, samples, data)
    rgb, alpha = unpack(image, low, samples, conversion, orientation)
    kept, notes = _exif_to_keep(kind, image, block) if metadata == "all" else (None, ())
    if kept is not None:
        kept = exif.upright(kept, rgb.shape[1], rgb.shape[0])
        if conversion.icc is None and is_adobe_rgb(image):
            kept = exif.as_srgb(kept)
        if not exif.is_sound(kept) or exif.orientation_in_avif(kept) not in (None, 1):
            kept, notes = None, (exif.DAMAGED_EXIF,)
    bits = image.info["bit_depth"] if kind.name == "HEIC" else samples.bits
    if bits > 8:
        notes = (f"{bits}-bit samples reduced to 8 bits", *notes)
    return Picture(rgb, alpha, samples.grey, conversion.icc, kept, conversion.notes + notes)


def _match_transparency(image: ImageFile, samples: Samples) -> None:
    """Reduce the transparent colour of a PNG to 8 bits, as Pillow has reduced its samples."""
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and samples.bits > 8 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)
    elif image.mode == "L" and samples.bits < 8 and isinstance(transparent, int):
        image.info["transparency"] = transparent * 255 // samples.white


def _orientation(kind: FileKind, image: ImageFile) -> tuple[bytes, int]:
    """Return the Exif block without prefix, and the orientation that is still to be applied."""
    if kind.name == "TIFF":  # Pillow turns it upright
        return b"", 1
    block = exif.block_of(image.info)
    orientation = exif.orientation(block)
    if orientation is None and kind.name not in _TURNED_BY_BOXES:
        orientation = exif.orientation_by_xmp(image.info)
    return block, orientation or 1


def _exif_to_keep(
    kind: FileKind, image: ImageFile, block: bytes
) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the Exif block to keep, if any, and a note if it is left out."""
    if kind.name == "TIFF":
        try:
            block = exif.from_tiff(image) or b""
        except faults.PILLOW_ERRORS:
            return None, ("the Exif tags are damaged and were left out",)
    if not block:
        return None, ()
    if not exif.is_exif(block):
        return None, (exif.DAMAGED_EXIF,)
    if len(block) > MAX_METADATA_BYTES:
        return None, (f"the Exif block of {len(block)} bytes is too large and was left out",)
    return block, ()
