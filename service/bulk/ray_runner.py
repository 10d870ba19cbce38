"""The runner that has shards done by workers of a Ray cluster, by Ray Data.

Ray moves the numbers of shards and how they ended, never pictures: workers read the manifest and
the source themselves, and write to the destination. Each node needs the same release of Rankpress,
the model store, the credentials of buckets in its environment, and, where places are folders, the
same folders.

Ray Data takes its whole input before it starts, so shards are done in rounds, which keeps memory
flat. Each round starts its workers anew, which takes seconds. Ray Data's own checkpoints are not
used: a finished shard has its marker.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow
import ray
import ray.data
from ray.exceptions import RayError

from service.bulk.process import Stopped
from service.bulk.runner import MOST_FAILED_STARTS
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.bulk.work import ShardWork, ShardWorker
from service.errors import BadParameter, RunStopped

ROUND_SHARDS: Final = 512
"""Shards of a round: each takes some dozens of kilobytes of memory here."""

ROUND_SHARDS_PER_WORKER: Final = 32
"""Shards of a round for each worker at least."""

PARENT_CHECK_S: Final = 0.5
"""Seconds between two looks of a worker at whether Ray is still there."""

CONNECT_S: Final = 10.0
"""Seconds that a cluster may take to accept a connection."""

OBJECT_STORE_BYTES: Final = 80 << 20
"""Memory for objects of a cluster that is started here: about the least that Ray takes."""


class RayRunner:
    """Has shards done by a Ray cluster; implements `Runner`."""

    def __init__(
        self,
        workers: int,
        on_progress: Callable[[Totals], None] = lambda _: None,
        *,
        address: str | None = None,
        threads: int = 1,
        gpus_per_worker: float = 0.0,
    ) -> None:
        """Describe the workers and where they run.

        Args:
            workers: at a time; fewer where the cluster has no room for more.
            on_progress: is called when a shard has ended, with nothing in progress: what workers
                have done of a shard is not known here.
            address: of a cluster, as for `ray.init`: HOST:PORT, or auto for the one that this
                machine belongs to. None starts one on this machine, until the run ends.
            threads: CPUs that Ray sets aside for a worker.
            gpus_per_worker: GPUs that Ray sets aside for a worker: 0.5 lets two share one.
        """
        self._workers, self._on_progress = workers, on_progress
        self._address, self._threads, self._gpus = address, threads, gpus_per_worker

    def run(self, shards: Iterable[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        """Have every shard done, see `Runner`.

        Raises:
            BadParameter: there is no cluster at the address, or this machine has too few GPUs.
            RunStopped: no worker gets anything done.
        """
        coming = iter(shards)
        size = max(ROUND_SHARDS, ROUND_SHARDS_PER_WORKER * self._workers)
        with self.connected():
            while batch := list(islice(coming, size)):
                for outcome in self._do_all(batch, work):
                    yield outcome
                    self._on_progress(Totals())

    def _do_all(self, shards: list[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        """Do shards; those that a failure of Ray leaves are tried again while any gets done."""
        left = {shard.number: shard for shard in shards}
        while left:
            before, failure = len(left), None
            try:
                for outcome in self._round(list(left), work):
                    if left.pop(outcome.shard, None) is not None:
                        yield outcome
            except RayError as error:
                failure = error
            if len(left) == before:
                reason = str(failure).strip().rpartition("\n")[2]
                raise RunStopped(f"Ray gets no shard done: {reason}") from failure

    def _round(self, numbers: list[int], work: ShardWork) -> Iterator[ShardOutcome]:
        """Do shards on fresh workers, which end with the iterator."""
        # One block for each shard, since a worker takes a block at a time. They are in memory:
        # tasks that read them would wait for the CPUs that the workers have.
        blocks = [pyarrow.table({"shard": [number]}) for number in numbers]
        outcomes = ray.data.from_arrow(blocks).map_batches(
            _RayWorker,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self._workers, len(numbers))),
            num_cpus=self._threads,
            num_gpus=self._gpus or None,
        )
        # Without prefetching, outcomes come as soon as they are there.
        for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
            for outcome in batch["outcome"]:
                if isinstance(outcome, Stopped):
                    raise outcome.error()
                yield outcome

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the cluster, or start one; a connection of the program itself is kept."""
        if ray.is_initialized():
            yield
            return
        self._connect()
        try:
            if self._address is None:
                self._check_gpus()
            yield
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        if self._address is not None and self._address != "auto":
            _check_address(self._address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address is None:
            options |= {
                "num_cpus": self._workers * self._threads,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        try:
            with _kept_handlers():
                ray.init(self._address or "local", **options)
        except (ConnectionError, ValueError) as error:
            raise BadParameter(f"no Ray cluster can be used: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False

    def _check_gpus(self) -> None:
        """Raise BadParameter where no worker could ever start."""
        found = ray.cluster_resources().get("GPU", 0)
        if found < self._gpus:
            raise BadParameter(
                f"this machine has {found:g} GPUs, expected at least {self._gpus:g} for a worker"
            )


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Keep what this process does at SIGTERM: with Ray's own handler it aborts."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _check_address(address: str) -> None:
    """Raise BadParameter where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise BadParameter(f"the cluster is at {address!r}, expected HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise BadParameter(f"no Ray cluster answers at {address}: {error}") from error


class _RayWorker:
    """A worker process of the cluster: does the shard of each batch."""

    def __init__(self, work: ShardWork) -> None:
        threading.Thread(target=_end_with_ray, name="ray-watch", daemon=True).start()
        self._worker = _open(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[object]]:
        """Return how the shard has ended, or why the run cannot go on."""
        (number,) = batch["shard"].tolist()
        return {"outcome": [self._do(Shard(number))]}

    def _do(self, shard: Shard) -> ShardOutcome | Stopped:
        if isinstance(self._worker, Stopped):
            return self._worker
        try:
            return self._worker.do(shard)
        except Exception as error:
            return Stopped.of(error)


def _open(work: ShardWork) -> ShardWorker | Stopped:
    """Open the engine of this worker, or return why the run cannot go on.

    Exceptions are returned, because Ray would try again and wrap them in its own. It starts a
    process that has died anew for ever, so a file of this machine counts the starts that have not
    come to their end.
    """
    starts = Path(tempfile.gettempdir(), f"rankpress-{ray.get_runtime_context().get_actor_id()}")
    with starts.open("ab") as file:
        file.write(b".")
    if starts.stat().st_size <= MOST_FAILED_STARTS:
        try:
            opened: ShardWorker | Stopped = work.open()
        except Exception as error:
            opened = Stopped.of(error)
    else:
        opened = Stopped("", f"a worker has died {MOST_FAILED_STARTS} times as it started")
    starts.unlink()
    return opened


def _end_with_ray() -> None:
    """End this process when Ray's process of this machine has ended.

    Ray itself waits for the end of the shard, while another run may have begun with it.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)
