"""`/pictures`: pictures by name. A name has a plain stream at once, and a better one after a job.

A name may have slashes, but no part of it has an `@`, so that `@stream` and `@history` after a name
cannot be names themselves. What a name has is served as at `/objects`, under the same entity tags,
and may be kept only shortly. Versions and what may happen to them are in names/picture_names.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api import headers, openapi
from service.api.file_work import StreamFile
from service.api.image_routes import compress_file
from service.api.job_client import watch_for
from service.api.object_routes import call_store, serve_picture, serve_stream
from service.api.picture_schemas import (
    PictureDocument,
    PictureHistory,
    PictureList,
    PictureQuery,
    PicturesQuery,
    StoredPicture,
    picture_values,
)
from service.api.schemas import DecompressQuery
from service.api.service import Service, ServiceArg, refuse_query, refuse_repeats
from service.blobs import Objects, shared_key
from service.engine.requests import check_pixels
from service.engine.target import LOSSLESS, Target
from service.engine.types import ModelInfo
from service.errors import (
    BadParameter,
    DamagedObject,
    NoSuchObject,
    NoSuchPicture,
    RateUnavailable,
    TooManyPixels,
)
from service.http.context import context_of
from service.jobs.followups import Followup, add_followup
from service.jobs.job import check_rate, lmbda_of, spec_of
from service.jobs.jobs import Jobs
from service.names.picture_names import PictureNames
from service.names.version import (
    MAX_NAME_CHARS,
    NAME_PATTERN,
    NamedStream,
    PictureVersion,
    check_name,
    mse_of,
)

Name = Annotated[
    str,
    Path(
        pattern=NAME_PATTERN,
        max_length=MAX_NAME_CHARS,
        description="Name of the picture: one to eight parts joined by slashes.",
        examples=["blog/cat.jpg"],
    ),
]

read_router = APIRouter(tags=["pictures"], dependencies=[Depends(refuse_repeats)])
write_router = APIRouter(tags=["pictures"], dependencies=[Depends(refuse_repeats)])


@write_router.get("/pictures", response_model=PictureList, responses=openapi.GET_PICTURES)
async def list_pictures(
    service: ServiceArg, query: Annotated[PicturesQuery, Query()]
) -> PictureList:
    """Names that begin with a prefix, and what they have."""
    page = await call_store(
        service, lambda objects: PictureNames(objects).pictures(**query.model_dump())
    )
    root_path = service.settings.root_path
    documents = (PictureDocument(**picture_values(*pair, root_path)) for pair in page)
    more = page[-1][0] if len(page) == query.limit else None
    return PictureList(pictures=tuple(documents), next=more)


@write_router.get(
    "/pictures/{name:path}/@history",
    response_model=PictureHistory,
    dependencies=[Depends(refuse_query)],
    responses=openapi.GET_HISTORY,
)
async def get_history(service: ServiceArg, name: Name) -> PictureHistory:
    """The last versions of a name, also of one that was deleted."""
    versions = await call_store(service, lambda objects: PictureNames(objects).history(name))
    root_path = service.settings.root_path
    documents = (PictureDocument(**picture_values(name, v, root_path)) for v in versions)
    return PictureHistory(versions=tuple(documents))


@write_router.put("/pictures/{name:path}", response_model=StoredPicture, **openapi.PUT_PICTURE)
async def put_picture(
    request: Request, service: ServiceArg, name: Name, query: Annotated[PictureQuery, Query()]
) -> Response:
    """Compress an image file and give it a name; a job makes its stream better, if asked for.

    The same image file and parameters again leave the name as it is, and are not compressed again.
    """
    check_name(name)
    query.check()
    model = service.model_named(query.model)
    if query.effort is not None:
        _check_adaptable(service, model)
    recipients = () if query.effort is None else service.job_client.recipients(query.webhook)
    body = await service.read_body(request)
    look_up = partial(_look_up, name=name, body=body, query=query, model=model)
    source, present, is_whole = await call_store(service, look_up)
    version, notes = present, tuple[str, ...]()
    if version is None or not is_whole:
        done = (await compress_file(request, service, query, body)).value
        put = partial(_put, name=name, done=done, source=source, last=present)
        version, notes = await call_store(service, put), done.notes
    job = None
    if query.effort is not None:
        trace = context_of(request.scope).trace_carrier
        job, reasons = await _start_job(service, name, query, body, version, recipients, trace)
        notes += reasons
    root_path = service.settings.root_path
    values = picture_values(name, version, root_path)
    document = StoredPicture(**values, job=job, notes=notes)
    location = {"Location": f"{root_path}/pictures/{name}"}
    status = 201 if present is None else 200
    return JSONResponse(document.model_dump(mode="json"), status, location)


@write_router.delete(
    "/pictures/{name:path}",
    status_code=204,
    response_class=Response,
    dependencies=[Depends(refuse_query)],
    responses=openapi.DELETE_PICTURE,
)
async def delete_picture(service: ServiceArg, name: Name) -> Response:
    """Remove the picture of a name; its streams stay objects."""
    await call_store(service, lambda objects: PictureNames(objects).delete(name))
    return Response(status_code=204)


@read_router.get(
    "/pictures/{name:path}/@stream",
    response_class=Response,
    dependencies=[Depends(refuse_query)],
    responses=openapi.GET_PICTURE_STREAM,
)
async def get_picture_stream(request: Request, service: ServiceArg, name: Name) -> Response:
    """The bytes of the stream that a name has now, whole or in part."""
    digest = await _present_digest(service, name)
    caching = _caching(service, f"{digest}/stream")
    return await serve_stream(request, service, digest, caching)


@read_router.get("/pictures/{name:path}", response_class=Response, responses=openapi.GET_PICTURE)
async def get_picture(
    request: Request,
    service: ServiceArg,
    name: Name,
    query: Annotated[DecompressQuery, Query()],
) -> Response:
    """Decode the stream that a name has now, as `/objects` does."""
    digest = await _present_digest(service, name)
    parameters = request.url.query and f"?{request.url.query}"
    caching = _caching(service, f"{digest}{parameters}")
    # Two parts might be of different streams: clients that ask for parts rarely check that.
    return await serve_picture(request, service, digest, query, caching, in_parts=False)


async def _present_digest(service: Service, name: str) -> str:
    version = await call_store(service, lambda objects: PictureNames(objects).present(name))
    assert version.stream is not None  # the present version has one
    return version.stream.sha256


def _caching(service: Service, path: str) -> Mapping[headers.ResponseHeader, object]:
    """Headers of an answer that may change, and whose present state is an object at a path."""
    settings = service.settings
    age_s, stale_s = settings.picture_max_age_s, settings.picture_stale_s
    return {
        headers.CACHE_CONTROL: f"public, max-age={age_s}, stale-while-revalidate={stale_s}",
        headers.CONTENT_LOCATION: f"{settings.root_path}/objects/{path}",
    }


def _look_up(
    objects: Objects, *, name: str, body: bytes, query: PictureQuery, model: ModelInfo
) -> tuple[str, PictureVersion | None, bool]:
    """The source of a put, the version that the name has, and whether that is what is to be put.

    It is if it has the same source and its stream can be read. The version is None if there is no
    picture or it cannot be read.
    """
    source = source_of(body, query, model)
    try:
        present = PictureNames(objects).present(name)
    except (NoSuchPicture, DamagedObject):
        return source, None, False
    assert present.stream is not None  # the present version has one
    if present.source != source:
        return source, present, False
    key = shared_key(present.stream.sha256)
    info = objects.head(key)
    if info is None or info.size_bytes != present.stream.size_bytes:
        return source, present, False
    try:  # writing it again keeps it from an expiry by age
        objects.put(objects.get(key))
    except (NoSuchObject, DamagedObject):
        return source, present, False
    return source, present, True


def _check_adaptable(service: Service, model: ModelInfo) -> None:
    """Raise BadParameter for a model that jobs do not adapt: any but the first."""
    first = service.codec.models()[0]
    if model.name != first.name:
        raise BadParameter(f"model is {model.name}, jobs (effort) adapt {first.name} alone")


def source_of(body: bytes, query: PictureQuery, model: ModelInfo) -> str:
    """SHA-256, in hex, over an image file and all that determines its plain stream."""
    rates = [(rate.rate, rate.tune, rate.sha256) for rate in model.rates]
    options = query.rate_or_target(), query.tune, query.metadata, query.frame
    values = (hashlib.sha256(body).hexdigest(), options, model.sha256, rates)
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _put(
    objects: Objects, *, name: str, done: StreamFile, source: str, last: PictureVersion | None
) -> PictureVersion:
    """Give a name a new stream; `last` is the version of which that is not to be left."""
    compressed, psnr_db = done.compressed, done.compressed.psnr_db
    stream = NamedStream(
        sha256=done.sha256,
        size_bytes=len(compressed.data),
        width=compressed.width,
        height=compressed.height,
        rate=None if compressed.rate == LOSSLESS else compressed.rate,
        tune=compressed.tune,
        mse=None if psnr_db is None else mse_of(psnr_db),
        visible=done.visible_share,
    )
    lost = None if last is None else last.token
    return PictureNames(objects).put(name, compressed.data, stream, source, lost).version


async def _start_job(
    service: Service,
    name: str,
    query: PictureQuery,
    body: bytes,
    version: PictureVersion,
    recipients: tuple[str, ...],
    trace: Mapping[str, str] | None,
) -> tuple[str | None, tuple[str, ...]]:
    """Queue the job that may improve a version; return its id, or None and the reason.

    Raises:
        Saturated, JobsUnavailable, ObjectsUnavailable: it cannot be queued now. The version stays,
            and the same put again is quick.
    """
    client, settings, stream = service.job_client, service.settings, version.stream
    assert stream is not None  # of a put
    rate = query.rate_or_target()
    if isinstance(rate, Target):  # the job works at the rate that met it
        rate = LOSSLESS if stream.rate is None else stream.rate
    if not client.is_enabled:
        return None, ("no job: this server offers none",)
    if rate == LOSSLESS:
        return None, ("no job: the stream that meets the target is lossless",)
    try:
        limit = min(settings.max_pixels, settings.job_max_pixels)
        check_pixels(limit, stream.width, stream.height)
        details = name_details(name, query, version, rate, client.models[0])
    except (TooManyPixels, RateUnavailable) as error:
        return None, (f"no job: {error}",)

    def submit(jobs: Jobs) -> str:
        effort, size = query.effort or 0, (stream.width, stream.height)
        spec = spec_of(body, *size, rate, effort, client.models, query.frame)
        add_followup(jobs, Followup(spec.id, "name", details))
        watch_for(jobs, spec.id, recipients, name)
        return jobs.submit(body, spec, query.priority, trace).id

    return await client.call_with_files(submit), ()


def name_details(
    name: str, query: PictureQuery, version: PictureVersion, rate: float, model: ModelInfo
) -> dict[str, str | int | float]:
    """The details of the follow-up that improves a version, see `NameDetails`.

    Args:
        rate: of the job. model: that the job adapts.

    Raises:
        RateUnavailable: jobs have no weights for the rate, or these do not say their lmbda.
    """
    stream, target = version.stream, query.rate_or_target()
    assert stream is not None  # of a put
    lmbda = lmbda_of(model, check_rate(rate, (model,)))
    if lmbda is None:
        raise RateUnavailable(f"the weights of rate {rate:g} do not say their lmbda", ())
    details: dict[str, str | int | float] = {"name": name, "put": version.put, "lmbda": lmbda}
    match target:
        case Target(bpp=float(bpp)):
            details["max_bytes"] = int(bpp * stream.width * stream.height / 8)
        case Target(max_bytes=int(max_bytes)):
            details["max_bytes"] = max_bytes
        case Target(psnr_db=float(psnr_db)):
            details["min_psnr_db"] = psnr_db
    return details
