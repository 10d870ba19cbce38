"""A server in a process of its own, started by the command line as its users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
RANKPRESS = (sys.executable, "-m", "service")


@contextmanager
def serving(
    folder: Path, *options: str, command: Sequence[str] = RANKPRESS, **variables: str
) -> Iterator[str]:
    """Run `rankpress serve` on a free port until the end of the block; yields its URL once ready.

    Args:
        folder: for the log.
        options: of `rankpress serve`.
        command: what runs `rankpress`.
        variables: of the environment, besides those of this process.
    """
    words = [*command, "serve", "--port", "0", *options]
    log = folder / "log"
    environment = os.environ | {"RANKPRESS_JOBS": "false"} | variables
    with (
        log.open("wb") as file,
        subprocess.Popen(words, stderr=file, env=environment, cwd=ROOT) as server,
    ):
        try:
            url = _url_of(log, server)
            _until_ready(url)
            yield url
        finally:
            server.terminate()
        assert server.wait(30) == 0


def _url_of(log: Path, server: subprocess.Popen[bytes]) -> str:
    for _ in range(300):
        line = re.search(r"running on (http://[0-9.:]+)", log.read_text())
        if line:
            return line[1]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _until_ready(url: str) -> None:
    for _ in range(300):
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")
