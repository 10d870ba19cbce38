"""`/objects`: streams by their SHA-256, read as pictures (for CDNs), and kept by those who may.

A hash names one stream for ever, so pictures made of it may be cached for ever. Their entity tag is
`"K-B"`: K is a hash of what was asked for, B of the bytes. If-None-Match, whose comparison is a
weak one, needs K alone and so no decoding; If-Range needs both, because another version of a codec
may write other bytes for the same picture.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api import openapi
from service.api.routes import (
    Service,
    ServiceArg,
    image_headers,
    refuse_query,
    refuse_repeats,
    run_work,
    view_of,
)
from service.api.schemas import LOSSLESS_ONLY, ObjectQuery, StoredObject
from service.api.work import DecompressFile, ImageFile, View
from service.blobs import Objects, digest_of, shared_key
from service.engine.admission import WorkResult
from service.engine.types import Load
from service.errors import (
    BadParameter,
    BadStream,
    DamagedObject,
    NoSuchObject,
    TooManyBytes,
    UnknownModel,
    UnsupportedStream,
)
from service.http.bodies import read_body
from service.http.negotiate import SMALL, Form, rank_formats
from service.http.ranges import requested_span, tags
from service.http.record import record_of
from service.images.write import MEDIA_TYPES, Format

T = TypeVar("T")

IMMUTABLE = "public, max-age=31536000, immutable"

RENDITION = 1
"""Part of every entity tag; to be raised when pictures made earlier should not be used any more."""

_QUALITY: Final[Mapping[Format, int]] = {"webp": 90}
"""Of what Accept chose, where no quality is asked for and `write_image` would write lossless."""

Digest = Annotated[
    str,
    Path(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the stream in lower-case hex.",
        examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    ),
]

reading = APIRouter(tags=["objects"], dependencies=[Depends(refuse_repeats)])
writing = APIRouter(tags=["objects"], dependencies=[Depends(refuse_query)])


@reading.get("/objects/{sha256}", response_class=Response, **openapi.GET_OBJECT)
async def get_object(
    request: Request,
    service: ServiceArg,
    sha256: Digest,
    query: Annotated[ObjectQuery, Query()],
) -> Response:
    """Decode a stored stream, whole or in part, in the format that is asked for or accepted."""
    view = _view(query, ",".join(request.headers.getlist("accept")))
    asked = _asked(sha256, view)
    caching = {"Cache-Control": IMMUTABLE}
    if query.format is None:
        caching["Vary"] = "Accept"
    begun = time.perf_counter()
    size = await _size(service, sha256)
    if (known := _known(request, asked)) is not None:
        return Response(None, 304, {**caching, "ETag": f'"{known}"'})
    data = await _read(request, service, sha256, size)
    fetch_s = time.perf_counter() - begun
    work = DecompressFile(service.codec, data, view, service.write_limits)
    done = await _decoded(request, service, sha256, work)
    image, record = done.value, record_of(request.scope)
    record.rate, record.model = image.rate, image.model
    record.pixels = image.width * image.height
    service.metrics.observe_work(done.queue_s, image.timings, image.write_s)
    etag = f'"{asked}-{_short_hash(image.data)}"'
    headers = {**caching, **image_headers(done, fetch=fetch_s), "ETag": etag}
    span = requested_span(request.headers, etag, len(image.data))
    headers["Accept-Ranges"] = "bytes"
    data, status = image.data, 200
    if span is not None:
        headers["Content-Range"] = f"bytes {span.first}-{span.last}/{len(data)}"
        data, status = data[span.first : span.last + 1], 206
    return await service.answer(request, data, headers, MEDIA_TYPES[image.format], status)


@writing.put("/objects", status_code=201, **openapi.PUT_OBJECT)
async def put_object(request: Request, service: ServiceArg) -> Response:
    """Keep a stream under the hash of its bytes, once it has been decoded here."""
    return await _keep(request, service, None)


@writing.put("/objects/{sha256}", status_code=201, **openapi.PUT_OBJECT)
async def put_named_object(request: Request, service: ServiceArg, sha256: Digest) -> Response:
    """The same; refused when the bytes have another hash."""
    return await _keep(request, service, sha256)


async def _keep(request: Request, service: Service, expected: str | None) -> Response:
    record = record_of(request.scope)
    data = await read_body(request, service.admission, record.hold, service.settings)
    digest = digest_of(data)
    if expected is not None and digest != expected:
        raise BadParameter(f"the body has the SHA-256 {digest}, the path says {expected}")
    load = Load(service.codec.preview_stream(data).load.pixels)
    done = await run_work(request, service, partial(service.codec.decompress, data), load)
    decoded = done.value
    record.rate, record.model = decoded.rate, decoded.model
    record.pixels = decoded.picture.width * decoded.picture.height
    objects = _objects(service)
    found = await _stored(service, partial(objects.head, shared_key(digest)))
    await _stored(service, partial(objects.put, data))
    document = StoredObject(
        sha256=digest,
        bytes=len(data),
        width=decoded.picture.width,
        height=decoded.picture.height,
        rate=decoded.rate,
    )
    location = {"Location": f"{service.settings.root_path}/objects/{digest}"}
    return JSONResponse(document.model_dump(), 200 if found else 201, location)


def _objects(service: Service) -> Objects:
    assert service.objects is not None  # create_app includes these routes only with a store
    return service.objects


async def _size(service: Service, sha256: str) -> int:
    """Bytes of a stored stream. Raises NoSuchObject, ObjectsUnavailable or TooManyBytes."""
    found = await _stored(service, partial(_objects(service).head, shared_key(sha256)))
    if found is None:
        raise NoSuchObject(f"there is no object {sha256}")
    limit = service.settings.max_body_bytes
    if found.size_bytes > limit:
        raise TooManyBytes(f"the object has {found.size_bytes} bytes, at most {limit} are read")
    return found.size_bytes


async def _read(request: Request, service: Service, sha256: str, size: int) -> bytes:
    """A stored stream, counted against everyone's limit while it is held."""
    service.admission.check(size)
    record_of(request.scope).hold.grow(size)
    return await _stored(service, partial(_objects(service).get, shared_key(sha256)))


