"""Rows of the database as jobs, and the database's names for their states."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from service.errors import JobsUnavailable
from service.jobs.job import ENDED, Job, JobFailed, JobSpec, State, StepRecord

if TYPE_CHECKING:
    from dbos import WorkflowStatus

LAST_STEP: Final = "last_step"
"""Attribute of a workflow: [number, record] of its last step, if the worker could write it. Reading
a job then reads one row and no steps."""

BEGUN: Final = "begun"
"""Attribute of a workflow: [number of its last step, attempt that first began after that step]."""

AGAIN: Final = "again"
"""Attribute of a workflow: number of the step after which it was begun again after a failure."""

WAITING: Final = "waiting"
"""Attribute of a workflow: Unix time since which its worker waits for storage, None if it does
not."""

TRACE: Final = "trace"
"""Attribute of a workflow: headers of the trace of the request that posted it, by W3C."""

_STATES: Final[dict[str, State]] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}


def job_of(row: WorkflowStatus, result_ttl_s: float) -> Job:
    """A job from its row, with the last step there. Raises JobsUnavailable: it is incomplete."""
    if row.input is None or row.created_at is None:
        raise JobsUnavailable(f"the row of job {row.workflow_id} is incomplete")
    # Of a status of a later DBOS, only the end of the job is known.
    state = _STATES.get(row.status) or ("failed" if row.completed_at else "running")
    ended_s = row.completed_at / 1000 if row.completed_at and state in ENDED else None
    attributes = row.attributes or {}
    steps, record = attributes.get(LAST_STEP, (0, None))
    return Job(
        id=row.workflow_id,
        state=state,
        spec=JobSpec(**row.input["args"][0]),
        priority=row.priority or 0,
        steps=steps,
        record=None if record is None else StepRecord.from_json(record),
        created_s=row.created_at / 1000,
        ended_s=ended_s,
        expires_s=None if ended_s is None else ended_s + result_ttl_s,
        attempts=row.recovery_attempts or 0,
        worker=row.executor_id,
        error=_error(row),
        waiting_since_s=attributes.get(WAITING) if state == "running" else None,
        queued_since_s=(row.updated_at or row.created_at) / 1000 if state == "queued" else None,
        again_after=attributes.get(AGAIN),
        trace=attributes.get(TRACE),
    )


def statuses(states: Iterable[State]) -> list[str]:
    """The database's names for these states."""
    selected = set(states)
    return [status for status, state in _STATES.items() if state in selected]


def is_over(expires_s: float | None) -> bool:
    """Whether a Unix time has passed; None never has."""
    return expires_s is not None and expires_s <= time.time()


def iso(unix_s: float) -> str:
    """A Unix time in the form that the database's filters take."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


def _error(row: WorkflowStatus) -> str | None:
    if row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        begun = max(1, (row.recovery_attempts or 0) - 1)
        return f"the worker died all {begun} times that it worked on this job"
    if row.status not in _STATES and row.completed_at:
        return f"the job ended with the status {row.status}, which is not known here"
    if row.status != "ERROR":
        return None
    if getattr(row.error, "name", None) == JobFailed.__name__:
        return str(row.error)
    return "internal error, logged by the worker under the job's id"


def attributes_of(trace: Mapping[str, str] | None) -> dict[str, Any]:
    """All attributes of the row of a job that has just been posted."""
    return {TRACE: dict(trace)} if trace else {}


def attributes_after(
    number: int, record: StepRecord, trace: Mapping[str, str] | None
) -> dict[str, Any]:
    """All attributes of a row after a step of that number."""
    return attributes_of(trace) | {LAST_STEP: [number, record.to_json()]}
