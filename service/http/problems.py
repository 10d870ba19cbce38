"""Errors as RFC 9457 problem documents: the one place that knows HTTP status codes.

Every answer that is not a success is `application/problem+json` with a `type` of the table `KINDS`.
Types are stable names to program against; titles and details are for people. Details come from our
own exceptions only: what a library or a bug raises is logged and never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount

from service import errors
from service.http.context import context_of

MEDIA_TYPE: Final = "application/problem+json"
MAX_DETAIL_CHARS: Final = 500
MAX_INVALID: Final = 10
"""Wrong parameters that one problem lists."""

METHODS: Final = ("DELETE", "GET", "POST", "PUT")
"""Methods that routes are declared with."""

log = structlog.get_logger("rankpress.api")


class Document(BaseModel):
    """A JSON document of an answer; attribute docstrings become its OpenAPI descriptions."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


class InvalidParameter(Document):
    """One parameter that is wrong."""

    parameter: str
    reason: str


class Problem(Document):
    """An error (RFC 9457)."""

    type: str
    """Stable URI of the kind of problem: program against this."""

    title: str
    """The kind of problem in words."""

    status: int
    """The HTTP status."""

    detail: str
    """What is wrong with this request, and what was expected."""

    instance: str
    """URI of this request; it ends in the X-Request-Id that the log line carries."""

    available: tuple[float, ...] | None = None
    """With `rate-unavailable`: the whole rates that can be requested. Rates between two neighbours
    of them can be requested too."""

    found: float | None = None
    """With `target-unreachable`: the nearest value that can be reached, in the target's unit."""

    asked: float | None = None
    """With `target-unreachable`: the target."""

    invalid: tuple[InvalidParameter, ...] | None = None
    """With `bad-parameter`: the parameters that are wrong."""


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        slug: end of its type URI.
        status: HTTP status of its answers.
        title: the kind in words.
        error: the exception that is answered so, subclasses included that have no kind themselves.
    """

    slug: str
    status: int
    title: str
    error: type[errors.RankpressError] | None = None

    @property
    def type(self) -> str:
        """The stable URI that names the kind."""
        return f"urn:rankpress:problem:{self.slug}"


BAD_REQUEST: Final = Kind("bad-request", 400, "The request is malformed")
BAD_PARAMETER: Final = Kind("bad-parameter", 422, "A parameter is wrong", errors.BadParameter)
INTERNAL: Final = Kind("internal", 500, "The server failed")
NOT_READY: Final = Kind(
    "not-ready", 503, "The server has not passed its self-test", errors.SelfTestFailed
)

KINDS: Final = (
    BAD_REQUEST,
    Kind(
        "bad-image-path",
        400,
        "The path does not name a picture by the IIIF Image API",
        errors.BadImagePath,
    ),
    Kind("bad-stream", 400, "The bytes are not a whole Rankpress stream", errors.BadStream),
    Kind("unauthorized", 401, "The bearer token is missing or wrong"),
    Kind("forbidden", 403, "The server was started without an admin token"),
    Kind(
        "foreign-origin",
        403,
        "Pages of that origin may not change anything here",
        errors.ForeignOrigin,
    ),
    Kind("unknown-adapter", 404, "No adapter with this hash is loaded", errors.UnknownAdapter),
    Kind("not-found", 404, "There is nothing at this path"),
    Kind("unknown-job", 404, "There is no such job", errors.UnknownJob),
    Kind("jobs-off", 404, "This server offers no jobs", errors.JobsOff),
    Kind("no-such-object", 404, "There is no object of this hash", errors.NoSuchObject),
    Kind("no-such-picture", 404, "There is no picture of this name", errors.NoSuchPicture),
    Kind("method-not-allowed", 405, "The path does not take this method"),
    Kind(
        "not-acceptable",
        406,
        "No format that the client accepts can be written",
        errors.NotAcceptable,
    ),
    Kind("body-timeout", 408, "The body did not arrive in time"),
    Kind("job-unfinished", 409, "The job has no such stream yet", errors.JobUnfinished),
    Kind("job-ended", 409, "The job has ended otherwise", errors.JobEnded),
    Kind("expired-job", 410, "The job's result is no longer kept", errors.ExpiredJob),
    Kind("too-many-bytes", 413, "The body is larger than the byte limit", errors.TooManyBytes),
    Kind("bad-image", 415, "The bytes are not an image file that can be read", errors.BadImage),
    Kind("unsupported-encoding", 415, "The body has a content coding"),
    Kind("range-unsatisfiable", 416, "The range lies beyond the end", errors.RangeUnsatisfiable),
    BAD_PARAMETER,
    Kind("model-unavailable", 422, "No model of this name is loaded", errors.ModelUnavailable),
    Kind("rate-unavailable", 422, "There are no weights for this rate", errors.RateUnavailable),
    Kind(
        "target-unreachable", 422, "No rate or quality meets the target", errors.TargetUnreachable
    ),
    Kind(
        "too-many-pixels", 422, "The picture is larger than the pixel limit", errors.TooManyPixels
    ),
    Kind("unsupported-stream", 422, "The stream needs a newer decoder", errors.UnsupportedStream),
    Kind(
        "bad-adapter", 422, "The bytes are not a rate adapter that fits its base", errors.BadAdapter
    ),
    Kind("unknown-host", 421, "The Host header does not name this server", errors.UnknownHost),
    Kind(
        "unknown-model",
        422,
        "The stream was made with weights not loaded here",
        errors.UnknownModel,
    ),
    Kind("too-many-requests", 429, "One client asks for too much at a time", errors.QuotaReached),
    INTERNAL,
    Kind("check-failed", 500, "The stream that was made failed its check", errors.CheckFailed),
    Kind("damaged-object", 500, "The stored object is not what it should be", errors.DamagedObject),
    Kind("upscaling-unsupported", 501, "Pictures are not enlarged", errors.UpscalingUnsupported),
    Kind("objects-unavailable", 503, "The object store cannot be used", errors.ObjectsUnavailable),
    Kind("saturated", 503, "The server has too much to do or is shutting down", errors.Saturated),
    NOT_READY,
    Kind("jobs-unavailable", 503, "The database of the jobs fails", errors.JobsUnavailable),
)
"""All kinds of problems. The order within a status is that of the OpenAPI document."""

HIDDEN: Final = (
    errors.CheckFailed,
    errors.DamagedObject,
    errors.ObjectsUnavailable,
    errors.JobsUnavailable,
)
"""Errors whose text is logged and not shown: it may name buckets, paths and hosts."""

OUTAGE_RETRY_S: Final = {"objects-unavailable": 5, "jobs-unavailable": 30}
"""Seconds until the next try, for errors that do not tell it themselves."""

_BY_ERROR: Final = {kind.error: kind for kind in KINDS if kind.error is not None}
_BY_STATUS: Final = {k.status: k for k in KINDS if k.error in (None, errors.TooManyBytes)}
"""Kinds of the framework's own errors: of each status the one that is no error of ours."""


