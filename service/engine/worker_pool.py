"""Worker threads behind a queue of requests, and how long their work takes.

Small and large requests have pools of their own, so that a small one never waits for a large one's
turn. Both pools share the machine, so large work also pauses at its interruption points while the
pool for small work is busy, for at most `PATIENCE` times as long as it has worked, and its threads
have a lower priority. It still gets done under any load, and hardly slows small requests down.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from service.engine.admission_queue import AdmissionQueue, QueuedWork
from service.runtime.interruption import WorkAbandoned, interruptible

T = TypeVar("T")

RunTogether = Callable[[Sequence[Callable[[], Any]]], Sequence[Any]]
"""Does the work of a batch in one call; gives what each returned, or the exception it raised."""

FIRST_GUESS_S: Final = 1.0
"""Time of one request assumed until one has been measured."""

SMOOTHING: Final = 0.2
"""Weight of the newest time and size in the running means."""

PATIENCE: Final = 1.0
"""Seconds that large work may pause for small requests, for each second that it has worked."""

CALM_S: Final = 0.05
"""Seconds without a small request after which large work goes on. A client that sends one request
after the other sends the next one sooner."""

NICENESS: Final = 10
"""Niceness of the threads of large work, on systems where each thread has its own: small work
beside them gets about nine tenths of the cores."""


@dataclass(frozen=True)
class WorkResult(Generic[T]):
    """What the work returned, and the seconds it waited for a worker."""

    value: T
    queue_s: float


@dataclass(frozen=True)
class PoolUsage:
    """What a pool has done so far.

    Attributes:
        pool: its name. workers: its threads.
        busy_s: seconds that its threads have worked, all together.
        calls: units of work that have begun. requests: those in them; a batch has several.
    """

    pool: str
    workers: int
    busy_s: float
    calls: int
    requests: int


class Speed:
    """Running means of the size of work and of the time that it takes.

    The two means are kept, and not the mean of their ratio, in which tiny work would count most.
    """

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._mean_size = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any work has been measured."""
        return self._mean_s is not None

    def add(self, seconds: float, size: float) -> None:
        """Take finished work into the means; work without a size, the self-test, is left out."""
        if not size:
            return
        if self._mean_s is None:
            self._mean_s, self._mean_size = seconds, size
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        self._mean_size += SMOOTHING * (size - self._mean_size)

    def seconds(self, count: int, size: float) -> float:
        """How long a number of requests of one total size will take one worker."""
        if self._mean_s is None:
            return FIRST_GUESS_S * count
        return self._mean_s / self._mean_size * size


