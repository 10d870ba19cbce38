"""Kinds of image file: told apart by their first bytes, opened, and one of their frames chosen.

`Image.open` is passed over on purpose: it would try formats that we refuse, and its limit on
pixels is one number for the whole process that warns, then raises, whatever the caller's limit is.
Frames of GIF and TIFF are counted here from the bytes; Pillow would fill a canvas for each.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
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

MAX_COUNTED_FRAMES: Final = 1000
"""Counting stops here, and later frames cannot be chosen."""

_HEAD_BYTES: Final = 64


@dataclass(frozen=True)
class Kind:
    """A kind of image file that is read.

    Attributes:
        name: as people write it.
        matches: whether the first bytes are those of such a file.
        open: reads the header only.
    """

    name: str
    matches: Callable[[bytes], bool]
    open: Callable[[io.BytesIO], ImageFile]


def _starts(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _open_heic(file: io.BytesIO) -> ImageFile:
    """Read a HEIC header by pillow-heif, which also turns the picture upright."""
    try:
        from pillow_heif import as_plugin
    except ModuleNotFoundError as error:
        raise BadImage("HEIC files are read where pip install 'rankpress[heif]' was run") from error
    opened: Callable[[io.BytesIO], ImageFile] = as_plugin.HeifImageFile
    return opened(file)


def _has_brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


def _is_avif(head: bytes) -> bool:
    """By the main brand, or, where that only says HEIF, by the compatible ones."""
    heif = _has_brand(b"mif1", b"msf1")(head)
    return _has_brand(b"avif", b"avis")(head) or (heif and b"avi" in head[16:])


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_pnm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6")


# JPEG is opened as such even where it is MPO: the first of several pictures is the photograph, the
# others are depth, stereo or gain maps.
_KINDS: Final = (
    Kind("PNG", _starts(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    Kind("JPEG", _starts(b"\xff\xd8\xff"), JpegImageFile),
    Kind("WebP", _is_webp, WebPImageFile),
    Kind("AVIF", _is_avif, AvifImageFile),
    Kind("HEIC", _has_brand(b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"), _open_heic),
    Kind("GIF", _starts(b"GIF87a", b"GIF89a"), GifImageFile),
    Kind("TIFF", _starts(b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), TiffImageFile),
    Kind("BMP", _starts(b"BM"), BmpImageFile),
    Kind("PPM", _is_pnm, PpmImageFile),
)
_REFUSED: Final = (
    ("HEIF sequence", _has_brand(b"hevc", b"hevx")),
    ("JPEG XL", _starts(b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")),
    ("JPEG 2000", _starts(b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")),
    ("PDF", _starts(b"%PDF")),
    ("PostScript", _starts(b"%!PS")),
    ("Photoshop", _starts(b"8BPS")),
    ("SVG", _starts(b"<svg", b"<?xml")),
)


def recognise(data: bytes) -> Kind:
    """Return the kind of file that the first bytes say it is.

    Raises:
        BadImage: none that is read.
    """
    head = bytes(data[:_HEAD_BYTES])
    for kind in _KINDS:
        if kind.matches(head):
            return kind
    known = ", ".join(kind.name for kind in _KINDS)
    for name, matches in _REFUSED:
        if matches(head):
            raise BadImage(f"{name} files are not read, expected one of {known}")
    if not head:
        raise BadImage("the file is empty")
    raise BadImage(f"not an image file that is read, expected one of {known}")


def choose_frame(
    kind: Kind, image: ImageFile, data: bytes, frame: int | None, max_pixels: int
) -> None:
    """Bring a file that was opened to one of its frames or pages.

    Args:
        frame: its number, from 0; None for a file that has but one. HEIC files of several pictures
            name the one that they are of, and are opened at it.
        max_pixels: of all frames that have to be decoded to see it. Pages are decoded alone.

    Raises:
        BadImage: None, and there are several. BadParameter: there is no such frame.
        TooManyPixels: it is too far into an animation.
    """
    frames = count_frames(kind, image, data)
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
        _play_to(kind, image, frame, max_pixels)


def _play_to(kind: Kind, image: ImageFile, frame: int, max_pixels: int) -> None:
    """Decode the frames of an animation before one. A GIF's canvas may grow with each of them."""
    for number in range(frame + 1):
        image.seek(number)  # decodes the one before it
        pixels = image.width * image.height * (frame + 1)
        if pixels > max_pixels:
            raise TooManyPixels(
                f"frame {frame} of the {kind.name} file takes {pixels} pixels to decode with those "
                f"before it, the limit is {max_pixels}"
            )


