"""`compress` and `adapt` with --server: the work of a server, reported as that of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client.faulty_server import faulty_server, job_document
from conftest import Small
from jobs.machines import until
from PIL import Image
from small_model import photo_like, small_stored_model
from test_architecture import WITHOUT
from typer.testing import CliRunner, Result

from service.cli import main
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.server.run import Server
from service.settings import Settings
from service.store.write import set_default, write_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def store(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the small model, and of another one."""
    root = tmp_path_factory.mktemp("root") / "store"
    write_model(root / "small", small.stored, small.base)
    other, base, _ = small_stored_model(seed=1)
    write_model(root / "other", other, base)
    set_default(root / "small")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with pictures in `in/`; settings come from the tests alone."""
    for name in [name for name in os.environ if name.startswith("RANKPRESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "false")
    (tmp_path / "in").mkdir()
    for name, seed in (("a.png", 1), ("b.png", 2)):
        Image.fromarray(photo_like(40, 48, seed)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """A server in a thread, and its URL."""
    server = Server(engine, Settings(jobs=False, port=0, page=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    with serving(open_engine(Settings(store=store, graphics=False))) as url:
        yield url


def rankpress(*arguments: str) -> Result:
    return CliRunner().invoke(main.app, list(arguments))


def reports(result: Result) -> list[dict[str, Any]]:
    """The reports of a command, apart from times, names of targets and the server's log."""
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return [{k: v for k, v in line.items() if k not in ("seconds", "target")} for line in lines]


def test_a_server_gives_the_same_streams_and_reports(store: Path, url: str) -> None:
    Path("in", "c.png").write_bytes(b"no picture")
    here = rankpress("compress", "in", "here", "--rate", "4", "--store", str(store), "--json")
    there = rankpress("compress", "in", "there", "--rate", "4", "--server", url, "--json")
    assert (here.exit_code, there.exit_code) == (1, 1), there.stderr
    for name in ("a.rkp", "b.rkp"):
        assert Path("here", name).read_bytes() == Path("there", name).read_bytes()
    ours, theirs = reports(here), reports(there)
    for report in (*ours[:2], *theirs[:2]):
        report["psnr_db"] = round(report["psnr_db"], 3)  # as precise as the header
    assert ours[:2] == theirs[:2]
    assert ours[2]["error"] in theirs[2]["error"]


def test_a_model_is_named_to_a_server_as_to_this_machine(store: Path, url: str) -> None:
    words = ("compress", "in/a.png")
    here = rankpress(*words, "here.rkp", "--model", "other", "--store", str(store))
    there = rankpress(*words, "there.rkp", "--model", "other", "--server", url)
    plain = rankpress(*words, "plain.rkp", "--server", url)
    assert (here.exit_code, there.exit_code, plain.exit_code) == (0, 0, 0), there.stderr
    made = [Path(f"{name}.rkp").read_bytes() for name in ("here", "there", "plain")]
    assert made[0] == made[1] != made[2]
    for where in (("--store", str(store)), ("--server", url)):
        wrong = rankpress(*words, "none.rkp", "--model", "third", *where)
        assert wrong.exit_code != 0 and not Path("none.rkp").exists()
        assert all(name in wrong.stderr for name in ("'third'", "small", "other"))


def test_lossless_and_targets_are_asked_for_by_the_same_options(url: str) -> None:
    exact = rankpress(
        "compress", "in/a.png", "a.rkp", "--rate", "lossless", "--server", url, "--json"
    )
    assert exact.exit_code == 0, exact.stderr
    assert (reports(exact)[0]["rate"], reports(exact)[0]["psnr_db"]) == (None, None)
    small = rankpress("compress", "in/a.png", "b.rkp", "--max-bytes", "3", "--server", url)
    assert small.exit_code == 1 and "No rate or quality meets the target" in small.stderr
    none = rankpress("compress", "in", "out", "--rate", "7.5", "--server", url)
    assert none.exit_code == 2 and none.stderr.count("rate 7.5") == 1  # ends with the first


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "--store", "store"),
        ("compress", "--device", "cpu"),
        ("compress", "--check"),
        ("adapt", "--seed", "3"),
        ("adapt", "--max-seconds", "9"),
        ("adapt", "--metadata", "all"),
        ("adapt", "--store", "store"),
    ],
)
def test_options_of_work_on_this_machine_are_refused(arguments: tuple[str, ...]) -> None:
    command, *options = arguments
    wrong = rankpress(command, "in/a.png", "a.rkp", *options, "--server", "http://127.0.0.1:9")
    assert wrong.exit_code == 2 and all(o in wrong.stderr for o in options if o[0] == "-")
    assert not Path("a.rkp").exists()


def test_a_server_that_is_not_there_ends_the_command_at_once() -> None:
    with faulty_server() as (url, _):
        pass
    result = rankpress("compress", "in", "out", "--server", url)
    assert result.exit_code == 1 and result.stderr.count("no connection") == 1
    assert not Path("out").exists()


def test_the_server_may_be_named_by_a_variable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKPRESS_SERVER", url)
    assert rankpress("compress", "in/a.png", "a.rkp").exit_code == 0
    monkeypatch.setenv("RANKPRESS_SERVER", "localhost")
    wrong = rankpress("compress", "in/a.png", "a.rkp", "-f")
    assert wrong.exit_code == 2 and "http://" in wrong.stderr


def test_it_needs_neither_torch_nor_a_web_framework(url: str) -> None:
    code = f"{WITHOUT}\nfrom service.cli.main import main\nmain()"
    words = [sys.executable, "-c", code, "compress", "in/a.png", "a.rkp", "--server", url]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "service" / "client")))
    result = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert Path("a.rkp").stat().st_size


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rankpress_client", None)
    result = rankpress("compress", "in/a.png", "a.rkp", "--server", "http://127.0.0.1:9")
    assert result.exit_code == 1 and "pip install 'rankpress[client]'" in result.stderr


def test_adapt_waits_for_the_job_and_fetches_its_result(url: str) -> None:
    assert rankpress("compress", "in/a.png", "plain.rkp", "--server", url).exit_code == 0
    with faulty_server(share=0) as (jobs_url, server):
        server.result = Path("plain.rkp").read_bytes()
        result = rankpress("adapt", "in/a.png", "a.rkp", "--server", jobs_url, "--json")
    assert result.exit_code == 0, result.stderr
    assert Path("a.rkp").read_bytes() == Path("plain.rkp").read_bytes()
    (report,) = reports(result)
    assert report["psnr_db"] is None and report["rate"] == 4
    assert report["notes"][-1] == "exact (-9.0 % bytes)"


@pytest.mark.parametrize(("status", "cancels"), [("queued", 1), ("running", 0)])
def test_an_interrupt_cancels_a_job_that_this_command_began(status: str, cancels: int) -> None:
    with faulty_server(share=0) as (url, server):
        server.posted = job_document("x", 0, status)
        server.on_events = lambda: os.kill(os.getpid(), signal.SIGINT)
        result = rankpress("adapt", "in/a.png", "a.rkp", "--server", url)
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert server.done["DELETE /jobs/x /jobs/x"] == cancels
    assert ("continues" in result.stderr) is not bool(cancels)
    assert not Path("a.rkp").exists()


def test_a_job_that_fails_fails_its_file() -> None:
    with faulty_server(share=0) as (url, server):
        server.last = "failed"
        result = rankpress("adapt", "in", "out", "--server", url)
    assert result.exit_code == 1 and result.stderr.count("failed: None") == 2
    assert not Path("out").exists()
