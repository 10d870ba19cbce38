"""Commands whose standard streams are closed, or are no longer read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import file_of
from PIL import Image

from service.cli import main
from service.codec.container import Flags, Header, Stream, write_stream

RKP = write_stream(Stream(Header(b"\1\2\3\4", 64, Flags.GREY, 37, 24), ((b"latents",),)))
QUICK = """
import sys
sys.argv[0] = "rankpress"
import service.engine.opening
from service.cli.main import main
from service.engine.types import Compressed, Timings
class Quick:
    def compress(self, picture, rate, tune):
        return Compressed(b"made", picture.width, picture.height, rate, 1.0, None, Timings())
service.engine.opening.open_engine = lambda *_, **__: Quick()
main()
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(main.__file__).parents[2])}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)
CLOSED = "standard output: Bad file descriptor"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a.png and a.rkp."""
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(file_of(Image.fromarray(np.zeros((24, 37, 3), np.uint8)), "PNG"))
    Path("a.rkp").write_bytes(RKP)
    return tmp_path


def rankpress(
    arguments: str, redirected: str, input: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell that redirects its streams."""
    command = f'exec "$0" -c "$1" {arguments} {redirected}'
    shell = ["sh", "-c", command, sys.executable, QUICK]
    return subprocess.run(shell, input=input, capture_output=True, timeout=60, env=ENVIRONMENT)


@pytest.mark.parametrize(
    ("arguments", "redirected", "code", "message"),
    [
        ("compress - b.rkp", "<&-", 1, "error: standard input: Bad file descriptor"),
        ("compress - b.rkp", "<&- >&-", 1, "error: standard input: Bad file descriptor"),
        ("info -", "<&-", 1, "error: -: Bad file descriptor"),
        ("compress a.png -", ">&-", 1, f"error: cannot write {CLOSED}"),
        ("compress a.png /dev/stdout", "<&- >&-", 1, f"error: cannot write {CLOSED}"),
        ("compress a.png b.rkp --json", ">&-", 1, f"error: cannot write {CLOSED}"),
        ("info a.rkp", ">&-", 1, f"error: {CLOSED}"),
        ("info a.rkp --json", ">&-", 1, f"error: {CLOSED}"),
        ("--help", ">&-", 1, f"error: {CLOSED}"),
        ("--version", ">&-", 1, f"error: {CLOSED}"),
    ],
)
def test_a_stream_that_is_needed_and_closed_is_named(
    here: Path, arguments: str, redirected: str, code: int, message: str
) -> None:
    done = rankpress(arguments, redirected, input=RKP)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.decode().splitlines()[0] == message
    assert sorted(os.listdir(here)) == ["a.png", "a.rkp"], "known before the work"
    assert rankpress(arguments, f"{redirected} 2>&-", input=RKP).returncode == code


@pytest.mark.parametrize("redirected", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_not_needed_may_be_closed(here: Path, redirected: str) -> None:
    done = rankpress("compress a.png b.rkp", redirected)
    assert (done.returncode, done.stdout) == (0, b"")
    assert (here / "b.rkp").read_bytes() == b"made"
    again = rankpress("compress a.png b.rkp", redirected)
    assert again.returncode == 1 and (b"it exists" in again.stderr) == ("2>" not in redirected)
    assert rankpress("compress a.png", redirected).returncode == 2, "wrong usage"


@pytest.mark.parametrize("redirected", ["<&-", "2>&-", "<&- 2>&-"])
def test_pipes_carry_data_with_other_streams_closed(redirected: str) -> None:
    done = rankpress("compress a.png -", redirected)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"made", b"")


@pytest.mark.parametrize("arguments", ["info" + " a.rkp" * 99, "info --json" + " a.rkp" * 99,
                                       "--help", "compress a.png -"])  # fmt: skip
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *arguments.split()],
        stdout=writing, stderr=subprocess.PIPE, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.platform
def test_a_full_disk_behind_standard_output_is_an_error_and_not_a_bug() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    for arguments, message in (
        ("compress a.png -", b"error: cannot write standard output: No space left"),
        ("info a.rkp --json", b"error: No space left"),
    ):
        done = rankpress(arguments, "> /dev/full")
        assert done.returncode == 1 and done.stderr.startswith(message)
        assert len(done.stderr.splitlines()) == 1