def count_frames(kind: Kind, image: ImageFile, data: bytes) -> int:
    """Return how many pictures the file holds, at most about `MAX_COUNTED_FRAMES`.

    Raises:
        BadImage: directories of a TIFF file overlap, or a GIF consists of too many parts.
    """
    if kind.name == "GIF":
        return _count_gif_frames(data)
    if kind.name == "TIFF":
        return sum(1 for _ in tiff_directories(data))
    return int(getattr(image, "n_frames", 1))


def work_limit(size: int) -> int:
    """Return the number of parts that a file of so many bytes may be read in.

    A GIF has one byte of length for at most 255 of data, and each of the two is read alone.
    """
    return 50_000 + size // 64


def _count_gif_frames(data: bytes) -> int:
    """Walk the blocks of a GIF: extensions, pictures, and the chains of sub-blocks in both.

    Raises:
        BadImage: they are too many for its size.
    """
    frames, position, left = 0, 13 + _palette_bytes(data[10]), work_limit(len(data))
    while position < len(data) and frames < MAX_COUNTED_FRAMES:
        block, left = data[position], left - 1
        if left < 0:
            raise BadImage("the GIF file is damaged: it consists of too many small parts")
        if block == 0x3B:  # trailer
            break
        if block == 0x2C:  # picture: nine bytes, palette, code size
            frames += 1
            if position + 9 >= len(data):
                break
            position += 11 + _palette_bytes(data[position + 9])
        elif block == 0x21:  # extension: label
            position += 2
        else:
            position += 1
            continue
        while position < len(data) and data[position] and left >= 0:
            position, left = position + data[position] + 1, left - 1
        position += 1
    return frames


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


@dataclass(frozen=True)
class TiffLayout:
    """How the directories of a TIFF file are written, for `struct`; BigTIFF has longer numbers."""

    start: int
    count_format: str
    entry_format: str
    next_format: str

    @classmethod
    def of(cls, data: bytes) -> TiffLayout:
        """The layout that the header tells."""
        order = "<" if data[:2] == b"II" else ">"
        start, *numbers = (8, "Q", "HHQQ", "Q") if 43 in data[2:4] else (4, "H", "HHII", "I")
        return cls(start, *(order + number for number in numbers))

    def first(self, data: bytes) -> int:
        """Offset of the first directory."""
        offset: int = struct.unpack_from(self.next_format, data, self.start)[0]
        return offset

    def directory(self, data: bytes, offset: int) -> tuple[int, int]:
        """Begin and end of the entries of a directory; they may be beyond the end of the file."""
        begin = end = offset + struct.calcsize(self.count_format)
        if begin <= len(data):
            (count,) = struct.unpack_from(self.count_format, data, offset)
            end += count * struct.calcsize(self.entry_format)
        return begin, end

    def entries(self, data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Tag, type, count and value of each entry that is there, from begin to end."""
        size = struct.calcsize(self.entry_format)
        for position in range(begin, min(end, len(data) - size + 1), size):
            yield struct.unpack_from(self.entry_format, data, position)


def tiff_directories(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the entries of each directory of a TIFF file, at most `MAX_COUNTED_FRAMES`.

    One that reaches beyond the end of the file is the last.

    Raises:
        BadImage: they take more bytes than there are. Such directories overlap, and the work to
            read them would not be bounded by the size of the file.
    """
    layout = TiffLayout.of(data)
    after = struct.Struct(layout.next_format)
    taken, seen, offset = 0, set[int](), layout.first(data)
    while offset and offset not in seen and len(seen) < MAX_COUNTED_FRAMES:
        seen.add(offset)
        begin, end = layout.directory(data, offset)
        taken += end - offset
        if taken > len(data) >= end:
            raise BadImage(
                f"the TIFF file is damaged: its directories take {taken} bytes of {len(data)}"
            )
        yield begin, end
        if end + after.size > len(data):
            return
        (offset,) = after.unpack_from(data, end)
