"""Pictures to image files: PNG, WebP, JPEG and AVIF, with colour profile and Exif block.

Encoders can take minutes and gigabytes for a large picture, whatever it shows, and nothing can stop
them. So each format has an effort for pictures of usual size and a cheaper one for large pictures.
The costs are the most seconds of one core (a Zen 4 at about 4 GHz) and bytes of memory per pixel
that were measured over photographs, noise, few colours and single colours, with and without noise
as alpha, at quality 80 and 100, with Pillow 12.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from PIL import Image

from service.errors import BadParameter, NotAcceptable
from service.images import colour, exif
from service.images.limits import MAX_METADATA_BYTES
from service.picture import Picture

Format = Literal["png", "webp", "jpeg", "avif"]

MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "avif": "image/avif",
}
_PNG_FAST: Final[Mapping[str, int]] = {"compress_level": 1, "compress_type": zlib.Z_RLE}
"""Options for PNGs that somebody waits for: deflate looks for runs only.

Decoded photographs of Kodak take 60 ms and 1.60 MB per megapixel (76 ms and 1.56 MB at level 2,
288 ms and 1.56 MB at level 6). Decoded drawings and screenshots take 3 to 6 % more bytes than at
level 6, and fewer than at level 2.
"""
_PNG_SMALL: Final[Mapping[str, int]] = {"compress_level": 6}
LONGEST_SIDE: Final[Mapping[Format, int]] = {"webp": 16383, "jpeg": 65500, "avif": 65535}
"""Pixels of the longest side that a format can hold."""
OPAQUE: Final[frozenset[Format]] = frozenset({"jpeg"})
"""Formats without alpha."""
_QUALITY: Final[Mapping[Format, int]] = {"jpeg": 90, "avif": 80}
"""Qualities where none is requested."""
_WITH_GREY_PROFILE: Final = frozenset({"png", "jpeg"})


_USUAL_SECONDS: Final = 6.0
"""Seconds that writing may take with the usual effort; a picture that takes longer gets less."""


@dataclass(frozen=True)
class Effort:
    """Options of `Image.save`, and the highest cost of writing a pixel with them.

    Attributes:
        us: microseconds of one core.
        bytes: of memory, including those of the picture and of the written file.
    """

    us: float
    bytes: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, pixels: int) -> float:
        """Return the most seconds of one core to write a number of pixels."""
        return self.us * pixels / 1e6


@dataclass(frozen=True)
class WriteLimits:
    """Limits on the seconds of one core and the bytes, with the picture's, to write one file."""

    seconds: float
    memory_bytes: int

    def largest_area(self, format: Format) -> int:
        """Return the pixels of the largest picture that can be written, lossily if need be."""
        effort = _EFFORTS[format][-1]
        return int(min(self.seconds * 1e6 / effort.us, self.memory_bytes / effort.bytes))

    def refusal(self, format: Format, quality: int | None, pixels: int) -> str | None:
        """Return why a picture is too large to be written in a format; None if it is not."""
        return self.refusal_with(effort_for(format, quality, pixels), format, pixels)

    def refusal_with(self, effort: Effort, format: Format, pixels: int) -> str | None:
        """Return what `refusal` returns, for another effort."""
        seconds, memory_bytes = effort.seconds(pixels), effort.bytes * pixels
        if seconds <= self.seconds and memory_bytes <= self.memory_bytes:
            return None
        return (
            f"{format} of {pixels / 1e6:.0f} megapixels can take {seconds:.0f} s and "
            f"{memory_bytes / 2**20:.0f} MiB to write, the limits are {self.seconds:g} s and "
            f"{self.memory_bytes / 2**20:.0f} MiB"
        )


_WEBP_LOSSLESS: Final = (
    Effort(1.0, 42, {"lossless": True, "method": 4}),
    # Photographs become 8 % larger.
    Effort(0.08, 21, {"lossless": True, "method": 0, "quality": 20}),
)
_EFFORTS: Final[Mapping[Format, tuple[Effort, ...]]] = {
    "png": (Effort(0.14, 13),),
    "jpeg": (Effort(0.03, 11, {"subsampling": "4:4:4"}),),
    "webp": (Effort(0.35, 38, {"method": 4}), Effort(0.22, 28, {"method": 1})),
    "avif": (
        Effort(1.5, 44, {"subsampling": "4:4:4", "speed": 8}),
        Effort(0.9, 42, {"subsampling": "4:4:4", "speed": 9}),
    ),
}
"""Efforts of each format, the usual one first; those of WebP are for lossy files."""


def effort_for(format: Format, quality: int | None, pixels: int) -> Effort:
    """Return the effort to write a number of pixels with. WebP without a quality is lossless."""
    efforts = _WEBP_LOSSLESS if format == "webp" and quality is None else _EFFORTS[format]
    usual = (effort for effort in efforts if effort.seconds(pixels) <= _USUAL_SECONDS)
    return next(usual, efforts[-1])


@dataclass(frozen=True, eq=False)
class WrittenImage:
    """An image file, and sentences on the metadata that were left out of it."""

    data: bytes
    notes: tuple[str, ...] = ()


