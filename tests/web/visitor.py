"""What a visitor of the page does and sees, in a page of Chromium."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from PIL import Image

from service.picture import U8
from service.web.pages import BUILT

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page

PHOTOGRAPH = BUILT / "examples" / "photograph.jpg"

AXE = Path(__file__).parents[2] / "service" / "web" / "node_modules" / "axe-core" / "axe.min.js"

DROP = """([name, base64, event]) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  const given = event === "drop" ? { dataTransfer: transfer } : { clipboardData: transfer };
  const kind = event === "drop" ? DragEvent : ClipboardEvent;
  document.body.dispatchEvent(new kind(event, { bubbles: true, cancelable: true, ...given }));
}"""


def photograph(height: int = 192, width: int = 256) -> bytes:
    """A part of the example photograph as PNG, large enough for MS-SSIM."""
    out = io.BytesIO()
    Image.open(PHOTOGRAPH).crop((160, 20, 160 + width, 20 + height)).save(out, "PNG")
    return out.getvalue()


def pixels(file: bytes | Path) -> U8:
    """Samples of an image file, [height, width, 3]."""
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    return np.asarray(Image.open(source).convert("RGB"))


def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now; skips the test where axe is missing."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm ci in service/web)")
    page.evaluate(AXE.read_text())
    results: dict[str, Any] = page.evaluate("axe.run()")
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]


@dataclass(frozen=True)
class Row:
    """A row of the table of formats: bytes, bits per pixel, PSNR in dB and MS-SSIM (or NaN)."""

    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float


class Visitor:
    """A visitor of the page at a URL."""

    def __init__(self, page: Page, url: str) -> None:
        page.set_default_timeout(20_000)
        self.page = page
        self.url = url

    def skip_others(self) -> None:
        """Answer requests for other formats at once, with the picture itself."""
        self.page.route(
            "**/compare?*", lambda route: route.fulfill(body=route.request.post_data_buffer or b"")
        )

    def shrink_example(self, data: bytes) -> None:
        """Have another, smaller picture in place of the example photograph."""
        self.page.route("**/examples/photograph.jpg", lambda route: route.fulfill(body=data))

    def open(self, fragment: str = "") -> None:
        """Load the page."""
        self.page.goto(f"{self.url}/#{fragment}")

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Choose files, each a name and its bytes, in the dialogue of the browser."""
        payloads: Sequence[FilePayload] = [
            {"name": name, "mimeType": "", "buffer": data} for name, data in files
        ]
        self.page.set_input_files("#files", payloads)

    def drop(self, name: str, data: bytes, event: str = "drop") -> None:
        """Drop a file on the page, or paste it."""
        self.page.evaluate(DROP, [name, base64.b64encode(data).decode(), event])

    def wait(self, text: str = "Compressed to") -> None:
        """Wait until the status begins with a text and everything is measured."""
        self.page.wait_for_selector(f'#status:text-matches("^{text}")')
        self.page.wait_for_selector('#rows:not(:has-text("…"))', state="attached")

    def row(self, side: str) -> Row:
        """The numbers of a format."""
        cells = self.page.locator(f"#rows tr.{side} td.n").all_inner_texts()
        size, bpp, psnr, ms_ssim = (c.replace(",", "").strip("—") or "nan" for c in cells)
        return Row(int(size), float(bpp), float(psnr), float(ms_ssim))

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).inner_text()

    def state(self) -> dict[str, str]:
        """What the URL says of the setting and the view."""
        return dict(parse_qsl(urlsplit(self.page.url).fragment))

    def wait_state(self, **values: str) -> None:
        """Wait until the URL says this of the setting and the view, among others."""

        def says(url: str) -> bool:
            return values.items() <= dict(parse_qsl(urlsplit(url).fragment)).items()

        self.page.wait_for_url(says)

    def save(self, button: str) -> bytes:
        """The file that a button downloads."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def stream(self) -> bytes:
        """The stream that is shown."""
        return self.save("#save-stream")

    def picture(self) -> U8:
        """The decoded picture that is shown, [height, width, 3]."""
        return pixels(self.save("#save-picture"))

    @contextmanager
    def counting(self, path: str) -> Iterator[list[str]]:
        """The URLs of the requests for a path that are sent meanwhile."""
        urls: list[str] = []

        def count(request: object) -> None:
            url: str = getattr(request, "url", "")
            if urlsplit(url).path == path:
                urls.append(url)

        self.page.on("request", count)
        yield urls
        self.page.remove_listener("request", count)
