"""Chromium, and servers for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from served import serving

from web.decoding import write_weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = (
    "--no-sandbox",  # containers often lack what the sandbox needs
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

LOCAL = {"127.0.0.1", "localhost"}


def find_chromium() -> str | None:
    """The program of Chromium or Chrome, None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium without windows, until the end of the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without windows. Playwright's event loop runs in this thread until its end, so it
    ends with the tests of this folder, before those of other folders that run loops of their own.
    """
    pytest.importorskip("playwright", reason="playwright is not installed")
    if find_chromium() is None:
        pytest.skip("neither Chromium nor Chrome is installed")
    with launched() as chromium:
        yield chromium


@pytest.fixture
def problems() -> list[str]:
    """What went wrong in `page`: errors on the console, errors that nothing caught, and requests to
    other hosts. A test that expects some clears the list."""
    return []


@pytest.fixture
def page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """An empty page of a fresh profile; the test fails if `problems` are left at its end."""
    with watched_page(browser, problems) as page:
        yield page
    assert problems == []


@contextmanager
def watched_page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """An empty page of a fresh profile, whose problems are added to a list."""

    def check_host(request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.hostname not in LOCAL:
            problems.append(f"request to another host: {request.url}")

    def check_level(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(message.text)

    context = browser.new_context()
    context.on("request", check_host)
    context.on("console", check_level)
    context.on("weberror", lambda event: problems.append(f"not caught: {event.error}"))
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the model that ships, without jobs."""
    with serving(
        tmp_path_factory.mktemp("server"), "--threads", "1", RANKPRESS_WARM="false"
    ) as url:
        yield url


@pytest.fixture(scope="session")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the model that ships and with jobs."""
    folder: Path = tmp_path_factory.mktemp("job-server")
    variables = {"RANKPRESS_WARM": "false", "RANKPRESS_JOBS": "true"}
    variables["RANKPRESS_STATE"] = str(folder / "state")
    with serving(folder, "--threads", "1", **variables) as url:
        yield url


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that a decoder needs of the shipped model, and their index."""
    folder: Path = tmp_path_factory.mktemp("weights")
    write_weights(folder)
    return folder
