"""What FastAPI cannot derive of the OpenAPI document: binary bodies, headers and problems."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from service.api import headers
from service.api.headers import documented
from service.api.picture_schemas import StoredPicture
from service.api.schemas import StoredObject
from service.engine.comparison import PEER_EFFORTS
from service.http.problems import KINDS, MEDIA_TYPE, Problem
from service.images.iiif import CONTEXT
from service.images.write import MEDIA_TYPES

Json = dict[str, Any]
Responses = dict[int | str, Json]

STREAM_TYPE: Final = "application/vnd.rankpress"
BINARY_TYPE: Final = "application/octet-stream"
JSON_TYPE: Final = "application/json"
LINKED_JSON_TYPE: Final = f'application/ld+json;profile="{CONTEXT}"'
_BINARY: Json = {"type": "string", "format": "binary"}

TAGS = [
    {"name": "images", "description": "Image files to streams and back."},
    {"name": "jobs", "description": "Streams fitted to one picture: posted, watched, fetched."},
    {"name": "objects", "description": "Stored streams, by their SHA-256."},
    {"name": "pictures", "description": "Pictures by names that may get better streams."},
    {"name": "models", "description": "What is loaded, and which rates it offers."},
    {"name": "adapters", "description": "Rate adapters, for admins to load and unload."},
    {"name": "operations", "description": "Health and metrics; they never wait for images."},
]

ANY_ROUTE: Final = (421, 429, 500, 503)
"""Statuses of problems that every route may answer, except those of health and metrics."""


def problems(*statuses: int) -> Responses:
    """OpenAPI responses for these statuses, with an example of every problem type of each."""
    return only_problems(*sorted({*statuses, *ANY_ROUTE}))


def only_problems(*statuses: int) -> Responses:
    """OpenAPI responses for these statuses, without those that every route may answer."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> Json:
    kinds = [kind for kind in KINDS if kind.status == status]
    examples = {
        kind.slug: {"value": {"type": kind.type, "title": kind.title, "status": kind.status}}
        for kind in kinds
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    retry = (headers.RETRY_AFTER,) if status in (429, 503) else ()
    return {
        "description": "; ".join(kind.title for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        "headers": documented(headers.REQUEST_ID, *retry),
    }


def _answer(
    description: str,
    *names: headers.ResponseHeader,
    media_types: tuple[str, ...] = (),
    schema: Json = _BINARY,
) -> Json:
    """An OpenAPI response with these headers and the request's id."""
    answer: Json = {"description": description, "headers": documented(*names, headers.REQUEST_ID)}
    if media_types:
        answer["content"] = {media_type: {"schema": schema} for media_type in media_types}
    return answer


def _body(media_types: tuple[str, ...], description: str) -> Json:
    part = {**_BINARY, "description": description}
    form = {
        "type": "object",
        "properties": {"file": part},
        "required": ["file"],
        "additionalProperties": False,
    }
    content: Json = {media_type: {"schema": _BINARY} for media_type in media_types}
    content["multipart/form-data"] = {"schema": form}
    return {"required": True, "description": description, "content": content}


_IMAGE_BODY = _body(
    (BINARY_TYPE, "image/*"),
    "An image file. Its first bytes tell the format; the Content-Type does not matter.",
)
_STREAM_BODY = _body((STREAM_TYPE, BINARY_TYPE), "A Rankpress stream.")
_ADAPTER_BODY = _body((BINARY_TYPE,), "A rate adapter, a safetensors file.")
_STREAM_HEADERS = (
    *(headers.ETAG, headers.RATE, headers.BPP, headers.PSNR),
    *(headers.SOURCE_BYTES, headers.NOTES),
)
_PICTURE_HEADERS = (headers.RATE, headers.NOTES, headers.TIMING)
_CACHING = headers.ETAG, headers.CACHE_CONTROL, headers.VARY


def _stream(*more: headers.ResponseHeader) -> Json:
    return _answer("The stream.", *_STREAM_HEADERS, *more, media_types=(STREAM_TYPE,))


def _picture(description: str, *more: headers.ResponseHeader) -> Json:
    return _answer(description, *_PICTURE_HEADERS, *more, media_types=tuple(MEDIA_TYPES.values()))


def _with_body(body: Json, answers: Responses, *statuses: int) -> Json:
    """What a route with a body adds to its operation: the body, its answers and its problems."""
    responses = {**answers, **problems(400, 403, 408, 413, 415, 422, *statuses)}
    return {"responses": responses, "openapi_extra": {"requestBody": body}}


COMPRESS = _with_body(
    _IMAGE_BODY,
    {200: _stream(headers.TUNE, headers.MODEL, headers.GRAPHICS, headers.TIMING)},
)
DECOMPRESS = _with_body(
    _STREAM_BODY, {200: _picture("The picture as an image file.", headers.VARY, headers.MODEL)}, 406
)
COMPARE = _with_body(
    _IMAGE_BODY,
    {
        200: _answer(
            "The picture as a file of that format.",
            *(headers.QUALITY, headers.BPP, headers.PSNR, headers.SOURCE_BYTES, headers.TIMING),
            media_types=tuple(MEDIA_TYPES[format] for format in PEER_EFFORTS),
        )
    },
    406,
)
_FIGURE = _answer("The figure.", headers.TIMING, media_types=(MEDIA_TYPES["png"],))
MAPS = _with_body(
    _body(
        (BINARY_TYPE, "image/*", STREAM_TYPE),
        "An image file or a Rankpress stream. Its first bytes tell which.",
    ),
    {200: _FIGURE},
)
ADAPT = _with_body(
    _IMAGE_BODY,
    {
        202: _answer(
            "The job: a new one, or the one that exists already.",
            headers.LOCATION,
            headers.RETRY_AFTER,
        )
    },
    404,
)
ADD_ADAPTER = _with_body(_ADAPTER_BODY, {}, 401)
PUT_OBJECT = _with_body(
    _STREAM_BODY,
    {
        200: {
            "description": "The stream was stored already; a damaged copy was replaced.",
            "model": StoredObject,
        },
        201: _answer("The stream is stored from now on.", headers.LOCATION),
    },
)

PUT_PICTURE = _with_body(
    _IMAGE_BODY,
    {
        200: {"description": "The name had a picture, perhaps this one.", "model": StoredPicture},
        201: _answer("The name has this picture from now on.", headers.LOCATION),
    },
)
DELETE_PICTURE: Responses = {
    204: _answer("The name has no picture any more."),
    **problems(403, 404, 422),
}
GET_PICTURES = problems(422)
GET_HISTORY = problems(404, 422)

JOB = {200: _answer("The job.", headers.RETRY_AFTER), **problems(404, 410, 422)}
_EVENT: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "For Last-Event-ID."},
        "event": {"type": "string", "const": "end"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobDocument"},
        },
        "retry": {"type": "integer", "description": "Milliseconds before a new connection."},
    },
}
JOB_EVENTS = {
    200: _answer(
        "Events, each with the whole job as data; the last is named `end`.",
        media_types=("text/event-stream",),
        schema=_EVENT,
    ),
    204: {"description": "The job has ended, and Last-Event-ID is its last event."},
    **problems(404, 410, 422),
}
JOB_STREAM = {200: _stream(headers.STEP), **problems(404, 409, 410, 422)}
JOB_CANCEL = {200: _answer("The job, cancelled."), **problems(403, 404, 409, 410, 422)}

