"""The laws of the decoder for web pages, tried in Chromium on hundreds of streams, by one command.

Every test run tries a few; this is the long way. Latents must be Python's and pixels within 1 of
Python's; damaged streams must end in a picture or in one of the package's errors:

    python tests/web/laws.py --kodak DIR --domains DIR --record service/docs/results/browser.md

It needs torch, Playwright, Chromium and folders of PNG files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import numpy as np  # noqa: E402
from fuzz.mutations import MAX_PIXELS, damaged_streams  # noqa: E402
from make_golden import V1, drawing, matte, page_with_photo  # noqa: E402

from service.codec.container import LOSSLESS  # noqa: E402
from service.datasets.colours import Rng  # noqa: E402
from service.datasets.fields import pixel_art  # noqa: E402
from service.images.read import read_image  # noqa: E402
from service.picture import Picture  # noqa: E402
from web.cases import Case, Maker, coded, grey, see_through, sized  # noqa: E402
from web.conftest import launched, watched_page  # noqa: E402
from web.decoding import BrowserDecoder, Outcomes, package_site, write_weights  # noqa: E402
from web.sites import ISOLATED  # noqa: E402

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 255, 256, 257, 1023, 1024, 1025, 2000)
SIZES = (
    *((1, length) for length in LENGTHS),
    *((length, 1) for length in LENGTHS[1::2]),
    *((16, 16), (17, 15), (5, 1030), (1030, 5), (65, 129), (110, 70), (48, 48), (49, 47)),
    *((320, 200), (200, 320), (513, 511), (700, 33), (1100, 40)),
)
SIDE = 384
"""Pixels along the side of what is taken of a picture of other domains."""


class Report:
    """Lines of a page, printed as they come, and what was against a law."""

    def __init__(self, *lines: str) -> None:
        self.lines: list[str] = []
        self.faults: list[str] = []
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Group:
    """Streams of one kind."""

    name: str
    cases: Iterator[Case]


def groups(maker: Maker, kodak: Path, domains: Path) -> Iterator[Group]:
    """Two hundred streams of all kinds."""
    photos, others = sorted(kodak.glob("*.png")), sorted(domains.glob("*.png"))
    yield Group("golden streams", golden())
    yield Group("Kodak", coded(maker, (read(path) for path in (*photos, *photos))))
    yield Group("other domains", coded(maker, (middle(read(path), SIDE) for path in others)))
    yield Group("1×1 to 1×2000, and other sizes", coded(maker, sized(SIZES)))
    yield Group("with alpha", coded(maker, see_through(SIZES[::3][:16])))
    yield Group("grey", coded(maker, grey(SIZES[::5][:8])))
    yield Group("with an update of their own", adapted(maker))
    small = (middle(read(path), 128) for path in others[3::7])
    yield Group("with a ready update", ready(maker, small))
    yield Group("without loss", lossless(maker))


def golden() -> Iterator[Case]:
    for path in sorted(V1.glob("*.rkp")):
        yield Case(path.stem, path.read_bytes())


def adapted(maker: Maker) -> Iterator[Case]:
    """Drawings and pixel art, for which an update of their own pays."""
    for rate in (4.5, 6, 8):
        yield maker.adapted(f"drawing-adapted-r{rate:g}", Picture(drawing()), rate)
    for seed, rate in enumerate((6, 7, 8), 3):
        rgb = np.asarray(pixel_art(Rng(np.random.PCG64(seed)), 128)).copy()
        yield maker.adapted(f"pixel-art-{seed}-adapted-r{rate}", Picture(rgb), rate)


def ready(maker: Maker, pictures: Iterable[tuple[str, Picture]]) -> Iterator[Case]:
    for number, (name, picture) in enumerate(pictures):
        yield maker.ready(f"{name}-ready", picture, number)


def lossless(maker: Maker) -> Iterator[Case]:
    pictures = {"drawing": drawing(), "page": page_with_photo(), "corner": drawing()[:33, :17]}
    pictures["point"] = drawing()[:1, :1]
    for name, rgb in pictures.items():
        yield maker.case(f"{name}-lossless", Picture(rgb), LOSSLESS)
        alpha = matte(*rgb.shape[:2])
        yield maker.case(f"{name}-alpha-lossless", Picture(rgb, alpha), LOSSLESS)


def read(path: Path) -> tuple[str, Picture]:
    """The picture of a file, with the file's name."""
    return path.stem, read_image(path.read_bytes(), max_pixels=10**8)


