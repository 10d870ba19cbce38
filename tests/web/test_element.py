"""<rankpress-img> in Chromium behaves as <img> does."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from make_golden import V1

from web.decoding import PACKAGE
from web.sites import static_site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the decoder was not built (npm run build in service/web)"
)

WIDTH, HEIGHT = 106, 75

DOCUMENT = """<!doctype html>
<html lang="en">
  <title>Element</title>
  <style>body {{ margin: 0; }}</style>
  <script type="module">
    globalThis.events = [];
    for (const kind of ["load", "error", "resize"]) {{
      document.addEventListener(kind, ({{ target, error }}) => {{
        if (target.localName === "rankpress-img") events.push([kind, error?.name ?? null]);
      }}, true);
    }}
    await import("/decoder/element.js");
  </script>
  <body>{body}</body>
</html>"""

PHOTO = """<rankpress-img src="photo.rkp" weights="/weights/index.json" alt="A photo"{more}>
</rankpress-img>"""

Site = tuple[str, MutableMapping[str, str | bytes]]


@pytest.fixture
def site(weights: Path) -> Iterator[Site]:
    """A site with the package, weights and a photograph of 106x75 pixels."""
    pages: dict[str, str | bytes] = {}
    for name in ("photo-r4", "grey-r4", "segments-r2"):
        pages[f"/{name.split('-')[0]}.rkp"] = (V1 / f"{name}.rkp").read_bytes()
    with static_site({"decoder": PACKAGE, "weights": weights}, pages=pages) as url:
        yield url, pages


def show(page: Page, site: Site, body: str) -> None:
    """Go to a page with this body."""
    url, pages = site
    pages["/"] = DOCUMENT.format(body=body)
    page.goto(url)


def events(page: Page, count: int) -> list[list[str | None]]:
    """The kinds of the first events of elements, with the names of errors."""
    page.wait_for_function("count => globalThis.events?.length >= count", arg=count)
    found: list[list[str | None]] = page.evaluate("events")
    return found


def canvas(page: Page, number: int = 0) -> dict[str, Any]:
    """Size of an element, and of the picture in it."""
    shown: dict[str, Any] = page.evaluate(
        """number => {
          const element = document.querySelectorAll("rankpress-img")[number];
          const canvas = element.shadowRoot.querySelector("canvas");
          const { width, height } = element.getBoundingClientRect();
          return { shown: [width, height], decoded: [canvas.width, canvas.height] };
        }""",
        number,
    )
    return shown


def test_it_shows_a_stream_in_its_own_size(page: Page, site: Site) -> None:
    show(page, site, PHOTO.format(more=""))
    assert events(page, 1) == [["load", None]]
    assert canvas(page) == {"shown": [WIDTH, HEIGHT], "decoded": [WIDTH, HEIGHT]}
    natural = 'document.querySelector("rankpress-img").natural'
    assert page.evaluate(f"[{natural}Width, {natural}Height]") == [WIDTH, HEIGHT]


def test_attributes_take_its_place_before_the_stream_is_there(
    page: Page, site: Site, problems: list[str]
) -> None:
    """A page does not move when a picture arrives."""
    show(page, site, PHOTO.format(more=' width="53" height="38"').replace("photo.rkp", "none"))
    assert events(page, 1) == [["error", "RankpressError"]]
    assert canvas(page)["shown"] == [53, 38]
    problems.clear()  # browsers log what is not found


def test_it_is_decoded_at_the_size_at_which_it_is_displayed(page: Page, site: Site) -> None:
    """Larger later: it is decoded again; smaller: not."""
    show(page, site, PHOTO.format(more=' style="width: 50px"'))
    events(page, 1)
    assert canvas(page)["decoded"] == [50, 35]
    page.evaluate('document.querySelector("rankpress-img").style.width = "30px"')
    page.evaluate('document.querySelector("rankpress-img").style.width = "90px"')
    assert events(page, 2) == [["load", None], ["resize", None]]
    assert canvas(page)["decoded"] == [90, 64]
    page.evaluate('document.querySelector("rankpress-img").style.width = "500px"')
    assert events(page, 3)[2] == ["resize", None]
    assert canvas(page)["decoded"] == [WIDTH, HEIGHT], "it is never enlarged"


@pytest.mark.parametrize(
    ("alt", "role", "label"),
    [(' alt="A lake"', "img", "A lake"), ("", "img", None), (' alt=""', "presentation", None)],
)
def test_screen_readers_are_told_what_it_shows(
    page: Page, site: Site, alt: str, role: str, label: str | None
) -> None:
    show(page, site, PHOTO.format(more="").replace(' alt="A photo"', alt))
    events(page, 1)
    canvas = page.locator("rankpress-img canvas")
    assert canvas.get_attribute("role") == role and canvas.get_attribute("aria-label") == label


def test_a_lazy_one_waits_until_it_is_near(page: Page, site: Site) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    far = '<div style="height: 5000px"></div>'
    near = PHOTO.format(more="").replace("photo.rkp", "grey.rkp")
    show(page, site, near + far + PHOTO.format(more=' loading="lazy"'))
    events(page, 1)
    assert any(url.endswith("grey.rkp") for url in urls)
    assert not any(url.endswith("photo.rkp") for url in urls)
    page.evaluate("scrollTo(0, 5000)")
    assert events(page, 2) == [["load", None]] * 2


@pytest.mark.parametrize(
    ("element", "error"),
    [
        ('<rankpress-img src="none.rkp" weights="/weights/index.json">', "RankpressError"),
        ('<rankpress-img src="main.js" weights="/weights/index.json">', "BadStream"),
        ('<rankpress-img src="photo.rkp" weights="/none.json">', "StoreError"),
        ('<rankpress-img src="photo.rkp">', "BadParameter"),
    ],
)
def test_what_cannot_be_shown_is_an_error_event(
    page: Page, site: Site, problems: list[str], element: str, error: str
) -> None:
    site[1]["/main.js"] = "no stream"
    show(page, site, element)
    assert events(page, 1) == [["error", error]]
    problems.clear()  # browsers log what is not found


def test_a_new_address_takes_the_place_of_the_one_before(page: Page, site: Site) -> None:
    """Also while that is still decoded; no event of it comes then."""
    show(page, site, PHOTO.format(more="").replace("photo.rkp", "segments.rkp"))
    page.wait_for_function('() => document.querySelector("rankpress-img").naturalWidth > 0')
    page.evaluate('document.querySelector("rankpress-img").src = "photo.rkp"')
    assert events(page, 1) == [["load", None]]
    assert canvas(page)["decoded"] == [WIDTH, HEIGHT]
    page.evaluate('document.querySelector("rankpress-img").src = "grey.rkp"')
    assert events(page, 2) == [["load", None]] * 2
    assert canvas(page)["decoded"] == [80, 64]


def test_one_that_is_taken_away_and_put_back_shows_its_picture(page: Page, site: Site) -> None:
    show(page, site, PHOTO.format(more=""))
    page.evaluate(
        """() => {
          const element = document.querySelector("rankpress-img");
          element.remove();
          document.body.append(element);
        }"""
    )
    assert events(page, 1) == [["load", None]]


def test_many_share_one_decoder(page: Page, site: Site) -> None:
    weights: list[str] = []
    page.on(
        "request",
        lambda request: weights.append(request.url) if "/weights/" in request.url else None,
    )
    show(page, site, PHOTO.format(more="") * 5)
    assert events(page, 5) == [["load", None]] * 5
    assert len(weights) == 2, "the index and the model's file"
    assert len(page.workers) <= 4
