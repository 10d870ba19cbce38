"""The worker process beside a server: there again after it died, gone when the server is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jobs.machines import until
from service.jobs import storage_outages
from service.jobs.heartbeat import WorkerName
from service.jobs.supervisor import WorkerProcess
from service.jobs.worker import NICENESS
from service.server import run
from service.settings import Settings

SCRIPT = """
import os, sys, time
with open(sys.argv[1], "a") as log:
    log.write(f"{os.getpid()} {sys.argv[2:]} {os.environ['RANKPRESS_JOB_THREADS']}\\n")
if len(open(sys.argv[1]).readlines()) < 3:
    sys.exit(1)
time.sleep(60)
"""


LAST_IN_LINE = """
import os
import sys
from pathlib import Path
from service.jobs.worker import AUTOGROUP, NICENESS, lower_priority
lower_priority()
niceness = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[16]
is_writable = os.access(AUTOGROUP, os.W_OK)
group = AUTOGROUP.read_text().split()[-1] if is_writable else str(NICENESS)
Path(sys.argv[1]).write_text(f"{niceness} {group}")
"""


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_dies_is_started_again_and_stopped_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_outages, "FIRST_PAUSE_S", 0.05)
    log = tmp_path / "log"
    command = [sys.executable, "-c", SCRIPT, str(log)]
    with capture_logs() as messages:
        worker = WorkerProcess(Settings(job_threads=3), command)
        until(lambda: log.exists() and len(log.read_text().splitlines()) == 3)
    deaths = [message for message in messages if message["event"] == "worker died"]
    assert [death["again_in_s"] for death in deaths] == [0.05, 0.1], "the pauses double"
    lines = log.read_text().splitlines()
    assert lines[-1] == f"{worker.pid} ['--parent', '{os.getpid()}'] 3"
    worker.stop()
    assert not is_there(worker.pid)
    assert "worker-watch" not in {thread.name for thread in threading.enumerate()}
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_does_not_outlive_its_server(tmp_path: Path, number: int) -> None:
    """A real `rankpress serve`, with the models that come with it, in two processes."""
    settings = Settings(state=tmp_path, port=0, device="cpu", threads=1, log_level="info")
    variables = os.environ | settings.as_environment() | {"PYTHONPATH": os.getcwd()}
    with (
        (tmp_path / "err").open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve"], env=variables, stderr=errors
        ) as serving,
    ):
        log = tmp_path / "err"
        try:
            until(lambda: b'"worker started"' in log.read_bytes())
            (child,) = children_of(serving.pid)
            serving.send_signal(number)
            assert serving.wait(30) == (-number if number == signal.SIGKILL else 0)
            until(lambda: not is_there(child))
        finally:
            serving.kill()
    assert b'"worker stopped"' in log.read_bytes()
    assert not list((tmp_path / "objects" / "workers").glob("*"))


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()]


def test_a_worker_comes_last_also_against_other_sessions(tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker = WorkerProcess(Settings(), [sys.executable, "-c", LAST_IN_LINE, str(log)])
    until(lambda: log.exists() and log.read_text() != "")
    worker.stop()
    assert log.read_text() == f"{NICENESS} {NICENESS}"


def test_jobs_are_not_taken_in_where_the_worker_could_do_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run.without_idle_jobs(Settings()).jobs
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _: None)
    assert not run.without_idle_jobs(Settings()).jobs
    assert run.without_idle_jobs(Settings(jobs_worker=False)).jobs


def test_a_server_that_only_decodes_starts_no_worker() -> None:
    assert not run.without_idle_jobs(Settings(decode_only=True)).jobs


def test_a_worker_gets_the_server_s_settings_but_not_its_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(
        state=tmp_path, check=False, job_step_s=1.5, admin_token="secret-secret-secret-secret"
    )
    given = settings.as_environment()
    assert "secret" not in str(given)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"admin_token": Settings().admin_token})


def test_workers_of_one_host_have_names_of_their_own_and_get_them_again(tmp_path: Path) -> None:
    first = WorkerName(tmp_path / "a")
    others = WorkerName(tmp_path / "a"), WorkerName(tmp_path / "b")
    assert len({first.name, *(w.name for w in others)}) == 3
    name = first.name
    for worker in (first, *others):
        worker.release()  # as when its process ends
    again = WorkerName(tmp_path / "a")
    again.release()
    assert again.name == name
