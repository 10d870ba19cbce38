"""Lossless WebP pictures without their file header, coded by libwebp through Pillow.

A file of lossless WebP is 20 bytes of RIFF and chunk headers, then 5 bytes with a signature, the
size and whether there is alpha, then the coded pixels. Only the coded pixels are stored in a
stream, which says all the rest itself. A reader writes the 25 bytes again from the size that the
stream's header declares, so libwebp is never asked for other pixels than those.

The coded pixels are those of RFC 9649, section 3.

A large picture is cut into pieces of PIECE×PIECE pixels, which are coded one by one. Stored are the
lengths of all but the last, in varints, and then their bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.codec.tiles import Box
from service.errors import BadStream

U8 = NDArray[np.uint8]
Effort = tuple[int, int]
"""libwebp's method and quality."""

QUICK, FAST, NORMAL, BEST = (0, 0), (4, 75), (4, 100), (6, 100)
"""BEST takes 10 to 50 times as long as NORMAL and saves 1 %
of most pictures, up to 45 % of pixel art. QUICK is up to 7 times as large, for a first look."""

PIECE = 4096
"""Pixels along the side of a piece. Larger ones would save a few bytes and cost memory: libwebp
takes 4 bytes a pixel for itself."""

_SIGNATURE = 0x2F
_HEADER_BYTES = 5


def encode(samples: U8, effort: Effort = NORMAL) -> bytes:
    """Code samples without loss.

    Args:
        samples: [H, W, 3 or 4] uint8, RGB or RGBA, with sides of at most 16383.
        effort: QUICK, NORMAL or BEST.

    Returns:
        The coded pixels, without any header.
    """
    file, (method, quality) = io.BytesIO(), effort
    image = Image.fromarray(samples)
    image.save(file, "WEBP", lossless=True, exact=True, method=method, quality=quality)
    return _coded_pixels(file.getvalue())


def decode(data: bytes, height: int, width: int, has_alpha: bool) -> U8:
    """Decode coded pixels.

    Args:
        data: as `encode` returns it.
        height, width: of the picture, at most 16384; they bound time and memory.
        has_alpha: whether the samples are RGBA.

    Returns:
        [height, width, 3 or 4] uint8.

    Raises:
        BadStream: the bytes are no picture of that size.
    """
    bits = (width - 1) | (height - 1) << 14 | int(has_alpha) << 28
    chunk = bytes([_SIGNATURE]) + bits.to_bytes(4, "little") + data
    body = b"WEBPVP8L" + len(chunk).to_bytes(4, "little") + chunk + b"\0" * (len(chunk) % 2)
    try:
        with Image.open(io.BytesIO(b"RIFF" + len(body).to_bytes(4, "little") + body)) as image:
            samples = np.asarray(image)
    except (OSError, EOFError, ValueError) as error:
        raise BadStream(f"{len(data)} bytes are no lossless picture of {width}x{height}") from error
    if samples.shape != (height, width, 4 if has_alpha else 3):
        raise BadStream(f"lossless pixels are {samples.shape}, expected {width}x{height}")
    return samples


def pieces(width: int, height: int) -> Iterator[Box]:
    """The pieces of a picture, row by row; those of the last row and column are cut."""
    picture = Box(0, 0, height, width)
    for top in range(0, height, PIECE):
        for left in range(0, width, PIECE):
            yield Box(top, left, top + PIECE, left + PIECE).cut(picture)


def piece_count(width: int, height: int) -> int:
    """Number of pieces of a picture."""
    return -(-width // PIECE) * -(-height // PIECE)


def _coded_pixels(file: bytes) -> bytes:
    """The payload of a file's VP8L chunk behind its own header."""
    at = 12
    while file[at : at + 4] != b"VP8L":
        length = int.from_bytes(file[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    end = at + 8 + int.from_bytes(file[at + 4 : at + 8], "little")
    return file[at + 8 + _HEADER_BYTES : end]