async def _stored(service: Service, call: Callable[[], T]) -> T:
    """Ask the object store, in a thread, for no longer than a request may take."""
    return await service.ask_objects(call, service.settings.request_timeout_s)


async def _decoded(
    request: Request, service: Service, sha256: str, work: DecompressFile
) -> WorkResult[ImageFile]:
    """A stored stream as an image file; one that is no stream is the store's fault."""
    try:
        return await run_work(request, service, work, work.load())
    except (UnknownModel, UnsupportedStream):
        raise
    except BadStream as error:
        raise DamagedObject(f"object {sha256} is no whole stream: {error}") from error


def _view(query: ObjectQuery, accept: str) -> View:
    """What a request asks to see: a small file where Accept decides. Raises as `view_of` does."""
    if query.format is not None:
        return view_of(query, accept)

    def form(name: Format) -> Form:
        lossless = name in LOSSLESS_ONLY
        return Form(name, None if lossless else query.quality or _QUALITY.get(name))

    names = rank_formats(accept, SMALL)
    if query.quality is not None:  # what has a quality first
        names = tuple(sorted(names, key=LOSSLESS_ONLY.__contains__))
    return View(tuple(map(form, names)), query.parsed_region(), query.max_size)


def _asked(sha256: str, view: View) -> str:
    """A hash of what was asked for."""
    return _short_hash(repr((RENDITION, sha256, view)).encode())


def _known(request: Request, asked: str) -> str | None:
    """The entity tag of If-None-Match that is of this picture, if any; * is of any."""
    header = ",".join(request.headers.getlist("if-none-match"))
    if header.strip() == "*":
        return asked
    return next((tag for tag in tags(header) if tag.partition("-")[0] == asked), None)


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]

