"""What Prometheus sees of jobs. They run in other processes, so it is read from the database.

Counts are of what was seen since this server started; every server of one database sees all jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.api.desk import Desk
from service.errors import RankpressError
from service.jobs.job import State
from service.jobs.jobs import Jobs

TIMEOUT_S: Final = 5.0
OVERLAP_S: Final = 60.0
"""The database's clock may be this far behind ours."""

STEP_BUCKETS: Final = (0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 20, 60, 300)

log = structlog.get_logger("rankpress.api")


@dataclass(frozen=True)
class _Seen:
    """What one look found: numbers of jobs, those that ended, and new steps."""

    queued: int
    running: int
    ended: dict[str, State]
    steps: dict[str, list[float]]


class JobMetrics:
    """Gauges, counters and a histogram of jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued = Gauge("rankpress_jobs_queued", "Jobs that wait.", registry=registry)
        self._running = Gauge("rankpress_jobs_running", "Jobs that run.", registry=registry)
        self._ended = Counter(
            "rankpress_jobs_ended", "Jobs that ended, by state.", ("state",), registry=registry
        )
        self._steps = Histogram(
            "rankpress_job_step_seconds",
            "Seconds of a job's step, from one checkpoint to the next.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self._looking = False
        self._since_s = time.time()
        self._counted: dict[str, int] = {}
        self._known: frozenset[str] = frozenset()

    async def refresh(self, desk: Desk) -> None:
        """Look at the jobs; without an answer the gauges are not a number."""
        if not desk.offered or self._looking:
            return
        self._looking = True
        now_s = time.time()
        try:
            seen = await desk.ask(self._look, TIMEOUT_S)
        except RankpressError as error:
            log.warning("no metrics of jobs", reason=str(error))
            self._queued.set(float("nan"))
            self._running.set(float("nan"))
            return
        finally:
            self._looking = False
        self._since_s = now_s
        self._take(seen)

    def _look(self, jobs: Jobs) -> _Seen:
        active = jobs.active()
        ended = {j.id: j.state for j in jobs.ended_since(self._since_s - OVERLAP_S)}
        running = [job.id for job in active if job.state == "running"]
        wanted = [*running, *(job_id for job_id in ended if job_id not in self._known)]
        steps = {each: jobs.step_seconds(each, self._counted.get(each, 0)) for each in wanted}
        return _Seen(len(active) - len(running), len(running), ended, steps)

    def _take(self, seen: _Seen) -> None:
        self._queued.set(seen.queued)
        self._running.set(seen.running)
        for job_id, seconds in seen.steps.items():
            for value in seconds:
                self._steps.observe(value)
            self._counted[job_id] = self._counted.get(job_id, 0) + len(seconds)
        for job_id in seen.ended.keys() - self._known:
            self._ended.labels(seen.ended[job_id]).inc()
            self._counted.pop(job_id, None)
        self._known = frozenset(seen.ended)