GET_OBJECT = {
    200: _picture("The picture as an image file.", *_CACHING, headers.ACCEPT_RANGES),
    206: _picture(
        "The part of the file that the Range header names.", *_CACHING, headers.CONTENT_RANGE
    ),
    304: _answer("The picture that If-None-Match names; nothing was decoded."),
    **problems(404, 406, 413, 416, 422),
}

GET_MAPS = {
    200: _answer(
        "The figure.",
        *(headers.ETAG, headers.CACHE_CONTROL, headers.TIMING),
        media_types=(MEDIA_TYPES["png"],),
    ),
    304: _answer("The figure that If-None-Match names; nothing was decoded."),
    **problems(404, 413, 422),
}

_BYTES = (headers.ETAG, headers.CACHE_CONTROL, headers.ACCEPT_RANGES)
GET_STREAM = {
    200: _answer("The stream.", *_BYTES, media_types=(STREAM_TYPE,)),
    206: _answer(
        "The bytes that the Range header names.",
        *(*_BYTES, headers.CONTENT_RANGE),
        media_types=(STREAM_TYPE,),
    ),
    304: _answer("The client has the stream: If-None-Match names it."),
    **problems(404, 413, 416, 422),
}

GET_PICTURE = {
    200: _picture(
        "The picture that the name has now, as an image file.",
        *(*_CACHING, headers.ACCEPT_RANGES, headers.CONTENT_LOCATION),
    ),
    304: GET_OBJECT[304],
    **problems(404, 406, 413, 422),
}
GET_PICTURE_STREAM = {
    200: _answer(
        "The stream that the name has now.",
        *(*_BYTES, headers.CONTENT_LOCATION),
        media_types=(STREAM_TYPE,),
    ),
    206: GET_STREAM[206],
    304: GET_STREAM[304],
    **problems(404, 413, 416, 422),
}

_WEIGHTS_HEADERS = headers.ETAG, headers.CACHE_CONTROL
GET_WEIGHTS_INDEX = {
    200: _answer(
        "The index: for each model its files, their hashes and bytes.",
        *_WEIGHTS_HEADERS,
        media_types=(JSON_TYPE,),
        schema={"type": "object"},
    ),
    304: _answer("The client has the index: If-None-Match names it."),
    **problems(422),
}
GET_WEIGHTS = {
    200: _answer(
        "The file: tensors in safetensors, or a ready update.",
        *(*_WEIGHTS_HEADERS, headers.VARY, headers.CONTENT_ENCODING),
        media_types=(BINARY_TYPE,),
    ),
    304: _answer("The client has the file: If-None-Match names it."),
    **problems(404, 422),
}

IIIF_BASE = {
    303: _answer("Where the image information document is.", headers.LOCATION),
    **problems(404, 422),
}
IIIF_INFORMATION = {
    200: _answer(
        "The image information document, see https://iiif.io/api/image/3.0/.",
        *(*_CACHING, headers.LINK),
        media_types=(LINKED_JSON_TYPE, JSON_TYPE),
        schema={"type": "object"},
    ),
    304: _answer("The client has the document: If-None-Match names it."),
    **problems(404, 413, 422),
}
_IIIF_HEADERS = headers.ETAG, headers.CACHE_CONTROL, headers.LINK, headers.ACCEPT_RANGES
IIIF_IMAGE = {
    200: _picture("The picture as an image file.", *_IIIF_HEADERS),
    206: _picture(
        "The part of the file that the Range header names.", *_IIIF_HEADERS, headers.CONTENT_RANGE
    ),
    304: GET_OBJECT[304],
    **problems(400, 404, 413, 416, 422, 501),
}

METRICS = {
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **only_problems(421),
}


def document(app: FastAPI) -> Json:
    """The OpenAPI document of the app, with the schema of problems."""
    schema = FastAPI.openapi(app)
    model = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = model.pop("$defs")
    schema["components"]["schemas"] |= {**definitions, "Problem": model}
    return schema
