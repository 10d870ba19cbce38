"""The decoder under arbitrary bytes: a fuzz target for atheris, and the law that it checks.

    pip install atheris        # Linux, needs clang's libFuzzer on some platforms
    PYTHONPATH=.:tests python tests/fuzz/fuzz_decompress.py -max_len=4096 CORPUS_DIR

test_fuzz.py and engine/test_hostile.py drive the same `check_any_bytes` with bounded numbers of
examples. The checksum would hide everything behind it from a fuzzer, so bytes are tried as they are
and with a valid checksum.
"""

from __future__ import annotations

import sys

import google_crc32c

from service.codec.container import read_header
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
        assert header.width * header.height > MAX_PIXELS
        return False
    header = read_header(data)
    assert picture.rgb.shape == (header.height, header.width, 3)
    assert picture.alpha is None or picture.alpha.shape == (header.height, header.width)
    return True


def main() -> None:
    """Run atheris until it is stopped or finds something."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["service"]):
        from small_model import decode_only_engine

    engine = decode_only_engine(MAX_PIXELS)

    def test_one_input(data: bytes) -> None:
        check_any_bytes(engine, data)
        check_any_bytes(engine, sealed(data))

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
