"""The page at /: one picture, from the drop to the comparison."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image

from service.ms_ssim import ms_ssim
from service.web.pages import BUILT
from web.visitor import Visitor, photograph, pixels

if TYPE_CHECKING:
    from playwright.sync_api import Page

OTHERS = ("jpeg", "webp", "avif")
RUN = """
import json, os, shlex, sys
commands = json.loads(sys.argv[1])
from service.cli.main import app
app(shlex.split(commands["Command line"])[1:], standalone_mode=False)
stream = shlex.split(commands["Command line"])[3]
os.rename(stream, "first.rkp")
exec(commands["Python"])
"""
"""Runs a command line, whose stream it renames, and then the statements of Python."""

MAX_BYTES = 150_000
"""Limit of the page's own files, without the decoder, weights and examples."""


@pytest.fixture
def visitor(page: Page, server: str) -> Visitor:
    """A visitor of a server without jobs, who does not look at other formats."""
    visitor = Visitor(page, server)
    visitor.skip_others()
    return visitor


def psnr(a: bytes | Path, b: bytes) -> float:
    """PSNR of two image files in dB."""
    error = (pixels(a).astype(float) - pixels(b)) ** 2
    return float(10 * np.log10(255**2 / error.mean()))


def test_the_page_is_small() -> None:
    files = [BUILT / name for name in ("index.html", "page.js", "page.css", "measure.js")]
    assert sum(file.stat().st_size for file in files) < MAX_BYTES


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_compressed_and_compared_as_python_measures_it(
    page: Page, server: str, event: str
) -> None:
    visitor, file = Visitor(page, server), photograph()
    visitor.open("rate=3.5")
    visitor.drop("cup.png", file, event)
    visitor.wait()
    stream = httpx.post(f"{server}/compress?rate=3.5", content=file).content
    decoded = httpx.post(f"{server}/decompress?format=png", content=stream).content
    ours = visitor.row("rankpress")
    assert ours.bytes == len(stream)
    assert ours.bpp == pytest.approx(8 * len(stream) / (192 * 256), abs=6e-4)
    assert ours.psnr == pytest.approx(psnr(file, decoded), abs=6e-3)
    assert ours.ms_ssim == pytest.approx(ms_ssim(pixels(file), pixels(decoded)), abs=1e-3)
    assert all(0.5 * len(stream) < visitor.row(side).bytes <= len(stream) for side in OTHERS)
    assert "PSNR at the same bytes: JPEG" in visitor.text("#summary")
    assert "Decoded by the service in" in visitor.text("#times")


def test_other_formats_can_have_the_same_psnr(page: Page, server: str) -> None:
    visitor = Visitor(page, server)
    visitor.open("rate=3&match=psnr")
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    ours = visitor.row("rankpress")
    for side in OTHERS:
        assert ours.psnr - 0.02 <= visitor.row(side).psnr < ours.psnr + 1.5
    assert "Bytes at the same PSNR: JPEG +" in visitor.text("#summary")


def test_letting_the_slider_go_compresses_again(visitor: Visitor) -> None:
    visitor.open()
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    before = visitor.row("rankpress")
    box = visitor.page.locator("#rate").bounding_box()
    assert box is not None
    with visitor.counting("/compress") as urls:
        visitor.page.mouse.move(box["x"] + box["width"] * 3 / 7, box["y"] + box["height"] / 2)
        visitor.page.mouse.down()
        visitor.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 5, steps=9)
        assert float(visitor.page.input_value("#rate-number")) > 7
        assert urls == []
        visitor.page.mouse.up()
        visitor.wait("(Working|Compressing)")
        visitor.wait()
    assert len(urls) == 1
    assert visitor.row("rankpress").psnr > before.psnr + 3
    visitor.wait_state(rate=urls[0].partition("rate=")[2])


def test_an_earlier_request_is_given_up(visitor: Visitor) -> None:
    visitor.open()
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    with visitor.page.expect_event("requestfailed") as failed:
        visitor.page.fill("#rate-number", "6")
        visitor.page.keyboard.press("Enter")
        visitor.page.fill("#rate-number", "2.0625")
        visitor.page.keyboard.press("Enter")
    assert "rate=6" in failed.value.url
    visitor.wait()
    assert "Rate 2.0625" in visitor.text("#notes")


def test_targets_are_asked_of_the_service(visitor: Visitor) -> None:
    visitor.open("aim=lossless&target_bpp=1.5")
    page = visitor.page
    with visitor.counting("/compress") as urls:
        visitor.choose(("cup.png", photograph(64, 64)))
        visitor.wait()
        page.select_option("#aim", "target_bpp")
        visitor.wait()
        page.select_option("#aim", "max_bytes")
        page.fill("#target", "600")
        page.check('input[name="tune"][value="ms-ssim"]')
        visitor.wait()
    queries = [url.partition("?")[2] for url in urls]
    assert queries[:2] == ["rate=lossless", "target_bpp=1.5"]
    assert queries[-1] == "max_bytes=600&tune=ms-ssim"
    assert visitor.row("rankpress").bytes <= 600
    visitor.wait_state(aim="max_bytes", max_bytes="600", tune="ms-ssim")


def test_tunes_that_only_another_model_has_are_not_offered(visitor: Visitor) -> None:
    """The page names no model, so the first one compresses."""
    models = [{"rates": [{"tune": "psnr"}]}, {"rates": [{"tune": "psnr"}, {"tune": "ms-ssim"}]}]
    page = visitor.page
    page.route("**/models", lambda route: route.fulfill(json={"models": models}))
    visitor.open()
    page.wait_for_selector('input[name="tune"][value="ms-ssim"]:disabled')
    assert page.is_enabled('input[name="tune"][value="psnr"]')
    visitor.choose(("cup.png", photograph(64, 64)))
    visitor.wait()


