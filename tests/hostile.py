"""The law that any bytes at all must keep, for the tests and the fuzz target."""

from __future__ import annotations

from contextlib import suppress

import google_crc32c

from service.codec.container import Header, read_stream
from service.codec.tiles import padded_pixels
from service.engine.engine import Engine
from service.errors import BadStream, TooManyPixels
from service.picture import View

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
        header = header_of(data)
        assert padded_pixels(header.width, header.height) > MAX_PIXELS
        return False
    header = header_of(data)
    assert picture.rgb.shape == (header.height, header.width, 3)
    assert picture.alpha is None or picture.alpha.shape == (header.height, header.width)
    return True


def check_cut_bytes(engine: Engine, data: bytes) -> None:
    """Decode as a stream that may be cut.

    Raises:
        Exception: anything but BadStream and TooManyPixels.
    """
    with suppress(BadStream, TooManyPixels):
        header = header_of(data)
        cut = engine.decompress(data, View(partial=True)).picture
        assert cut.rgb.shape == (header.height, header.width, 3)


def header_of(data: bytes) -> Header:
    """The header of a stream that may be damaged behind it."""
    headers: list[Header] = []
    with suppress(BadStream):
        read_stream(data, headers.append)
    if not headers:
        raise BadStream("there is no header")
    return headers[0]
