"""The endpoints: each reads its request, asks for work, and words the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from service.api import openapi
from service.api.desk import Desk
from service.api.job_metrics import JobMetrics
from service.api.job_storage import JobStorage
from service.api.schemas import (
    LOSSLESS_ONLY,
    TUNES,
    CompressQuery,
    DecompressQuery,
    Health,
    Model,
    ModelRate,
    Models,
    Rates,
    Readiness,
)
from service.api.work import CompressFile, DecompressFile, ImageFile, Stream, View
from service.blobs import Objects
from service.engine.admission import Admission, Phase, WorkResult
from service.engine.target import Target
from service.engine.types import Codec, Load, ModelInfo, Timings
from service.errors import BadParameter, Saturated
from service.http.answers import answer
from service.http.bodies import read_body
from service.http.calls import BlockingCalls
from service.http.clients import SharedLimit
from service.http.holds import Spool
from service.http.metrics import Metrics
from service.http.negotiate import EXACT, Form, rank_formats
from service.http.problems import NOT_READY, problem
from service.http.record import record_of
from service.images.cost import WriteLimits
from service.images.write import MEDIA_TYPES
from service.settings import Settings

T = TypeVar("T")

STREAM_TYPE = "application/vnd.rankpress"
MAX_NOTES_CHARS = 1000
SMALL_LOAD = Load()


@dataclass(frozen=True)
class Service:
    """What every endpoint may use.

    Attributes:
        places: for requests that wait for the codec or are worked on.
    """

    codec: Codec
    settings: Settings
    admission: Admission
    places: SharedLimit
    metrics: Metrics
    desk: Desk
    job_metrics: JobMetrics
    job_storage: JobStorage
    objects: Objects | None
    ask_objects: BlockingCalls
    read_headers: BlockingCalls
    spool: Spool

    @property
    def calls(self) -> int:
        """Blocking calls that wait or run, besides the work in the codec."""
        calls = self.ask_objects, self.read_headers, self.spool.calls
        return self.desk.waiting + sum(each.waiting for each in calls)

    @property
    def write_limits(self) -> WriteLimits:
        """What writing one image file may take."""
        return WriteLimits(self.settings.max_output_s, self.settings.max_output_memory_bytes)

    async def answer(
        self,
        request: Request,
        data: bytes,
        headers: Mapping[str, str],
        media_type: str,
        status: int = 200,
    ) -> Response:
        """An answer of bytes that may be many, see `answers.answer`."""
        limit_s = self.settings.body_timeout_s
        return await answer(request, data, headers, media_type, timeout_s=limit_s, status=status)

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded now."""
        return self.codec.models()


def service_of(request: Request) -> Service:
    """The service behind the app that took the request."""
    service = request.app.state.service
    assert isinstance(service, Service)  # create_app sets it
    return service


ServiceArg = Annotated[Service, Depends(service_of)]


def refuse_repeats(request: Request) -> None:
    """Raise BadParameter for a parameter given twice: one of the two would be ignored."""
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [name[:100] for name, count in counts.items() if count > 1]
    if repeated:
        raise BadParameter(f"given more than once: {', '.join(repeated[:10])}")


def refuse_query(request: Request) -> None:
    """Raise BadParameter for any parameter, on paths that take none."""
    names = [name[:100] for name in request.query_params]
    if names:
        raise BadParameter(f"this path takes no parameters, found {', '.join(names[:10])}")


compressing = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])
decompressing = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])
about = APIRouter(tags=["models"], dependencies=[Depends(refuse_query)])
operations = APIRouter(tags=["operations"])


@compressing.post("/compress", response_class=Response, **openapi.COMPRESS)
async def compress(
    request: Request, service: ServiceArg, query: Annotated[CompressQuery, Query()]
) -> Response:
    """Turn an image file into a Rankpress stream."""
    wanted = query.rate_or_target()
    record = record_of(request.scope)
    record.rate = None if isinstance(wanted, Target) else wanted
    body = await read_body(request, service.admission, record.hold, service.settings)
    limit = service.settings.max_pixels
    work = CompressFile(service.codec, body, wanted, query.tune, query.metadata, query.frame, limit)
    # reading a header is quick, but the bytes are anybody's: the event loop is not for them
    load = await service.read_headers(work.load, service.settings.request_timeout_s)
    done = await run_work(request, service, work, load)
    compressed = done.value.compressed
    record.rate, record.bpp = compressed.rate, compressed.bpp
    record.pixels = compressed.width * compressed.height
    service.metrics.observe_work(done.queue_s, compressed.timings, done.value.read_s)
    return await service.answer(request, compressed.data, _stream_headers(done), STREAM_TYPE)


@decompressing.post("/decompress", response_class=Response, **openapi.DECOMPRESS)
async def decompress(
    request: Request, service: ServiceArg, query: Annotated[DecompressQuery, Query()]
) -> Response:
    """Turn a Rankpress stream into an image file."""
    view = view_of(query, ",".join(request.headers.getlist("accept")))
    record = record_of(request.scope)
    body = await read_body(request, service.admission, record.hold, service.settings)
    work = DecompressFile(service.codec, body, view, service.write_limits)
    done = await run_work(request, service, work, work.load())
    image = done.value
    record.rate, record.model = image.rate, image.model
    record.pixels = image.width * image.height
    service.metrics.observe_work(done.queue_s, image.timings, image.write_s)
    headers = {"Vary": "Accept", **image_headers(done)}
    return await service.answer(request, image.data, headers, MEDIA_TYPES[image.format])


@about.get("/models", summary="What is loaded", responses=openapi.problems(422))
async def models(service: ServiceArg) -> Models:
    """Every model with its hash, its rates and how it was trained."""
    return Models(models=tuple(Model.model_validate(model) for model in service.models))


