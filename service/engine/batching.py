"""Admission in front of the codec: who may wait, how many bytes are held, and who is next.

A fixed number of worker threads runs whole units of work (read the file, code it, write the file);
everyone else waits in a line (line.py says who is next, and with whom), up to a number of requests
and a sum of bytes, and is refused beyond that with an honest guess at when to come back: the size
of the work that is here, at the time that work of that size has taken. All state
belongs to the event loop's thread, so there are no locks.

Knows nothing of HTTP, of image files or of what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar

from service.engine.line import Entry, Group, Line
from service.errors import RankpressError, Saturated, SelfTestFailed

T = TypeVar("T")

Together = Callable[[Sequence[Callable[[], Any]]], Sequence[Any]]
"""Does the work of a batch in one call; gives what each returned, or the exception it raised."""

FIRST_GUESS_S = 1.0
"""Time of one request assumed until one has been measured."""

SMOOTHING = 0.2
"""Weight of the newest time and size in the running means."""

LONGEST_RETRY_S = 300
"""Largest `retry_after_s` ever given."""

ALWAYS_WAITING = 4
"""Requests of each worker that may wait however long: one large picture must not turn away all."""


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


@dataclass(frozen=True)
class Batching:
    """How requests of a group share calls.

    Attributes:
        together: does the work of several. max_batch: requests in one call.
        window_s: seconds that a request may wait for others.
    """

    together: Together
    max_batch: int
    window_s: float


class Admission:
    """A bounded waiting room with worker threads behind it.

    Call everything from the event loop's thread: `start`, `open_after`, any number of `run`, then
    `begin_drain` and `close`.

    Args:
        workers: threads, and so units of work that run at the same time.
        max_waiting: requests that may wait. max_wait_s: seconds that one may have to, by the
            measured service time, once `ALWAYS_WAITING` of each worker wait.
        max_waiting_bytes: sum of the bytes that all `Hold`s may grow to.
        batching: None works on one request at a time in each thread.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_waiting: int,
        max_waiting_bytes: int,
        max_wait_s: float = math.inf,
        batching: Batching | None = None,
    ) -> None:
        self._workers = workers
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._max_held_bytes = max_waiting_bytes
        self._batching = batching
        self._line = Line(batching.max_batch, batching.window_s) if batching else Line()
        self._alarm: asyncio.TimerHandle | None = None
        self._busy = 0
        self._running = 0
        self._running_size = 0.0
        self._held_bytes = 0
        self._mean_s: float | None = None
        self._mean_size = 0.0
        self._phase = Phase.STARTING
        self._pool: ThreadPoolExecutor | None = None

    @property
    def phase(self) -> Phase:
        """What becomes of work that arrives now."""
        return self._phase

    @property
    def waiting(self) -> int:
        """Requests waiting for a worker."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Requests in the worker threads, those whose caller has left included."""
        return self._running

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies and answers in memory."""
        return self._held_bytes

    @property
    def retry_after_s(self) -> int:
        """When the work now here will be through, from the times measured; at least 1."""
        return max(1, min(LONGEST_RETRY_S, math.ceil(self._through_s())))

    def _through_s(self) -> float:
        if self._mean_s is None:
            return FIRST_GUESS_S * (len(self._line) + self._running) / self._workers
        size = self._running_size + sum(entry.size for entry in self._line)
        return self._mean_s / self._mean_size * size / self._workers

    def start(self) -> None:
        """Make the worker threads; work waits until `open_after` is through."""
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="rankpress-work")
        self._phase = Phase.STARTING

    async def open_after(self, test: Callable[[], None]) -> None:
        """Run the self-test in a worker thread, then run work; if it raises, refuse all for good.

        Raises:
            Exception: whatever `test` raises.
        """
        entry = self._entry(test, None, 0.0)
        self._launch([entry])
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
        if self._alarm is not None:
            self._alarm.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def check(self, more_bytes: int = 0) -> None:
        """Refuse early what would be refused anyway.

        Args:
            more_bytes: how much a body is about to add.

        Raises:
            Saturated: too many requests wait, or too long, too many bytes are held, or the server
                drains.
            SelfTestFailed: this machine must not work.
        """
        self._check_bytes(more_bytes)
        waiting, through_s = len(self._line), self._through_s()
        if waiting >= self._max_waiting:
            raise Saturated(f"{waiting} requests wait already", self.retry_after_s)
        long = self._mean_s is not None and through_s > self._max_wait_s
        if long and waiting >= ALWAYS_WAITING * self._workers:
            message = f"{waiting} requests wait already, for about {through_s:.0f} s"
            raise Saturated(message, self.retry_after_s)

    def hold(self) -> Hold:
        """A count of the bytes one request keeps in memory, zero at first."""
        return Hold(self)

    async def run(
        self, work: Callable[[], T], group: Group | None = None, size: float = 1.0
    ) -> Done[T]:
        """Wait for a worker and run `work` in its thread, with others of its group if it has one.

        Args:
            size: how much work it is, in a unit that is one for all that is run; above 0.

        A caller cancelled while it waits costs no work. One cancelled later leaves the work to
        end by itself, its result dropped: a thread cannot be interrupted.

        Raises:
            Saturated, SelfTestFailed: as `check` does.
            Exception: whatever `work` raises.
        """
        self.check()
        entry = self._entry(work, group, size)
        self._line.append(entry)
        self._start_next()
        try:
            done: Done[T] = await entry.done
            return done
        finally:
            self._line.discard(entry)

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
        for entry in list(self._line):
            self._line.discard(entry)
            refusal = self._refusal()
            if refusal is not None and not entry.done.done():
                entry.done.set_exception(refusal)

    def _start_next(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        runs = self._phase in (Phase.OPEN, Phase.DRAINING) and self._pool is not None
        while runs and self._busy < self._workers:
            entries = self._line.take(time.monotonic())
            if not entries:
                return self._start_when_due()
            self._launch(entries)

    def _start_when_due(self) -> None:
        due_s = self._line.due_s()
        if due_s is not None:
            delay_s = max(0.0, due_s - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._start_next)

    def _entry(self, work: Callable[[], Any], group: Group | None, size: float) -> Entry:
        done = asyncio.get_running_loop().create_future()
        return Entry(work, done, time.monotonic(), group, size)

    def _launch(self, entries: list[Entry]) -> None:
        self._busy += 1
        self._running += len(entries)
        self._running_size += sum(entry.size for entry in entries)
        work = partial(self._outcomes, [entry.work for entry in entries])
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(partial(self._finish, entries, time.monotonic()))

    def _outcomes(self, works: list[Callable[[], Any]]) -> Sequence[Any]:
        """In a worker thread: what each piece of work returned or raised."""
        if len(works) == 1:
            return [works[0]()]
        assert self._batching is not None  # the line holds batches of one otherwise
        return self._batching.together(works)

    def _finish(
        self, entries: list[Entry], begun_s: float, future: asyncio.Future[Sequence[Any]]
    ) -> None:
        self._busy -= 1
        self._running -= len(entries)
        size = sum(entry.size for entry in entries)
        self._running_size -= size
        self._measure(time.monotonic() - begun_s, size)
        error = None if future.cancelled() else future.exception()
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

    def _measure(self, seconds: float, size: float) -> None:
        """Note how long work of a size took; the self-test has none.

        The means of both are kept, and not of their ratio: tiny work would otherwise weigh most.
        """
        if not size:
            return
        if self._mean_s is None:
            self._mean_s, self._mean_size = seconds, size
        self._mean_s += SMOOTHING * (seconds - self._mean_s)
        self._mean_size += SMOOTHING * (size - self._mean_size)


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
        """Count bytes that exist already (an answer), beyond the limit if need be; or no longer."""
        self._bytes += more_bytes
        self._admission._held_bytes += more_bytes

    def release(self) -> None:
        """Give all of it back; calling it again does nothing."""
        self._admission._held_bytes -= self._bytes
        self._bytes = 0
