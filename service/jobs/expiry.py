"""What is removed, and when: the objects of expired jobs, later their rows, and what killed workers
and stopped jobs left behind.

Rows are kept twice as long as results, so that an expired job is known to have existed. Jobs that
failed or were cancelled keep what they would go on from; on a full disk that goes first.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from service.blobs import CHECKS, REFRESH_S, TEMPORARY_FILE_S, Objects
from service.errors import JobError
from service.jobs.database import WORKFLOW, reported
from service.jobs.job import ENDED, Job, folder_of
from service.jobs.jobs import Jobs
from service.jobs.rows import is_over, iso, job_of, statuses

if TYPE_CHECKING:
    from dbos import DBOSClient

BATCH: Final = 500
"""Rows asked for at a time."""

FULL_SPARED_S: Final = 60.0
"""Objects that are younger are spared where the disk is full; otherwise for `REFRESH_S`."""


def expire(
    client: DBOSClient, jobs: Jobs, objects: Objects, result_ttl_s: float, *, full: bool = False
) -> int:
    """Remove what is no longer kept; return how many objects of jobs that were.

    Args:
        client: of the database of the jobs. jobs: of that database. objects: theirs.
        result_ttl_s: seconds that ended jobs are kept.
        full: whether there is no room left: then checkpoints of ended jobs go too, which would save
            one who posts such a job again only time.

    Raises:
        JobsUnavailable, ObjectsUnavailable: database or objects do not answer.
    """
    # What was just posted may not have its row yet, or belong to a job that had expired.
    spared_s = min(FULL_SPARED_S if full else REFRESH_S, result_ttl_s)
    removed = 0
    old: dict[str, set[str]] = {}
    for found in objects.list("jobs", older_than_s=spared_s):
        old.setdefault(found.key.split("/")[1], set()).add(found.key)
    ids = iter(sorted(old))
    while batch := list(islice(ids, BATCH)):
        rows = _rows(client, batch, result_ttl_s)
        for job_id in batch:
            job = rows.get(job_id)
            if job is None or is_over(job.expires_s):
                removed += objects.delete_all(folder_of(job_id), older_than_s=spared_s)
            elif job.state in ENDED and old[job_id] - _needed(job, full):
                removed += _sweep(jobs, objects, job_id, old[job_id], full)
    _forget(client, time.time() - 2 * result_ttl_s)
    for prefix in ("workers", CHECKS):
        objects.delete_all(prefix, older_than_s=TEMPORARY_FILE_S)
    objects.remove_temporary_files()
    return removed


def _rows(client: DBOSClient, job_ids: list[str], result_ttl_s: float) -> dict[str, Job]:
    """Those of the jobs that the database knows, as their rows show them."""
    with reported():
        rows = client.list_workflows(workflow_ids=job_ids, load_output=False)
    return {row.workflow_id: job_of(row, result_ttl_s) for row in rows}


def _sweep(jobs: Jobs, objects: Objects, job_id: str, keys: set[str], full: bool) -> int:
    """Remove those of an ended job's keys that it does not need; return how many.

    The job is looked at again, with its last step: it may go on by now, or its row lag behind.
    """
    try:
        job = jobs.get(job_id)
    except JobError:  # it has just expired
        return 0
    surplus = keys - _needed(job, full) if job.state in ENDED else set()
    for key in surplus:
        objects.delete(key)
    return len(surplus)


def _needed(job: Job, full: bool) -> set[str]:
    """Keys of what may be asked for of an ended job, and of what it would go on from."""
    needed = set() if job.record is None else {job.record.stream}
    if job.state == "succeeded":
        return needed
    needed.add(job.spec.image_key)
    if job.record is not None and job.record.checkpoint is not None and not full:
        needed.add(job.record.checkpoint)
    return needed


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
