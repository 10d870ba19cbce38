"""What is removed, and when: the objects of expired jobs, later their rows, and what killed workers
left behind.

Rows are kept twice as long as results, so that an expired job is known to have existed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from service.jobs.database import WORKFLOW, reported
from service.jobs.job import ENDED, folder_of
from service.jobs.rows import is_over, iso, job_of, statuses
from service.objects import LITTER_S, REFRESH_S, Objects

if TYPE_CHECKING:
    from dbos import DBOSClient

BATCH: Final = 500
"""Rows asked for at a time."""


def expire(client: DBOSClient, objects: Objects, result_ttl_s: float) -> int:
    """Remove what is no longer kept; return how many objects of jobs that were.

    Raises:
        JobsUnavailable, ObjectsUnavailable: database or objects do not answer.
    """
    # What was just posted may not have its row yet, or belong to a job that had expired.
    spared_s = min(REFRESH_S, result_ttl_s)
    removed = 0
    old = objects.list("jobs", older_than_s=spared_s)
    ids = iter(sorted({found.key.split("/")[1] for found in old}))
    while batch := list(islice(ids, BATCH)):
        for job_id in _not_kept(client, batch, result_ttl_s):
            removed += objects.delete_all(folder_of(job_id), older_than_s=spared_s)
    _forget(client, time.time() - 2 * result_ttl_s)
    objects.delete_all("workers", older_than_s=LITTER_S)
    objects.sweep_litter()
    return removed


def _not_kept(client: DBOSClient, job_ids: list[str], result_ttl_s: float) -> Iterator[str]:
    """Those of the jobs that have expired or that the database does not know."""
    with reported():
        rows = client.list_workflows(workflow_ids=job_ids, load_output=False)
    expires_s = {row.workflow_id: job_of(row, result_ttl_s).expires_s for row in rows}
    for job_id in job_ids:
        if job_id not in expires_s or is_over(expires_s[job_id]):
            yield job_id


def _forget(client: DBOSClient, before_s: float) -> None:
    """Remove the rows of jobs that ended before a Unix time."""
    with reported():
        while rows := client.list_workflows(
            name=WORKFLOW,
            status=statuses(ENDED),
            completed_before=iso(before_s),
            limit=BATCH,
            load_input=False,
            load_output=False,
        ):
            client.delete_workflows([row.workflow_id for row in rows])
