"""Admission in front of the codec: which requests may wait, and how many bytes they may hold.

A fixed number of worker threads runs whole units of work (read the file, code it, write the file).
Other requests wait for one of two pools of threads, for small work and for large work
(worker_pool.py), up to a number of requests and a sum of bytes. Beyond that a request is refused,
with an estimate of when to come back: the size of the work that is here, times the measured seconds
for that size. All state belongs to the event loop's thread, so there are no locks.

This module knows nothing of HTTP, of image files or of what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

from service.engine.admission_queue import AdmissionQueue, QueuedWork, RequestGroup
from service.engine.worker_pool import PoolUsage, RunTogether, Speed, WorkerPool
from service.engine.worker_pool import WorkResult as WorkResult  # for callers of `Admission.run`
from service.errors import RankpressError, Saturated, SelfTestFailed

T = TypeVar("T")

LONGEST_RETRY_S: Final = 300
"""Largest `retry_after_s` that is given."""

ALWAYS_WAITING: Final = 4
"""Requests of each worker that may wait however long it takes: one large picture must not make the
server refuse all others."""


class Phase(Enum):
    """What happens to work that arrives now."""

    STARTING = "starting"
    """It waits until the self-test has passed."""
    OPEN = "open"
    """It runs in its turn."""
    DRAINING = "draining"
    """It is refused; work that was admitted before still runs."""
    FAILED = "failed"
    """It is refused for good: this machine does not reproduce the golden stream."""


@dataclass(frozen=True)
class Batching:
    """How requests of a group share calls: at most `max_batch` of them, done by `run_together`.

    A request waits for others for at most `window_s` seconds.
    """

    run_together: RunTogether
    max_batch: int
    window_s: float


class Admission:
    """Bounded queues with worker threads behind them.

    Call everything from the event loop's thread: `start`, `open_after`, any number of `run`, then
    `begin_drain` and `close`.

    Args:
        workers: threads of each pool: units of its work that run at the same time.
        max_waiting: requests that may wait.
        max_wait_s: seconds that a request may have to wait, by the measured times, once
            `ALWAYS_WAITING` requests of each worker of its pool wait.
        max_waiting_bytes: sum of the bytes that all `HeldBytes` may grow to.
        small_size: work of at most that size goes to the pool for small work.
        batching: None runs one request at a time in each thread.

    Attributes:
        speed: how long work has taken.
        held_bytes: bytes of bodies and answers in memory, which `HeldBytes` count.
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
        self.held_bytes = 0
        self._phase = Phase.STARTING
        self.speed = Speed()
        queue, run_together = AdmissionQueue(), None
        if batching is not None:
            queue = AdmissionQueue(batching.max_batch, batching.window_s)
            run_together = batching.run_together
        self._small = WorkerPool("small", workers, queue, self.speed, run_together)
        # Large pictures have several tiles, and only pictures of one tile share a call.
        self._large = WorkerPool(
            "large", workers, AdmissionQueue(), self.speed, gives_way_to=self._small
        )
        self._pools = self._small, self._large

    @property
    def phase(self) -> Phase:
        """What happens to work that arrives now."""
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
    def usage(self) -> tuple[PoolUsage, ...]:
        """What each pool of worker threads has done so far."""
        return tuple(pool.usage for pool in self._pools)

    @property
    def retry_after_s(self) -> int:
        """Seconds until the work that is here now will be done, as measured; at least 1."""
        return max(_retry_after_s(pool) for pool in self._pools)

    def start(self) -> None:
        """Make the worker threads; work waits until `open_after` has returned."""
        for pool in self._pools:
            pool.start()
        self._phase = Phase.STARTING

    async def open_after(self, test: Callable[[], None]) -> None:
        """Run a test in a worker thread, then open; if it raises, refuse all work for good."""
        entry = _entry(test, None, 0.0)
        self._small.launch([entry])
        try:
            await entry.result
        except Exception:
            self._phase = Phase.FAILED
            self._refuse_waiting()
            raise
        if self._phase is Phase.STARTING:
            self._phase = Phase.OPEN
            for pool in self._pools:
                pool.open()

    def begin_drain(self) -> None:
        """Refuse new work. Work that waits still runs, unless the self-test has not passed yet."""
        if self._phase is Phase.OPEN:
            self._phase = Phase.DRAINING
        elif self._phase is Phase.STARTING:
            self._phase = Phase.DRAINING
            self._refuse_waiting()

    def close(self) -> None:
        """Refuse the work that still waits; the threads end with their present work."""
        self.begin_drain()
        self._refuse_waiting()
        for pool in self._pools:
            pool.close()

    def check(self, more_bytes: int = 0) -> None:
        """Refuse a request before the size of its work is known, if even small work is refused.

        Raises:
            Saturated: too many requests wait, or for too long, too many bytes would be held with
                `more_bytes` of the request's body, or the server drains.
            SelfTestFailed: this machine must not work.
        """
        self.check_bytes(more_bytes)
        self._check_pool(self._small)

    def hold(self) -> HeldBytes:
        """A count of the bytes one request keeps in memory, zero at first."""
        return HeldBytes(self)

    async def run(
        self, work: Callable[[], T], group: RequestGroup | None = None, size: float = 1.0
    ) -> WorkResult[T]:
        """Wait for a worker and run `work` in its thread, with others of its group if it has one.

        A caller cancelled while it waits costs no work. One cancelled later stops the work at its
        next interruption point (interruption.py); its result is dropped.

        Args:
            size: how much work it is, above 0, in a unit that is the same for all work.

        Raises:
            Saturated, SelfTestFailed: as `check` does.
            Exception: whatever `work` raises.
        """
        pool = self._small if size <= self._small_size else self._large
        self.check_bytes(0)
        self._check_pool(pool)
        return await pool.run(_entry(work, group, size))

    def _check_pool(self, pool: WorkerPool) -> None:
        """Refuse a request that would have too many before it in a pool. Raises Saturated."""
        if self.waiting >= self._max_waiting:
            raise Saturated(f"{self.waiting} requests wait already", _retry_after_s(pool))
        through_s = pool.through_s
        long = self.speed.is_known and through_s > self._max_wait_s
        if long and pool.waiting >= ALWAYS_WAITING * pool.workers:
            message = f"{pool.waiting} requests wait already, for about {through_s:.0f} s"
            raise Saturated(message, _retry_after_s(pool))

    def check_bytes(self, more_bytes: int) -> None:
        """Refuse more bytes of any request. Raises Saturated, SelfTestFailed: see `check`."""
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        if self.held_bytes + more_bytes > self._max_held_bytes:
            raise Saturated("too many bytes are held for other requests", self.retry_after_s)

    def _refusal(self) -> RankpressError | None:
        if self._phase is Phase.FAILED:
            return SelfTestFailed("this machine did not reproduce the golden stream")
        if self._phase is Phase.DRAINING:
            return Saturated("the server is shutting down", self.retry_after_s)
        return None

    def _refuse_waiting(self) -> None:
        for pool in self._pools:
            for entry in pool.remove_waiting():
                refusal = self._refusal()
                if refusal is not None and not entry.result.done():
                    entry.result.set_exception(refusal)


def _entry(work: Callable[[], Any], group: RequestGroup | None, size: float) -> QueuedWork:
    result = asyncio.get_running_loop().create_future()
    return QueuedWork(work, result, time.monotonic(), group, size)


def _retry_after_s(pool: WorkerPool) -> int:
    """Whole seconds until a pool's work will be done."""
    return max(1, min(LONGEST_RETRY_S, math.ceil(pool.through_s)))


class HeldBytes:
    """The bytes that one request keeps in memory, counted against the limit for all requests."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def grow(self, more_bytes: int) -> None:
        """Count new bytes. Raises Saturated, SelfTestFailed: see `check`; none is counted."""
        self._admission.check_bytes(more_bytes)
        self.add(more_bytes)

    def add(self, more_bytes: int) -> None:
        """Count bytes of an answer, even beyond the limit; below zero: so many fewer are held."""
        self._bytes += more_bytes
        self._admission.held_bytes += more_bytes

    def release(self) -> None:
        """Count none of the bytes any more; calling it again does nothing."""
        self._admission.held_bytes -= self._bytes
        self._bytes = 0
