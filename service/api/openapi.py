"""What FastAPI cannot derive of the OpenAPI document: binary bodies, headers, problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.schemas import StoredObject
from service.http.documents import Problem
from service.http.problems import KINDS, MEDIA_TYPE
from service.images.write import MEDIA_TYPES

Json = dict[str, Any]

_BINARY: Json = {"type": "string", "format": "binary"}
_REQUEST_ID: Json = {
    "X-Request-Id": {
        "description": "The id of the request in the log: the one sent, or a new one.",
        "schema": {"type": "string"},
    }
}
TAGS = [
    {"name": "images", "description": "Image files to streams and back."},
    {"name": "jobs", "description": "Streams fitted to one picture: posted, watched, fetched."},
    {"name": "objects", "description": "Streams that are kept, by their SHA-256."},
    {"name": "models", "description": "What is loaded, and which rates it offers."},
    {"name": "adapters", "description": "Rate adapters, for admins to load and unload."},
    {"name": "operations", "description": "Health and metrics; they never wait behind images."},
]


ANY_ROUTE = (421, 429, 500, 503)
"""Statuses of problems that any route may answer, those of health and metrics aside."""


def problems(*statuses: int) -> dict[int | str, Json]:
    """OpenAPI responses for these statuses, with an example of every problem type of each."""
    return only_problems(*sorted({*statuses, *ANY_ROUTE}))


def only_problems(*statuses: int) -> dict[int | str, Json]:
    """The same, without those that any route may answer."""
    return {status: _problem_response(status) for status in statuses}


def _problem_response(status: int) -> Json:
    kinds = [kind for kind in KINDS if kind.status == status]
    examples = {
        kind.slug: {"value": {"type": kind.type, "title": kind.title, "status": kind.status}}
        for kind in kinds
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    headers = dict(_REQUEST_ID)
    if status in (429, 503):
        headers |= _header("Retry-After", "Seconds after which to try again.", "integer")
    return {
        "description": "; ".join(kind.title for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
        "headers": headers,
    }


def _header(name: str, description: str, kind: str = "string") -> Json:
    return {name: {"description": description, "schema": {"type": kind}}}


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


_TIMING = _header(
    "Server-Timing",
    "Milliseconds: queue, swap, net, code and file work; and how many encodes a search took.",
)
_RATE = _header("X-Rankpress-Rate", "The rate of the stream.", "number")

_SOURCE: Json = {
    **_header("X-Rankpress-Source-Bytes", "Size of the image file.", "integer"),
    **_header(
        "X-Rankpress-Notes",
        "What reading the file changed, and that the stream is larger than it; often absent.",
    ),
}

_PICTURE_NOTES: Json = _header(
    "X-Rankpress-Notes", "What of the stream's profile and Exif is left out; mostly absent."
)

_STREAM_RESPONSE: Json = {
    "description": "The stream.",
    "content": {"application/vnd.rankpress": {"schema": _BINARY}},
    "headers": {
        **_header("ETag", "SHA-256 of the stream, in hex and quotes."),
        **_RATE,
        **_header("X-Rankpress-Tune", "What that rate was trained for: psnr or ms-ssim."),
        **_header("X-Rankpress-Bpp", "Bits of the stream per pixel.", "number"),
        **_header("X-Rankpress-Psnr", "PSNR in dB of what is seen; inf when exact."),
        **_SOURCE,
        **_TIMING,
        **_REQUEST_ID,
    },
}

_IMAGE_RESPONSE: Json = {
    "description": "The picture as an image file.",
    "content": {media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES.values()},
    "headers": {
        **_header("Vary", "Always Accept."),
        **_RATE,
        **_header("X-Rankpress-Model", "The model that made the stream."),
        **_PICTURE_NOTES,
        **_TIMING,
        **_REQUEST_ID,
    },
}

COMPRESS: Json = {
    "summary": "Compress an image file",
    "responses": {
        200: _STREAM_RESPONSE,
        **problems(400, 403, 408, 413, 415, 422),
    },
    "openapi_extra": _body(
        ("application/octet-stream", "image/*"),
        "An image file; what it is shows in its first bytes, the Content-Type does not matter.",
    ),
}

DECOMPRESS: Json = {
    "summary": "Decompress a stream",
    "responses": {
        200: _IMAGE_RESPONSE,
        **problems(400, 403, 406, 408, 413, 415, 422),
    },
    "openapi_extra": _body(
        ("application/vnd.rankpress", "application/octet-stream"), "A Rankpress stream."
    ),
}

_RETRY_AFTER = _header("Retry-After", "Seconds after which to look again.", "integer")

ADAPT: Json = {
    "summary": "Begin to adapt the codec to an image file",
    "responses": {
        202: {
            "description": "The job, new or as it is already.",
            "headers": {**_header("Location", "The job."), **_RETRY_AFTER, **_REQUEST_ID},
        },
        **problems(400, 403, 404, 408, 413, 415, 422),
    },
    "openapi_extra": COMPRESS["openapi_extra"],
}

JOB: Json = {
    "summary": "How far a job is",
    "responses": {
        200: {"description": "The job.", "headers": {**_RETRY_AFTER, **_REQUEST_ID}},
        **problems(404, 410, 422),
    },
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
        200: {
            "description": "Events, each with the whole job as data; the last is named `end`.",
            "content": {"text/event-stream": {"schema": _EVENT}},
            "headers": _REQUEST_ID,
        },
        204: {"description": "The job has ended, and Last-Event-ID is its last event."},
        **problems(404, 410, 422),
    },
}

_JOB_STREAM_RESPONSE: Json = {
    "description": "The stream.",
    "content": {"application/vnd.rankpress": {"schema": _BINARY}},
    "headers": {
        **_header("ETag", "SHA-256 of the stream, in hex and quotes."),
        **_RATE,
        **_header("X-Rankpress-Bpp", "Bits of the stream per pixel.", "number"),
        **_header("X-Rankpress-Psnr", "PSNR in dB of what is seen; inf when exact."),
        **_header("X-Rankpress-Step", "Steps of optimisation behind it.", "integer"),
        **_SOURCE,
        **_REQUEST_ID,
    },
}

JOB_STREAM: Json = {
    "summary": "The best stream so far",
    "responses": {200: _JOB_STREAM_RESPONSE, **problems(404, 409, 410, 422)},
}

JOB_RESULT: Json = {
    "summary": "The result of a job",
    "responses": {200: _JOB_STREAM_RESPONSE, **problems(404, 409, 410, 422)},
}

JOB_CANCEL: Json = {
    "summary": "Cancel a job",
    "responses": {
        200: {"description": "The job, cancelled.", "headers": _REQUEST_ID},
        **problems(403, 404, 409, 410, 422),
    },
}

ADD_ADAPTER: Json = {
    "summary": "Load a rate adapter",
    "status_code": 201,
    "responses": problems(400, 401, 403, 408, 413, 415, 422),
    "openapi_extra": _body(("application/octet-stream",), "A rate adapter, a safetensors file."),
}

_RENDITION_HEADERS: Json = {
    **_PICTURE_NOTES,
    **_header("ETag", "Strong: a hash of what was asked for, a dash, a hash of the bytes."),
    **_header("Cache-Control", "A year, immutable: what a hash names never changes."),
    **_header("Vary", "Accept, where the Accept header chose the format."),
    **_RATE,
    **_TIMING,
    **_REQUEST_ID,
}
_IMAGES: Json = {media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES.values()}

GET_OBJECT: Json = {
    "summary": "A stored stream as a picture",
    "responses": {
        200: {
            "description": "The picture as an image file.",
            "content": _IMAGES,
            "headers": {**_RENDITION_HEADERS, **_header("Accept-Ranges", "Always bytes.")},
        },
        206: {
            "description": "The part of the file that the Range header asks for.",
            "content": _IMAGES,
            "headers": {
                **_RENDITION_HEADERS,
                **_header("Content-Range", "Which bytes, of how many."),
            },
        },
        304: {
            "description": "The picture that If-None-Match names; nothing was decoded.",
            "headers": _REQUEST_ID,
        },
        **problems(404, 406, 413, 416, 422),
    },
}

PUT_OBJECT: Json = {
    "summary": "Keep a stream under its hash",
    "response_model": StoredObject,
    "responses": {
        200: {
            "description": "It was kept already; a damaged copy was replaced.",
            "model": StoredObject,
        },
        201: {
            "description": "It is kept from now on.",
            "model": StoredObject,
            "headers": {**_header("Location", "Where it is."), **_REQUEST_ID},
        },
        **problems(400, 403, 408, 413, 415, 422),
    },
    "openapi_extra": _body(
        ("application/vnd.rankpress", "application/octet-stream"), "A Rankpress stream."
    ),
}

METRICS: dict[int | str, Json] = {
    200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **only_problems(421),
}


def document(app: FastAPI, root_path: str) -> Json:
    """The whole OpenAPI document of the app; made once, then kept on the app."""
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
