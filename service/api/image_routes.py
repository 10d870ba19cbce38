"""The endpoints `/compress`, `/decompress`, `/compare` and `/maps`, and their answers' headers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api import headers, openapi
from service.api.file_work import (
    ComparedFile,
    CompareFile,
    CompressFile,
    DecompressFile,
    ImageFile,
    Rendition,
    StreamFile,
)
from service.api.headers import header_values, notes_text
from service.api.schemas import (
    CompareQuery,
    CompressQuery,
    DecompressQuery,
    MapsQuery,
    PartialQuery,
)
from service.api.service import Service, ServiceArg, refuse_repeats
from service.engine.admission import WorkResult
from service.engine.target import Target, rate_text
from service.engine.types import Timings
from service.errors import BadParameter
from service.http.context import context_of
from service.http.metrics import stage_seconds
from service.http.negotiate import EXACT, Form, rank_formats
from service.http.responses import bytes_response
from service.images.write import MEDIA_TYPES, Format
from service.maps.drawing import DrawMaps, begins_as_stream
from service.maps.figure import MapFigure

LOSSLESS_ONLY: frozenset[Format] = frozenset({"png"})
"""Formats that have no quality setting."""

compress_router = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])
compare_router = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])
maps_router = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])
decompress_router = APIRouter(tags=["images"], dependencies=[Depends(refuse_repeats)])


@compress_router.post("/compress", response_class=Response, **openapi.COMPRESS)
async def compress(
    request: Request, service: ServiceArg, query: Annotated[CompressQuery, Query()]
) -> Response:
    """Turn an image file into a Rankpress stream."""
    query.rate_or_target()  # what is wrong is refused before the body is read
    service.model_named(query.model)
    body = await service.read_body(request)
    done = await compress_file(request, service, query, body)
    return await bytes_response(
        request, done.value.compressed.data, _stream_headers(done), openapi.STREAM_TYPE
    )


async def compress_file(
    request: Request, service: Service, query: CompressQuery, body: bytes
) -> WorkResult[StreamFile]:
    """Compress an image file, and record that for the log line and the metrics."""
    rate, context = query.rate_or_target(), context_of(request.scope)
    context.rate = None if isinstance(rate, Target) else rate
    limit = service.settings.max_pixels
    work = CompressFile(
        service.codec, body, rate, query.tune, query.model, query.metadata, query.frame, limit
    )
    # Reading a header is quick, but nobody has checked these bytes: keep them off the event loop.
    load = await service.header_calls(work.load, service.settings.request_timeout_s)
    done = await service.run(request, work, load)
    compressed = done.value.compressed
    context.rate, context.bpp = compressed.rate, compressed.bpp
    context.model, context.pixels = compressed.model, compressed.width * compressed.height
    service.metrics.observe_work(done.queue_s, compressed.timings, done.value.read_s)
    service.metrics.count_stream(compressed, done.value.source_bytes)
    return done


@decompress_router.post("/decompress", response_class=Response, **openapi.DECOMPRESS)
async def decompress(
    request: Request, service: ServiceArg, query: Annotated[PartialQuery, Query()]
) -> Response:
    """Turn a Rankpress stream into an image file."""
    rendition = rendition_of(query, ",".join(request.headers.getlist("accept")))
    body = await service.read_body(request)
    work = DecompressFile(service.codec, body, rendition, service.write_limits)
    done = await decode(request, service, work)
    values = header_values({headers.VARY: "Accept"}) | image_headers(done)
    return await bytes_response(request, done.value.data, values, MEDIA_TYPES[done.value.format])


@compare_router.post("/compare", response_class=Response, **openapi.COMPARE)
async def compare(
    request: Request, service: ServiceArg, query: Annotated[CompareQuery, Query()]
) -> Response:
    """Turn an image file into a JPEG, WebP or AVIF of a size or a quality, to compare with."""
    target = query.target()
    body = await service.read_body(request)
    limits, max_pixels = service.write_limits, service.settings.max_pixels
    work = CompareFile(body, query.format, target, query.frame, max_pixels, limits)
    load = await service.header_calls(work.load, service.settings.request_timeout_s)
    done = await service.run(request, work, load)
    context, compared = context_of(request.scope), done.value
    context.bpp, context.pixels = compared.bpp, compared.width * compared.height
    service.metrics.observe_work(done.queue_s, Timings(), compared.work_s)
    values = _compared_headers(done, len(body))
    return await bytes_response(request, compared.file.data, values, MEDIA_TYPES[query.format])


@maps_router.post("/maps", response_class=Response, **openapi.MAPS)
async def maps(
    request: Request, service: ServiceArg, query: Annotated[MapsQuery, Query()]
) -> Response:
    """Draw where a stream, or a picture at several rates, spends its bits; or attention."""
    asked = query.request()
    body = await service.read_body(request)
    is_stream = service.settings.decode_only or begins_as_stream(body)
    work = DrawMaps(service.codec, body, is_stream, asked, service.settings.max_pixels)
    done = await draw_maps(request, service, work)
    return await bytes_response(request, done.value.data, maps_headers(done), MEDIA_TYPES["png"])


async def draw_maps(request: Request, service: Service, work: DrawMaps) -> WorkResult[MapFigure]:
    """Do the work of drawing a figure, and record it for the metrics."""
    load = await service.header_calls(work.load, service.settings.request_timeout_s)
    done = await service.run(request, work, load)
    service.metrics.observe_work(done.queue_s, Timings(), done.value.work_s)
    return done


def maps_headers(done: WorkResult[MapFigure], **more_s: float) -> dict[str, str]:
    """Headers of a figure; `more_s` are seconds of other parts of the work."""
    timing = _server_timing(done.queue_s, Timings(), draw=done.value.work_s, **more_s)
    return header_values({headers.TIMING: timing})


async def decode(request: Request, service: Service, work: DecompressFile) -> WorkResult[ImageFile]:
    """Do the work of decoding, and record it for the log line and the metrics."""
    done = await service.run(request, work, work.load())
    image, context = done.value, context_of(request.scope)
    context.rate, context.model = image.rate, image.model
    context.pixels = image.width * image.height
    service.metrics.observe_work(done.queue_s, image.timings, image.write_s)
    return done


def rendition_of(query: DecompressQuery, accept: str) -> Rendition:
    """The picture that a request wants, and in which formats.

    Raises:
        BadParameter: the region is malformed, or a quality was given for a lossless format.
        NotAcceptable: the Accept header allows no format.
    """
    names = (query.format,) if query.format else rank_formats(accept, EXACT)
    if query.quality is not None:
        if names[0] in LOSSLESS_ONLY:
            raise BadParameter(
                f"quality is {query.quality}, but {names[0]} is lossless: request another format"
            )
        names = tuple(name for name in names if name not in LOSSLESS_ONLY)
    forms = tuple(Form(name, query.quality) for name in names)
    return Rendition(forms, query.view())


def _stream_headers(done: WorkResult[StreamFile]) -> dict[str, str]:
    stream, compressed = done.value, done.value.compressed
    timings = compressed.timings
    timing = _server_timing(done.queue_s, timings, check=timings.check_s, read=stream.read_s)
    if compressed.encodes > 1:
        timing += f', search;desc="{compressed.encodes} encodes"'
    return header_values(
        {
            headers.ETAG: f'"{stream.sha256}"',
            headers.RATE: rate_text(compressed.rate),
            headers.TUNE: compressed.tune,
            headers.MODEL: compressed.model,
            headers.BPP: compressed.bpp,
            headers.PSNR: compressed.psnr_db,
            headers.GRAPHICS: compressed.graphics_share or None,
            headers.SOURCE_BYTES: stream.source_bytes,
            headers.NOTES: notes_text(stream.notes),
            headers.TIMING: timing,
        }
    )


def _compared_headers(done: WorkResult[ComparedFile], source_bytes: int) -> dict[str, str]:
    compared = done.value
    timing = _server_timing(done.queue_s, Timings(), write=compared.work_s)
    return header_values(
        {
            headers.QUALITY: compared.file.quality,
            headers.BPP: compared.bpp,
            headers.PSNR: compared.file.psnr_db,
            headers.SOURCE_BYTES: source_bytes,
            headers.TIMING: f'{timing}, search;desc="{compared.file.encodes} encodes"',
        }
    )


def image_headers(done: WorkResult[ImageFile], **more_s: float) -> dict[str, str]:
    """Headers that describe a decoded picture.

    Args:
        more_s: seconds of other parts of the work, for Server-Timing.
    """
    image = done.value
    return header_values(
        {
            headers.RATE: rate_text(image.rate),
            headers.MODEL: image.model,
            headers.COMPLETE: image.complete if image.complete < 1 else None,
            headers.NOTES: notes_text(image.notes),
            headers.TIMING: _server_timing(
                done.queue_s, image.timings, write=image.write_s, **more_s
            ),
        }
    )


def _server_timing(queue_s: float, timings: Timings, **more_s: float) -> str:
    seconds = stage_seconds(queue_s, timings) | more_s
    return ", ".join(f"{name};dur={value * 1000:.2f}" for name, value in seconds.items())
