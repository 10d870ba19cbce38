"""A lane of admission: a line of requests, the threads that work on it, and how long that takes.

Small and large requests have lanes of their own, so that a small one never waits for a large one's
turn. Both lanes share the machine, so large work also pauses at its interruption points while the
small lane has work, for at most `PATIENCE` times as long as it has worked, and its threads have a
lower priority: it still gets done under any load, and small requests hardly notice it.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from service.engine.line import Entry, Line
from service.runtime.interruption import WorkAbandoned, interruptible

T = TypeVar("T")

Together = Callable[[Sequence[Callable[[], Any]]], Sequence[Any]]
"""Does the work of a batch in one call; gives what each returned, or the exception it raised."""

FIRST_GUESS_S = 1.0
"""Time of one request assumed until one has been measured."""

SMOOTHING = 0.2
"""Weight of the newest time and size in the running means."""

PATIENCE = 1.0
"""Seconds that large work may pause for small requests, for each second that it has worked."""

CALM_S = 0.05
"""Seconds without a small request after which large work goes on: the next one of a client that
sends one after the other comes sooner."""


NICENESS = 10
"""Of the threads of large work, where the system has that for each thread: small work that runs
beside a tile gets about nine tenths of the cores."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """What the work returned, and the seconds it waited for a worker."""

    value: T
    queue_s: float


class Speed:
    """The running means of how large pieces of work are and how long they take.

    The means of both are kept, and not of their ratio: tiny work would otherwise weigh most.
    """

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._mean_size = 0.0

    @property
    def is_known(self) -> bool:
        """Whether any work has been measured."""
        return self._mean_s is not None

    def add(self, seconds: float, size: float) -> None:
        """Take a piece of work into the means; one without size, the self-test, is left out."""
        if not size:
            return
        if self._mean_s is None:
            self._mean_s, self._mean_size = seconds, size
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        self._mean_size += SMOOTHING * (size - self._mean_size)

    def seconds(self, count: int, size: float) -> float:
        """How long so many requests of that size in all will take one worker."""
        if self._mean_s is None:
            return FIRST_GUESS_S * count
        return self._mean_s / self._mean_size * size


class Lane:
    """A line with worker threads. Use from the event loop's thread.

    Args:
        name: for the names of the threads. workers: threads. line: of those who wait.
        speed: shared by all lanes of a machine. together: does the work of a batch.
        gives_way_to: the lane whose requests this one's work pauses for.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        line: Line,
        speed: Speed,
        together: Together | None = None,
        gives_way_to: Lane | None = None,
    ) -> None:
        self.workers = workers
        self._name, self._line, self._speed = name, line, speed
        self._together, self._gives_way_to = together, gives_way_to
        self._pool: ThreadPoolExecutor | None = None
        self._is_open = False
        self._alarm: asyncio.TimerHandle | None = None
        self._busy = 0
        self._running = 0
        self._running_size = 0.0
        self._idle_since_s: float | None = -math.inf

    @property
    def waiting(self) -> int:
        """Requests waiting for a worker."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Requests in the worker threads, those whose caller has left included."""
        return self._running

    @property
    def through_s(self) -> float:
        """Seconds until all that is here now will be done, by what was measured."""
        size = self._running_size + sum(entry.size for entry in self._line)
        return self._speed.seconds(self.waiting + self._running, size) / self.workers

    def start(self) -> None:
        """Make the threads; work waits until `open`."""
        self._pool = ThreadPoolExecutor(
            self.workers,
            thread_name_prefix=f"rankpress-{self._name}",
            initializer=None if self._gives_way_to is None else _lower_priority,
        )

    def open(self) -> None:
        """Begin to work on what waits."""
        self._is_open = True
        self._start_next()

    def close(self) -> None:
        """Begin nothing more, and let the threads go when their present work ends."""
        self._is_open = False
        if self._alarm is not None:
            self._alarm.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def entries(self) -> Iterator[Entry]:
        """Those who wait, removed from the line."""
        for entry in list(self._line):
            self._line.discard(entry)
            yield entry

    async def run(self, entry: Entry) -> Done[Any]:
        """Wait for a worker and for the work; stop it if the caller is cancelled meanwhile."""
        self._line.append(entry)
        self._start_next()
        try:
            done: Done[Any] = await entry.done
            return done
        finally:
            entry.abandoned = True
            self._line.discard(entry)
            self._note_idle()

    def launch(self, entries: list[Entry]) -> None:
        """Work on entries at once, in a thread."""
        self._busy += 1
        self._running += len(entries)
        self._running_size += sum(entry.size for entry in entries)
        self._note_idle()
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._work, entries)
        future.add_done_callback(partial(self._finish, entries, time.monotonic()))

    def _start_next(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._is_open and self._pool is not None and self._busy < self.workers:
            entries = self._line.take(time.monotonic())
            if not entries:
                self._start_when_due()
                break
            self.launch(entries)
        self._note_idle()

    def _start_when_due(self) -> None:
        due_s = self._line.due_s()
        if due_s is not None:
            delay_s = max(0.0, due_s - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._start_next)

    def _note_idle(self) -> None:
        if self._busy or self.waiting:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = time.monotonic()

    def _work(self, entries: list[Entry]) -> Sequence[Any]:
        """In a worker thread: what each piece of work returned or raised."""
        pauses = _Pauses(self._gives_way_to)

        def hook() -> None:
            if all(entry.abandoned for entry in entries):
                raise WorkAbandoned
            pauses.take()

        with interruptible(hook):
            if len(entries) == 1:
                return [entries[0].work()]
            assert self._together is not None  # the line holds batches of one otherwise
            return self._together([entry.work for entry in entries])

    def _finish(
        self, entries: list[Entry], begun_s: float, future: asyncio.Future[Sequence[Any]]
    ) -> None:
        self._busy -= 1
        self._running -= len(entries)
        size = sum(entry.size for entry in entries)
        self._running_size -= size
        error = None if future.cancelled() else future.exception()
        if not isinstance(error, WorkAbandoned):
            self._speed.add(time.monotonic() - begun_s, size)
        failed = [error] * len(entries)
        outcomes = failed if error or future.cancelled() else future.result()
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.done.done():
                continue
            if future.cancelled():
                entry.done.cancel()
            elif isinstance(outcome, BaseException):
                entry.done.set_exception(outcome)
            else:
                entry.done.set_result(Done(outcome, begun_s - entry.since_s))
        self._start_next()

    def wait_until_calm(self, timeout_s: float) -> None:
        """In any thread: wait until no request has been here for `CALM_S`, or that time is over."""
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


class _Pauses:
    """The pauses of one piece of work, for the lane that it gives way to."""

    def __init__(self, other: Lane | None) -> None:
        self._other = other
        self._since_s = time.monotonic()

    def take(self) -> None:
        """Pause while the other lane has work, for as long as patience lasts."""
        if self._other is not None:
            worked_s = time.monotonic() - self._since_s
            self._other.wait_until_calm(PATIENCE * worked_s)
            self._since_s = time.monotonic()
