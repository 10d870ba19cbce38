"""What FastAPI cannot derive of the OpenAPI document: binary bodies, headers and problems."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api import headers
from service.api.headers import documented
from service.api.schemas import StoredObject
from service.http.documents import Problem
from service.http.problems import KINDS, MEDIA_TYPE
from service.images.write import MEDIA_TYPES

Json = dict[str, Any]

STREAM_TYPE: Final = "application/vnd.rankpress"
_BINARY: Json = {"type": "string", "format": "binary"}

TAGS = [
    {"name": "images", "description": "Image files to streams and back."},
    {"name": "jobs", "description": "Streams fitted to one picture: posted, watched, fetched."},
    {"name": "objects", "description": "Stored streams, by their SHA-256."},
    {"name": "models", "description": "What is loaded, and which rates it offers."},
    {"name": "adapters", "description": "Rate adapters, for admins to load and unload."},
    {"name": "operations", "description": "Health and metrics; they never wait for images."},
]

ANY_ROUTE: Final = (421, 429, 500, 503)
"""Statuses of problems that every route may answer, except those of health and metrics."""


def problems(*statuses: int) -> dict[int | str, Json]:
    """OpenAPI responses for these statuses, with an example of every problem type of each."""
    return only_problems(*sorted({*statuses, *ANY_ROUTE}))


def only_problems(*statuses: int) -> dict[int | str, Json]:
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
    answer: Json = {
        "description": description,
        "headers": documented(*names, headers.REQUEST_ID),
    }
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
    return {"requestBody": {"required": True, "description": description, "content": content}}


_IMAGE_BODY = _body(
    ("application/octet-stream", "image/*"),
    "An image file. Its first bytes tell the format; the Content-Type does not matter.",
)
_STREAM_BODY = _body((STREAM_TYPE, "application/octet-stream"), "A Rankpress stream.")
_STREAM_HEADERS = (
    *(headers.STREAM_ETAG, headers.RATE, headers.BPP, headers.PSNR),
    *(headers.SOURCE_BYTES, headers.STREAM_NOTES),
)
_PICTURE_HEADERS = (headers.RATE, headers.PICTURE_NOTES, headers.TIMING)


def _stream(*more: headers.ResponseHeader) -> Json:
    return _answer("The stream.", *_STREAM_HEADERS, *more, media_types=(STREAM_TYPE,))


def _picture(description: str, *more: headers.ResponseHeader) -> Json:
    return _answer(description, *_PICTURE_HEADERS, *more, media_types=tuple(MEDIA_TYPES.values()))


COMPRESS: Json = {
    "summary": "Compress an image file",
    "responses": {
        200: _stream(headers.TUNE, headers.TIMING),
        **problems(400, 403, 408, 413, 415, 422),
    },
    "openapi_extra": _IMAGE_BODY,
}

DECOMPRESS: Json = {
    "summary": "Decompress a stream",
    "responses": {
        200: _picture("The picture as an image file.", headers.VARY, headers.MODEL),
        **problems(400, 403, 406, 408, 413, 415, 422),
    },
    "openapi_extra": _STREAM_BODY,
}

ADAPT: Json = {
    "summary": "Begin to adapt the codec to an image file",
    "responses": {
        202: _answer(
            "The job: a new one, or the one that exists already.",
            headers.JOB_LOCATION,
            headers.POLL_AFTER,
        ),
        **problems(400, 403, 404, 408, 413, 415, 422),
    },
    "openapi_extra": _IMAGE_BODY,
}

JOB: Json = {
    "summary": "State of a job",
    "responses": {200: _answer("The job.", headers.POLL_AFTER), **problems(404, 410, 422)},
}

_EVENT: Json = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "id": {"type": "string", "description": "For Last-Event-ID."},
        "event": {"type": "string", "const": "end", "description": "Of the last event alone."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobDocument"},
        },
        "retry": {"type": "integer", "description": "Milliseconds before a new connection."},
    },
}

JOB_EVENTS: Json = {
    "summary": "Watch a job",
    "responses": {
        200: _answer(
            "Events, each with the whole job as data; the last is named `end`.",
            media_types=("text/event-stream",),
            schema=_EVENT,
        ),
        204: {"description": "The job has ended, and Last-Event-ID is its last event."},
        **problems(404, 410, 422),
    },
}

JOB_STREAM: Json = {
    "summary": "The best stream so far",
    "responses": {200: _stream(headers.STEP), **problems(404, 409, 410, 422)},
}

JOB_RESULT: Json = {**JOB_STREAM, "summary": "The result of a job"}

JOB_CANCEL: Json = {
    "summary": "Cancel a job",
    "responses": {200: _answer("The job, cancelled."), **problems(403, 404, 409, 410, 422)},
}

ADD_ADAPTER: Json = {
    "summary": "Load a rate adapter",
    "status_code": 201,
    "responses": problems(400, 401, 403, 408, 413, 415, 422),
    "openapi_extra": _body(("application/octet-stream",), "A rate adapter, a safetensors file."),
}

_CACHING = headers.PICTURE_ETAG, headers.CACHE_CONTROL, headers.VARY_IF_NEGOTIATED

GET_OBJECT: Json = {
    "summary": "A stored stream as a picture",
    "responses": {
        200: _picture("The picture as an image file.", *_CACHING, headers.ACCEPT_RANGES),
        206: _picture(
            "The part of the file that the Range header names.", *_CACHING, headers.CONTENT_RANGE
        ),
        304: _answer("The picture that If-None-Match names; nothing was decoded."),
        **problems(404, 406, 413, 416, 422),
    },
}

PUT_OBJECT: Json = {
    "summary": "Store a stream under its hash",
    "response_model": StoredObject,
    "responses": {
        200: {
            "description": "The stream was stored already; a damaged copy was replaced.",
            "model": StoredObject,
        },
        201: {
            **_answer("The stream is stored from now on.", headers.OBJECT_LOCATION),
            "model": StoredObject,
        },
        **problems(400, 403, 408, 413, 415, 422),
    },
    "openapi_extra": _STREAM_BODY,
}

METRICS: dict[int | str, Json] = {
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **only_problems(421),
}


def document(app: FastAPI, root_path: str) -> Json:
    """The whole OpenAPI document of the app; it is made once and then kept on the app."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=TAGS,
            servers=[{"url": root_path}] if root_path else None,
        )
        reference = "#/components/schemas/{model}"
        model = Problem.model_json_schema(ref_template=reference)
        definitions = model.pop("$defs")
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions, Problem=model)
        app.openapi_schema = schema
    return app.openapi_schema
