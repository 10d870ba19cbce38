"""Which workers are alive: each writes an object every few seconds, and is lost when it stops.

Every worker has a unique name, which it gets again after a restart. By that name a restarted worker
finds the jobs it was working on. The name consists of the host's name, a hash of the folder's path
(several workers of one host may each have a folder), and the number of a slot. A slot is held by a
lock on a file, which the system releases when the process ends in any way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import time
from pathlib import Path
from typing import IO, Final

from service.blobs import Objects
from service.errors import JobsUnavailable

BEAT_S: Final = 10.0
LOST_S: Final = 60.0
"""A worker without a heartbeat for so long counts as dead, and other workers take its jobs."""

MAX_SLOTS: Final = 256


def beat(objects: Objects, worker: str) -> None:
    """Show that the worker is alive."""
    objects.put_named(f"workers/{worker}", str(os.getpid()).encode())


def leave(objects: Objects, worker: str) -> None:
    """Show that the worker has ended regularly. Raises ObjectsUnavailable."""
    objects.delete(f"workers/{worker}")


def live_workers(objects: Objects) -> set[str]:
    """Names of the workers that showed a heartbeat in the last `LOST_S`."""
    oldest_s = time.time() - LOST_S
    beats = objects.list("workers")
    return {b.key.rpartition("/")[2] for b in beats if b.written_s > oldest_s}


class WorkerName:
    """A worker's name, held until `release` or until the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the first free slot. Raises JobsUnavailable: none is free, or none can be locked."""
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:100] or "host"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            slot, self._file = _lock_slot(folder, host)
        except OSError as error:
            raise JobsUnavailable(f"{folder} cannot be written: {error.strerror}") from error
        place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:6]
        self.name = f"{host}-{place}-{slot}"

    def release(self) -> None:
        """Let another worker have the name."""
        self._file.close()


def _lock_slot(folder: Path, host: str) -> tuple[int, IO[bytes]]:
    for slot in range(MAX_SLOTS):
        file = (folder / f"{host}-{slot}.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return slot, file
    raise JobsUnavailable(f"{MAX_SLOTS} workers run on this machine already")
