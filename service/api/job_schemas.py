"""Query parameters and JSON documents of jobs, with the descriptions that OpenAPI shows."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from service.adapt.types import AdaptProgress
from service.api.schemas import Query
from service.engine.target import DEFAULT_RATE
from service.http.documents import Document
from service.jobs.job import DEFAULT_PRIORITY, ENDED, Job, State, StepRecord


class AdaptQuery(Query):
    """Parameters of `POST /adapt`."""

    rate: float = Field(default=DEFAULT_RATE, ge=1, le=8, allow_inf_nan=False)
    """Quality and size, from 1 (smallest) to 8 (best), as for `/compress`."""

    effort: int = Field(default=2, ge=0, le=4)
    """How much work is done, from 0 (seconds: a ready update is chosen) to 4 (many minutes)."""

    frame: int | None = Field(default=None, ge=0, le=2**31)
    """Frame or page of an animated or multi-page file, from 0; without it the file is refused."""

    priority: int = Field(default=DEFAULT_PRIORITY, ge=1, le=9)
    """Order among the waiting jobs, from 1 (first) to 9 (last)."""


class JobLinks(Document):
    """URLs of a job."""

    self: str
    """The job."""

    events: str
    """The job as server-sent events."""

    stream: str | None
    """The best stream so far; null before the first step."""

    result: str | None
    """The result; null unless the job has succeeded."""


class JobDocument(Document):
    """A job in its present state."""

    id: str
    """Its name: a hash of the image and of all parameters."""

    status: State
    """Its state."""

    rate: float
    """The requested rate."""

    effort: int
    """The requested effort."""

    priority: int
    """Its priority when it was first posted."""

    width: int
    """Pixels of the picture."""

    height: int
    """Pixels of the picture."""

    frame: int | None
    """Frame or page of the file; null if it has only one."""

    source_bytes: int
    """Size of the image file."""

    phase: str | None
    """Present part of the work: `latents`, `decoder`, or `done`; null before the first step."""

    step: int | None
    """Steps of optimisation done."""

    total: int | None
    """Steps planned; fewer may be run."""

    bytes: int | None
    """Size of the best stream so far."""

    bpp: float | None
    """Bits per pixel of the best stream so far."""

    psnr_db: float | None
    """PSNR in dB of the 8-bit picture of the best stream; null when exact."""

    first_bytes: int | None
    """Size of the stream without adaptation."""

    first_bpp: float | None
    """Bits per pixel of the stream without adaptation."""

    first_psnr_db: float | None
    """PSNR in dB of the 8-bit picture without adaptation; null when exact."""

    seconds: float
    """Seconds of work so far."""

    created_at: datetime
    """When it was first posted."""

    ended_at: datetime | None
    """When it ended; null before."""

    expires_at: datetime | None
    """When it and its streams are deleted; null before it has ended."""

    notes: list[str]
    """Warnings about the best stream so far, such as that it is larger than its source."""

    error: str | None
    """Why it failed; null otherwise."""

    links: JobLinks
    """Its URLs."""


def document_of(job: Job, root_path: str) -> JobDocument:
    """The document of a job; its links begin with the root path."""
    record = job.record
    return JobDocument(
        **_progress(record),
        id=job.id,
        status=job.state,
        rate=job.spec.rate,
        effort=job.spec.effort,
        priority=job.priority,
        width=job.spec.width,
        height=job.spec.height,
        frame=job.spec.frame,
        source_bytes=job.spec.image_bytes,
        notes=list(job.notes),
        seconds=0.0 if record is None else round(record.seconds, 3),
        created_at=_date(job.created_s),
        ended_at=None if job.ended_s is None else _date(job.ended_s),
        expires_at=None if job.expires_s is None else _date(job.expires_s),
        error=job.error,
        links=_links(job, root_path),
    )


def has_ended(job: Job) -> bool:
    """Whether the job has succeeded, failed or been cancelled."""
    return job.state in ENDED


def _progress(record: StepRecord | None) -> dict[str, Any]:
    """The fields of an `AdaptProgress`, all null before the first step."""
    if record is None:
        return dict.fromkeys(field.name for field in fields(AdaptProgress))
    values = asdict(record.progress)
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


def _links(job: Job, root_path: str) -> JobLinks:
    url = f"{root_path}/jobs/{job.id}"
    return JobLinks(
        self=url,
        events=f"{url}/events",
        stream=None if job.record is None else f"{url}/stream",
        result=f"{url}/result" if job.state == "succeeded" else None,
    )


def _date(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
