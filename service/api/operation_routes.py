"""The endpoints about the service itself: models, their weights, adapters, health and metrics.

`/weights` are the files that decoders in other programs need, such as those of web pages, under
names that are their hashes.

`/adapters` loads and unloads rate adapters while the server runs, for admins only; it is off by
default. The address of an adapter is the hash of its file. Loading is atomic: the adapter is
checked and merged in a worker thread, in its turn, and then serves new requests; requests that run
go on with the weights they began with.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict
from functools import partial
from typing import Annotated

import fastapi
import structlog
from fastapi import APIRouter, Depends, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from service.api import headers, openapi
from service.api.headers import header_values
from service.api.object_routes import IMMUTABLE
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
from service.api.service import Service, ServiceArg, admin_only, refuse_query, refuse_repeats
from service.engine.admission import Phase
from service.engine.types import AdapterInfo, DecoderFiles
from service.http.problems import NOT_READY, problem
from service.http.responses import SharedFile

log = structlog.get_logger("rankpress.api")

models_router = APIRouter(tags=["models"], dependencies=[Depends(refuse_query)])
weights_router = APIRouter(tags=["models"], dependencies=[Depends(refuse_query)])
adapters_router = APIRouter(
    prefix="/adapters", tags=["adapters"], dependencies=[Depends(admin_only)]
)
operations_router = APIRouter(tags=["operations"])


@models_router.get("/models", responses=openapi.problems(422))
async def models(service: ServiceArg) -> Models:
    """Every model with its hash, its family, its rates and how it was trained.

    And every autoencoder, whose latents can be fitted to a picture, with its hash.
    """
    loaded = service.codec.models()
    autoencoders = await service.weight_calls(
        service.codec.autoencoders, service.settings.request_timeout_s
    )
    return Models(default=loaded[0].name, models=loaded, autoencoders=autoencoders)


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


@weights_router.get(
    "/weights/index.json", response_class=Response, responses=openapi.GET_WEIGHTS_INDEX
)
async def get_weights_index(request: Request, service: ServiceArg) -> Response:
    """The index of the decode-only files of every model; its format is in the documentation."""
    index = (await _decoder_files(service)).index
    file = SharedFile(index, hashlib.sha256(index).hexdigest(), openapi.JSON_TYPE)
    return file.response(request, header_values({headers.CACHE_CONTROL: "no-cache"}))


@weights_router.get("/weights/{file}", response_class=Response, responses=openapi.GET_WEIGHTS)
async def get_weights(
    request: Request,
    service: ServiceArg,
    file: Annotated[
        str, fastapi.Path(description="Name of a file in the index: a SHA-256 and a suffix.")
    ],
) -> Response:
    """A decode-only file, in gzip where that pays and the client takes it."""
    offered = await _decoder_files(service)
    data = offered.files.get(file)
    if data is None:
        raise HTTPException(404, "the index of the weights names no such file")
    digest = file.partition(".")[0]
    shared = SharedFile(data, digest, openapi.BINARY_TYPE, offered.gzipped.get(file))
    return shared.response(request, header_values({headers.CACHE_CONTROL: IMMUTABLE}))


async def _decoder_files(service: Service) -> DecoderFiles:
    """The decode-only files; the first call, and one after a change of adapters, derives them."""
    return await service.weight_calls(
        service.codec.decoder_files, service.settings.request_timeout_s
    )


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
