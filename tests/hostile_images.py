"""Image files of a given size that would cost much work before their first pixel."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
import pillow_heif
from image_files import chunk, file_of
from PIL import Image
from PIL import _avif as avif_codec

SIDE: Final = 16
RGB: Final = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
IMAGE: Final = Image.fromarray(RGB)
FRACTION: Final = struct.pack("<II", 4_000_000_001, 4_000_000_003)


def filled(unit: bytes, size: int) -> bytes:
    return unit * max(1, size // len(unit))


# --- PPM, GIF and BMP


def ppm(between: bytes) -> bytes:
    """A PPM with bytes in its header."""
    return b"P6\n" + between + b"\n2 2 255\n" + bytes(12)


def gif(before: bytes, after: bytes = b"") -> bytes:
    """A GIF with bytes before its picture, and others in the place of its end."""
    data = file_of(IMAGE.quantize(9), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1))
    return data[:at] + before + data[at:-1] + after + b";"


def bmp(runs: bytes, compression: int = 1) -> bytes:
    """A compressed BMP of 4x4 pixels."""
    head = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, compression, len(runs), 0, 0, 256, 0)
    head += bytes(range(256)) * 4
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(runs), 0, 0, 14 + len(head)) + head + runs
    )


# --- JPEG


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def jpeg(more: bytes) -> bytes:
    """A JPEG with bytes after its first segment."""
    data = file_of(IMAGE, "JPEG")
    return data[:20] + more + data[20:]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = file_of(IMAGE, "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * (count - scans) + data[-2:]


# --- PNG


def png(before: bytes, mode: str = "RGB", after: bytes = b"") -> bytes:
    """A PNG with chunks after its header, and others before its end."""
    data = file_of(IMAGE.convert(mode), "PNG")
    end = data.index(b"IEND") - 4
    return data[:33] + before + data[33:end] + after + data[end:]


def png_of_pixels(packed: bytes) -> bytes:
    """A PNG with other data for its pixels."""
    data = file_of(IMAGE, "PNG")
    return data[:33] + chunk(b"IDAT", packed) + data[data.index(b"IEND") - 4 :]


def bomb(head: bytes, kind: bytes, letter: bytes = b"\0") -> bytes:
    """A chunk that unpacks to 1 MiB, the most that Pillow takes."""
    return chunk(kind, head + zlib.compress(letter * (1 << 20), 9))


def empty_deflate(size: int) -> bytes:
    """Deflate of empty blocks."""
    return b"\x78\x9c" + filled(b"\0\0\0\xff\xff", size)


# --- Exif and TIFF


def exif_of_fractions(count: int, tag: int = 0x011A) -> bytes:
    """An Exif block with an orientation and many fractions."""
    head = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", tag, 5, count, 38)
    return head + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4) + FRACTION * count


def tiff(tag: int, kind: int, count: int, values: bytes) -> bytes:
    """A grey TIFF of 4x4 pixels with one more tag, or another one, of many values."""
    tags = {
        256: (4, 4),
        257: (4, 4),
        258: (3, 8),
        259: (3, 1),
        262: (3, 1),
        273: (4, 0),
        278: (4, 4),
    }
    tags[279] = (4, 16)
    tags.setdefault(tag, (0, 0))
    end = 8 + 2 + 12 * len(tags) + 4
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for each, (type_, value) in sorted(tags.items()):
        if each == tag:
            out += struct.pack("<HHII", tag, kind, count, end + 16)
        else:
            out += struct.pack("<HHII", each, type_, 1, end if each == 273 else value)
    return out + bytes(4) + bytes(16) + values


def tiff_of_fractions_in_exif(count: int) -> bytes:
    """A TIFF file whose camera's directory has many fractions."""
    data = tiff(0x8769, 4, 1, b"")
    at = len(data)
    entry = struct.pack("<HHI", 0x8769, 4, 1)
    data = data.replace(entry + data[data.index(entry) + 8 :][:4], entry + struct.pack("<I", at))
    directory = struct.pack("<H", 1) + struct.pack("<HHII", 0x829A, 5, count, at + 18) + bytes(4)
    return data + directory + FRACTION * count


def big_tiff_of_entries(count: int) -> bytes:
    """A BigTIFF whose directory has many entries."""
    tags = ((256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 16), (278, 4), (279, 16))
    first = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in tags)
    more = b"".join(struct.pack("<HHQQ", 1000 + n % 60_000, 4, 1, 5) for n in range(count))
    head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(tags) + count)
    return head + first + more + bytes(8)


# --- WebP, AVIF and HEIC


