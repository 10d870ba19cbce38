"""The rows of jobs in the database: read, queued, cancelled, and annotated by workers.

A job is a workflow of DBOS, and its steps are steps of that workflow in DBOS' own tables. A row
also has attributes, which workers write so that reading a job needs no look at its steps: the last
step, the deaths of workers, and whether the job waits for storage. They may lag behind the steps;
nothing is lost if one is missing. Every method blocks; use from many threads is allowed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from service.errors import ExpiredJob, UnknownJob
from service.jobs.database import (
    ADVANCE,
    APPLICATION,
    QUEUE,
    VERSION,
    WORKFLOW,
    check_file,
    open_client,
    reported,
)
from service.jobs.job import ENDED, Job, JobSpec, State, StepRecord, is_job_id
from service.jobs.rows import (
    AGAIN,
    BEGUN,
    WAITING,
    attributes_after,
    attributes_of,
    is_over,
    iso,
    job_of,
    statuses,
)
from service.webhooks import delivery

if TYPE_CHECKING:
    from dbos import StepInfo

BATCH: Final = 500
"""Rows that are deleted at a time."""


class JobTable:
    """All jobs of one database."""

    def __init__(self, url: str, result_ttl_s: float) -> None:
        """Open a prepared database, whose ended jobs are kept for `result_ttl_s` seconds.

        Raises JobsUnavailable: it does not answer. So does every method of this class.
        """
        self._url, self.result_ttl_s = url, result_ttl_s
        with reported():
            self._client = open_client(url)

    def close(self) -> None:
        """Close the connections to the database."""
        self._client.destroy()

    def check(self) -> None:
        """Raise JobsUnavailable if no job could be stored; the file of SQLite must be writable."""
        with reported():
            self._client.list_workflows(limit=1, load_input=False, load_output=False)
            check_file(self._url)

    def get(self, job_id: str) -> Job:
        """A job with its last step, also if its row lacks that.

        Raises UnknownJob: there is none. ExpiredJob: its result is no longer kept.
        """
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id[:80]!r}")
        if is_over(job.expires_s):
            raise ExpiredJob(f"job {job_id} ended more than {self.result_ttl_s:g} s ago")
        return self.with_last_step(job)

    def find(self, job_id: str) -> Job | None:
        """A job as its row shows it, expired or not; None if there is none."""
        if not is_job_id(job_id):
            return None
        jobs = self._list(workflow_ids=[job_id], load_output=True)
        return jobs[0] if jobs else None

    def find_all(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Those of the jobs that exist, as their rows show them, by id."""
        return {job.id: job for job in self._list(workflow_ids=list(job_ids))}

    def with_last_step(self, job: Job) -> Job:
        """The job with its last step; only steps after the one in the row are read.

        A worker may not have been able to write that step to the row, and what the row names
        instead may be deleted.
        """
        steps = self.steps(job.id, job.steps)
        if not steps:
            return job
        number, record = steps[-1]
        return replace(job, steps=number, record=record)

    def recent(self, states: Sequence[State] = (), limit: int = 50) -> list[Job]:
        """Jobs in these states (in all if none is given) as their rows show them, newest first."""
        return self._list(status=statuses(states) or None, limit=limit, sort_desc=True)

    def active(self, states: Sequence[State] = ("queued", "running")) -> list[Job]:
        """Jobs that wait or run."""
        return self._list(status=statuses(states))

    def ended_since(self, since_s: float) -> list[Job]:
        """Jobs that ended after a Unix time."""
        return self._list(status=statuses(ENDED), completed_after=iso(since_s))

    def is_full(self, max_waiting: int) -> bool:
        """Whether at least so many jobs wait."""
        return len(self._ids(status=statuses(("queued",)), limit=max_waiting)) >= max_waiting

    def steps(self, job_id: str, after: int) -> list[tuple[int, StepRecord]]:
        """Numbers (from 1) and records of a job's steps after one, the earliest first."""
        return [
            (step["function_id"], StepRecord.from_json(step["output"]))
            for step in self._steps(job_id, after, load_output=True)
            if step["output"] is not None
        ]

    def step_seconds(self, job_id: str, after: int) -> list[float]:
        """How long each of a job's steps after one took, the earliest first."""
        return [
            (step["completed_at_epoch_ms"] - step["started_at_epoch_ms"]) / 1000
            for step in self._steps(job_id, after, load_output=False)
            if step["completed_at_epoch_ms"] is not None and step["started_at_epoch_ms"] is not None
        ]

    def enqueue(self, spec: JobSpec, priority: int, trace: Mapping[str, str] | None = None) -> None:
        """Queue a new job, of a request with that trace."""
        with reported():
            self._client.enqueue(
                {
                    "queue_name": QUEUE,
                    "workflow_name": WORKFLOW,
                    "workflow_id": spec.id,
                    "app_version": VERSION,
                    "priority": priority,  # always given: DBOS serves jobs without one first
                    "application_name": APPLICATION,
                    "attributes": attributes_of(trace),
                },
                dict(vars(spec)),
            )

    def enqueue_delivery(self, message: delivery.Delivery) -> None:
        """Queue the first attempt to deliver a webhook, unless it was queued before."""
        with reported():
            delivery.enqueue(self._client, message, VERSION)

    def resume(self, job_ids: Sequence[str]) -> None:
        """Queue cancelled or running jobs again, with fresh attempts."""
        with reported():
            self._client.resume_workflows(list(job_ids), queue_name=QUEUE)

    def cancel(self, job_id: str) -> None:
        """Cancel a job that waits or runs."""
        with reported():
            self._client.cancel_workflow(job_id)

    def retry_failed(self, job: Job, trace: Mapping[str, str] | None = None) -> None:
        """Begin a failed job again after its last step, or anew if it failed there twice.

        It continues the trace, by default the one that it has.
        """
        trace = trace or job.trace
        if job.record is None or job.again_after == job.steps:
            self.rewind(job.id, attributes_of(trace))
            return
        attributes = attributes_after(job.steps, job.record, trace) | {AGAIN: job.steps}
        self.rewind(job.id, attributes, job.steps + 1)

    def rewind(
        self, job_id: str, attributes: dict[str, Any] | None = None, first_step: int = 1
    ) -> None:
        """Begin an ended job again with a step; do nothing if somebody else already has."""
        from dbos import error as dbos_error

        with reported():
            try:
                self._client.update_workflow_attributes(job_id, attributes)
                self._client.rewind_workflow(
                    job_id, start_step=first_step, queue_name=QUEUE, application_version=VERSION
                )
            except dbos_error.DBOSException:
                job = self.find(job_id)
                if job is None or job.state in ENDED:
                    raise

    def delete_ended(self, before_s: float) -> None:
        """Delete the rows of jobs, and of attempts to deliver, that ended before a Unix time."""
        ended = {"status": statuses(ENDED), "completed_before": iso(before_s)}
        while ids := self._ids((WORKFLOW, delivery.WORKFLOW), **ended, limit=BATCH):
            with reported():
                self._client.delete_workflows(ids)

    def register_queues(self, poll_s: float) -> None:
        """Write the queues of jobs and webhooks, which each worker reads every `poll_s` seconds.

        Each worker takes one job at a time. Call this before any worker reads a queue: DBOS would
        otherwise create it with another limit.
        """
        with reported():
            self._client.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=poll_s)
            delivery.register_queue(self._client, poll_s)

    def busy_workers(self) -> set[str]:
        """Names of the workers that jobs, or attempts to deliver, say they run on."""
        with reported():
            rows = self._client.list_workflows(
                name=[WORKFLOW, delivery.WORKFLOW],
                status=statuses(("running",)),
                load_input=False,
                load_output=False,
            )
        return {row.executor_id for row in rows if row.executor_id is not None}

    def record_start(self, job_id: str) -> int:
        """Record that a worker begins a job, anew or where another one left it.

        Returns how many workers in a row died at it since its last step, but not while they waited
        for storage. Raises UnknownJob, ExpiredJob: there is none.
        """
        job = self.get(job_id)
        with reported():
            rows = self._client.list_workflows(workflow_ids=[job_id], load_output=False)
            if not rows:
                raise UnknownJob(f"there is no job {job_id[:80]!r}")
            attributes = rows[0].attributes or {}
            steps, first = attributes.get(BEGUN, (None, 0))
            if steps == job.steps and first <= job.attempts and not attributes.get(WAITING):
                return int(job.attempts - first)
            values = {BEGUN: [job.steps, job.attempts], WAITING: None}
            self._client.update_workflow_attributes(job_id, values, merge=True)
            return 0

    def record_waiting(self, job_id: str) -> None:
        """Record that a job waits for storage from now on; its next step ends that."""
        with reported():
            self._client.update_workflow_attributes(job_id, {WAITING: time.time()}, merge=True)

    def record_step(
        self,
        job_id: str,
        number: int,
        record: StepRecord,
        trace: Mapping[str, str] | None = None,
    ) -> None:
        """Record the last step in the row, where reading a job finds it, beside the job's trace."""
        attributes = attributes_after(number, record, trace)
        with reported():
            self._client.update_workflow_attributes(job_id, attributes)

    def _list(self, *, load_output: bool = False, **filters: object) -> list[Job]:
        """Jobs as their rows show them. Without the output they lack the reason of a failure."""
        with reported():
            rows = self._client.list_workflows(
                name=WORKFLOW,
                load_output=load_output,
                **filters,  # type: ignore[arg-type]
            )
            return [job_of(row, self.result_ttl_s) for row in rows]

    def _ids(self, names: Sequence[str] = (WORKFLOW,), **filters: object) -> list[str]:
        """Ids of jobs or other workflows, without reading anything else of them."""
        with reported():
            rows = self._client.list_workflows(
                name=list(names),
                load_input=False,
                load_output=False,
                **filters,  # type: ignore[arg-type]
            )
        return [row.workflow_id for row in rows]

    def _steps(self, job_id: str, after: int, load_output: bool) -> list[StepInfo]:
        with reported():
            steps = self._client.list_workflow_steps(job_id, load_output=load_output, offset=after)
        return [step for step in steps if step["function_name"] == ADVANCE]