@about.get("/rates", summary="Rates that can be asked for", responses=openapi.problems(422))
async def rates(service: ServiceArg) -> Rates:
    """Every rate with the bits per pixel, PSNR and MS-SSIM measured over Kodak."""
    offered = [
        ModelRate(model=model.name, **asdict(rate))
        for model in service.models
        for rate in model.rates
    ]
    order = sorted(offered, key=lambda rate: (TUNES.index(rate.tune), rate.rate))
    return Rates(rates=tuple(order))


@operations.get("/livez", summary="Is the process alive")
async def livez(response: Response) -> Health:
    """200 for as long as the event loop turns, also while draining."""
    response.headers["Cache-Control"] = "no-store"
    return Health(status="alive")


@operations.get(
    "/readyz",
    summary="Should requests be sent here",
    response_model=Readiness,
    responses=openapi.only_problems(503),
)
async def readyz(request: Request, response: Response, service: ServiceArg) -> Readiness | Response:
    """200 once the golden streams decoded to the recorded symbols, until shutdown begins.

    Says too whether jobs can be stored.
    """
    phase = service.admission.phase
    if phase is not Phase.OPEN:
        return problem(request, NOT_READY, f"the server is {phase.value}")
    response.headers["Cache-Control"] = "no-store"
    return Readiness(status="ready", jobs=service.job_storage.latest())


@operations.get(
    "/metrics", summary="Prometheus metrics", response_class=Response, responses=openapi.METRICS
)
async def metrics(service: ServiceArg) -> Response:
    """Counts, bytes and seconds in Prometheus' text format."""
    await asyncio.gather(service.job_metrics.refresh(service.desk), service.job_storage.refresh())
    return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)


def view_of(query: DecompressQuery, accept: str) -> View:
    """What a request asks to see. Raises BadParameter or NotAcceptable."""
    names = (query.format,) if query.format else rank_formats(accept, EXACT)
    if query.quality is not None:
        if names[0] in LOSSLESS_ONLY:
            raise BadParameter(
                f"quality is {query.quality}, but {names[0]} is lossless: ask for a format"
            )
        names = tuple(name for name in names if name not in LOSSLESS_ONLY)
    forms = tuple(Form(name, query.quality) for name in names)
    return View(forms, query.parsed_region(), query.max_size)


async def run_work(
    request: Request, service: Service, work: Callable[[], T], load: Load = SMALL_LOAD
) -> WorkResult[T]:
    """Wait for the work, but not longer than the client does.

    Args:
        load: how much the work is; without, as little as there is.

    Raises:
        ClientDisconnect: the client left; work that still waited is not done.
        Saturated: not finished within the request timeout. QuotaReached: this client has its part
            of the places for requests that wait.
    """
    client = record_of(request.scope).hold.client
    service.places.check(client, 1)
    service.places.take(client, 1)
    running = asyncio.ensure_future(service.admission.run(work, load.group, load.pixels))
    leaving = asyncio.ensure_future(_disconnected(request))
    timeout_s = service.settings.request_timeout_s
    try:
        await asyncio.wait(
            {running, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if running.done():
            done = running.result()
            record_of(request.scope).queue_s = done.queue_s
            return done
        if leaving.done():
            raise ClientDisconnect
        raise Saturated(f"not finished within {timeout_s:g} s", service.admission.retry_after_s)
    finally:
        service.places.take(client, -1)
        running.cancel()
        leaving.cancel()
        await asyncio.gather(running, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _stream_headers(done: WorkResult[Stream]) -> dict[str, str]:
    stream = done.value
    compressed = stream.compressed
    timing = _server_timing(
        done.queue_s, compressed.timings, check=compressed.timings.check_s, read=stream.read_s
    )
    if compressed.encodes > 1:
        timing += f', search;desc="{compressed.encodes} encodes"'
    headers = {
        "ETag": f'"{stream.sha256}"',
        "X-Rankpress-Rate": f"{compressed.rate:g}",
        "X-Rankpress-Tune": compressed.tune,
        "X-Rankpress-Bpp": f"{compressed.bpp:.4f}",
        "X-Rankpress-Source-Bytes": str(stream.source_bytes),
        "Server-Timing": timing,
        "X-Content-Type-Options": "nosniff",
    }
    if compressed.psnr_db is not None:
        headers["X-Rankpress-Psnr"] = f"{compressed.psnr_db:.3f}"
    return headers | notes_header(stream.notes)


def notes_header(notes: tuple[str, ...]) -> dict[str, str]:
    """The header that tells notes; none where there are none."""
    text = _header_text("; ".join(notes))[:MAX_NOTES_CHARS]
    return {"X-Rankpress-Notes": text} if notes else {}


def image_headers(done: WorkResult[ImageFile], **others_s: float) -> dict[str, str]:
    """Headers that say how a picture was made."""
    image = done.value
    return {
        "X-Rankpress-Rate": f"{image.rate:g}",
        "X-Rankpress-Model": _header_text(image.model),
        "Server-Timing": _server_timing(
            done.queue_s, image.timings, write=image.write_s, **others_s
        ),
        "X-Content-Type-Options": "nosniff",
        **notes_header(image.notes),
    }


def _server_timing(queue_s: float, timings: Timings, **others_s: float) -> str:
    seconds = {
        "queue": queue_s,
        "swap": timings.swap_s,
        "net": timings.net_s,
        "code": timings.code_s,
        **others_s,
    }
    return ", ".join(f"{name};dur={value * 1000:.2f}" for name, value in seconds.items())


def _header_text(text: str) -> str:
    """Printable ASCII only, so that no text can end or split a header."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
