"""The endpoints of adaptation jobs: post a picture, watch the job, fetch its stream, cancel it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.responses import StreamingResponse

from service.api import headers, openapi
from service.api.headers import header_values, notes_text
from service.api.job_client import watch_for
from service.api.schemas import AdaptQuery, JobDocument, document_of
from service.api.service import Service, ServiceArg, refuse_query, refuse_repeats
from service.engine.admission import Phase
from service.engine.requests import check_pixels
from service.engine.target import rate_text
from service.engine.types import Codec, ModelInfo
from service.errors import RankpressError, Saturated
from service.http.context import context_of
from service.http.responses import bytes_response
from service.images.read import read_image
from service.jobs.job import (
    ENDED,
    Job,
    JobSpec,
    autoencoder_named,
    check_rate,
    latent_spec_of,
    spec_of,
)
from service.jobs.jobs import Jobs

POLL_S: Final = 1.0
KEEP_ALIVE_POLLS: Final = 15
"""Polls without an event after which a comment is sent, so that proxies keep the connection."""

MAX_WATCHERS: Final = 64
"""Event streams that may be open; each asks about once a second."""

RECONNECT_MS: Final = 2000
NO_STORE: Final = {"Cache-Control": "no-store"}

adapt_router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_repeats)])
jobs_router = APIRouter(tags=["jobs"], dependencies=[Depends(refuse_query)])

JobId = Annotated[str, Path(description="The id of the job.")]


async def count_watcher(service: ServiceArg) -> AsyncIterator[None]:
    """Count an event stream until it has ended. Raises Saturated: too many are open already."""
    client = service.job_client
    if client.watchers >= MAX_WATCHERS:
        raise Saturated(f"{client.watchers} event streams are open already", 10)
    client.watchers += 1
    try:
        yield
    finally:
        client.watchers -= 1


@adapt_router.post("/adapt", status_code=202, response_model=JobDocument, **openapi.ADAPT)
async def adapt(
    request: Request, service: ServiceArg, query: Annotated[AdaptQuery, Query()]
) -> Response:
    """Queue a job that fits a stream to one picture; the same picture is the same job."""
    client = service.job_client
    client.check()
    level = query.level()
    if query.method == "model":
        check_rate(level, client.models)
    recipients = client.recipients(query.webhook)
    context = context_of(request.scope)
    context.rate = level
    body = await service.read_body(request)
    limit = min(service.settings.max_pixels, service.settings.job_max_pixels)
    work = partial(spec_of_body, body, query, service.codec, client.models, limit)
    spec = (await service.run(request, work)).value
    context.pixels = spec.width * spec.height

    def submit(jobs: Jobs) -> Job:
        watch_for(jobs, spec.id, recipients)
        return jobs.submit(body, spec, query.priority, context.trace_carrier)

    job = await client.call_with_files(submit)
    location = {headers.LOCATION: f"{service.settings.root_path}/jobs/{job.id}"}
    return _job_response(service, job, 202, header_values(location) | _poll_after(service, job))


@jobs_router.get("/jobs/{job_id}", response_model=JobDocument, responses=openapi.JOB)
async def get_job(service: ServiceArg, job_id: JobId) -> Response:
    """The state of a job, its progress, and what it has gained."""
    job = await service.job_client.call(lambda jobs: jobs.table.get(job_id))
    return _job_response(service, job, 200, _poll_after(service, job))


@jobs_router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses=openapi.JOB_EVENTS,
    dependencies=[Depends(count_watcher)],
)
async def watch_job(
    service: ServiceArg,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(description="The last event received.")] = None,
) -> Response:
    """The job as server-sent events, each a whole document, until one named `end`."""
    job = await service.job_client.call(lambda jobs: jobs.table.get(job_id))
    if has_ended(job) and last_event_id == event_id(job):
        return Response(status_code=204, headers=NO_STORE)  # tells a browser not to reconnect
    headers = NO_STORE | {"X-Accel-Buffering": "no"}
    events = job_events(service, job_id, last_event_id)
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


@jobs_router.get("/jobs/{job_id}/stream", response_class=Response, responses=openapi.JOB_STREAM)
async def best_stream(request: Request, service: ServiceArg, job_id: JobId) -> Response:
    """The best stream so far, in whatever state the job is."""
    job, data = await service.job_client.call_with_files(lambda jobs: jobs.best(job_id))
    return await _stream_response(request, job, data)


@jobs_router.get("/jobs/{job_id}/result", response_class=Response, responses=openapi.JOB_STREAM)
async def result(request: Request, service: ServiceArg, job_id: JobId) -> Response:
    """The stream of a job that has succeeded."""
    job, data = await service.job_client.call_with_files(lambda jobs: jobs.result(job_id))
    return await _stream_response(request, job, data)


@jobs_router.delete("/jobs/{job_id}", response_model=JobDocument, responses=openapi.JOB_CANCEL)
async def cancel(service: ServiceArg, job_id: JobId) -> Response:
    """Stop a job; its best stream so far is kept. If the picture is posted again, it goes on."""
    job = await service.job_client.call(lambda jobs: jobs.cancel(job_id))
    return _job_response(service, job, 200, {})


def spec_of_body(
    body: bytes, query: AdaptQuery, codec: Codec, models: tuple[ModelInfo, ...], max_pixels: int
) -> JobSpec:
    """The job for a request; the whole picture is read, so that no job fails because of it.

    Raises:
        BadImage, BadParameter: as `read_image`.
        TooManyPixels: as `check_pixels`.
        RateUnavailable: as `spec_of`.
        ModelUnavailable: there is no such autoencoder.
    """
    picture = read_image(body, max_pixels=max_pixels, frame=query.frame)
    size = picture.width, picture.height
    check_pixels(max_pixels, *size)
    level, effort, frame = query.level(), query.effort, query.frame
    if query.method == "latent":
        autoencoder = autoencoder_named(query.autoencoder, codec.autoencoders())
        return latent_spec_of(body, *size, level, effort, autoencoder, frame)
    return spec_of(body, *size, level, effort, models, frame)


async def job_events(service: Service, job_id: str, last_id: str | None) -> AsyncIterator[bytes]:
    """The job now and after every change, until it has ended or the server drains.

    A client that reconnects, also to another server, gets the present document, which contains all
    that earlier ones said.

    Args:
        last_id: id of the event that the client has, None for none. It is not sent again.
    """
    yield f"retry: {RECONNECT_MS}\n\n".encode()
    quiet_polls = 0
    while service.admission.phase is not Phase.DRAINING:
        try:
            job = await service.job_client.call(lambda jobs: jobs.table.get(job_id))
        except RankpressError:
            return  # the client reconnects and then gets the error
        if event_id(job) == last_id:
            quiet_polls += 1
        else:
            yield event_of(job, service.settings.root_path)
            last_id, quiet_polls = event_id(job), 0
        if has_ended(job):
            return
        if quiet_polls % KEEP_ALIVE_POLLS == KEEP_ALIVE_POLLS - 1:
            yield b": still here\n\n"
        await asyncio.sleep(POLL_S)


def has_ended(job: Job) -> bool:
    """Whether the job has succeeded, failed or been cancelled."""
    return job.state in ENDED


def event_id(job: Job) -> str:
    """The id of an event that shows a job as it is: the number of its last step and its state."""
    return f"{job.steps}.{job.state}"


def event_of(job: Job, root_path: str) -> bytes:
    """One event; the last one of a job is named `end`, the others have no name."""
    name = "event: end\n" if has_ended(job) else ""
    data = document_of(job, root_path).model_dump_json()
    return f"id: {event_id(job)}\n{name}data: {data}\n\n".encode()


def _poll_after(service: Service, job: Job) -> dict[str, str]:
    """The seconds after which to look again, for a job that has not ended."""
    seconds = max(1, round(service.settings.job_step_s))
    return header_values({headers.RETRY_AFTER: None if has_ended(job) else seconds})


def _job_response(service: Service, job: Job, status: int, values: dict[str, str]) -> Response:
    content = document_of(job, service.settings.root_path).model_dump(mode="json")
    return JSONResponse(content, status, NO_STORE | values)


async def _stream_response(request: Request, job: Job, data: bytes) -> Response:
    context = context_of(request.scope)
    context.rate, context.pixels = job.spec.level, job.spec.width * job.spec.height
    values: dict[headers.ResponseHeader, object] = {
        headers.ETAG: f'"{hashlib.sha256(data).hexdigest()}"',
        headers.RATE: rate_text(job.spec.level),
    }
    if job.record is not None:
        progress = job.record.progress
        context.bpp = progress.bpp
        values |= {
            headers.BPP: progress.bpp,
            headers.PSNR: progress.psnr_db,
            headers.STEP: progress.step,
            headers.SOURCE_BYTES: job.spec.image_bytes,
            headers.NOTES: notes_text(job.notes),
        }
    return await bytes_response(request, data, header_values(values), openapi.STREAM_TYPE)
