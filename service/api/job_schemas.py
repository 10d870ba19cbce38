"""Jobs over the wire: query parameters and JSON, with the words that OpenAPI shows."""

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
    """Quality and size, from 1 (smallest) to 8 (best), as of `/compress`."""

    effort: int = Field(default=2, ge=0, le=4)
    """How much work the stream is worth, from 0 (seconds: a ready update is picked) to 4 (many
    minutes)."""

    frame: int | None = Field(default=None, ge=0, le=2**31)
    """Which frame or page of an animated or multi-page file, from 0; without it such a file is
    refused."""

    priority: int = Field(default=DEFAULT_PRIORITY, ge=1, le=9)
    """Which of the waiting jobs is done first, from 1 (first) to 9 (last)."""


class JobLinks(Document):
    """Where more of a job is."""

    self: str
    """The job."""

    events: str
    """The same as server-sent events."""

    stream: str | None
    """The best stream so far; null before the first step."""

    result: str | None
    """The result; null unless the job has succeeded."""


class JobDocument(Document):
    """A job as it is now."""

    id: str
    """Its name: a hash of the image and of all that was asked for."""

    status: State
    """What became of it."""

    rate: float
    """The rate that was asked for."""

    effort: int
    """The effort that was asked for."""

    priority: int
    """Its priority when it was posted first."""

    width: int
    """Pixels of the picture."""

    height: int
    """Pixels of the picture."""

    frame: int | None
    """Frame or page of the file; null where it has but one."""

    source_bytes: int
    """Size of the image file."""

    phase: str | None
    """What is being worked on: `latents`, `decoder`, or `done`; null before the first step."""

    step: int | None
    """Steps of optimisation done."""

    total: int | None
    """Steps planned; fewer may be run."""

    bytes: int | None
    """Size of the best stream so far."""

    bpp: float | None
    """The same in bits per pixel."""

    psnr_db: float | None
    """PSNR in dB of its 8-bit picture; null when exact."""

    first_bytes: int | None
    """Size of the stream without adaptation."""

    first_bpp: float | None
    """The same in bits per pixel."""

    first_psnr_db: float | None
    """PSNR in dB of its 8-bit picture; null when exact."""

    seconds: float
    """Work on it so far."""

    created_at: datetime
    """When it was posted first."""

    ended_at: datetime | None
    """When it ended; null before."""

    expires_at: datetime | None
    """When it and its streams will be gone; null before it has ended."""

    notes: list[str]
    """What should be known of the best stream so far: that it is larger than its source."""

    error: str | None
    """Why it failed; null unless it has."""

    links: JobLinks
    """Where more of it is."""


def document_of(job: Job, root_path: str) -> JobDocument:
    """A job as it is shown; links begin with the root path."""
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
    """Whether nothing more will become of it by itself."""
    return job.state in ENDED


def _progress(record: StepRecord | None) -> dict[str, Any]:
    """The fields of an `AdaptProgress`, all null before the first step."""
    if record is None:
        return dict.fromkeys(field.name for field in fields(AdaptProgress))
    values = asdict(record.progress)
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


def _links(job: Job, root_path: str) -> JobLinks:
    place = f"{root_path}/jobs/{job.id}"
    return JobLinks(
        self=place,
        events=f"{place}/events",
        stream=None if job.record is None else f"{place}/stream",
        result=f"{place}/result" if job.state == "succeeded" else None,
    )


def _date(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
