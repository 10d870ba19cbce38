"""Kinds of image file: recognised by their first bytes, opened, and one of their frames chosen.

`Image.open` is not used: it would try formats that are refused here, and its limit of pixels is one
number for the whole process that warns, then raises, whatever the caller's limit is. Frames of GIF
and TIFF are counted from the bytes, within a limit of work; Pillow's count has no limit.
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
"""Frames that are counted at most; later ones cannot be chosen."""

_HEAD_BYTES: Final = 64
"""First bytes of a file, by which it is recognised."""


@dataclass(frozen=True)
class FileKind:
    """A kind of image file that can be read.

    Attributes:
        name: in messages.
        matches: returns whether the first bytes are those of such a file.
        open: opens a file and reads its header only.
    """

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


def _is_pnm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6")


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
    FileKind("PPM", _is_pnm, PpmImageFile),
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
    """Return the kind of a file by its first bytes.

    Raises:
        BadImage: it is of no kind that can be read.
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
    raise BadImage(f"the file is of an unknown kind, expected one of {known}")


def choose_frame(
    kind: FileKind, image: ImageFile, data: bytes, frame: int | None, max_pixels: int
) -> None:
    """Move an opened file to one of its frames or pages.

    Args:
        kind: of the file. image: opened. data: the whole file.
        frame: number of the frame, from 0; None for a file that has only one. HEIC files of several
            pictures name a primary one, which is taken for None.
        max_pixels: of all frames together that must be decoded to show this one. Pages are decoded
            alone.

    Raises:
        BadImage: `frame` is None and the file has several. BadParameter: there is no such frame.
        TooManyPixels: the frame is too far into an animation.
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


def count_frames(kind: FileKind, image: ImageFile, data: bytes) -> int:
    """Return the number of frames or pages of a file, at most about `MAX_COUNTED_FRAMES`.

    Raises:
        BadImage: directories of a TIFF file overlap, or a GIF consists of too many parts.
    """
    if kind.name == "GIF":
        return _count_gif_frames(data)
    if kind.name == "TIFF":
        return sum(1 for _ in tiff_directories(data))
    return int(getattr(image, "n_frames", 1))


def work_limit(size: int) -> int:
    """Return the number of reads in which a file of `size` bytes may be read.

    A GIF has a byte of length for at most 255 bytes of data, and each of the two takes a read.
    """
    return 50_000 + size // 64


def _count_gif_frames(data: bytes) -> int:
    """Count the pictures among the blocks of a GIF, and skip the sub-blocks of each block.

    Raises:
        BadImage: there are too many blocks for the size of the file.
    """
    frames, position, left = 0, 13 + _palette_bytes(data[10]), work_limit(len(data))
    while position < len(data) and frames < MAX_COUNTED_FRAMES:
        block, left = data[position], left - 1
        if left < 0:
            raise BadImage("the GIF file is damaged: it consists of too many small parts")
        if block == 0x3B:  # trailer
            break
        if block == 0x2C:  # picture: nine bytes, a palette, the code size
            frames += 1
            if position + 9 >= len(data):
                break
            position += 11 + _palette_bytes(data[position + 9])
        elif block == 0x21:  # extension: its label
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
    """Formats for `struct` of the numbers in TIFF directories; those of BigTIFF are longer.

    Attributes:
        start: position of the offset of the first directory. count_format: of the count of entries.
        entry_format: of tag, type, count and value. next_format: of the next directory's offset.
    """

    start: int
    count_format: str
    entry_format: str
    next_format: str

    @classmethod
    def of(cls, data: bytes) -> TiffLayout:
        """Return the layout by the header of a file."""
        order = "<" if data[:2] == b"II" else ">"
        start, *numbers = (8, "Q", "HHQQ", "Q") if 43 in data[2:4] else (4, "H", "HHII", "I")
        return cls(start, *(order + number for number in numbers))

    def first(self, data: bytes) -> int:
        """Return the offset of the first directory."""
        offset: int = struct.unpack_from(self.next_format, data, self.start)[0]
        return offset

    def directory(self, data: bytes, offset: int) -> tuple[int, int]:
        """Return begin and end of a directory's entries; they may be beyond the end of the file."""
        begin = end = offset + struct.calcsize(self.count_format)
        if begin <= len(data):
            (count,) = struct.unpack_from(self.count_format, data, offset)
            end += count * struct.calcsize(self.entry_format)
        return begin, end

    def entries(self, data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield tag, type, count and value of each entry between two positions of the file."""
        size = struct.calcsize(self.entry_format)
        for position in range(begin, min(end, len(data) - size + 1), size):
            yield struct.unpack_from(self.entry_format, data, position)


def tiff_directories(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the entries of each directory, at most `MAX_COUNTED_FRAMES`.

    A directory that reaches beyond the end of the file is the last.

    Raises:
        BadImage: the directories take more bytes than the file has. They overlap, and the work to
            read them would not be bounded by the size of the file.
    """
    layout = TiffLayout.of(data)
    after = struct.Struct(layout.next_format)
    total_bytes, offsets, offset = 0, set[int](), layout.first(data)
    while offset and offset not in offsets and len(offsets) < MAX_COUNTED_FRAMES:
        offsets.add(offset)
        begin, end = layout.directory(data, offset)
        total_bytes += end - offset
        if total_bytes > len(data) >= end:
            raise BadImage(
                f"the TIFF file is damaged: its directories take {total_bytes} bytes of {len(data)}"
            )
        yield begin, end
        if end + after.size > len(data):
            return
        (offset,) = after.unpack_from(data, end)
