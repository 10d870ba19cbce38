"""Image files for tests, among them kinds that Pillow reads but does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.picture import U8

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photo(height: int = 24, width: int = 37) -> U8:
    """A smooth picture with an edge; every row and column differs."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    blue = np.where(x + y > (height + width) / 2, 200, 30)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def file_of(image: Image.Image, format: str, **options: Any) -> bytes:
    """The picture as a file, by Pillow."""
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def png_of(rows: bytes, size: tuple[int, int], bits: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of raw rows, each beginning with its filter byte; extra chunks before the pixels."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def grey_tiff(samples: NDArray[Any], bits: int, photometric: int, kind: int = 1) -> bytes:
    """An uncompressed little-endian grey TIFF; kind 1 unsigned, 2 signed, 3 floating point."""
    height, width = samples.shape
    pixels_at = 8 + 2 + 12 * 10 + 4
    tags = (256, width), (257, height), (258, bits), (259, 1), (262, photometric)
    tags += (273, pixels_at), (277, 1), (278, height), (279, samples.nbytes), (339, kind)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, 10) + entries + bytes(4) + samples.tobytes()


def exif_of(orientation: int, order: str = "<") -> bytes:
    """An Exif block without prefix: an orientation and a maker."""
    start = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "IH", 8, 2)
    maker = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0")
    turn = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return start + maker + turn + bytes(4)


def profile(
    space: bytes = b"RGB ", gamma: float = 1.8, more: Mapping[bytes, bytes] | None = None
) -> bytes:
    """An ICC profile: Adobe RGB's primaries, or grey, with a plain gamma, and more tags."""
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"w\0" + bytes(78)}
    tags |= {b"wtpt": _xyz(0.9642, 1.0, 0.8249), b"cprt": b"text" + bytes(4) + b"none"}
    if space == b"RGB ":
        tags |= {b"rXYZ": _xyz(0.6097, 0.3111, 0.0195), b"gXYZ": _xyz(0.2053, 0.6257, 0.0609)}
        tags |= {b"bXYZ": _xyz(0.1492, 0.0632, 0.7446)}
        tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags[b"kTRC"] = curve
    tags |= more or {}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    return (head + _xyz(0.9642, 1.0, 0.8249)[8:]).ljust(128, b"\0") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))
