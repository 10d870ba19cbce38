"""Whether jobs can be stored, as /readyz and /metrics say it.

A server that cannot store jobs still compresses, so this makes no server unready. Looks are taken
in the background, while somebody asks; a health check gets the answer of the last and waits for
none.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Gauge

from service.api.desk import Desk
from service.api.schemas import JobStorageState
from service.errors import JobsUnavailable, ObjectsUnavailable, RankpressError
from service.jobs.jobs import Jobs

LOOK_EVERY_S: Final = 10.0
PATIENCE_S: Final = 5.0
"""Seconds that the metrics wait for a look."""

ANSWER_S: Final = 30.0
"""Seconds after which a database or an object store without an answer counts as away."""

log = structlog.get_logger("rankpress.api")


class JobStorage:
    """What the last look at the storage of the jobs saw. Use from the event loop's thread.

    Attributes:
        state: what it saw.
    """

    def __init__(self, desk: Desk, registry: CollectorRegistry) -> None:
        self._desk = desk
        self.state: JobStorageState = "unknown" if desk.offered else "off"
        self._look: asyncio.Task[None] | None = None
        self._looked_s, self._away_since_s = -math.inf, math.inf
        self._asking = threading.Lock()
        self._waiting = Gauge(
            "rankpress_jobs_waiting_for_storage",
            "Running jobs that wait for the database or the object store.",
            registry=registry,
        )
        Gauge(
            "rankpress_jobs_storage_available",
            "1 where jobs can be stored, 0 where they cannot.",
            registry=registry,
        ).set_function(self._availability)
        Gauge(
            "rankpress_jobs_storage_outage_seconds",
            "Seconds since jobs cannot be stored; 0 while they can.",
            registry=registry,
        ).set_function(lambda: max(0.0, time.monotonic() - self._away_since_s))

    def latest(self) -> JobStorageState:
        """What the last look saw; where that was long ago, another one is begun."""
        if self._desk.offered and time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._begin()
        return self.state

    async def refresh(self) -> None:
        """Take a look now, but do not wait for it for long."""
        if self._desk.offered:
            await asyncio.wait({self._begin()}, timeout=PATIENCE_S)

    async def close(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    def _begin(self) -> asyncio.Task[None]:
        """The look that goes on, or a new one."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._take())
        return self._look

    async def _take(self) -> None:
        state: JobStorageState = "available"
        try:
            waiting = await self._desk.ask(_count_waiting, ANSWER_S)
            self._waiting.set(waiting)
            await self._desk.ask_files(self._check, ANSWER_S)
            if waiting:
                state = "waiting"
        except JobsUnavailable as error:
            state, reason = "database-unavailable", str(error)
            self._waiting.set(math.nan)
        except ObjectsUnavailable as error:
            state, reason = "objects-unavailable", str(error)
        except RankpressError:  # too many questions wait: that is no news of the storage
            return
        else:
            reason = ""
        now_s = time.monotonic()
        if state != self.state:
            log.log(
                20 if state == "available" else 30, "storage of jobs", state=state, reason=reason
            )
        self._away_since_s = math.inf if state == "available" else min(self._away_since_s, now_s)
        self.state, self._looked_s = state, now_s

    def _check(self, jobs: Jobs) -> None:
        """Try the object store; no further try, with a thread of its own, joins one that hangs."""
        if not self._asking.acquire(blocking=False):
            raise ObjectsUnavailable("the last try has had no answer yet")
        try:
            jobs.check_objects()
        finally:
            self._asking.release()

    def _availability(self) -> float:
        return math.nan if self.state in ("off", "unknown") else float(self.state == "available")


def _count_waiting(jobs: Jobs) -> int:
    """Jobs that wait for storage, as far as can be known; finds out if any could be written."""
    jobs.check_database()
    return sum(job.waiting_since_s is not None for job in jobs.active())
