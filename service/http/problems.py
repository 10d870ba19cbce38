"""Errors as RFC 9457 problem documents: the one place that knows HTTP status codes.

Every answer that is not a success is `application/problem+json` with a `type` from `KINDS` below;
types are stable names to program against, titles and details are for people. Details come from our
own exceptions only; what a library or a bug raises is logged and never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount

from service import errors
from service.http.documents import InvalidParameter, Problem
from service.http.record import record_of

MEDIA_TYPE = "application/problem+json"
MAX_DETAIL_CHARS = 500
JOBS_RETRY_AFTER_S = "30"
MAX_INVALID = 10
"""Wrong parameters that one problem lists."""

METHODS = ("DELETE", "GET", "POST", "PUT")
"""Methods that routes are declared with."""

OBJECTS_RETRY_S = 5
"""Seconds after which a client may ask an object store again that could not be used."""

log = structlog.get_logger("rankpress.api")


@dataclass(frozen=True)
class Kind:
    """A kind of problem: the end of its type URI, its status and its title."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """The stable URI that names the kind."""
        return f"urn:rankpress:problem:{self.slug}"


BAD_REQUEST = Kind("bad-request", 400, "The request is malformed")
BAD_STREAM = Kind("bad-stream", 400, "The bytes are not a whole Rankpress stream")
UNAUTHORIZED = Kind("unauthorized", 401, "The bearer token is missing or wrong")
FORBIDDEN = Kind("forbidden", 403, "The server was started without an admin token")
FOREIGN_ORIGIN = Kind("foreign-origin", 403, "Pages of that origin may not change anything here")
UNKNOWN_ADAPTER = Kind("unknown-adapter", 404, "No adapter with this hash is loaded")
JOBS_OFF = Kind("jobs-off", 404, "This server offers no jobs")
UNKNOWN_JOB = Kind("unknown-job", 404, "There is no such job")
NOT_FOUND = Kind("not-found", 404, "There is nothing at this path")
NO_SUCH_OBJECT = Kind("no-such-object", 404, "There is no object of this hash")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The path does not take this method")
NOT_ACCEPTABLE = Kind("not-acceptable", 406, "No format that the client accepts can be written")
BODY_TIMEOUT = Kind("body-timeout", 408, "The body did not arrive in time")
JOB_ENDED = Kind("job-ended", 409, "The job has ended otherwise")
JOB_UNFINISHED = Kind("job-unfinished", 409, "The job has no such stream yet")
EXPIRED_JOB = Kind("expired-job", 410, "The job's result is no longer kept")
TOO_MANY_BYTES = Kind("too-many-bytes", 413, "The body is larger than the byte limit")
BAD_IMAGE = Kind("bad-image", 415, "The bytes are not an image file that can be read")
UNSUPPORTED_ENCODING = Kind("unsupported-encoding", 415, "The body has a content coding")
RANGE_UNSATISFIABLE = Kind("range-unsatisfiable", 416, "The range lies beyond the end")
BAD_PARAMETER = Kind("bad-parameter", 422, "A parameter is wrong")
RATE_UNAVAILABLE = Kind("rate-unavailable", 422, "There are no weights for this rate")
TARGET_UNREACHABLE = Kind("target-unreachable", 422, "No rate meets the target")
TOO_MANY_PIXELS = Kind("too-many-pixels", 422, "The picture is larger than the pixel limit")
UNSUPPORTED_STREAM = Kind("unsupported-stream", 422, "The stream needs a newer decoder")
BAD_ADAPTER = Kind("bad-adapter", 422, "The bytes are not a rate adapter that fits its base")
UNKNOWN_HOST = Kind("unknown-host", 421, "The Host header does not name this server")
UNKNOWN_MODEL = Kind("unknown-model", 422, "The stream was made with weights not loaded here")
TOO_MANY_REQUESTS = Kind("too-many-requests", 429, "One client asks for too much at a time")
JOBS_UNAVAILABLE = Kind("jobs-unavailable", 503, "The database of the jobs fails")
CHECK_FAILED = Kind("check-failed", 500, "The stream that was made failed its check")
INTERNAL = Kind("internal", 500, "The server failed")
DAMAGED_OBJECT = Kind("damaged-object", 500, "The stored object is not what it should be")
OBJECTS_UNAVAILABLE = Kind("objects-unavailable", 503, "The object store cannot be used")
SATURATED = Kind("saturated", 503, "The server has too much to do or is shutting down")
NOT_READY = Kind("not-ready", 503, "The server has not passed its self-test")

KINDS = (
    BAD_REQUEST,
    BAD_STREAM,
    UNAUTHORIZED,
    FORBIDDEN,
    FOREIGN_ORIGIN,
    UNKNOWN_ADAPTER,
    NOT_FOUND,
    UNKNOWN_JOB,
    JOBS_OFF,
    NO_SUCH_OBJECT,
    METHOD_NOT_ALLOWED,
    NOT_ACCEPTABLE,
    BODY_TIMEOUT,
    JOB_UNFINISHED,
    JOB_ENDED,
    EXPIRED_JOB,
    TOO_MANY_BYTES,
    BAD_IMAGE,
    UNSUPPORTED_ENCODING,
    RANGE_UNSATISFIABLE,
    BAD_PARAMETER,
    RATE_UNAVAILABLE,
    TARGET_UNREACHABLE,
    TOO_MANY_PIXELS,
    UNSUPPORTED_STREAM,
    BAD_ADAPTER,
    UNKNOWN_HOST,
    UNKNOWN_MODEL,
    TOO_MANY_REQUESTS,
    INTERNAL,
    CHECK_FAILED,
    DAMAGED_OBJECT,
    OBJECTS_UNAVAILABLE,
    SATURATED,
    NOT_READY,
    JOBS_UNAVAILABLE,
)

_BY_ERROR: Mapping[type[Exception], Kind] = {
    errors.BadStream: BAD_STREAM,
    errors.UnsupportedStream: UNSUPPORTED_STREAM,
    errors.UnknownModel: UNKNOWN_MODEL,
    errors.BadImage: BAD_IMAGE,
    errors.TooManyPixels: TOO_MANY_PIXELS,
    errors.TooManyBytes: TOO_MANY_BYTES,
    errors.BadParameter: BAD_PARAMETER,
    errors.RangeUnsatisfiable: RANGE_UNSATISFIABLE,
    errors.RateUnavailable: RATE_UNAVAILABLE,
    errors.TargetUnreachable: TARGET_UNREACHABLE,
    errors.BadAdapter: BAD_ADAPTER,
    errors.UnknownAdapter: UNKNOWN_ADAPTER,
    errors.NoSuchObject: NO_SUCH_OBJECT,
    errors.DamagedObject: DAMAGED_OBJECT,
    errors.ObjectsUnavailable: OBJECTS_UNAVAILABLE,
    errors.UnknownHost: UNKNOWN_HOST,
    errors.ForeignOrigin: FOREIGN_ORIGIN,
    errors.NotAcceptable: NOT_ACCEPTABLE,
    errors.Saturated: SATURATED,
    errors.QuotaReached: TOO_MANY_REQUESTS,
    errors.CheckFailed: CHECK_FAILED,
    errors.SelfTestFailed: NOT_READY,
    errors.UnknownJob: UNKNOWN_JOB,
    errors.ExpiredJob: EXPIRED_JOB,
    errors.JobUnfinished: JOB_UNFINISHED,
    errors.JobEnded: JOB_ENDED,
    errors.JobsOff: JOBS_OFF,
    errors.JobsUnavailable: JOBS_UNAVAILABLE,
}

HIDDEN = (OBJECTS_UNAVAILABLE, JOBS_UNAVAILABLE, DAMAGED_OBJECT, CHECK_FAILED)
"""Kinds whose details are logged and not shown: they may name buckets, paths and hosts."""

_BY_STATUS: Mapping[int, Kind] = {
    400: BAD_REQUEST,
    401: UNAUTHORIZED,
    403: FORBIDDEN,
    404: NOT_FOUND,
    405: METHOD_NOT_ALLOWED,
    408: BODY_TIMEOUT,
    413: TOO_MANY_BYTES,
    415: UNSUPPORTED_ENCODING,
}


def problem(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    available: tuple[float, ...] | None = None,
    unreachable: errors.TargetUnreachable | None = None,
    invalid: tuple[InvalidParameter, ...] | None = None,
) -> Response:
    """The answer for one problem; also notes its kind for the log line and the metrics."""
    record = record_of(request.scope)
    record.problem = kind.slug
    document = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=detail[:MAX_DETAIL_CHARS],
        instance=f"urn:rankpress:request:{record.id}",
        available=available,
        found=unreachable.nearest if unreachable else None,
        asked=unreachable.requested if unreachable else None,
        invalid=invalid,
    )
    content = jsonable_encoder(document, exclude_none=True)
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse(content, kind.status, all_headers, media_type=MEDIA_TYPE)


def internal_problem(request: Request) -> Response:
    """The answer to a bug: says nothing but where to look in the log."""
    return problem(request, INTERNAL, "An unexpected error was logged under this request's id.")


async def on_rankpress_error(request: Request, error: Exception) -> Response:
    """Answer an exception of our own tree; one that is no client's business becomes a 500."""
    kind = next((_BY_ERROR[c] for c in type(error).__mro__ if c in _BY_ERROR), None)
    if kind is None:
        raise error
    headers = {}
    if isinstance(error, errors.Saturated | errors.JobUnfinished):
        headers["Retry-After"] = str(error.retry_after_s)
    if kind is JOBS_UNAVAILABLE:
        headers["Retry-After"] = JOBS_RETRY_AFTER_S
    if isinstance(error, errors.RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if kind is OBJECTS_UNAVAILABLE:
        headers["Retry-After"] = str(OBJECTS_RETRY_S)
    detail = str(error)
    if kind in HIDDEN:
        log.error(kind.slug, id=record_of(request.scope).id, error=detail)
        detail = "The reason was logged under this request's id."
    if kind is NOT_ACCEPTABLE:
        headers["Vary"] = "Accept"
    return problem(
        request,
        kind,
        detail,
        headers=headers,
        available=error.available if isinstance(error, errors.RateUnavailable) else None,
        unreachable=error if isinstance(error, errors.TargetUnreachable) else None,
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors, and OPTIONS on a known path."""
    assert isinstance(error, HTTPException)  # registered for nothing else
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _all_methods(request)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    kind = _BY_STATUS.get(error.status_code) or _plain_kind(error.status_code)
    return problem(request, kind, str(error.detail), headers=headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer parameters that do not fit their declaration, naming each."""
    assert isinstance(error, RequestValidationError)  # registered for nothing else
    invalid = tuple(
        InvalidParameter(parameter=".".join(map(str, e["loc"][1:]))[:100], reason=_reason(e))
        for e in error.errors()[:MAX_INVALID]
    )
    detail = "; ".join(f"{i.parameter}: {i.reason}" for i in invalid)
    return problem(request, BAD_PARAMETER, detail, invalid=invalid)


def _reason(error: Mapping[str, object]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such parameter"
    return str(error["msg"])


def _all_methods(request: Request) -> str:
    """The methods of all routes of the request's path: the router names those of the first."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    asked = {method: {**request.scope, "method": method} for method in METHODS}
    methods = {
        method
        for method, scope in asked.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    } or {"GET"}  # of the files in a mounted folder
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods | {"OPTIONS"}))


def _plain_kind(status: int) -> Kind:
    phrase = HTTPStatus(status).phrase
    return Kind(phrase.lower().replace(" ", "-"), status, phrase)
