"""The package in web pages of others: plain ones, under a strict policy, and built by Vite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from make_golden import V1
from PIL import Image

from web.decoding import PACKAGE
from web.sites import static_site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the decoder was not built (npm run build in service/web)"
)

PHOTO = (V1 / "photo-r4.rkp").read_bytes()
VITE = Path(__file__).parent / "vite"
TOOLS = VITE / "node_modules"
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}

STRICT = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self'; connect-src 'self'"
}

PLAIN = """<!doctype html>
<html lang="en">
  <title>A photograph</title>
  <canvas></canvas>
  <script type="module" src="main.js"></script>
</html>"""

MAIN = """import {{ createDecoder }} from "{package}/rankpress-decoder.js";

const decoder = await createDecoder({{ weightsUrl: "{weights}/index.json" }});
const response = await fetch("photo.rkp");
const picture = await decoder.decode(await response.arrayBuffer());
const canvas = document.querySelector("canvas");
canvas.width = picture.width;
canvas.height = picture.height;
canvas.getContext("2d").putImageData(picture, 0, 0);
document.title = "done";
"""


def plain_page(package: str = "/decoder", weights: str = "/weights") -> dict[str, str | bytes]:
    """The files of a page with nothing but the package."""
    main = MAIN.format(package=package, weights=weights)
    return {"/": PLAIN, "/main.js": main, "/photo.rkp": PHOTO}


def check_photo(page: Page) -> None:
    """The page's canvas shows the photograph as Python decodes it."""
    page.wait_for_function("() => document.title === 'done'")
    shown = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return [canvas.height, canvas.width, Array.from(data)];
        }"""
    )
    height, width, samples = shown
    rgb = np.array(samples).reshape(height, width, 4)[..., :3]
    with Image.open(V1 / "photo-r4.png") as file:
        assert np.abs(rgb - np.asarray(file.convert("RGB")).astype(int)).max() <= 1


def test_a_plain_page_shows_a_stream(page: Page, weights: Path) -> None:
    with static_site({"decoder": PACKAGE, "weights": weights}, pages=plain_page()) as url:
        page.goto(url)
        check_photo(page)


def test_a_page_under_a_strict_policy_shows_a_stream(page: Page, weights: Path) -> None:
    """Lossless parts too, which other code decodes."""
    pages = plain_page()
    with static_site({"decoder": PACKAGE, "weights": weights}, STRICT, pages) as url:
        page.goto(url)
        check_photo(page)
        pages["/photo.rkp"] = (V1 / "graphics-lossless-alpha.rkp").read_bytes()
        page.reload()
        page.wait_for_function("() => document.title === 'done'")


def test_a_page_of_another_host_uses_the_package_of_a_service(page: Page, server: str) -> None:
    """Browsers start no worker of another origin, so the package has to import it."""
    with static_site({}, pages=plain_page(f"{server}/web/decoder", f"{server}/weights")) as url:
        page.goto(url)
        check_photo(page)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in vite/ with the package that npm would publish among its dependencies."""
    if not TOOLS.is_dir():
        pytest.skip("Vite is not installed (npm ci in tests/web/vite)")
    folder: Path = tmp_path_factory.mktemp("vite")
    for name in ("index.html", "main.js", "package.json"):
        shutil.copy(VITE / name, folder)
    modules = folder / "node_modules"
    modules.mkdir()
    for tool in TOOLS.iterdir():
        (modules / tool.name).symlink_to(tool)
    pack = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
    subprocess.run(pack, cwd=PACKAGE, check=True, capture_output=True, timeout=60)
    (archive,) = folder.glob("rankpress-decoder-*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (folder / "package").rename(modules / "rankpress-decoder")
    return folder


@pytest.fixture(scope="module")
def files(weights: Path) -> Iterator[str]:
    """The URL of a host with weights and streams, which pages of others may read."""
    streams = {"photo": "photo-r4", "drawing": "graphics-lossless-alpha"}
    pages = {
        f"/{name}.rkp": (V1 / f"{golden}.rkp").read_bytes() for name, golden in streams.items()
    }
    with static_site({"weights": weights}, ANY_ORIGIN, pages) as url:
        yield url


@contextmanager
def vite_server(folder: Path) -> Iterator[str]:
    """Vite's development server."""
    command = [str(TOOLS / ".bin" / "vite"), "--host", "127.0.0.1", "--port", "0"]
    plain = os.environ | {"NO_COLOR": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=plain, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            lines = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
            yield next(found[0] for found in lines if found)
        finally:
            server.terminate()


def test_vite_serves_the_package(page: Page, project: Path, files: str) -> None:
    with vite_server(project) as url:
        page.goto(f"{url}/?files={files}")
        check_photo(page)


def test_vite_builds_the_package(page: Page, project: Path, files: str) -> None:
    command = [str(TOOLS / ".bin" / "vite"), "build"]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=120)
    with static_site({"": project / "dist"}) as url:
        page.goto(f"{url}/index.html?files={files}")
        check_photo(page)
