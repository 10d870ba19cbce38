"""The worker process of `rankpress serve`: started, restarted when it dies, and stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog

from service.jobs.storage_outages import growing_pauses
from service.jobs.worker import STOP_S
from service.settings import Settings

HEALTHY_S: Final = 60.0
"""After a worker has run for so long, the next pause before a restart is short again."""

log = structlog.get_logger("rankpress.server")


class WorkerProcess:
    """A worker in a process of its own, with the settings of the server."""

    def __init__(self, settings: Settings, command: Sequence[str] = ()) -> None:
        """Start a command that takes `--parent PID`; `rankpress worker` where none is given."""
        self._command = command or (sys.executable, "-m", "service", "worker")
        others = {k: v for k, v in os.environ.items() if not k.startswith("RANKPRESS_")}
        self._variables = others | settings.as_environment()
        self._stopping = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._watch, name="worker-watch", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Id of the process that runs, or ran last."""
        return self._process.pid

    def stop(self) -> None:
        """Ask the process to end and wait for it, at most a little longer than `STOP_S`."""
        self._stopping.set()
        if self._process.poll() is None:
            self._process.terminate()
        self._thread.join(STOP_S + 10)
        if self._thread.is_alive():
            log.error("worker killed: it did not stop", pid=self.pid)
            self._process.kill()
            self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the server, which then ends the worker.
        return subprocess.Popen(
            [*self._command, "--parent", str(os.getpid())],
            env=self._variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _watch(self) -> None:
        pauses = growing_pauses()
        while True:
            begun_s = time.monotonic()
            code = self._process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - begun_s >= HEALTHY_S:
                pauses = growing_pauses()
            pause_s = next(pauses)
            log.error("worker died", pid=self.pid, code=code, again_in_s=pause_s)
            if self._stopping.wait(pause_s):
                return
            self._process = self._start()
            if self._stopping.is_set():
                self._process.terminate()
