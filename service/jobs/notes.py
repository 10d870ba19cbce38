"""What a worker notes in a job's row: its last step, deaths of workers, and that it waits.

Steps themselves are on record elsewhere, in DBOS' own tables; nothing is lost where a note is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from service.errors import UnknownJob
from service.jobs.database import reported
from service.jobs.job import StepRecord
from service.jobs.jobs import Jobs
from service.jobs.rows import WAITING, attributes_after

if TYPE_CHECKING:
    from dbos import DBOSClient

BEGUN: Final = "begun"
"""Attribute of a workflow: [number of its last step, attempt that first began after that step]."""


class JobNotes:
    """Writes notes; may be used from many threads, and every call blocks."""

    def __init__(self, client: DBOSClient, jobs: Jobs) -> None:
        self._client, self._jobs = client, jobs

    def begin(self, job_id: str) -> int:
        """Note that a worker begins a job, anew or where another one left it.

        Returns:
            How many workers in a row died at it since its last step. Those that died while they
            waited for storage do not count.

        Raises:
            UnknownJob, ExpiredJob: there is none. JobsUnavailable: the database does not answer.
        """
        job = self._jobs.get(job_id)
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

    def waits(self, job_id: str) -> None:
        """Note that a job waits for storage from now on; its next step ends that.

        Raises:
            JobsUnavailable: the database does not answer.
        """
        with reported():
            self._client.update_workflow_attributes(job_id, {WAITING: time.time()}, merge=True)

    def step(self, job_id: str, number: int, record: StepRecord) -> None:
        """Note the last step, which is on record, where a look at the job reads it.

        Raises:
            JobsUnavailable: the database does not answer.
        """
        with reported():
            self._client.update_workflow_attributes(job_id, attributes_after(number, record))
