"""Removes files of expired jobs, later their rows, and files that stopped jobs and workers left.

Rows are kept twice as long as results, so that it is known for a while that a job has expired. Jobs
that failed or were cancelled keep the files from which they can go on; on a full disk those are
removed first.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Final

from service.blobs import CHECKS, REFRESH_S, TEMPORARY_FILE_S, Objects
from service.errors import JobError
from service.jobs.job import ENDED, Job, folder_of
from service.jobs.job_table import BATCH, JobTable
from service.jobs.rows import is_over

FULL_SPARED_S: Final = 60.0
"""Younger objects are spared when the disk is full; otherwise those younger than `REFRESH_S`."""


def expire(table: JobTable, objects: Objects, *, full: bool = False) -> int:
    """Remove what is no longer kept, and return how many files of jobs that were.

    Args:
        table: its `result_ttl_s` says how long ended jobs are kept.
        full: whether the disk is full. Then the checkpoints of ended jobs are removed too, which
            would only save time if such a job were posted again.
    """
    # A job that was just posted may not have its row yet, or still have an expired one.
    spared_s = min(FULL_SPARED_S if full else REFRESH_S, table.result_ttl_s)
    removed = 0
    old_keys: dict[str, set[str]] = {}
    for info in objects.list("jobs", older_than_s=spared_s):
        old_keys.setdefault(info.key.split("/")[1], set()).add(info.key)
    ids = iter(sorted(old_keys))
    while batch := list(islice(ids, BATCH)):
        jobs = table.find_all(batch)
        for job_id in batch:
            job = jobs.get(job_id)
            if job is None or is_over(job.expires_s):
                removed += objects.delete_all(folder_of(job_id), older_than_s=spared_s)
            elif job.state in ENDED and old_keys[job_id] - _needed_keys(job, full):
                removed += _remove_surplus(table, objects, job_id, old_keys[job_id], full)
    table.delete_ended(time.time() - 2 * table.result_ttl_s)
    for prefix in ("workers", CHECKS):
        objects.delete_all(prefix, older_than_s=TEMPORARY_FILE_S)
    objects.remove_temporary_files()
    return removed


def _remove_surplus(
    table: JobTable, objects: Objects, job_id: str, keys: set[str], full: bool
) -> int:
    """Remove those of an ended job's files that it does not need; return how many.

    The job is read again, with its last step: it may run again by now, or its row may lag behind.
    """
    try:
        job = table.get(job_id)
    except JobError:  # it has just expired
        return 0
    surplus = keys - _needed_keys(job, full) if job.state in ENDED else set()
    for key in surplus:
        objects.delete(key)
    return len(surplus)


def _needed_keys(job: Job, full: bool) -> set[str]:
    """Keys of the files of an ended job that users may fetch, or that it could go on from."""
    keys = set() if job.record is None else {job.record.stream}
    if job.state == "succeeded":
        return keys
    keys.add(job.spec.image_key)
    if job.record is not None and job.record.checkpoint is not None and not full:
        keys.add(job.record.checkpoint)
    return keys