def problem(
    request: Request,
    kind: Kind,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Response:
    """The answer for one problem; also records its kind for the log line and the metrics.

    Args:
        more: fields of `Problem` that only some kinds have.
    """
    context = context_of(request.scope)
    context.problem = kind.slug
    document = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=detail[:MAX_DETAIL_CHARS],
        instance=f"urn:rankpress:request:{context.id}",
        **more,
    )
    content = document.model_dump(mode="json", exclude_none=True)
    all_headers = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse(content, kind.status, all_headers, media_type=MEDIA_TYPE)


async def on_rankpress_error(request: Request, error: Exception) -> Response:
    """Answer an exception of our own tree; raise one that has no kind, which becomes a 500."""
    kind = next((_BY_ERROR[c] for c in type(error).__mro__ if c in _BY_ERROR), None)
    if kind is None:
        raise error
    detail = str(error)
    if isinstance(error, HIDDEN):
        log.error(kind.slug, id=context_of(request.scope).id, error=detail)
        detail = "The reason was logged under this request's id."
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    match error:
        case errors.ObjectsUnavailable() | errors.JobsUnavailable():
            headers["Retry-After"] = str(OUTAGE_RETRY_S[kind.slug])
        case errors.Saturated() | errors.JobUnfinished():
            headers["Retry-After"] = str(error.retry_after_s)
        case errors.RangeUnsatisfiable():
            headers["Content-Range"] = f"bytes */{error.size_bytes}"
        case errors.NotAcceptable():
            headers["Vary"] = "Accept"
        case errors.RateUnavailable():
            more["available"] = error.available
        case errors.TargetUnreachable():
            more |= {"found": error.nearest, "asked": error.requested}
    return problem(request, kind, detail, headers, **more)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors, and OPTIONS on a known path."""
    assert isinstance(error, HTTPException)  # registered for nothing else
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _all_methods(request)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    kind = _BY_STATUS.get(error.status_code)
    if kind is None:
        phrase = HTTPStatus(error.status_code).phrase
        kind = Kind(phrase.lower().replace(" ", "-"), error.status_code, phrase)
    return problem(request, kind, str(error.detail), headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer parameters that do not fit their declaration, naming each."""
    assert isinstance(error, RequestValidationError)  # registered for nothing else
    reasons: dict[str, list[str]] = {}
    for e in error.errors()[:MAX_INVALID]:  # a value of several kinds has an error for each
        reasons.setdefault(".".join(map(str, e["loc"][1:2]))[:100], []).append(_reason(e))
    invalid = tuple(
        InvalidParameter(parameter=name, reason=", or: ".join(texts))
        for name, texts in reasons.items()
    )
    detail = "; ".join(f"{i.parameter}: {i.reason}" for i in invalid)
    return problem(request, BAD_PARAMETER, detail, invalid=invalid)


def _reason(error: Mapping[str, object]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such parameter"
    return str(error["msg"])


def _all_methods(request: Request) -> str:
    """The methods of all routes of the path; the router itself names only those of the first."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    methods = {
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    } or {"GET"}  # of the files in a mounted folder
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods | {"OPTIONS"}))
