"""The decoder under arbitrary bytes, for atheris; test_fuzz.py drives the same law in every run.

    pip install atheris        # wheels for Linux; elsewhere it is built with clang
    PYTHONPATH=.:tests python tests/fuzz/fuzz_decompress.py -max_len=400 [-max_total_time=60] [DIR]

The checksum and the model's identity would keep a fuzzer outside for ever, so bytes are tried as
they are, with a valid checksum, and as what follows a sound header, also that of a lossless stream.
Nothing of ours is imported before atheris can instrument it. Golden streams are good seeds: name
tests/golden/v1 as the last folder.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run atheris until it is stopped or finds something."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["service"]):
        from hostile import MAX_PIXELS, check_any_bytes, check_cut_bytes, sealed
        from small_model import decode_only, small_stored_model

        from service.codec.container import LOSSLESS16, NO_MODEL
        from service.engine.engine import Engine

    model = decode_only(small_stored_model()[0])
    engine = Engine((model,), max_pixels=MAX_PIXELS)
    start = b"RKP\x01" + model.stored.identity[:4] + bytes([64])
    lossless = b"RKP\x01" + NO_MODEL + bytes([LOSSLESS16])

    def test_one_input(data: bytes) -> None:
        for tried in (data, sealed(data), sealed(start + data), sealed(lossless + data)):
            check_any_bytes(engine, tried)
            check_cut_bytes(engine, tried)

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