def webp(after: bytes) -> bytes:
    """An extended WebP with chunks after its picture."""
    picture = file_of(IMAGE, "WEBP")[12:]
    size = struct.pack("<I", SIDE - 1)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x2c\0\0\0" + size + picture + after
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def heif(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "AVIF":
        IMAGE.save(out, kind)
    else:
        pillow_heif.from_pillow(IMAGE).save(out)
    return out.getvalue()


def heif_with(kind: str, path: tuple[bytes, ...], more: bytes) -> bytes:
    """A HEIF file with boxes at the end of one of its boxes; its pixels are not found again."""
    data = bytearray(heif(kind))
    places = [data.index(name) - 4 for name in path]
    end = places[-1] + int.from_bytes(data[places[-1] :][:4], "big")
    for place in places:
        size = int.from_bytes(data[place : place + 4], "big") + len(more)
        data[place : place + 4] = size.to_bytes(4, "big")
    return bytes(data[:end]) + more + bytes(data[end:])


def avif_turned(exif: bytes) -> bytes:
    """An AVIF file that its boxes turn otherwise than its Exif block says."""
    more = ("auto", "full", 0, 0, False, True, b"", exif, 8, b"", None)
    encoder = avif_codec.AvifEncoder((SIDE, SIDE), "4:2:0", 75, 8, 1, *more)
    encoder.add(RGB.tobytes(), 0, (SIDE, SIDE), "RGB", True)
    written: bytes = encoder.finish()
    return written


SMALL_PARTS: Final[dict[str, Callable[[int], bytes]]] = {
    "ppm comment": lambda n: ppm(b"#" + b"x" * n),
    "ppm comments": lambda n: ppm(filled(b"#\n", n)),
    "ppm spaces": lambda n: ppm(b" " * n),
    "gif zeros": lambda n: gif(bytes(n)),
    "gif junk": lambda n: gif(b"\x55" * n),
    "gif empty extensions": lambda n: gif(filled(b"!\xf9\0", n)),
    "gif comment in bytes": lambda n: gif(b"!\xfe" + filled(b"\1a", n) + b"\0"),
    "gif comments": lambda n: gif(filled(b"!\xfe\1a\0", n)),
    "gif zeros after its picture": lambda n: gif(b"", filled(b"!\xf9\0", n)),
    "gif blocks that only pillow sees": lambda n: gif(b"!\xf9\0" + filled(b"\xff" + bytes(255), n)),
    "jpeg junk": lambda n: jpeg(bytes(n)),
    "jpeg fill bytes": lambda n: jpeg(b"\xff" * n),
    "jpeg stuffed bytes": lambda n: jpeg(filled(b"\xff\0", n)),
    "jpeg comments": lambda n: jpeg(filled(segment(0xFE, b""), n)),
    "jpeg exif in bytes": lambda n: jpeg(filled(segment(0xE1, b"Exif\0\0a"), n)),
    "jpeg profile in bytes": lambda n: jpeg(filled(segment(0xE2, b"ICC_PROFILE\0\1\1a"), n)),
    "jpeg tables": lambda n: jpeg(filled(segment(0xDB, filled(b"\0" + b"\1" * 64, 65_000)), n)),
    "png empty chunks": lambda n: png(filled(chunk(b"abCd", b""), n)),
    "png chunks after its pixels": lambda n: png(b"", after=filled(chunk(b"abCd", b""), n)),
    "png empty pixel data": lambda n: png(filled(chunk(b"IDAT", b""), n)),
    "png texts": lambda n: png(filled(chunk(b"tEXt", b"a\0"), n)),
    "png exif": lambda n: png(chunk(b"eXIf", exif_of_fractions(n // 8))),
    "png exif as text": lambda n: png(chunk(b"tEXt", b"exif\0" + exif_of_fractions(n // 8))),
    "webp exif": lambda n: webp(webp_chunk(b"EXIF", exif_of_fractions(n // 8))),
    "avif exif": lambda n: avif_turned(exif_of_fractions(n // 8)),
    "tiff resolution": lambda n: tiff(282, 5, n // 8, FRACTION * (n // 8)),
    "tiff bits": lambda n: tiff(258, 3, n // 2, filled(b"\x08\0", n)),
    "tiff exif": lambda n: tiff_of_fractions_in_exif(n // 8),
    "tiff entries": lambda n: big_tiff_of_entries(n // 20),
    "bmp empty runs": lambda n: bmp(bytes(n)),
    "bmp moves to nowhere": lambda n: bmp(filled(b"\0\2\0\0", n)),
}
"""Files whose parts Pillow reads in Python, one by one."""
