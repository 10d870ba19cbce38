"""Kinds of image file: recognised by their first bytes, opened, and one of their frames chosen.

`Image.open` is not used: it would try formats that are refused here, and its limit of pixels is one
number for the whole process that warns, then raises, whatever the caller's limit is. Frames of GIF
and TIFF are counted from the bytes, within a limit of work; Pillow's count has no limit.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import BadImage, BadParameter, TooManyPixels
from service.images.parts import MAX_COUNTED_FRAMES, count_gif_frames, tiff_directories


@dataclass(frozen=True)
class FileKind:
    """A kind of image file: its name, a test of the first bytes, and a reader of the header."""

    name: str
    matches: Callable[[bytes], bool]
    open: Callable[[io.BytesIO], ImageFile]


def _starts_with(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _open_heic(file: io.BytesIO) -> ImageFile:
    """Read a HEIC header with pillow-heif, which also turns the picture upright."""
    try:
        from pillow_heif import as_plugin
    except ModuleNotFoundError as error:
        raise BadImage("HEIC files need pip install 'rankpress[heif]'") from error
    image_file: Callable[[io.BytesIO], ImageFile] = as_plugin.HeifImageFile
    return image_file(file)


def _has_brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


def _is_avif(head: bytes) -> bool:
    """Return whether the main brand, or a compatible one if the main is HEIF's, is AVIF's."""
    heif = _has_brand(b"mif1", b"msf1")(head)
    return _has_brand(b"avif", b"avis")(head) or (heif and b"avi" in head[16:])


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


# MPO is opened as JPEG: its first picture is the photograph, the others are depth, stereo or gain
# maps.
_KINDS: Final = (
    FileKind("PNG", _starts_with(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    FileKind("JPEG", _starts_with(b"\xff\xd8\xff"), JpegImageFile),
    FileKind("WebP", _is_webp, WebPImageFile),
    FileKind("AVIF", _is_avif, AvifImageFile),
    FileKind("HEIC", _has_brand(b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"), _open_heic),
    FileKind("GIF", _starts_with(b"GIF87a", b"GIF89a"), GifImageFile),
    FileKind("TIFF", _starts_with(b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImageFile),
    FileKind("BMP", _starts_with(b"BM"), BmpImageFile),
    FileKind("PPM", _starts_with(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
)
_REFUSED: Final = (
    ("HEIF sequence", _has_brand(b"hevc", b"hevx")),
    ("JPEG XL", _starts_with(b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")),
    ("JPEG 2000", _starts_with(b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")),
    ("PDF", _starts_with(b"%PDF")),
    ("PostScript", _starts_with(b"%!PS")),
    ("Photoshop", _starts_with(b"8BPS")),
    ("SVG", _starts_with(b"<svg", b"<?xml")),
)


def recognise(data: bytes) -> FileKind:
    """Return the kind of a file by its first bytes. Raises BadImage if it cannot be read."""
    head = bytes(data[:64])
    for kind in _KINDS:
        if kind.matches(head):
            return kind
    known = ", ".join(kind.name for kind in _KINDS)
    for name, matches in _REFUSED:
        if matches(head):
            raise BadImage(f"{name} files are not read, expected one of {known}")
    if not head:
        raise BadImage("the file is empty")
    raise BadImage(f"the file is of an unknown kind, expected one of {known}")


def choose_frame(
    kind: FileKind, image: ImageFile, data: bytes, frame: int | None, max_pixels: int
) -> None:
    """Move an opened file to one of its frames or pages.

    Args:
        kind: of the file. image: opened. data: the whole file.
        frame: number from 0; None for the only one, or for the primary picture of a HEIC file.
        max_pixels: of all frames that must be decoded to show this one; pages are decoded alone.

    Raises:
        BadImage: `frame` is None and the file has several. BadParameter: there is no such frame.
        TooManyPixels: the frame is too far into an animation.
    """
    frames = _count_frames(kind, image, data)
    many = f"{frames} or more" if frames >= MAX_COUNTED_FRAMES else str(frames)
    what = ("page" if kind.name == "TIFF" else "frame") + ("" if frames == 1 else "s")
    if frame is None:
        if frames > 1 and kind.name != "HEIC":
            raise BadImage(
                f"the {kind.name} file has {many} {what}, expected one; choose one: frame=0 is "
                "the first"
            )
        return
    if not 0 <= frame < min(frames, MAX_COUNTED_FRAMES):
        raise BadParameter(
            f"frame is {frame}, the {kind.name} file has {many} {what}, the first is 0"
        )
    if kind.name in ("TIFF", "HEIC"):
        image.seek(frame)
    else:
        _seek_in_animation(kind, image, frame, max_pixels)


def _seek_in_animation(kind: FileKind, image: ImageFile, frame: int, max_pixels: int) -> None:
    """Decode the frames of an animation up to one. A GIF's canvas may grow with each of them."""
    for number in range(frame + 1):
        image.seek(number)  # decodes the frame before it
        pixels = image.width * image.height * (frame + 1)
        if pixels > max_pixels:
            raise TooManyPixels(
                f"frame {frame} of the {kind.name} file takes {pixels} pixels to decode with those "
                f"before it, the limit is {max_pixels}"
            )


def _count_frames(kind: FileKind, image: ImageFile, data: bytes) -> int:
    """Return the number of frames or pages of a file, at most about `MAX_COUNTED_FRAMES`."""
    if kind.name == "GIF":
        return count_gif_frames(data)
    if kind.name == "TIFF":
        return sum(1 for _ in tiff_directories(data))
    return int(getattr(image, "n_frames", 1))
