"""The law that any bytes at all must keep, for the tests and the fuzz target."""

from __future__ import annotations

import google_crc32c

from service.codec.container import read_header
from service.codec.tiles import padded_pixels
from service.engine.engine import Engine
from service.errors import BadStream, TooManyPixels

MAX_PIXELS = 2**14
"""A decoder's time is bounded by its pixel limit; a small one makes for many tries."""


def sealed(body: bytes) -> bytes:
    """The bytes with a valid checksum at their end."""
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def check_any_bytes(engine: Engine, data: bytes) -> bool:
    """Decode; True when a picture came out, False when the bytes were refused.

    Raises:
        Exception: anything but BadStream, and TooManyPixels where the header says so.
    """
    try:
        picture = engine.decompress(data).picture
    except BadStream:
        return False
    except TooManyPixels:
        header = read_header(data)
        assert padded_pixels(header.width, header.height) > MAX_PIXELS
        return False
    header = read_header(data)
    assert picture.rgb.shape == (header.height, header.width, 3)
    assert picture.alpha is None or picture.alpha.shape == (header.height, header.width)
    return True