class WorkerPool:
    """A queue with worker threads. Use from the event loop's thread.

    Args:
        name: for the names of the threads. workers: threads. queue: of the requests that wait.
        speed: shared by all pools of a machine. run_together: does the work of a batch.
        gives_way_to: the pool whose requests this one's work pauses for.

    Attributes:
        running: requests in the worker threads, those whose caller has left included.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        queue: AdmissionQueue,
        speed: Speed,
        run_together: RunTogether | None = None,
        gives_way_to: WorkerPool | None = None,
    ) -> None:
        self.workers = workers
        self._name, self._queue, self._speed = name, queue, speed
        self._run_together, self._gives_way_to = run_together, gives_way_to
        self._threads: ThreadPoolExecutor | None = None
        self._is_open = False
        self._alarm: asyncio.TimerHandle | None = None
        self._busy = 0
        self._busy_s, self._busy_until_s = 0.0, time.monotonic()
        self._calls = self._requests = 0
        self.running = 0
        self._running_size = 0.0
        self._idle_since_s: float | None = -math.inf

    @property
    def waiting(self) -> int:
        """Requests waiting for a worker."""
        return len(self._queue)

    @property
    def through_s(self) -> float:
        """Seconds until all requests that are here now will be done, by the measured times."""
        size = self._running_size + sum(entry.size for entry in self._queue)
        return self._speed.seconds(self.waiting + self.running, size) / self.workers

    @property
    def usage(self) -> PoolUsage:
        """What it has done so far, the work that runs included."""
        self._add_busy(0)
        return PoolUsage(self._name, self.workers, self._busy_s, self._calls, self._requests)

    def start(self) -> None:
        """Make the threads; work waits until `open`."""
        self._threads = ThreadPoolExecutor(
            self.workers,
            thread_name_prefix=f"rankpress-{self._name}",
            initializer=None if self._gives_way_to is None else _lower_priority,
        )

    def open(self) -> None:
        """Begin to run the work that waits."""
        self._is_open = True
        self._start_next()

    def close(self) -> None:
        """Begin no more work; the threads end with their present work."""
        self._is_open = False
        if self._alarm is not None:
            self._alarm.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def remove_waiting(self) -> list[QueuedWork]:
        """Empty the queue; returns the requests that waited in it."""
        entries = list(self._queue)
        for entry in entries:
            self._queue.discard(entry)
        return entries

    async def run(self, entry: QueuedWork) -> WorkResult[Any]:
        """Wait for a worker and for the work; stop it if the caller is cancelled meanwhile."""
        self._queue.append(entry)
        self._start_next()
        try:
            result: WorkResult[Any] = await entry.result
            return result
        finally:
            entry.abandoned = True
            self._queue.discard(entry)
            self._note_idle()

    def launch(self, entries: list[QueuedWork]) -> None:
        """Run work at once, in a thread."""
        self._add_busy(1)
        self._calls += 1
        self._requests += len(entries)
        self.running += len(entries)
        self._running_size += sum(entry.size for entry in entries)
        self._note_idle()
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._work, entries)
        future.add_done_callback(partial(self._finish, entries, time.monotonic()))

    def _start_next(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._is_open and self._threads is not None and self._busy < self.workers:
            entries = self._queue.take(time.monotonic())
            if not entries:
                self._start_when_due()
                break
            self.launch(entries)
        self._note_idle()

    def _start_when_due(self) -> None:
        due_s = self._queue.due_s()
        if due_s is not None:
            delay_s = max(0.0, due_s - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._start_next)

    def _add_busy(self, more: int) -> None:
        """Count the time until now, and so many more threads that work from now on."""
        now_s = time.monotonic()
        self._busy_s += self._busy * (now_s - self._busy_until_s)
        self._busy_until_s = now_s
        self._busy += more

    def _note_idle(self) -> None:
        if self._busy or self.waiting:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = time.monotonic()

    def _work(self, entries: list[QueuedWork]) -> Sequence[Any]:
        """In a worker thread: what the work of each request returned, or raised in a batch."""
        other, since_s = self._gives_way_to, time.monotonic()

        def hook() -> None:
            nonlocal since_s
            if all(entry.abandoned for entry in entries):
                raise WorkAbandoned
            if other is not None:
                other.wait_until_calm(PATIENCE * (time.monotonic() - since_s))
                since_s = time.monotonic()

        with interruptible(hook):
            if len(entries) == 1:
                return [entries[0].work()]
            assert self._run_together is not None  # without it the queue makes no batches
            return self._run_together([entry.work for entry in entries])

    def _finish(
        self, entries: list[QueuedWork], begun_s: float, future: asyncio.Future[Sequence[Any]]
    ) -> None:
        self._add_busy(-1)
        self.running -= len(entries)
        size = sum(entry.size for entry in entries)
        self._running_size -= size
        error = None if future.cancelled() else future.exception()
        if not isinstance(error, WorkAbandoned):
            self._speed.add(time.monotonic() - begun_s, size)
        failed = [error] * len(entries)
        outcomes = failed if error or future.cancelled() else future.result()
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.result.done():
                continue
            if future.cancelled():
                entry.result.cancel()
            elif isinstance(outcome, BaseException):
                entry.result.set_exception(outcome)
            else:
                entry.result.set_result(WorkResult(outcome, begun_s - entry.arrived_s))
        self._start_next()

    def wait_until_calm(self, timeout_s: float) -> None:
        """In any thread: wait until no request has been here for `CALM_S`, or for `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while (now_s := time.monotonic()) < deadline_s:
            idle_since_s = self._idle_since_s
            calm_at_s = (now_s if idle_since_s is None else idle_since_s) + CALM_S
            if calm_at_s <= now_s:
                return
            time.sleep(min(calm_at_s, deadline_s) - now_s)


def _lower_priority() -> None:
    """Lower the priority of this thread, and so of those that libraries start in it."""
    if sys.platform != "linux":  # elsewhere it would be that of the process
        return
    thread = threading.get_native_id()
    with suppress(OSError):  # sandboxes may forbid it
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(own, NICENESS))
