"""The FastAPI app: made of codec, admission, routes, error handlers and middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.api import iiif_routes, object_routes, openapi, picture_routes
from service.api.file_work import SMALL_WORK, run_batch
from service.api.headers import EXPOSED
from service.api.image_routes import (
    compare_router,
    compress_router,
    decompress_router,
    maps_router,
)
from service.api.job_client import JobClient
from service.api.job_monitoring import JobMetrics, JobStorageMonitor
from service.api.job_routes import adapt_router, jobs_router
from service.api.operation_routes import (
    adapters_router,
    models_router,
    operations_router,
    weights_router,
)
from service.api.service import Service
from service.blobs import open_objects
from service.engine.admission import Admission, Batching
from service.engine.types import Codec
from service.errors import ObjectsUnavailable, RankpressError, Saturated
from service.http import problems
from service.http.call_pool import CallPool
from service.http.clients import RETRY_S, SharedLimit
from service.http.metrics import Metrics
from service.http.middleware import OpenToPages, RequestMiddleware
from service.http.spool import Spool
from service.settings import Settings
from service.web.pages import add_docs_page, add_guide, add_page

if TYPE_CHECKING:
    from service.tracing.spans import Tracing

OBJECT_THREADS = 16
"""Calls of the object store that run at the same time."""

PUBLIC_PATHS = "/iiif/", "/weights/", "/web/decoder/"
"""Beginnings of the paths whose answers pages of all origins may read: pictures by the hash of
their stream, as level 2 of the IIIF Image API asks, and the decoder for web pages with its
weights."""

DESCRIPTION = """A neural image codec: image files go in, short bitstreams come out, and back.

Errors are `application/problem+json` (RFC 9457); program against their `type`."""

log = structlog.get_logger("rankpress.api")


def create_app(codec: Codec, settings: Settings, tracing: Tracing | None = None) -> FastAPI:
    """An app that serves one codec, with spans of its requests where there is tracing.

    Its lifespan must run: that starts the self-test, and work waits until the test has passed.
    `app.state.service` is the `Service` behind the endpoints.

    Raises:
        BadParameter: the settings name no place for the jobs or the objects.
    """
    admission = Admission(
        workers=settings.workers,
        max_waiting=settings.max_waiting,
        max_wait_s=settings.max_wait_s,
        max_waiting_bytes=settings.max_waiting_bytes,
        small_size=SMALL_WORK,
        batching=Batching(run_batch, codec.max_batch, settings.batch_window_s),
    )
    spool = Spool(settings)
    metrics = Metrics(admission, spool)
    app = FastAPI(
        title="Rankpress",
        version=version("rankpress"),
        description=DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # Small and large work have workers each.
    places = settings.max_waiting + 2 * settings.workers
    url, timeout_s = settings.objects_url, settings.objects_timeout_s
    job_client = JobClient(settings, codec.models())
    app.state.service = Service(
        codec=codec,
        settings=settings,
        admission=admission,
        places=SharedLimit("places to wait", places, settings.client_share),
        metrics=metrics,
        job_client=job_client,
        job_metrics=JobMetrics(job_client, metrics.registry),
        job_storage=JobStorageMonitor(job_client, metrics.registry),
        objects=open_objects(url, timeout_s) if url else None,
        object_calls=CallPool("object store", OBJECT_THREADS, ObjectsUnavailable),
        header_calls=CallPool("image headers", 1, lambda text: Saturated(text, RETRY_S)),
        weight_calls=CallPool("weights", 1, lambda text: Saturated(text, RETRY_S)),
        spool=spool,
    )
    for router in _routers(settings):
        app.include_router(router)
    add_docs_page(app)
    add_guide(app)
    if settings.page and not settings.decode_only:
        add_page(app)
    app.add_exception_handler(RankpressError, problems.on_rankpress_error)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(RequestValidationError, problems.on_validation_error)
    app.add_middleware(
        RequestMiddleware,
        admission=admission,
        metrics=metrics,
        settings=settings,
        spool=spool,
        tracing=tracing,
    )
    if settings.cors_origins:  # outside of the above: errors too are for pages of these origins
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=86_400,
        )
    else:
        app.add_middleware(OpenToPages, paths=PUBLIC_PATHS, exposed=EXPOSED)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app


def _routers(settings: Settings) -> list[APIRouter]:
    """The routers of the endpoints that the settings offer."""
    routers = [decompress_router, maps_router, operations_router]
    if settings.weights:
        routers.append(weights_router)
    if not settings.decode_only:
        routers += [compress_router, models_router, adapt_router, jobs_router, adapters_router]
        if settings.page:
            routers.append(compare_router)
    if settings.objects_write:  # before those that read names, whose paths would match too
        routers += [object_routes.write_router, picture_routes.write_router]
    if settings.objects_url:
        routers += [object_routes.read_router, picture_routes.read_router, iiif_routes.router]
    return routers


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.admission.start()
    test = asyncio.create_task(_self_test(service))
    try:
        yield
    finally:
        test.cancel()
        await asyncio.gather(test, return_exceptions=True)
        service.admission.close()
        await service.close()


async def _self_test(service: Service) -> None:
    try:
        await service.admission.open_after(service.codec.self_test)
    except Exception:
        log.exception("self-test failed: no request will be answered")
    else:
        log.info("self-test passed")
