"""The state of jobs as /metrics and /readyz tell it.

Jobs run in other processes, so their state is read from the database. Counts are of what this
server has seen since it started; every server of one database sees all jobs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.api.job_client import JobClient
from service.api.schemas import JobStorageState
from service.errors import JobsUnavailable, ObjectsUnavailable, RankpressError
from service.jobs.heartbeat import live_workers
from service.jobs.job import ENDED, Job, State
from service.jobs.jobs import Jobs

METRICS_TIMEOUT_S: Final = 5.0
"""Seconds that the metrics wait for the database or for a check of the storage."""

OVERLAP_S: Final = 60.0
"""How far the database's clock may differ from ours."""

STEP_BUCKETS: Final = (0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 20, 60, 300)

CHECK_INTERVAL_S: Final = 10.0
"""Seconds between two checks of the storage."""

CHECK_TIMEOUT_S: Final = 30.0
"""Seconds after which a database or an object store without an answer counts as unavailable."""

log = structlog.get_logger("rankpress.api")


@dataclass(frozen=True)
class _Sample:
    """Jobs at one time: how many wait, for how long, which run and ended, seconds of new steps."""

    queued: int
    oldest_s: float
    running: int
    ended: dict[str, State]
    step_seconds: dict[str, list[float]]


class JobMetrics:
    """Gauges, counters and a histogram of jobs."""

    def __init__(self, job_client: JobClient, registry: CollectorRegistry) -> None:
        self._job_client = job_client
        self._queued = Gauge("rankpress_jobs_queued", "Jobs that wait.", registry=registry)
        self._oldest = Gauge(
            "rankpress_jobs_oldest_seconds",
            "Seconds that the job waits that has waited longest; 0 where none waits.",
            registry=registry,
        )
        self._running = Gauge("rankpress_jobs_running", "Jobs that run.", registry=registry)
        self._ended = Counter(
            "rankpress_jobs_ended", "Jobs that ended, by state.", ("state",), registry=registry
        )
        for state in ENDED:  # from 0 on, so that the first one is an increase
            self._ended.labels(state)
        self._steps = Histogram(
            "rankpress_job_step_seconds",
            "Seconds of a job's step, from one checkpoint to the next.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._is_reading = False
        self._since_s = time.time()
        self._counted_steps: dict[str, int] = {}
        self._counted_ends: frozenset[str] = frozenset()

    async def refresh(self) -> None:
        """Read the jobs; without an answer the gauges become NaN."""
        if not self._job_client.is_enabled or self._is_reading:
            return
        self._is_reading = True
        now_s = time.time()
        try:
            sample = await self._job_client.call(self._read, METRICS_TIMEOUT_S)
        except RankpressError as error:
            log.warning("no metrics of jobs", reason=str(error))
            for gauge in (self._queued, self._oldest, self._running):
                gauge.set(math.nan)
            return
        finally:
            self._is_reading = False
        self._since_s = now_s
        self._observe(sample)

    def _read(self, jobs: Jobs) -> _Sample:
        active = jobs.table.active()
        ended = {j.id: j.state for j in jobs.table.ended_since(self._since_s - OVERLAP_S)}
        running = [job.id for job in active if job.state == "running"]
        ids = [*running, *(job_id for job_id in ended if job_id not in self._counted_ends)]
        seconds = {i: jobs.table.step_seconds(i, self._counted_steps.get(i, 0)) for i in ids}
        now_s = time.time()
        ages = [now_s - job.queued_since_s for job in active if job.queued_since_s is not None]
        return _Sample(len(ages), max([0.0, *ages]), len(running), ended, seconds)

    def _observe(self, sample: _Sample) -> None:
        self._queued.set(sample.queued)
        self._oldest.set(sample.oldest_s)
        self._running.set(sample.running)
        for job_id, seconds in sample.step_seconds.items():
            for value in seconds:
                self._steps.observe(value)
            self._counted_steps[job_id] = self._counted_steps.get(job_id, 0) + len(seconds)
        for job_id in sample.ended.keys() - self._counted_ends:
            self._ended.labels(sample.ended[job_id]).inc()
            self._counted_steps.pop(job_id, None)
        self._counted_ends = frozenset(sample.ended)


class JobStorageMonitor:
    """Whether jobs can be stored. Use from the event loop's thread.

    A server that cannot store jobs still compresses, so its state makes no server unready. The
    storage is checked in the background while somebody asks; a health check gets the result of
    the last check and waits for none.

    Attributes:
        state: result of the last check.
    """

    def __init__(self, job_client: JobClient, registry: CollectorRegistry) -> None:
        self._job_client = job_client
        self.state: JobStorageState = "unknown" if job_client.is_enabled else "off"
        self._check: asyncio.Task[None] | None = None
        self._checked_s, self._failed_since_s = -math.inf, math.inf
        self._checking_objects = threading.Lock()
        gauge = partial(Gauge, registry=registry)
        self._waiting = gauge(
            "rankpress_jobs_waiting_for_storage",
            "Running jobs that wait for the database or the object store.",
        )
        self._workers = gauge(
            "rankpress_job_workers",
            "Processes that work on jobs and have shown a heartbeat in the last minute, by state.",
            ("state",),
        )
        available = "1 where jobs can be stored, 0 where they cannot."
        gauge("rankpress_jobs_storage_available", available).set_function(self._availability)
        outage = "Seconds since jobs cannot be stored; 0 while they can."
        gauge("rankpress_jobs_storage_outage_seconds", outage).set_function(
            lambda: max(0.0, time.monotonic() - self._failed_since_s)
        )

    def latest(self) -> JobStorageState:
        """The result of the last check; if that was long ago, another one is started."""
        is_old = time.monotonic() - self._checked_s >= CHECK_INTERVAL_S
        if self._job_client.is_enabled and is_old:
            self._start_check()
        return self.state

    async def refresh(self) -> None:
        """Check the storage now, but do not wait long for the result."""
        if self._job_client.is_enabled:
            await asyncio.wait({self._start_check()}, timeout=METRICS_TIMEOUT_S)

    async def close(self) -> None:
        """Check no more."""
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)

    def _start_check(self) -> asyncio.Task[None]:
        """The check that is running, or a new one."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._run_check())
        return self._check

    async def _run_check(self) -> None:
        state: JobStorageState = "available"
        reason = ""
        try:
            running = await self._job_client.call(_running_jobs, CHECK_TIMEOUT_S)
            waiting = sum(job.waiting_since_s is not None for job in running)
            self._waiting.set(waiting)
            live = await self._job_client.call_with_files(self._check_objects, CHECK_TIMEOUT_S)
            self._show_workers(live, {job.worker for job in running})
            if waiting:
                state = "waiting"
        except JobsUnavailable as error:
            state, reason = "database-unavailable", str(error)
            self._waiting.set(math.nan)
            self._workers.clear()
        except ObjectsUnavailable as error:
            state, reason = "objects-unavailable", str(error)
            self._workers.clear()
        except RankpressError:  # too many calls are pending, which says nothing of the storage
            return
        now_s = time.monotonic()
        is_available = state == "available"
        if state != self.state:
            level = logging.INFO if is_available else logging.WARNING
            log.log(level, "storage of jobs", state=state, reason=reason)
        self._failed_since_s = math.inf if is_available else min(self._failed_since_s, now_s)
        self.state, self._checked_s = state, now_s

    def _check_objects(self, jobs: Jobs) -> set[str]:
        """Try the object store, unless an earlier try still occupies a thread.

        Returns the names of the workers that are alive, which the store holds.
        """
        if not self._checking_objects.acquire(blocking=False):
            raise ObjectsUnavailable("the last check has had no answer yet")
        try:
            jobs.check_objects()
            return live_workers(jobs.objects)
        finally:
            self._checking_objects.release()

    def _show_workers(self, live: set[str], with_jobs: set[str | None]) -> None:
        self._workers.labels("busy").set(len(live & with_jobs))
        self._workers.labels("idle").set(len(live - with_jobs))

    def _availability(self) -> float:
        return math.nan if self.state in ("off", "unknown") else float(self.state == "available")


def _running_jobs(jobs: Jobs) -> list[Job]:
    """The jobs that run. Raises JobsUnavailable: no job could be stored."""
    jobs.table.check()
    return jobs.table.active(("running",))
