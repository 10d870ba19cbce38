"""`/objects`: streams by their SHA-256, read as pictures or bytes and stored by those who may.

A hash always names the same stream, so pictures made of it may be cached for ever. Their entity tag
is `"K-B"`: K is a hash of the request, B of the bytes. If-None-Match, whose comparison is weak,
needs only K and so no decoding. If-Range needs both, because another version of a codec may write
other bytes for the same picture. The tag of a stream is its hash.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api import headers, openapi
from service.api.file_work import DecompressFile, ImageFile, Rendition
from service.api.headers import header_values
from service.api.image_routes import (
    LOSSLESS_ONLY,
    decode,
    draw_maps,
    image_headers,
    maps_headers,
    rendition_of,
)
from service.api.schemas import DecompressQuery, ObjectMapsQuery, StoredObject
from service.api.service import Service, ServiceArg, refuse_query, refuse_repeats
from service.blobs import Objects, digest_of, shared_key
from service.engine.admission import WorkResult
from service.engine.target import LOSSLESS
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
from service.http.context import context_of
from service.http.negotiate import SMALL, Form, rank_formats
from service.http.responses import bytes_response, not_modified_response, requested_range
from service.images.write import MEDIA_TYPES, Format
from service.maps.drawing import DrawMaps
from service.maps.request import MapRequest

T = TypeVar("T")

IMMUTABLE = "public, max-age=31536000, immutable"

PICTURES = 1
"""Part of every entity tag: raise it to make caches fetch all pictures anew."""

SMALL_QUALITY: Final[Mapping[Format, int]] = {"webp": 90}
"""Quality of a format whose default is lossless, where a small file is preferred."""

Digest = Annotated[
    str,
    Path(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the stream in lower-case hex.",
        examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    ),
]

read_router = APIRouter(tags=["objects"], dependencies=[Depends(refuse_repeats)])
write_router = APIRouter(tags=["objects"], dependencies=[Depends(refuse_query)])


@read_router.get("/objects/{sha256}", response_class=Response, responses=openapi.GET_OBJECT)
async def get_object(
    request: Request,
    service: ServiceArg,
    sha256: Digest,
    query: Annotated[DecompressQuery, Query()],
) -> Response:
    """Decode a stored stream, whole or in part, in the requested or accepted format."""
    return await serve_picture(request, service, sha256, query, {headers.CACHE_CONTROL: IMMUTABLE})


@read_router.get(
    "/objects/{sha256}/stream",
    response_class=Response,
    dependencies=[Depends(refuse_query)],
    responses=openapi.GET_STREAM,
)
async def get_stream(request: Request, service: ServiceArg, sha256: Digest) -> Response:
    """The bytes of a stored stream; those of a range are read alone, and so are not checked."""
    return await serve_stream(request, service, sha256, {headers.CACHE_CONTROL: IMMUTABLE})


@read_router.get("/maps", response_class=Response, responses=openapi.GET_MAPS)
async def get_maps(
    request: Request, service: ServiceArg, query: Annotated[ObjectMapsQuery, Query()]
) -> Response:
    """Draw where a stored stream spends its bits."""
    sha256, asked = query.object, MapRequest()
    tag = request_tag(sha256, asked)
    caching = header_values({headers.CACHE_CONTROL: IMMUTABLE})
    started_s = time.perf_counter()
    size = await stored_size(service, sha256)
    if (known := not_modified_response(request, tag, caching)) is not None:
        return known
    stream = await read_stream(request, service, sha256, size)
    fetch_s = time.perf_counter() - started_s
    work = DrawMaps(service.codec, stream, True, asked, service.settings.max_pixels)
    with translate_damage(sha256):
        done = await draw_maps(request, service, work)
    data = done.value.data
    etag = header_values({headers.ETAG: f'"{tag}-{_short_hash(data)}"'})
    values = etag | caching | maps_headers(done, fetch=fetch_s)
    return await bytes_response(request, data, values, MEDIA_TYPES["png"])


async def serve_picture(
    request: Request,
    service: Service,
    sha256: str,
    query: DecompressQuery,
    caching: Mapping[headers.ResponseHeader, object],
    *,
    in_parts: bool = True,
) -> Response:
    """The answer with the picture of a stored stream.

    Args:
        caching: headers that say how long the answer may be kept.
        in_parts: whether a Range header is followed.
    """
    rendition = _rendition(query, ",".join(request.headers.getlist("accept")))
    tag = request_tag(sha256, rendition)
    vary = "Accept" if query.format is None else None
    values = header_values({**caching, headers.VARY: vary})
    started_s = time.perf_counter()
    size = await stored_size(service, sha256)
    if (known := not_modified_response(request, tag, values)) is not None:
        return known
    stream = await read_stream(request, service, sha256, size)
    fetch_s = time.perf_counter() - started_s
    work = DecompressFile(service.codec, stream, rendition, service.write_limits)
    with translate_damage(sha256):
        done = await decode(request, service, work)
    return await picture_response(request, done, tag, values, fetch_s, in_parts=in_parts)


async def serve_stream(
    request: Request,
    service: Service,
    sha256: str,
    caching: Mapping[headers.ResponseHeader, object],
) -> Response:
    """The answer with the bytes of a stored stream, or with those that a Range header names.

    Args:
        caching: headers that say how long the answer may be kept.
    """
    more_headers = header_values({**caching, headers.ACCEPT_RANGES: "bytes"})
    size = await stored_size(service, sha256)
    if (known := not_modified_response(request, sha256, more_headers)) is not None:
        return known
    etag = f'"{sha256}"'
    part = requested_range(request.headers, etag, size)
    values = header_values({headers.ETAG: etag, headers.CONTENT_RANGE: _content_range(part, size)})
    context, key = context_of(request.scope), shared_key(sha256)
    if context.is_head:
        values["Content-Length"] = str(size)
        return Response(None, 200, values | more_headers, openapi.STREAM_TYPE)
    context.bytes.grow(size if part is None else len(part))
    data = await call_store(
        service, lambda store: store.get(key) if part is None else store.get_range(key, part)
    )
    status = 200 if part is None else 206
    return await bytes_response(request, data, values | more_headers, openapi.STREAM_TYPE, status)


@write_router.put("/objects", status_code=201, response_model=StoredObject, **openapi.PUT_OBJECT)
async def put_object(request: Request, service: ServiceArg) -> Response:
    """Store a stream under the hash of its bytes, after it has been decoded here."""
    return await _store(request, service, None)


@write_router.put(
    "/objects/{sha256}", status_code=201, response_model=StoredObject, **openapi.PUT_OBJECT
)
async def put_named_object(request: Request, service: ServiceArg, sha256: Digest) -> Response:
    """Store a stream under the hash of its bytes; refuse it if the path has another hash."""
    return await _store(request, service, sha256)


async def _store(request: Request, service: Service, expected: str | None) -> Response:
    context = context_of(request.scope)
    data = await service.read_body(request)
    digest = digest_of(data)
    if expected is not None and digest != expected:
        raise BadParameter(f"the body has the SHA-256 {digest}, the path says {expected}")
    load = Load(service.codec.preview_stream(data).load.pixels)
    decoded = (await service.run(request, partial(service.codec.decompress, data), load)).value
    picture = decoded.picture
    context.rate, context.model = decoded.rate, decoded.model
    context.pixels = picture.width * picture.height
    is_stored = (
        await call_store(service, lambda objects: objects.head(shared_key(digest))) is not None
    )
    await call_store(service, lambda objects: objects.put(data))
    document = StoredObject(
        sha256=digest,
        bytes=len(data),
        width=picture.width,
        height=picture.height,
        rate=None if decoded.rate == LOSSLESS else decoded.rate,
    )
    location = {"Location": f"{service.settings.root_path}/objects/{digest}"}
    return JSONResponse(document.model_dump(), 200 if is_stored else 201, location)


async def stored_size(service: Service, sha256: str) -> int:
    """Bytes that a stored stream has. Raises NoSuchObject, ObjectsUnavailable or TooManyBytes."""
    info = await call_store(service, lambda objects: objects.head(shared_key(sha256)))
    if info is None:
        raise NoSuchObject(f"there is no object {sha256}")
    limit = service.settings.max_body_bytes
    if info.size_bytes > limit:
        raise TooManyBytes(f"the object has {info.size_bytes} bytes, expected at most {limit}")
    return info.size_bytes


async def read_stream(request: Request, service: Service, sha256: str, size: int) -> bytes:
    """A stored stream to decode, whose bytes count as those of the request.

    Raises:
        Saturated, SelfTestFailed, QuotaReached: it cannot be decoded or kept now.
        NoSuchObject, ObjectsUnavailable, DamagedObject: as `Objects.get`.
    """
    service.admission.check(size)
    context_of(request.scope).bytes.grow(size)
    return await call_store(service, lambda objects: objects.get(shared_key(sha256)))


async def call_store(service: Service, call: Callable[[Objects], T]) -> T:
    """Call the object store, in a thread, for no longer than a request may take."""
    objects = service.objects
    assert objects is not None  # create_app includes these routes only with a store
    return await service.object_calls(lambda: call(objects), service.settings.request_timeout_s)


@contextmanager
def translate_damage(sha256: str) -> Iterator[None]:
    """Raise DamagedObject where a stored stream turns out not to be a whole stream."""
    try:
        yield
    except (UnknownModel, UnsupportedStream):
        raise
    except BadStream as error:
        raise DamagedObject(f"object {sha256} is not a whole stream: {error}") from error


async def picture_response(
    request: Request,
    done: WorkResult[ImageFile],
    tag: str,
    more_headers: Mapping[str, str],
    fetch_s: float,
    *,
    in_parts: bool = True,
) -> Response:
    """The picture of a stored stream, or the part of its file that the Range header names.

    Args:
        tag: see `request_tag`.
        fetch_s: seconds that reading the stream took.
        in_parts: whether the Range header is followed.

    Raises:
        RangeUnsatisfiable: the range lies beyond the end.
    """
    data, status = done.value.data, 200
    etag, size = f'"{tag}-{_short_hash(data)}"', len(data)
    part = requested_range(request.headers, etag, size) if in_parts else None
    if part is not None:
        data, status = data[part.start : part.stop], 206
    values = {
        headers.ETAG: etag,
        headers.ACCEPT_RANGES: "bytes" if in_parts else "none",
        headers.CONTENT_RANGE: _content_range(part, size),
    }
    all_headers = header_values(values) | dict(more_headers) | image_headers(done, fetch=fetch_s)
    media_type = MEDIA_TYPES[done.value.format]
    return await bytes_response(request, data, all_headers, media_type, status)


def _content_range(part: range | None, size: int) -> str | None:
    return None if part is None else f"bytes {part.start}-{part.stop - 1}/{size}"


def _rendition(query: DecompressQuery, accept: str) -> Rendition:
    """The picture that a request wants: a small file if Accept decides.

    Raises as `rendition_of`.
    """
    if query.format is not None:
        return rendition_of(query, accept)

    def form(name: Format) -> Form:
        lossless = name in LOSSLESS_ONLY
        return Form(name, None if lossless else query.quality or SMALL_QUALITY.get(name))

    names = rank_formats(accept, SMALL)
    if query.quality is not None:  # formats that have a quality first
        names = tuple(sorted(names, key=LOSSLESS_ONLY.__contains__))
    return Rendition(tuple(map(form, names)), query.view())


def request_tag(sha256: str, picture: object) -> str:
    """A hash of everything that determines a picture, the first half of its entity tag.

    Args:
        picture: what is decoded and how it is written, as a dataclass of plain values.
    """
    return _short_hash(repr((PICTURES, sha256, picture)).encode())


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
