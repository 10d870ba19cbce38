"""Time and size of the decoder for web pages in Chromium, by one command.

    python tests/web/times.py PICTURE

The picture is decoded at rate 4, warm, by one and by two workers. A first load is a page that has
nothing: the package, weights and the stream come from this machine. Nothing else should run.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import httpx  # noqa: E402

from service.images.read import read_image  # noqa: E402
from web.cases import Maker  # noqa: E402
from web.conftest import launched, watched_page  # noqa: E402
from web.decoding import BrowserDecoder, package_site, write_weights  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPEATS = 9
FIRST_LOADS = 5

FIRST_PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import { createDecoder } from "/decoder/rankpress-decoder.js";
const decoder = await createDecoder({ weightsUrl: "/weights/index.json" });
const response = await fetch("/cases/first.rkp");
await decoder.decode(await response.arrayBuffer());
globalThis.shownMs = performance.now();
</script>"""

Site = tuple[str, MutableMapping[str, str | bytes]]


def warm_ms(browser: Browser, site: Site, threads: int) -> float:
    """Median of the milliseconds of a decode, after two."""
    with watched_page(browser, []) as page:
        decoder = BrowserDecoder(page, *site)
        decoder.open(threads=threads)
        times = page.evaluate("count => harness.times('/cases/first.rkp', count)", REPEATS + 2)
    return float(median(times[2:]))


def first_ms(browser: Browser, site: Site) -> float:
    """Milliseconds from the start of a new page to the first picture."""
    with watched_page(browser, []) as page:
        page.goto(f"{site[0]}/first.html")
        page.wait_for_function("() => 'shownMs' in globalThis")
        return float(page.evaluate("shownMs"))


def first_files(browser: Browser, site: Site) -> dict[str, bytes]:
    """The files of a first load, by path, without the page and the stream."""
    urls: list[str] = []
    with watched_page(browser, []) as page:
        page.context.on("request", lambda request: urls.append(request.url))
        page.goto(f"{site[0]}/first.html")
        page.wait_for_function("() => 'shownMs' in globalThis")
    paths = {url.removeprefix(site[0]) for url in urls if url.startswith(site[0])}
    own = {path for path in paths if path.startswith(("/decoder/", "/weights/"))}
    return {path: httpx.get(f"{site[0]}{path}").content for path in sorted(own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    path = parser.parse_args().picture
    weights = Path(tempfile.mkdtemp())
    write_weights(weights)
    picture = read_image(path.read_bytes(), max_pixels=10**8)
    with launched() as browser, package_site(weights) as site:
        site[1]["/cases/first.rkp"] = Maker().case("first", picture, 4).data
        site[1]["/first.html"] = FIRST_PAGE
        lines = [f"{path.stem}, {picture.width}x{picture.height}, Chromium {browser.version}"]
        for threads in (1, 2):
            ms = warm_ms(browser, site, threads)
            lines.append(f"{threads} workers: {ms:.0f} ms, median of {REPEATS}")
        firsts = [first_ms(browser, site) for _ in range(FIRST_LOADS)]
        lines.append(f"first load: {median(firsts):.0f} ms, median of {FIRST_LOADS}")
        total = zipped = 0
        for name, data in first_files(browser, site).items():
            small = len(gzip.compress(data, 6))
            total, zipped = total + len(data), zipped + small
            lines.append(f"  {name[:40]}: {len(data):,} bytes, {small:,} in gzip")
        lines.append(f"  in all: {total:,} bytes, {zipped:,} in gzip")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
