"""The decoder package in a page, as tests drive it: harness.js and the site that has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.store.decoder_files import decoder_files
from service.store.read import load_store
from service.web.pages import BUILT
from web.cases import Case, Reference
from web.sites import static_site

if TYPE_CHECKING:
    from playwright.sync_api import Page

PACKAGE = BUILT / "decoder"
"""The package as npm publishes it."""

HARNESS = Path(__file__).parent / "harness.js"

DOCUMENT = """<!doctype html><html lang="en"><title>Decoder</title>
<script type="module" src="/harness.js"></script>"""


@dataclass(frozen=True)
class Comparison:
    """How far a decoded picture is from Python's.

    Attributes:
        size: its width and height.
        worst: largest difference of a colour sample that is visible, in 8-bit steps; None where the
            sizes differ. off: how many samples differ. alpha_off: how many alpha samples do.
        y_hat: sha256 of the latents; None where the picture has none, or not all were decoded.
        ms: milliseconds of the decode.
    """

    size: tuple[int, int]
    worst: int | None = None
    off: int = 0
    alpha_off: int = 0
    y_hat: str | None = None
    ms: float = 0.0

    @property
    def is_close(self) -> bool:
        """Whether pixels are within 1 and alpha is equal."""
        return self.worst is not None and self.worst <= 1 and not self.alpha_off

    def follows(self, reference: Reference) -> bool:
        """Whether it is close, and the latents are the same."""
        return self.is_close and self.y_hat == reference.y_hat


@dataclass
class Outcomes:
    """What came of many streams: how often each outcome, what was none of the package's errors,
    and the longest time in seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __add__(self, other: Outcomes) -> Outcomes:
        slowest_s = max(self.slowest_s, other.slowest_s)
        return Outcomes(self.counts + other.counts, self.faults + other.faults, slowest_s)


def write_weights(folder: Path) -> None:
    """Write the files that a decoder needs of the shipped model, and their index."""
    built = decoder_files(load_store())
    (folder / "index.json").write_bytes(built.index)
    for name, data in built.files.items():
        (folder / name).write_bytes(data)


@contextmanager
def package_site(
    weights: Path, headers: Mapping[str, str] | None = None
) -> Iterator[tuple[str, MutableMapping[str, str | bytes]]]:
    """A site with the package, weights and harness.js; yields its URL, and pages to add to."""
    pages: dict[str, str | bytes] = {"/": DOCUMENT, "/harness.js": HARNESS.read_bytes()}
    with static_site({"decoder": PACKAGE, "weights": weights}, headers, pages) as url:
        yield url, pages


class BrowserDecoder:
    """A page with a decoder."""

    def __init__(self, page: Page, url: str, pages: MutableMapping[str, str | bytes]) -> None:
        """The page goes to the site's first page."""
        self.page, self.pages = page, pages
        page.goto(url)
        page.wait_for_function("() => 'harness' in globalThis")

    def open(self, **options: Any) -> None:
        """Create a decoder, in place of the one before; options as of `createDecoder`."""
        self.page.evaluate("options => harness.open(options)", options)

    def compare(self, case: Case, reference: Reference, **options: Any) -> Comparison:
        """Decode a stream with options of `decode` and compare it."""
        self.pages[f"/cases/{case.name}.rkp"] = case.data
        self.pages[f"/cases/{case.name}.rgba"] = reference.rgba.tobytes()
        answer = self.page.evaluate(
            "([name, options]) => harness.compare(name, options)", [case.name, options]
        )
        if "worst" not in answer:
            return Comparison(tuple(answer["size"]))
        return Comparison(
            tuple(answer["size"]),
            answer["worst"],
            answer["off"],
            answer["alphaOff"],
            answer["yHat"],
            answer["ms"],
        )

    def outcome(self, data: bytes, **options: Any) -> str:
        """Decode one stream; returns "success" or the name of its error."""
        outcomes = self.attempt([data], **options)
        return outcomes.faults[0] if outcomes.faults else next(iter(outcomes.counts))

    def attempt(self, streams: Iterable[bytes], timeout_s: float = 20, **options: Any) -> Outcomes:
        """Decode each stream on its own, with options of `decode`."""
        self.pages["/attempts"] = b"".join(
            len(data).to_bytes(4, "little") + data for data in streams
        )
        answer = self.page.evaluate(
            "([options, ms]) => harness.attempts('/attempts', options, ms)",
            [options, 1000 * timeout_s],
        )
        counts = Counter(answer["counts"])
        return Outcomes(counts, answer["faults"], answer["slowest"] / 1000)
