"""The decoder in Chromium: the latents are Python's, and pixels are within 1 of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from image_files import profile
from make_golden import V1
from PIL import Image, ImageCms
from small_model import photo_like

from service.codec.container import LOSSLESS
from service.images.colour import Mode, to_srgb
from service.picture import Picture, Region, View
from web.cases import Case, Maker, Reference, few_cases
from web.conftest import watched_page
from web.decoding import PACKAGE, BrowserDecoder, package_site
from web.sites import ISOLATED

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the decoder was not built (npm run build in service/web)"
)

GOLDEN = sorted(path.stem for path in V1.glob("*.rkp"))


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="module")
def cases(maker: Maker) -> dict[str, tuple[Case, Reference]]:
    """Streams of every kind by name, and what Python decodes them to."""
    return {case.name: (case, maker.reference(case.data)) for case in few_cases(maker)}


@pytest.fixture(scope="module", params=[None, ISOLATED], ids=["plain", "isolated"])
def decoder(
    browser: Browser, weights: Path, request: pytest.FixtureRequest
) -> Iterator[BrowserDecoder]:
    """A decoder with two workers, in a page with and without cross-origin isolation."""
    problems: list[str] = []
    with (
        package_site(weights, request.param) as site,
        watched_page(browser, problems) as page,
    ):
        opened = BrowserDecoder(page, *site)
        assert page.evaluate("crossOriginIsolated") == (request.param is not None)
        opened.open(threads=2)
        yield opened
    assert problems == []


def golden(maker: Maker, name: str) -> tuple[Case, Reference]:
    """A golden stream with the pixels and the latents of its release."""
    case = Case(name, (V1 / f"{name}.rkp").read_bytes())
    rgba = maker.reference(case.data).rgba
    with Image.open(V1 / f"{name}.png") as file:
        rgba[..., :3] = np.asarray(file.convert("RGB"))
    return case, Reference(rgba, json.loads((V1 / f"{name}.json").read_text())["y_hat"])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_streams_decode_as_everywhere(
    decoder: BrowserDecoder, maker: Maker, name: str
) -> None:
    case, reference = golden(maker, name)
    assert decoder.compare(case, reference).follows(reference)


def test_streams_of_every_kind_decode_as_in_python(
    decoder: BrowserDecoder, cases: dict[str, tuple[Case, Reference]]
) -> None:
    found = {name: decoder.compare(*both) for name, both in cases.items()}
    wrong = {n: found[n] for n, (_, reference) in cases.items() if not found[n].follows(reference)}
    assert wrong == {}


VIEWS = {
    "a region": {"region": {"x": 5, "y": 3, "width": 20, "height": 16}},
    "one pixel": {"region": {"x": 30, "y": 19, "width": 1, "height": 1}},
    "half": {"maxSize": 16},
    "an eighth": {"maxSize": 5},
    "a small region": {"region": {"x": 1, "y": 2, "width": 22, "height": 17}, "maxSize": 9},
}


@pytest.mark.parametrize("options", VIEWS.values(), ids=VIEWS)
def test_views_decode_as_in_python(
    decoder: BrowserDecoder,
    maker: Maker,
    cases: dict[str, tuple[Case, Reference]],
    options: dict[str, Any],
) -> None:
    """Parts and small sizes of pictures of every kind that are large enough. Where alpha is low,
    resampling magnifies what colours differ by."""
    most = 2 if "maxSize" in options else 1
    region = Region(**options["region"]) if "region" in options else None
    view = View(region, options.get("maxSize"))
    wrong = {}
    for name, (case, whole) in cases.items():
        if whole.rgba.shape[0] >= 20 and whole.rgba.shape[1] >= 31:
            found = decoder.compare(case, maker.reference(case.data, view), **options)
            if found.worst is None or found.worst > most or found.alpha_off:
                wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_prefixes_decode_as_in_python(decoder: BrowserDecoder, maker: Maker, share: float) -> None:
    data = (V1 / "segments-r2.rkp").read_bytes()
    case = Case("prefix", data[: round(share * len(data))])
    reference = maker.reference(case.data, View(partial=True))
    assert decoder.compare(case, reference, partial=True).is_close


@pytest.mark.parametrize("space", [b"RGB ", b"GRAY"])
def test_colours_of_a_profile_are_shown_in_srgb(
    decoder: BrowserDecoder, maker: Maker, space: bytes
) -> None:
    """Converted by the browser; Pillow's conversion of the same samples is the witness."""
    rgb = photo_like(64, 80, 9)
    rgb[:] = rgb[..., :1] if space == b"GRAY" else rgb
    icc = profile(space)
    case = maker.case(f"profile-{space[0]}", Picture(rgb, grey=space == b"GRAY", icc=icc), LOSSLESS)
    stored = maker.reference(case.data).rgba
    mode: Mode = "L" if space == b"GRAY" else "RGB"
    transform = to_srgb(icc, mode)
    assert transform is not None
    samples = np.ascontiguousarray(stored[..., 0] if mode == "L" else stored[..., :3])
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(samples), transform))
    expected = stored.copy()
    expected[..., :3] = converted.reshape(*stored.shape[:2], -1)
    assert np.abs(expected.astype(int) - stored).max() > 8, "the profile matters"
    found = decoder.compare(case, Reference(expected, None), raw=False)
    assert found.worst is not None and found.worst <= 2
