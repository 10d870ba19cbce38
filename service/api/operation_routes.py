"""The endpoints for those who run the service: models, adapters, health, metrics and its pages.

`/adapters` loads and unloads rate adapters while the server runs, for admins only; it is off by
default. The address of an adapter is the hash of its file. Loading is atomic: the adapter is
checked and merged in a worker thread, in its turn, and then serves new requests; requests that run
go on with the weights they began with.

`/docs` is Swagger UI, which loads nothing from another host: its Content-Security-Policy allows the
page's own script by its hash, and no other script that is written into the page. `/guide` is the
documentation as a site, on servers that are installed with its built pages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import fastapi
import fastapi_offline
import structlog
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from service.api import openapi
from service.api.schemas import (
    TUNES,
    AdapterQuery,
    Adapters,
    Health,
    ModelRate,
    Models,
    Rates,
    Readiness,
)
from service.api.service import ServiceArg, admin_only, refuse_query, refuse_repeats
from service.engine.admission import Phase
from service.engine.types import AdapterInfo
from service.files import SITE
from service.http.problems import NOT_READY, problem

STATIC: Final = "/docs/static"
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

log = structlog.get_logger("rankpress.api")

models_router = APIRouter(tags=["models"], dependencies=[Depends(refuse_query)])
adapters_router = APIRouter(
    prefix="/adapters", tags=["adapters"], dependencies=[Depends(admin_only)]
)
operations_router = APIRouter(tags=["operations"])


@models_router.get("/models", responses=openapi.problems(422))
async def models(service: ServiceArg) -> Models:
    """Every model with its hash, its rates and how it was trained."""
    return Models(models=service.codec.models())


@models_router.get("/rates", responses=openapi.problems(422))
async def rates(service: ServiceArg) -> Rates:
    """Every rate with the bits per pixel, PSNR and MS-SSIM measured over Kodak."""
    offered = [
        ModelRate(model=model.name, **asdict(rate))
        for model in service.codec.models()
        for rate in model.rates
    ]
    offered.sort(key=lambda rate: (TUNES.index(rate.tune), rate.rate))
    return Rates(rates=tuple(offered))


@adapters_router.get(
    "", dependencies=[Depends(refuse_query)], responses=openapi.problems(401, 403, 422)
)
async def adapters(service: ServiceArg) -> Adapters:
    """Adapters of the store and those loaded since; `served` marks those that new requests use."""
    return Adapters(adapters=service.codec.adapters())


@adapters_router.post(
    "", status_code=201, dependencies=[Depends(refuse_repeats)], **openapi.ADD_ADAPTER
)
async def add_adapter(
    request: Request,
    response: Response,
    service: ServiceArg,
    query: Annotated[AdapterQuery, Query()],
) -> AdapterInfo:
    """Load an adapter: new requests of its rate use it, streams of the old one still decode."""
    body = await service.read_body(request)
    work = partial(service.codec.add_adapter, body, query.base, query.rate, query.tune)
    adapter = (await service.run(request, work)).value
    response.headers["Location"] = f"/adapters/{adapter.sha256}"
    log.info("adapter loaded", sha256=adapter.sha256, rate=adapter.rate, model=adapter.model)
    return adapter


@adapters_router.delete(
    "/{sha256}",
    status_code=204,
    dependencies=[Depends(refuse_query)],
    responses=openapi.problems(401, 403, 404, 422),
)
async def remove_adapter(
    request: Request,
    service: ServiceArg,
    sha256: Annotated[str, fastapi.Path(description="Hash of the adapter's file, in hex.")],
) -> None:
    """Unload an adapter: its rate is as it was before, and its streams no longer decode."""
    await service.run(request, partial(service.codec.remove_adapter, sha256))
    log.info("adapter unloaded", sha256=sha256)


@operations_router.get("/livez")
async def livez(response: Response) -> Health:
    """200 for as long as the event loop runs, also while the server drains."""
    response.headers["Cache-Control"] = "no-store"
    return Health()


@operations_router.get("/readyz", response_model=Readiness, responses=openapi.only_problems(503))
async def readyz(request: Request, response: Response, service: ServiceArg) -> Readiness | Response:
    """200 from the time when the golden streams decoded as recorded until shutdown begins.

    The answer also says whether jobs can be stored.
    """
    phase = service.admission.phase
    if phase is not Phase.OPEN:
        return problem(request, NOT_READY, f"the server is {phase.value}")
    response.headers["Cache-Control"] = "no-store"
    return Readiness(jobs=service.job_storage.latest())


@operations_router.get("/metrics", response_class=Response, responses=openapi.METRICS)
async def metrics(service: ServiceArg) -> Response:
    """Counts, bytes and seconds in Prometheus' text format."""
    await asyncio.gather(service.job_metrics.refresh(), service.job_storage.refresh())
    return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def add_docs_page(app: FastAPI) -> None:
    """Add `/docs` and the files that it loads."""
    files = Path(fastapi_offline.__file__).parent / "static"
    app.mount(STATIC, StaticFiles(directory=files), name="docs-static")
    app.add_api_route("/docs", _show_docs, include_in_schema=False)


async def _show_docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=f"{app.title} - Swagger UI",
        oauth2_redirect_url=None,
        swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body))
    return page


def add_guide(app: FastAPI, site: Path = SITE) -> None:
    """Serve a built site at `/guide`; nothing is added where it was not built."""
    if (site / "index.html").is_file():
        app.add_api_route("/guide", _redirect_to_guide, include_in_schema=False)
        app.mount("/guide", StaticFiles(directory=site, html=True), name="guide")


async def _redirect_to_guide(request: Request) -> RedirectResponse:
    """Links of the pages are relative to a path that ends with a slash."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/guide/")


def _policy(page: bytes) -> str:
    """What the page may load and run. Swagger UI needs `data:` icons and styles on its elements."""
    digests = [hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(page)]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    directives = (
        "default-src 'none'",
        f"script-src 'self' {' '.join(hashes)}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return "; ".join(directives)
