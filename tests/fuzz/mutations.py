"""Many thousands of damaged streams, image files and metadata blocks, by one command.

Every test run has a few hundred of each; this is the long way. Each must end in a picture or in one
of our errors. It needs no server and takes about ten minutes:

    python tests/fuzz/mutations.py --record service/docs/results/mutations.md
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import numpy as np  # noqa: E402
from hostile import sealed  # noqa: E402
from image_files import exif_of, profile  # noqa: E402
from images.test_exif import camera_exif  # noqa: E402
from images.test_exif_check import DAMAGED, PICTURES, check_written, mutated  # noqa: E402
from images.test_hostile import read, samples  # noqa: E402
from make_golden import page_with_photo  # noqa: E402
from small_model import photo_like  # noqa: E402

from service.codec.container import LOSSLESS  # noqa: E402
from service.engine.opening import open_engine  # noqa: E402
from service.errors import RankpressError  # noqa: E402
from service.picture import Picture  # noqa: E402
from service.settings import Settings  # noqa: E402

MAX_PIXELS = 2**18


class Outcomes:
    """How often what came of it, and the longest that one took."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest_s = 0.0

    def add(self, attempt: Callable[[], object], data: bytes) -> None:
        """Take one attempt into the counts."""
        begun = time.perf_counter()
        try:
            attempt()
            outcome = "success"
        except RankpressError as error:
            outcome = type(error).__name__
        except Exception as error:
            outcome = "FAULT"
            self.faults.append(f"{error!r} for {data[:60].hex()}")
        self.counts[outcome] += 1
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)

    def row(self, name: str) -> str:
        """The line of a table."""
        told = ", ".join(f"{kind} {count:,}" for kind, count in self.counts.most_common())
        faults, total = len(self.faults), sum(self.counts.values())
        return f"| {name} | {total:,} | {told} | {faults} | {self.slowest_s:.2f} |"


def streams() -> list[bytes]:
    """Streams of the model that ships: colour, grey, alpha, several rates and tiles, and layers."""
    engine = open_engine(Settings(check=False))
    rgb = photo_like(48, 80)
    pictures = [
        Picture(rgb),
        Picture(np.repeat(rgb[..., :1], 3, axis=2), grey=True),
        Picture(rgb, rgb[..., 0].copy(), icc=profile(), exif=exif_of(1)),
        Picture(photo_like(16, 1040)),
    ]
    coded = [engine.compress(one, rate).data for one in pictures for rate in (1, 4.5, 8)]
    coded += [engine.compress(one, LOSSLESS).data for one in pictures[:3]]
    screen = Picture(page_with_photo())
    coded += [engine.compress(screen, rate).data for rate in (1, 4.5)]
    return coded


def damaged_streams(count: int) -> Iterator[bytes]:
    """As they are damaged, and with a checksum that fits."""
    for number, data in enumerate(mutated(streams(), count, seed=3)):
        yield data if number % 4 == 0 else sealed(data[:-4])


def damaged_files(count: int) -> Iterator[bytes]:
    """Image files of every kind with a few bytes changed, or cut off."""
    files = list(samples().values())
    draw = random.Random(4)
    for number in range(count):
        data = bytearray(files[number % len(files)])
        for _ in range(draw.choice((1, 1, 2, 4, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        yield bytes(data[: draw.randrange(len(data))] if draw.random() < 0.15 else data)


def try_all(data: Iterable[bytes], attempt: Callable[[bytes], object]) -> Outcomes:
    """What comes of each."""
    outcomes = Outcomes()
    for one in data:
        outcomes.add(lambda one=one: attempt(one), one)  # type: ignore[misc]
    return outcomes


def metadata_attempt() -> Callable[[bytes], object]:
    """Write a picture with an Exif block and a profile in all four formats."""
    profiles = mutated([profile(), profile()[:200], bytes(132)], 10**9, seed=6)
    kinds = list(PICTURES.values())
    draw = random.Random(7)

    def attempt(block: bytes) -> None:
        check_written(replace(draw.choice(kinds), exif=block, icc=next(profiles)))

    return attempt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--record", type=Path, help="file that the page is written to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    decoder = open_engine(Settings(decode_only=True, max_pixels=MAX_PIXELS))
    blocks = [exif_of(1), exif_of(6, ">"), camera_exif(), *DAMAGED.values()]
    lines = [
        "# Damaged streams, files and metadata",
        "",
        f"`python tests/fuzz/mutations.py --streams {options.streams} --files {options.files} "
        f"--blocks {options.blocks} --record PAGE`",
        "",
        "| what | tried | outcomes | other exceptions | slowest, s |",
        "|---|---:|---|---:|---:|",
    ]
    faults: list[str] = []
    for name, data, attempt in (
        ("streams, decoded", damaged_streams(options.streams), decoder.decompress),
        ("image files, read with all metadata", damaged_files(options.files), read),
        (
            "Exif blocks and profiles, each written in four formats",
            mutated(blocks, options.blocks, seed=5),
            metadata_attempt(),
        ),
    ):
        outcomes = try_all(data, attempt)
        lines.append(outcomes.row(name))
        print(lines[-1], flush=True)  # noqa: T201
        faults += outcomes.faults
    lines += ["", *(f"* {fault}" for fault in faults[:20])] if faults else []
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text("\n".join(lines) + "\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