def middle(named: tuple[str, Picture], side: int) -> tuple[str, Picture]:
    """The middle of a picture, without its alpha plane."""
    name, picture = named
    top, left = (max(0, length - side) // 2 for length in (picture.height, picture.width))
    return name, Picture(picture.rgb[top : top + side, left : left + side].copy())


def compare_all(
    decoders: Sequence[BrowserDecoder], maker: Maker, all_groups: Iterator[Group]
) -> Report:
    """A table of how far the streams of each group are from Python's, in every page."""
    report = Report("| streams | tried | same latents | pixels within 1 | samples off by 1 |")
    report.add("|---|---:|---:|---:|---:|")
    for group in all_groups:
        same = within = off = samples = count = 0
        for case in group.cases:
            reference = maker.reference(case.data)
            found = [decoder.compare(case, reference) for decoder in decoders]
            count += 1
            same += all(one.y_hat == reference.y_hat for one in found)
            within += all(one.is_close for one in found)
            off += sum(one.off for one in found)
            samples += len(found) * 3 * reference.rgba.size // 4
            report.faults += [f"{case.name}: {one}" for one in found if not one.follows(reference)]
        share = f"{100 * off / samples:.4f} %"
        report.add(f"| {group.name} | {count} | {same} | {within} | {share} |")
    return report


def attempt_all(decoders: Sequence[BrowserDecoder], count: int, at_once: int = 100) -> Report:
    """A table of what came of damaged streams, decoded as whole ones and as cut ones."""
    report = Report("| damaged streams | tried | outcomes | others | slowest, s |")
    report.add("|---|---:|---|---:|---:|")
    ways: dict[str, dict[str, bool]] = {"as whole streams": {}, "as cut streams": {"partial": True}}
    for decoder, (name, options) in zip(decoders, ways.items(), strict=True):
        decoder.open(maxPixels=MAX_PIXELS, threads=2)
        streams, total = damaged_streams(count // 2), Outcomes()
        while batch := list(islice(streams, at_once)):
            total += decoder.attempt(batch, **options)
        told = ", ".join(f"{kind} {number:,}" for kind, number in total.counts.most_common())
        tried, faults = sum(total.counts.values()), len(total.faults)
        report.add(f"| {name} | {tried:,} | {told} | {faults} | {total.slowest_s:.2f} |")
        report.faults += total.faults
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kodak", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--domains", type=Path, required=True, help="folder of other pictures")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--record", type=Path, help="file that the page is written to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    weights = Path(tempfile.mkdtemp())
    write_weights(weights)
    maker, problems = Maker(), list[str]()
    with ExitStack() as stack:
        browser = stack.enter_context(launched())
        decoders = []
        for headers in (None, ISOLATED):
            site = stack.enter_context(package_site(weights, headers))
            page = stack.enter_context(watched_page(browser, problems))
            decoders.append(BrowserDecoder(page, *site))
            decoders[-1].open(threads=2)
        streams = compare_all(decoders, maker, groups(maker, options.kodak, options.domains))
        damaged = attempt_all(decoders, options.mutations)
        version = browser.version
    faults = [*streams.faults, *damaged.faults, *problems]
    lines = [
        "# The decoder for web pages",
        "",
        f"`python tests/web/laws.py --kodak DIR --domains DIR --mutations {options.mutations} "
        f"--record PAGE`, in Chromium {version}. Each stream was decoded in a page with and in one "
        "without cross-origin isolation, and compared with what Python decodes it to.",
        "",
        *(*streams.lines, "", *damaged.lines),
        *(("", *(f"* {fault}" for fault in faults[:20])) if faults else ()),
    ]
    if options.record:
        options.record.write_text("\n".join(lines) + "\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
