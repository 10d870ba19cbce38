"""Jobs as their users see them: submit, look, fetch, cancel, list, rescue.

Holds a client of the database and the objects, runs no work, and may be used from many threads;
every call blocks. The API and the command line use this, and the worker for its upkeep.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.blobs import Objects, open_objects
from service.errors import (
    ExpiredJob,
    JobEnded,
    JobUnfinished,
    NoSuchObject,
    Saturated,
    UnknownJob,
)
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
from service.jobs.heartbeat import live_workers
from service.jobs.job import ENDED, Job, JobSpec, State, StepRecord, folder_of, is_job_id
from service.jobs.rows import AGAIN, attributes_after, is_over, iso, job_of, statuses
from service.settings import Settings

if TYPE_CHECKING:
    from dbos import WorkflowStatus

RETRY_AFTER_S: Final = 30
"""Said to those who find the queue full."""

CHECK: Final = "check"
"""In the place of a job's id: where it is tried whether files can be stored. No job has it, so that
expiry removes what was left there long ago."""


@dataclass(frozen=True)
class JobLimits:
    """What the settings say of jobs; see there."""

    max_waiting: int
    result_ttl_s: float
    step_s: float


class Jobs:
    """All jobs of one database."""

    def __init__(self, url: str, objects: Objects, limits: JobLimits) -> None:
        with reported():
            self._client = open_client(url)
        self._url, self._objects, self._limits = url, objects, limits
        self._submitting = threading.Lock()

    def close(self) -> None:
        """Close the connections to the database."""
        self._client.destroy()

    @property
    def poll_s(self) -> int:
        """Whole seconds after which it is worth looking at a running job again."""
        return max(1, round(self._limits.step_s))

    def submit(self, image: bytes, spec: JobSpec, priority: int) -> Job:
        """Have a job done, unless that is so already; return it.

        A job that waits, runs or has a result that is kept is left as it is. One that was cancelled
        or failed goes on from its last step, unless it has failed right after it before; one whose
        result is gone or damaged begins anew.

        Args:
            image: the file; a picture that can be read. spec: of that file.
            priority: 1 is served first, 9 last.

        Raises:
            Saturated: too many jobs wait. JobsUnavailable, ObjectsUnavailable: try again.
        """
        with self._submitting, reported():
            row = self._row(spec.id)
            job = None if row is None else self._latest(self._job(row))
            if job is not None and self._is_good(job):
                return job
            self._check_room()
            self._objects.put_named(spec.image_key, image)
            if job is None:
                self._enqueue(spec, priority)
            elif job.state == "cancelled" and not is_over(job.expires_s):
                self._client.resume_workflow(spec.id, queue_name=QUEUE)
            elif job.state == "failed" and not is_over(job.expires_s):
                self._go_on(job)
            else:
                self._rewind(spec.id)
        return self.get(spec.id)

    def get(self, job_id: str) -> Job:
        """A job with its last step, whatever its row says of that: only steps after that are read.

        Raises:
            UnknownJob: there is none. ExpiredJob: its result is no longer kept.
            JobsUnavailable: the database does not answer.
        """
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id[:80]!r}")
        if is_over(job.expires_s):
            raise ExpiredJob(f"job {job_id} ended more than {self._limits.result_ttl_s:g} s ago")
        return self._latest(job)

    def find(self, job_id: str) -> Job | None:
        """A job as its row shows it, expired or not; None if there is none.

        Raises:
            JobsUnavailable: the database does not answer.
        """
        with reported():
            row = self._row(job_id)
            return None if row is None else self._job(row)

    def since(self, job_id: str, after: int) -> tuple[Job, list[tuple[int, StepRecord]]]:
        """A job and its `steps` after one.

        Raises:
            UnknownJob, JobsUnavailable: as `get`.
        """
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"there is no job {job_id[:80]!r}")
        return job, self.steps(job_id, after)

    def steps(self, job_id: str, after: int) -> list[tuple[int, StepRecord]]:
        """Numbers, from 1, and records of a job's steps after one, the earliest first."""
        with reported():
            found = self._client.list_workflow_steps(job_id, offset=after)
        return [
            (step["function_id"], StepRecord.from_json(step["output"]))
            for step in found
            if step["function_name"] == ADVANCE and step["output"] is not None
        ]

    def step_seconds(self, job_id: str, after: int) -> list[float]:
        """How long each of a job's steps after one took, the earliest first."""
        with reported():
            found = self._client.list_workflow_steps(job_id, load_output=False, offset=after)
        return [
            (step["completed_at_epoch_ms"] - step["started_at_epoch_ms"]) / 1000
            for step in found
            if step["function_name"] == ADVANCE
            and step["completed_at_epoch_ms"] is not None
            and step["started_at_epoch_ms"] is not None
        ]

    def best(self, job_id: str) -> tuple[Job, bytes]:
        """A job and its best stream so far, whatever has become of it.

        Raises:
            JobUnfinished: no step has been done yet. JobEnded: nor will one be.
            UnknownJob, ExpiredJob, JobsUnavailable, ObjectsUnavailable: as `get`.
        """
        for _ in range(3):  # the next step removes a stream after its own is recorded
            job = self.get(job_id)
            if job.record is None and job.state in ENDED:
                raise JobEnded(f"job {job_id} has {job.state} without a stream")
            if job.record is None:
                raise JobUnfinished(f"job {job_id} is {job.state}, without a stream", self.poll_s)
            try:
                return job, self._objects.get(job.record.stream)
            except NoSuchObject as error:
                missing = error
        raise ExpiredJob(f"the stream of job {job_id} is no longer kept") from missing

    def result(self, job_id: str) -> tuple[Job, bytes]:
        """A succeeded job and its result.

        Raises:
            JobUnfinished: it is not through. JobEnded: it failed or was cancelled.
            UnknownJob, ExpiredJob, JobsUnavailable, ObjectsUnavailable: as `get`.
        """
        job = self.get(job_id)
        if job.state not in ENDED:
            raise JobUnfinished(f"job {job_id} is {job.state}", self.poll_s)
        if job.state != "succeeded":
            why = f": {job.error}" if job.error else ""
            raise JobEnded(f"job {job_id} has {job.state}{why}")
        return self.best(job_id)

    def cancel(self, job_id: str) -> Job:
        """Stop a job; what it has done is kept. One that is cancelled already stays so.

        Raises:
            JobEnded: it has succeeded or failed.
            UnknownJob, ExpiredJob, JobsUnavailable: as `get`.
        """
        job = self.get(job_id)
        if job.state == "cancelled":
            return job
        if job.state not in ENDED:
            with reported():
                self._client.cancel_workflow(job_id)
            job = self.get(job_id)
        if job.state != "cancelled":
            raise JobEnded(f"job {job_id} has {job.state}: there is nothing to cancel")
        return job

    def recent(self, states: Sequence[State] = (), limit: int = 50) -> list[Job]:
        """Jobs in these states (all if none is named) as their rows show them, the newest first."""
        with reported():
            rows = self._client.list_workflows(
                name=WORKFLOW,
                status=statuses(states) or None,
                limit=limit,
                sort_desc=True,
                load_output=False,
            )
            return [self._job(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """Jobs that wait and that run."""
        counts: dict[State, int] = {"queued": 0, "running": 0}
        for job in self.active():
            counts[job.state] += 1
        return counts

    def active(self) -> list[Job]:
        """Jobs that wait or run."""
        return self._found(statuses(("queued", "running")))

    def ended_since(self, since_s: float) -> list[Job]:
        """Jobs that ended after a Unix time."""
        return self._found(statuses(tuple(ENDED)), completed_after=iso(since_s))

    def rescue(self, job_ids: Sequence[str]) -> list[str]:
        """Queue jobs again by hand, with fresh attempts; return those that were.

        Args:
            job_ids: jobs that run (wherever they do: whoever loses one notices and stops), were
                cancelled, or failed; none for all that run on workers without a heartbeat.

        Raises:
            UnknownJob: one does not exist; nothing was done. JobsUnavailable: see `get`.
        """
        jobs = [self.get(job_id) for job_id in job_ids] or self.lost()
        rescued = []
        with reported():
            for job in jobs:
                if job.state == "failed":
                    self._go_on(job)
                elif job.state in ("running", "cancelled"):
                    self._client.resume_workflow(job.id, queue_name=QUEUE)
                else:
                    continue
                rescued.append(job.id)
        return rescued

    def check_database(self) -> None:
        """Find out whether rows of jobs can be stored: a file is written, PostgreSQL is only asked.

        Raises:
            JobsUnavailable: they cannot.
        """
        with reported():
            self._client.list_workflows(limit=1, load_input=False, load_output=False)
            check_file(self._url)

    def check_objects(self) -> None:
        """Find out whether files of jobs can be stored, with the rights of one who posts jobs.

        Raises:
            ObjectsUnavailable: they cannot.
        """
        key = f"{folder_of(CHECK)}/image"
        self._objects.put_named(key, bytes(4096))
        self._objects.get(key)

    def lost(self) -> list[Job]:
        """Running jobs whose worker shows no heartbeat."""
        running = self._found(statuses(("running",)))
        live = live_workers(self._objects) if running else set()
        return [job for job in running if job.worker not in live]

    def _found(self, statuses: list[str], **filters: object) -> list[Job]:
        with reported():
            rows = self._client.list_workflows(
                name=WORKFLOW,
                status=statuses,
                load_output=False,
                **filters,  # type: ignore[arg-type]
            )
        return [self._job(row) for row in rows]

    def _row(self, job_id: str) -> WorkflowStatus | None:
        if not is_job_id(job_id):
            return None
        rows = self._client.list_workflows(workflow_ids=[job_id], name=WORKFLOW)
        return rows[0] if rows else None

    def _is_good(self, job: Job) -> bool:
        """Whether there is nothing to do for one who posts the job again."""
        if job.state in ("queued", "running"):
            return True
        if job.state != "succeeded" or is_over(job.expires_s):
            return False
        return job.record is not None and self._objects.is_whole(job.record.stream)

    def _latest(self, job: Job) -> Job:
        """A job with its last step; its row lacks that where the worker could not write it there.

        What the row names instead may be deleted.
        """
        steps = self.steps(job.id, job.steps)
        return job.at(*steps[-1]) if steps else job

    def _check_room(self) -> None:
        limit = self._limits.max_waiting
        rows = self._client.list_workflows(
            name=WORKFLOW, status="ENQUEUED", limit=limit, load_input=False, load_output=False
        )
        if len(rows) >= limit:
            raise Saturated(f"{limit} jobs wait already", RETRY_AFTER_S)

    def _enqueue(self, spec: JobSpec, priority: int) -> None:
        self._client.enqueue(
            {
                "queue_name": QUEUE,
                "workflow_name": WORKFLOW,
                "workflow_id": spec.id,
                "app_version": VERSION,
                "priority": priority,  # never left out: DBOS serves those without one first
                "application_name": APPLICATION,
            },
            spec_json(spec),
        )

    def _go_on(self, job: Job) -> None:
        """Begin a failed job again after its last step, or anew where it failed there twice."""
        if job.record is None or job.again_after == job.steps:
            self._rewind(job.id)
            return
        attributes = attributes_after(job.steps, job.record) | {AGAIN: job.steps}
        self._rewind(job.id, attributes, job.steps + 1)

    def _rewind(
        self, job_id: str, attributes: dict[str, Any] | None = None, first_step: int = 1
    ) -> None:
        """Begin an ended job again with a step; nothing happens if somebody was quicker."""
        from dbos import error as dbos_error

        try:
            self._client.update_workflow_attributes(job_id, attributes)
            self._client.rewind_workflow(
                job_id, start_step=first_step, queue_name=QUEUE, application_version=VERSION
            )
        except dbos_error.DBOSException:
            row = self._row(job_id)
            if row is None or self._job(row).state in ENDED:
                raise

    def _job(self, row: WorkflowStatus) -> Job:
        return job_of(row, self._limits.result_ttl_s)


def open_jobs(settings: Settings, url: str) -> Jobs:
    """The jobs of a prepared database.

    Raises:
        JobsUnavailable, ObjectsUnavailable: database or objects cannot be reached.
    """
    limits = JobLimits(settings.max_jobs_waiting, settings.result_ttl_s, settings.job_step_s)
    objects = open_objects(settings.objects_place, settings.objects_timeout_s)
    return Jobs(url, objects, limits)


def spec_json(spec: JobSpec) -> dict[str, str | int]:
    """The one argument of a job's workflow."""
    return dict(vars(spec))