def write_image(picture: Picture, format: Format, *, quality: int | None = None) -> bytes:
    """Return the bytes of `write_with_notes`."""
    return write_with_notes(picture, format, quality=quality).data


def write_with_notes(
    picture: Picture, format: Format, *, quality: int | None = None, small_png: bool = False
) -> WrittenImage:
    """Return the picture as an image file with its profile and Exif block.

    PNG is lossless, and WebP is unless a quality is given. JPEG (quality 90) and AVIF (quality 80)
    keep the full resolution of colours. JPEG has no alpha: the picture is laid on white. Grey
    pictures are written as grey in PNG, JPEG and AVIF. A profile or Exif block that the format
    cannot carry, or that is damaged, is left out with a note; pixels of a grey profile are
    converted to sRGB first. Large pictures are written with less effort.

    Args:
        picture: to write. format: of the file.
        quality: 1 (smallest) to 100, for the lossy formats.
        small_png: take five times as long for a PNG that is about 3 % smaller.

    Raises:
        BadParameter: the quality is out of range, or the format is PNG.
        NotAcceptable: the picture is wider or higher than the format allows, or its encoder cannot
            write it (WebP limits the bytes of its first partition).
    """
    _check_writable(picture, format, quality)
    image, icc, notes = _prepare(picture, format)
    options = _options(format, quality, small_png, picture.width * picture.height)
    if icc is not None:
        options["icc_profile"] = icc
    if picture.exif is not None:
        # A grey picture may have been converted to sRGB.
        converted = icc is None and picture.icc is not None
        block = exif.as_srgb(picture.exif) if converted else picture.exif
        if exif.is_writable(format.upper(), block):
            options["exif"] = exif.PREFIX + block
        else:
            notes += (f"the Exif block is damaged, or too large for {format}, and was left out",)
    return WrittenImage(save_pillow(image, format, options), notes)


def save_pillow(image: Image.Image, format: Format, options: Mapping[str, Any]) -> bytes:
    """Return the file that Pillow writes with these options. Raises NotAcceptable."""
    out = io.BytesIO()
    try:
        image.save(out, format=format.upper(), **options)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise NotAcceptable(
            f"the {format} encoder cannot write this picture of {image.width}x{image.height} "
            f"pixels: {error}"
        ) from error
    return out.getvalue()


def fits(format: Format, width: int, height: int) -> bool:
    """Return whether a format can hold a picture of a size in pixels."""
    return max(width, height) <= LONGEST_SIDE.get(format, max(width, height))


def check_fits(format: Format, width: int, height: int) -> None:
    """Raise NotAcceptable unless a format can hold a picture of a size in pixels."""
    if not fits(format, width, height):
        raise NotAcceptable(
            f"{format} holds at most {LONGEST_SIDE[format]} pixels a side, "
            f"the picture is {width}x{height}"
        )


def to_pillow(picture: Picture) -> Image.Image:
    """Return the picture as Pillow's L, LA, RGB or RGBA."""
    samples = picture.samples()
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def _check_writable(picture: Picture, format: Format, quality: int | None) -> None:
    if quality is not None and format == "png":
        raise BadParameter("PNG is lossless: quality is for webp, jpeg and avif")
    if quality is not None and not 1 <= quality <= 100:
        raise BadParameter(f"quality is {quality}, expected 1 to 100")
    check_fits(format, picture.width, picture.height)


def _prepare(picture: Picture, format: Format) -> tuple[Image.Image, bytes | None, tuple[str, ...]]:
    """Return the pixels to write, the profile that fits them, and notes for the user."""
    if format == "jpeg":
        picture = picture.on_white()
    image, icc = to_pillow(picture), picture.icc
    if icc is None:
        return image, None, ()
    space = colour.space(icc) if len(icc) <= MAX_METADATA_BYTES else ""
    usable = format in _WITH_GREY_PROFILE and space == "GRAY" if picture.grey else space == "RGB"
    if usable:
        return image, icc, ()
    grey = _grey_to_srgb(image, icc, space) if picture.grey else None
    if grey is not None:
        return grey, None, ()
    return image, None, ("the colour profile cannot be used and was left out",)


def _grey_to_srgb(image: Image.Image, icc: bytes, space: str) -> Image.Image | None:
    """Return a grey picture converted to sRGB, still grey; None when the profile is damaged."""
    mode: colour.Mode = "L" if space == "GRAY" else "RGB"
    transform = colour.to_srgb(icc, mode) if space in ("GRAY", "RGB") else None
    if transform is None:
        return None
    grey = transform.apply(image.convert(mode)).getchannel("G")
    return Image.merge("LA", (grey, image.getchannel("A"))) if image.mode == "LA" else grey


def _options(format: Format, quality: int | None, small_png: bool, pixels: int) -> dict[str, Any]:
    options = dict(effort_for(format, quality, pixels).options)
    if format == "png":
        return options | dict(_PNG_SMALL if small_png else _PNG_FAST)
    quality = quality or _QUALITY.get(format)
    return options if quality is None else options | {"quality": quality}