def test_a_link_shows_the_same_view(visitor: Visitor) -> None:
    visitor.shrink_example(photograph())
    visitor.open("example=photograph&rate=2")
    visitor.wait()
    page = visitor.page
    page.check("#a-rankpress")
    page.check("#b-original")
    page.locator("#stage").focus()
    for key in ("4", "ArrowRight", "ArrowDown", "d"):
        page.keyboard.press(key)
    page.select_option("#gain", "16")
    visitor.wait_state(a="rankpress", b="original", mode="difference", gain="16")
    visitor.wait_state(example="photograph", rate="2", zoom="4")
    state = visitor.state()
    seen = page.locator("#canvas").screenshot()
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    visitor.wait()
    assert visitor.state() == state
    assert page.locator("#canvas").screenshot() == seen


def test_keys_choose_what_is_seen(visitor: Visitor) -> None:
    visitor.open()
    visitor.choose(("cup.png", photograph(64, 64)))
    visitor.wait()
    modes = []
    for key in "abxxds":
        visitor.page.keyboard.press(key)
        modes.append(visitor.page.locator('input[name="mode"]:checked').get_attribute("value"))
    assert modes == ["a", "b", "a", "b", "difference", "slider"]
    visitor.page.focus("#split")
    visitor.page.keyboard.press("Home")
    visitor.wait_state(split="0")


def test_zoomed_pixels_are_squares_of_one_colour(visitor: Visitor) -> None:
    visitor.open("mode=a&zoom=8")
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    shot = pixels(visitor.page.locator("#canvas").screenshot())[100:300, 200:400]
    columns = np.flatnonzero((shot[:, 1:] != shot[:, :-1]).any(axis=(0, 2)))
    assert len(columns) > 10
    assert set(np.diff(columns)) <= {8, 16, 24}


def test_a_dragged_picture_moves(visitor: Visitor) -> None:
    visitor.open("zoom=8")
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    mouse = visitor.page.mouse
    mouse.move(200, 300)
    mouse.down()
    mouse.move(280, 340)
    mouse.up()
    visitor.wait_state(x=str(256 // 2 - 80 // 8), y=str(192 // 2 - 40 // 8))


def test_copied_commands_give_the_same_stream(visitor: Visitor, tmp_path: Path) -> None:
    name, stream = "a cup's.png", tmp_path / "a cup's.rkp"
    (tmp_path / name).write_bytes(photograph())
    visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.open("rate=2.25&tune=ms-ssim")
    visitor.choose((name, photograph()))
    visitor.wait()
    expected = visitor.stream()
    commands = {}
    for title in ("curl", "Command line", "Python"):
        visitor.page.get_by_role("button", name=f"Copy: {title}").click()
        commands[title] = visitor.page.evaluate("navigator.clipboard.readText()")
    subprocess.run(["sh", "-ec", commands["curl"]], cwd=tmp_path, check=True)
    assert stream.read_bytes() == expected
    stream.unlink()
    subprocess.run([sys.executable, "-c", RUN, json.dumps(commands)], cwd=tmp_path, check=True)
    assert stream.read_bytes() == (tmp_path / "first.rkp").read_bytes() == expected


def test_the_curl_line_of_an_example_fetches_it(visitor: Visitor, tmp_path: Path) -> None:
    visitor.open("example=photograph")
    visitor.wait()
    line = visitor.text('pre[aria-label="curl"]')
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True)
    assert (tmp_path / "photograph.rkp").read_bytes() == visitor.stream()


def test_this_browser_decodes_what_the_service_decodes(visitor: Visitor) -> None:
    visitor.open()
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    by_service = visitor.picture()
    visitor.page.check("#local")
    visitor.page.wait_for_selector('#times:has-text("Decoded in this browser in")')
    by_browser = visitor.picture()
    assert np.abs(by_browser.astype(int) - by_service).max() <= 1


def test_the_heat_map_shows_where_the_bits_go(visitor: Visitor) -> None:
    visitor.open("mode=a")
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    before = pixels(visitor.page.locator("#canvas").screenshot())
    visitor.page.check("#heat")
    visitor.page.wait_for_selector("#legend:visible")
    assert "bits per block" in visitor.text("#legend")
    after = pixels(visitor.page.locator("#canvas").screenshot())
    assert (after != before).any(axis=2).mean() > 0.05
    visitor.wait_state(heat="true")


def test_a_stream_is_decoded(visitor: Visitor, server: str) -> None:
    file = photograph()
    stream = httpx.post(f"{server}/compress", content=file).content
    visitor.open()
    visitor.choose(("cup.rkp", stream))
    visitor.wait("Decoded")
    decoded = httpx.post(f"{server}/decompress?format=png", content=stream).content
    assert np.array_equal(visitor.picture(), pixels(decoded))
    assert not visitor.page.is_visible("#settings")


def test_a_picture_that_the_browser_cannot_show_is_compressed(visitor: Visitor) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(photograph())).save(out, "TIFF")
    visitor.open()
    visitor.choose(("cup.tiff", out.getvalue()))
    visitor.wait()
    assert "this browser cannot show the original" in visitor.text("#notes")
    assert visitor.page.locator("#rows tr.rankpress td.n").nth(2).inner_text() != "—"
