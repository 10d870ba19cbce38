"""The FastAPI app: puts codec, admission, routes, errors and middleware together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.api import adapters, docs_page, objects, openapi, routes
from service.api.desk import Desk
from service.api.guide import add_guide
from service.api.job_metrics import JobMetrics
from service.api.job_routes import adapt_router, jobs_router
from service.api.job_storage import JobStorage
from service.api.work import SMALL_WORK, together
from service.blobs import open_objects
from service.engine.admission import Admission, Batching
from service.engine.types import Codec
from service.errors import ObjectsUnavailable, RankpressError, Saturated
from service.http import problems
from service.http.calls import BlockingCalls
from service.http.clients import SharedLimit
from service.http.holds import Spool
from service.http.metrics import Metrics
from service.http.middleware import RequestMiddleware
from service.settings import Settings

EXPOSED_HEADERS = (
    "Accept-Ranges, Allow, Content-Length, Content-Range, ETag, Location, Retry-After, "
    "Server-Timing, X-Rankpress-Bpp, X-Rankpress-Model, X-Rankpress-Notes, X-Rankpress-Psnr, "
    "X-Rankpress-Rate, X-Rankpress-Source-Bytes, X-Rankpress-Step, X-Rankpress-Tune, X-Request-Id"
).split(", ")
"""Headers of answers that pages of other origins may read."""

OBJECT_THREADS = 16
"""Calls of the object store that run at a time."""

DESCRIPTION = """A neural image codec: image files go in, short bitstreams come out, and back.

Errors are `application/problem+json` (RFC 9457); program against their `type`."""

log = structlog.get_logger("rankpress.api")


def create_app(codec: Codec, settings: Settings) -> FastAPI:
    """An app that serves one codec.

    Its lifespan must run: that starts the self-test, and work waits until the test has passed.
    `app.state.service` is the `routes.Service` behind the endpoints.

    Raises:
        BadParameter: the settings name no place for the jobs or the objects.
    """
    admission = Admission(
        workers=settings.workers,
        max_waiting=settings.max_waiting,
        max_wait_s=settings.max_wait_s,
        max_waiting_bytes=settings.max_waiting_bytes,
        small_size=SMALL_WORK,
        batching=Batching(together, codec.max_batch, settings.batch_window_s),
    )
    spool = Spool(settings)
    metrics = Metrics(admission, spool)
    app = FastAPI(
        title="Rankpress",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    place, timeout_s = settings.objects_url, settings.objects_timeout_s
    store = open_objects(place, timeout_s) if place else None
    desk = Desk(settings, codec.models())
    app.state.service = routes.Service(
        codec,
        settings,
        admission,
        SharedLimit("places to wait", _places(settings), settings.client_share),
        metrics,
        desk,
        JobMetrics(metrics.registry),
        JobStorage(desk, metrics.registry),
        store,
        BlockingCalls("object store", OBJECT_THREADS, ObjectsUnavailable),
        BlockingCalls("image headers", 1, _busy),
        spool,
    )
    for router in _routers(settings):
        app.include_router(router)
    docs_page.add_to(app)
    add_guide(app)
    app.add_exception_handler(RankpressError, problems.on_rankpress_error)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(RequestValidationError, problems.on_validation_error)
    app.add_middleware(
        RequestMiddleware, admission=admission, metrics=metrics, settings=settings, spool=spool
    )
    if settings.cors_origins:
        _allow_origins(app, settings.cors_origins)
    app.openapi = lambda: openapi.document(app, settings.root_path)  # type: ignore[method-assign]
    return app


def _allow_origins(app: FastAPI, origins: str) -> None:
    """Answer preflights and mark every answer, errors too, for pages of these origins."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
        max_age=86_400,
    )


def _places(settings: Settings) -> int:
    """Requests that may wait or be worked on: each lane has its workers."""
    return settings.max_waiting + 2 * settings.workers


def _busy(message: str) -> Saturated:
    return Saturated(message, 5)


def _routers(settings: Settings) -> list[APIRouter]:
    """What the settings offer."""
    offered = [routes.decompressing, routes.operations]
    if not settings.decode_only:
        offered += [routes.compressing, routes.about, adapt_router, jobs_router, adapters.router]
    if settings.objects_url:
        offered.append(objects.reading)
    if settings.objects_write:
        offered.append(objects.writing)
    return offered


def _version() -> str:
    try:
        return version("rankpress")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: routes.Service = app.state.service
    service.admission.start()
    test = asyncio.create_task(_self_test(service))
    try:
        yield
    finally:
        test.cancel()
        await asyncio.gather(test, return_exceptions=True)
        service.admission.close()
        calls = (service.ask_objects, service.read_headers, service.spool.calls)
        await asyncio.gather(
            *(each.close() for each in (service.job_storage, service.desk, *calls))
        )


async def _self_test(service: routes.Service) -> None:
    try:
        await service.admission.open_after(service.codec.self_test)
    except Exception:
        log.exception("self-test failed: no request will be answered")
    else:
        log.info("self-test passed")
