"""The endpoints of adaptation jobs: post a picture, watch, fetch, cancel."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api import openapi
from service.api.job_events import EventStream, parse_id, watch
from service.api.job_schemas import AdaptQuery, JobDocument, document_of, has_ended
from service.api.routes import (
    STREAM_TYPE,
    Service,
    ServiceArg,
    notes_header,
    refuse_query,
    refuse_repeats,
    run_work,
)
from service.engine.admission import Phase
from service.engine.requests import check_pixels
from service.engine.types import ModelInfo
from service.http.bodies import read_body
from service.http.record import record_of
from service.images.read import read_image
from service.jobs.job import Job, JobSpec, check_rate, spec_of

adapt_router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_repeats)])
jobs_router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_query)])

JobId = Annotated[str, Path(description="The id of the job.")]

NO_STORE = {"Cache-Control": "no-store"}


@adapt_router.post("/adapt", status_code=202, response_model=JobDocument, **openapi.ADAPT)
async def adapt(
    request: Request, service: ServiceArg, query: Annotated[AdaptQuery, Query()]
) -> Response:
    """Have a stream fitted to one picture, which takes long; the same picture is the same job."""
    service.desk.check()
    check_rate(query.rate, service.desk.models)
    record = record_of(request.scope)
    record.rate = query.rate
    body = await read_body(request, service.admission, record.hold, service.settings)
    limit = min(service.settings.max_pixels, service.settings.job_max_pixels)
    work = partial(examine, body, query, service.desk.models, limit)
    spec = (await run_work(request, service, work)).value
    record.pixels = spec.width * spec.height
    job = await service.desk.ask_files(lambda jobs: jobs.submit(body, spec, query.priority))
    root = service.settings.root_path
    headers = {"Location": f"{root}/jobs/{job.id}", **_again(job, service.settings.job_step_s)}
    return _answer(service, job, 202, headers)


@jobs_router.get("/jobs/{job_id}", response_model=JobDocument, **openapi.JOB)
async def show(service: ServiceArg, job_id: JobId) -> Response:
    """What became of a job, how far it is, and what it has gained."""
    job = await service.desk.ask(lambda jobs: jobs.get(job_id))
    return _answer(service, job, 200, _again(job, service.settings.job_step_s))


@jobs_router.get("/jobs/{job_id}/events", response_class=Response, **openapi.JOB_EVENTS)
async def events(
    service: ServiceArg,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(description="The last event seen.")] = None,
) -> Response:
    """The job as server-sent events, each a whole document, until one named `end`."""
    job = await service.desk.ask(lambda jobs: jobs.get(job_id))
    seen = parse_id(last_event_id)
    if has_ended(job) and seen is not None and (seen.steps, seen.state) == (job.steps, job.state):
        return Response(status_code=204, headers=NO_STORE)  # tells a client not to come back
    root = service.settings.root_path
    stream = watch(
        service.desk, job, seen, root, lambda: service.admission.phase is Phase.DRAINING
    )
    headers = NO_STORE | {"X-Accel-Buffering": "no"}
    return EventStream(service.desk, stream, headers)


@jobs_router.get("/jobs/{job_id}/stream", response_class=Response, **openapi.JOB_STREAM)
async def best(request: Request, service: ServiceArg, job_id: JobId) -> Response:
    """The best stream so far, whatever has become of the job."""
    job, data = await service.desk.ask_files(lambda jobs: jobs.best(job_id))
    return await _stream(request, service, job, data)


@jobs_router.get("/jobs/{job_id}/result", response_class=Response, **openapi.JOB_RESULT)
async def result(request: Request, service: ServiceArg, job_id: JobId) -> Response:
    """The stream of a job that has succeeded."""
    job, data = await service.desk.ask_files(lambda jobs: jobs.result(job_id))
    return await _stream(request, service, job, data)


@jobs_router.delete("/jobs/{job_id}", response_model=JobDocument, **openapi.JOB_CANCEL)
async def cancel(service: ServiceArg, job_id: JobId) -> Response:
    """Stop a job; its best stream so far is kept. Posting the picture again goes on with it."""
    job = await service.desk.ask(lambda jobs: jobs.cancel(job_id))
    return _answer(service, job, 200, {})


def examine(
    body: bytes, query: AdaptQuery, models: tuple[ModelInfo, ...], max_pixels: int
) -> JobSpec:
    """What is asked for, once the whole picture was read: a job must not fail for what it is of.

    Raises:
        BadImage, BadParameter: as `read_image`. TooManyPixels: as `check_pixels`.
        RateUnavailable: as `spec_of`.
    """
    picture = read_image(body, max_pixels=max_pixels, frame=query.frame)
    size = picture.width, picture.height
    check_pixels(max_pixels, *size)
    return spec_of(body, *size, query.rate, query.effort, models, query.frame)


def _again(job: Job, step_s: float) -> dict[str, str]:
    """When to look again, for a job that goes on."""
    return {} if has_ended(job) else {"Retry-After": str(max(1, round(step_s)))}


def _answer(service: Service, job: Job, status: int, headers: dict[str, str]) -> Response:
    content = document_of(job, service.settings.root_path).model_dump(mode="json")
    return JSONResponse(content, status, NO_STORE | headers)


async def _stream(request: Request, service: Service, job: Job, data: bytes) -> Response:
    record = record_of(request.scope)
    headers = {
        "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        "X-Rankpress-Rate": f"{job.spec.rate:g}",
    }
    record.rate, record.pixels = job.spec.rate, job.spec.width * job.spec.height
    if job.record is not None:
        progress = job.record.progress
        record.bpp = progress.bpp
        headers["X-Rankpress-Bpp"] = f"{progress.bpp:.4f}"
        headers["X-Rankpress-Psnr"] = f"{progress.psnr_db:.3f}"
        headers["X-Rankpress-Step"] = str(progress.step)
        headers["X-Rankpress-Source-Bytes"] = str(job.spec.image_bytes)
        headers |= notes_header(job.notes)
    return await service.answer(request, data, headers, STREAM_TYPE)
