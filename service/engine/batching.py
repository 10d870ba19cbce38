"""Admission in front of the codec: who may wait, how many bytes are held, and who is next.

A fixed number of worker threads runs whole units of work (read the file, code it, write the file);
everyone else waits here in order, up to a number of requests and a sum of bytes, and is refused
beyond that with an honest guess at when to come back. All state belongs to the event loop's thread,
so there are no locks. `_start_next` is the only place that chooses what runs next: micro-batches
keyed by (model, rate, padded size) belong there.

Knows nothing of HTTP, of image files or of what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar

from service.errors import RankpressError, Saturated, SelfTestFailed

T = TypeVar("T")

FIRST_GUESS_S = 1.0
"""Service time assumed until one has been measured."""

SMOOTHING = 0.2
"""Weight of the newest service time in the running mean."""

LONGEST_RETRY_S = 300
"""Largest `retry_after_s` ever given."""


class Phase(Enum):
    """What becomes of work that arrives now."""

    STARTING = "starting"
    """Waits until the self-test has passed."""
    OPEN = "open"
    """Runs in its turn."""
    DRAINING = "draining"
    """Is refused; what was admitted before still runs."""
    FAILED = "failed"
    """Is refused for good: this machine does not reproduce the golden stream."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """What the work returned, and the seconds it waited for a worker."""

    value: T
    queue_s: float


@dataclass(eq=False)
class _Entry:
    work: Callable[[], Any]
    done: asyncio.Future[Any]
    since_s: float


class Admission:
    """A bounded waiting room with worker threads behind it.

    Call everything from the event loop's thread: `start`, `open_after`, any number of `run`, then
    `begin_drain` and `close`.

    Args:
        workers: threads, and so units of work that run at the same time.
        max_waiting: requests that may wait.
        max_waiting_bytes: sum of the bytes that all `Hold`s may grow to.
    """

    def __init__(self, *, workers: int, max_waiting: int, max_waiting_bytes: int) -> None:
        self._workers = workers
        self._max_waiting = max_waiting
        self._max_held_bytes = max_waiting_bytes
        self._waiting: deque[_Entry] = deque()
        self._running = 0
        self._held_bytes = 0
        self._service_s: float | None = None
        self._phase = Phase.STARTING
        self._pool: ThreadPoolExecutor | None = None

    @property
    def phase(self) -> Phase:
        """What becomes of work that arrives now."""
        return self._phase

    @property
    def waiting(self) -> int:
        """Requests waiting for a worker."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Units of work in the worker threads, those whose caller has left included."""
        return self._running

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies and answers in memory."""
        return self._held_bytes

    @property
    def retry_after_s(self) -> int:
        """When the work now here will be through, from the measured service time; at least 1."""
        service_s = FIRST_GUESS_S if self._service_s is None else self._service_s
        seconds = service_s * (len(self._waiting) + self._running) / self._workers
        return max(1, min(LONGEST_RETRY_S, math.ceil(seconds)))

    def start(self) -> None:
        """Make the worker threads; work waits until `open_after` is through."""
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="rankpress-work")
        self._phase = Phase.STARTING

    async def open_after(self, test: Callable[[], None]) -> None:
        """Run the self-test in a worker thread, then run work; if it raises, refuse all for good.

        Raises:
            Exception: whatever `test` raises.
        """
        entry = self._entry(test)
        self._launch(entry)
        try:
            await entry.done
        except Exception:
            self._phase = Phase.FAILED
            self._refuse_waiting()
            raise
        if self._phase is Phase.STARTING:
            self._phase = Phase.OPEN
            self._start_next()

    def begin_drain(self) -> None:
        """Refuse new work. What waits still runs, unless the self-test has not passed yet."""
        if self._phase is Phase.OPEN:
            self._phase = Phase.DRAINING
        elif self._phase is Phase.STARTING:
            self._phase = Phase.DRAINING
            self._refuse_waiting()

    def close(self) -> None:
        """Refuse what still waits and let the threads go when their present work ends."""
        self.begin_drain()
        self._refuse_waiting()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def check(self, more_bytes: int = 0) -> None:
        """Refuse early what would be refused anyway.

        Args:
            more_bytes: how much a body is about to add.

        Raises:
            Saturated: too many requests wait, too many bytes are held, or the server drains.
            SelfTestFailed: this machine must not work.
        """
        self._check_bytes(more_bytes)
        if len(self._waiting) >= self._max_waiting:
            raise Saturated(f"{len(self._waiting)} requests wait already", self.retry_after_s)

    def hold(self) -> Hold:
        """A count of the bytes one request keeps in memory, zero at first."""
        return Hold(self)

    async def run(self, work: Callable[[], T]) -> Done[T]:
        """Wait for a worker and run `work` in its thread.

        A caller cancelled while it waits costs no work. One cancelled later leaves the work to
        end by itself, its result dropped: a thread cannot be interrupted.

        Raises:
            Saturated, SelfTestFailed: as `check` does.
            Exception: whatever `work` raises.
        """
        self.check()
        entry = self._entry(work)
        self._waiting.append(entry)
        self._start_next()
        try:
            done: Done[T] = await entry.done
            return done
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _check_bytes(self, more_bytes: int) -> None:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        if self._held_bytes + more_bytes > self._max_held_bytes:
            raise Saturated("too many bytes are held for other requests", self.retry_after_s)

    def _refusal(self) -> RankpressError | None:
        if self._phase is Phase.FAILED:
            return SelfTestFailed("this machine did not reproduce the golden stream")
        if self._phase is Phase.DRAINING:
            return Saturated("the server is shutting down", self.retry_after_s)
        return None

    def _refuse_waiting(self) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            refusal = self._refusal()
            if refusal is not None and not entry.done.done():
                entry.done.set_exception(refusal)

    def _start_next(self) -> None:
        runs = self._phase in (Phase.OPEN, Phase.DRAINING)
        while runs and self._pool and self._waiting and self._running < self._workers:
            entry = self._waiting.popleft()
            if not entry.done.done():
                self._launch(entry)

    def _entry(self, work: Callable[[], Any]) -> _Entry:
        return _Entry(work, asyncio.get_running_loop().create_future(), time.monotonic())

    def _launch(self, entry: _Entry) -> None:
        self._running += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, entry.work)
        future.add_done_callback(partial(self._finish, entry, time.monotonic()))

    def _finish(self, entry: _Entry, begun_s: float, future: asyncio.Future[Any]) -> None:
        self._running -= 1
        self._measure(time.monotonic() - begun_s)
        error = None if future.cancelled() else future.exception()
        if not entry.done.done():
            if future.cancelled():
                entry.done.cancel()
            elif error is not None:
                entry.done.set_exception(error)
            else:
                entry.done.set_result(Done(future.result(), begun_s - entry.since_s))
        self._start_next()

    def _measure(self, service_s: float) -> None:
        old_s = service_s if self._service_s is None else self._service_s
        self._service_s = old_s + SMOOTHING * (service_s - old_s)


class Hold:
    """The bytes that one request keeps in memory, counted against everyone's limit."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def grow(self, more_bytes: int) -> None:
        """Count bytes that arrive.

        Raises:
            Saturated, SelfTestFailed: the limit is reached or the server stops; none is counted.
        """
        self._admission._check_bytes(more_bytes)
        self.add(more_bytes)

    def add(self, more_bytes: int) -> None:
        """Count bytes that exist already (an answer), beyond the limit if need be."""
        self._bytes += more_bytes
        self._admission._held_bytes += more_bytes

    def release(self) -> None:
        """Give all of it back; calling it again does nothing."""
        self._admission._held_bytes -= self._bytes
        self._bytes = 0
