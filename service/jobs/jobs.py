"""Jobs as their users see them: submit, fetch, cancel, rescue.

This joins the rows of the database (job_table.py) with the files of the jobs. It does no work of a
job itself. The API and the command line use it, and the worker for its upkeep. Every method blocks;
use from many threads is allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from service.blobs import Objects, open_objects
from service.errors import (
    BadParameter,
    ExpiredJob,
    JobEnded,
    JobUnfinished,
    NoSuchObject,
    Saturated,
)
from service.jobs.heartbeat import live_workers
from service.jobs.job import ENDED, Job, JobSpec, folder_of, summary_of
from service.jobs.job_table import JobTable
from service.jobs.rows import attributes_of, is_over
from service.settings import Settings
from service.webhooks.delivery import first_delivery

RETRY_AFTER_S: Final = 30
"""Seconds after which a client that found the queue full may try again."""

CHECK_ID: Final = "check"
"""Used like a job's id for the file that checks whether files can be stored. No job has this id, so
that expiry removes the file later."""

log = structlog.get_logger("rankpress.jobs")


class Jobs:
    """All jobs of one database, and their files in an object store."""

    def __init__(self, table: JobTable, objects: Objects, settings: Settings) -> None:
        self.table, self.objects, self._settings = table, objects, settings
        self._submitting = threading.Lock()

    def close(self) -> None:
        """Close the connections to the database."""
        self.table.close()

    def submit(
        self, image: bytes, spec: JobSpec, priority: int, trace: Mapping[str, str] | None = None
    ) -> Job:
        """Queue a job unless it is queued, running or done already; return it.

        A job that was cancelled or failed goes on from its last step, unless it failed twice right
        after that step. A job whose result is gone or damaged begins anew.

        Args:
            image: a file that can be read. spec: of that file. priority: 1 is served first, 9 last.
            trace: of the request, which the job continues unless it goes on from a cancelled one.

        Raises:
            Saturated: too many jobs wait. JobsUnavailable, ObjectsUnavailable: try again later.
        """
        with self._submitting:
            job = self.table.find(spec.id)
            if job is not None:
                job = self.table.with_last_step(job)
                if self._is_good(job):
                    return job
            limit = self._settings.max_jobs_waiting
            if self.table.is_full(limit):
                raise Saturated(f"{limit} jobs wait already", RETRY_AFTER_S)
            self.objects.put_named(spec.image_key, image)
            if job is None:
                self.table.enqueue(spec, priority, trace)
            elif job.state == "cancelled" and not is_over(job.expires_s):
                self.table.resume([spec.id])
            elif job.state == "failed" and not is_over(job.expires_s):
                self.table.retry_failed(job, trace)
            else:
                self.table.rewind(spec.id, attributes_of(trace))
        return self.table.get(spec.id)

    def best(self, job_id: str) -> tuple[Job, bytes]:
        """A job and its best stream so far, in whatever state the job is.

        Raises:
            JobUnfinished, JobEnded: no step has been done yet, or will be.
            UnknownJob, ExpiredJob, JobsUnavailable, ObjectsUnavailable: as `JobTable.get`.
        """
        for _ in range(3):  # a step removes the stream before it once its own is recorded
            job = self.table.get(job_id)
            if job.record is None and job.state in ENDED:
                raise JobEnded(f"job {job_id} has {job.state} without a stream")
            if job.record is None:
                raise self._unfinished(job, " and has no stream yet")
            try:
                return job, self.objects.get(job.record.stream)
            except NoSuchObject as error:
                missing = error
        raise ExpiredJob(f"the stream of job {job_id} is no longer kept") from missing

    def result(self, job_id: str) -> tuple[Job, bytes]:
        """A succeeded job and its result.

        Raises:
            JobUnfinished: the job waits or runs. JobEnded: it failed or was cancelled.
            UnknownJob, ExpiredJob, JobsUnavailable, ObjectsUnavailable: as `best`.
        """
        job = self.table.get(job_id)
        if job.state not in ENDED:
            raise self._unfinished(job)
        if job.state != "succeeded":
            reason = f": {job.error}" if job.error else ""
            raise JobEnded(f"job {job_id} has {job.state}{reason}")
        return self.best(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stop a job; its last step is kept. A job that is cancelled already stays so.

        Raises:
            JobEnded: it has succeeded or failed.
            UnknownJob, ExpiredJob, JobsUnavailable: as `JobTable.get`.
        """
        job = self.table.get(job_id)
        if job.state not in ENDED:
            self.table.cancel(job_id)
            job = self.table.get(job_id)
        if job.state != "cancelled":
            raise JobEnded(f"job {job_id} has {job.state}: there is nothing to cancel")
        return job

    def rescue(self, job_ids: Sequence[str]) -> list[str]:
        """Queue jobs again by hand, with fresh attempts; return the ids of those that were queued.

        Args:
            job_ids: jobs that failed, were cancelled or run; a worker that loses a job so notices
                and stops. Without any, all jobs that run on workers without a heartbeat.

        Raises:
            UnknownJob: one of them does not exist; nothing was done.
        """
        jobs = [self.table.get(job_id) for job_id in job_ids] or self.lost()
        rescued = []
        for job in jobs:
            if job.state == "failed":
                self.table.retry_failed(job)
            elif job.state in ("running", "cancelled"):
                self.table.resume([job.id])
            else:
                continue
            rescued.append(job.id)
        return rescued

    def tell(self, job: Job, details: Mapping[str, str | int | float]) -> None:
        """Queue a webhook about a job that has ended, unless its receiver is told of that already.

        Args:
            details: of a follow-up, from a store that is not trusted: `url`, and `name` if the job
                was to make a named picture better.

        Raises:
            JobsUnavailable: it cannot be queued.
        """
        named = {"name": details["name"]} if "name" in details else {}
        message = first_delivery(
            str(details.get("url")), f"job.{job.state}", job.ended_s or 0.0, summary_of(job) | named
        )
        try:
            self.table.enqueue_delivery(message)
        except BadParameter as error:
            log.warning("webhook refused", job=job.id, reason=str(error))

    def lost(self) -> list[Job]:
        """Running jobs whose worker shows no heartbeat."""
        running = self.table.active(("running",))
        live = live_workers(self.objects) if running else set()
        return [job for job in running if job.worker not in live]

    def check_objects(self) -> None:
        """Raise ObjectsUnavailable if files of jobs cannot be written and read."""
        key = f"{folder_of(CHECK_ID)}/image"
        self.objects.put_named(key, bytes(4096))
        self.objects.get(key)

    def _is_good(self, job: Job) -> bool:
        """Whether nothing has to be done for a job that is submitted again."""
        if job.state in ("queued", "running"):
            return True
        if job.state != "succeeded" or is_over(job.expires_s):
            return False
        return job.record is not None and self.objects.is_whole(job.record.stream)

    def _unfinished(self, job: Job, detail: str = "") -> JobUnfinished:
        retry_after_s = max(1, round(self._settings.job_step_s))
        return JobUnfinished(f"job {job.id} is {job.state}{detail}", retry_after_s)


def open_jobs(settings: Settings, url: str) -> Jobs:
    """The jobs of a prepared database. Raises JobsUnavailable, ObjectsUnavailable."""
    table = JobTable(url, settings.result_ttl_s)
    objects = open_objects(settings.objects_place, settings.objects_timeout_s)
    return Jobs(table, objects, settings)
