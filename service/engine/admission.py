"""Admission in front of the codec: who may wait, how many bytes are held, and who is next.

A fixed number of worker threads runs whole units of work (read the file, code it, write the file);
everyone else waits in one of two lanes, for small work and for large work (lane.py), up to a number
of requests and a sum of bytes, and is refused beyond that with an honest guess at when to come
back: the size of the work that is here, at the time that work of that size has taken. All state
belongs to the event loop's thread, so there are no locks.

Knows nothing of HTTP, of image files or of what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from service.engine.lane import Done as Done  # for the callers of `Admission.run`
from service.engine.lane import Lane, Speed, Together
from service.engine.line import Entry, Group, Line
from service.errors import RankpressError, Saturated, SelfTestFailed

T = TypeVar("T")

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
        workers: threads of each lane, and so units of its work that run at the same time.
        max_waiting: requests that may wait. max_wait_s: seconds that one may have to, by the
            measured service time, once `ALWAYS_WAITING` of each worker of its lane wait.
        max_waiting_bytes: sum of the bytes that all `Hold`s may grow to.
        small_size: work of at most that size takes the lane for small work.
        batching: None works on one request at a time in each thread.

    Attributes:
        speed: how long work has taken.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_waiting: int,
        max_waiting_bytes: int,
        max_wait_s: float = math.inf,
        small_size: float = math.inf,
        batching: Batching | None = None,
    ) -> None:
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._max_held_bytes = max_waiting_bytes
        self._small_size = small_size
        self._held_bytes = 0
        self._phase = Phase.STARTING
        self.speed = Speed()
        together = batching.together if batching else None
        line = Line(batching.max_batch, batching.window_s) if batching else Line()
        self._small = Lane("small", workers, line, self.speed, together)
        # Large pictures have several tiles, and only those of one tile share a call.
        self._large = Lane("large", workers, Line(), self.speed, gives_way_to=self._small)

    @property
    def phase(self) -> Phase:
        """What becomes of work that arrives now."""
        return self._phase

    @property
    def waiting(self) -> int:
        """Requests waiting for a worker."""
        return self._small.waiting + self._large.waiting

    @property
    def running(self) -> int:
        """Requests in the worker threads, those whose caller has left included."""
        return self._small.running + self._large.running

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies and answers in memory."""
        return self._held_bytes

    @property
    def retry_after_s(self) -> int:
        """When the work now here will be through, from the times measured; at least 1."""
        return max(_retry_after_s(lane) for lane in self._lanes)

    @property
    def _lanes(self) -> tuple[Lane, Lane]:
        return self._small, self._large

    def start(self) -> None:
        """Make the worker threads; work waits until `open_after` is through."""
        for lane in self._lanes:
            lane.start()
        self._phase = Phase.STARTING

    async def open_after(self, test: Callable[[], None]) -> None:
        """Run the self-test in a worker thread, then run work; if it raises, refuse all for good.

        Raises:
            Exception: whatever `test` raises.
        """
        entry = _entry(test, None, 0.0)
        self._small.launch([entry])
        try:
            await entry.done
        except Exception:
            self._phase = Phase.FAILED
            self._refuse_waiting()
            raise
        if self._phase is Phase.STARTING:
            self._phase = Phase.OPEN
            for lane in self._lanes:
                lane.open()

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
        for lane in self._lanes:
            lane.close()

    def check(self, more_bytes: int = 0) -> None:
        """Refuse early, before it is known how large work is, what would be refused as small work.

        Args:
            more_bytes: how much a body is about to add.

        Raises:
            Saturated: too many requests wait, or too long, too many bytes are held, or the server
                drains.
            SelfTestFailed: this machine must not work.
        """
        self._check_bytes(more_bytes)
        self._check_lane(self._small)

    def hold(self) -> Hold:
        """A count of the bytes one request keeps in memory, zero at first."""
        return Hold(self)

    async def run(
        self, work: Callable[[], T], group: Group | None = None, size: float = 1.0
    ) -> Done[T]:
        """Wait for a worker and run `work` in its thread, with others of its group if it has one.

        Args:
            size: how much work it is, in a unit that is one for all that is run; above 0.

        A caller cancelled while it waits costs no work. One cancelled later stops the work at its
        next interruption point (interruption.py); its result is dropped.

        Raises:
            Saturated, SelfTestFailed: as `check` does.
            Exception: whatever `work` raises.
        """
        lane = self._small if size <= self._small_size else self._large
        self._check_bytes(0)
        self._check_lane(lane)
        return await lane.run(_entry(work, group, size))

    def _check_lane(self, lane: Lane) -> None:
        """Refuse a request that would find too many before it in this lane. Raises Saturated."""
        if self.waiting >= self._max_waiting:
            raise Saturated(f"{self.waiting} requests wait already", _retry_after_s(lane))
        through_s = lane.through_s
        long = self.speed.is_known and through_s > self._max_wait_s
        if long and lane.waiting >= ALWAYS_WAITING * lane.workers:
            message = f"{lane.waiting} requests wait already, for about {through_s:.0f} s"
            raise Saturated(message, _retry_after_s(lane))

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
        for lane in self._lanes:
            for entry in lane.entries():
                refusal = self._refusal()
                if refusal is not None and not entry.done.done():
                    entry.done.set_exception(refusal)


def _entry(work: Callable[[], Any], group: Group | None, size: float) -> Entry:
    done = asyncio.get_running_loop().create_future()
    return Entry(work, done, time.monotonic(), group, size)


def _retry_after_s(lane: Lane) -> int:
    """When a lane's work will be through, in whole seconds."""
    return max(1, min(LONGEST_RETRY_S, math.ceil(lane.through_s)))


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
