"""The problem documents (RFC 9457) of a server as exceptions, a class for each type.

The slug of a class is the end of its type `urn:rankpress:problem:SLUG`. A type that this version
does not know becomes a `ProblemError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import ProblemError, RankpressClientError, UnexpectedAnswerError

MEDIA_TYPE: Final = "application/problem+json"


def error_of(
    status: int, media_type: str, document: Any, retry_after_s: float | None
) -> RankpressClientError:
    """Return the exception for an answer that is not a success.

    Args:
        media_type: of the answer. document: its JSON; None if it has none.
    """
    if media_type.partition(";")[0].strip() == MEDIA_TYPE and isinstance(document, dict):
        kind = PROBLEMS.get(str(document.get("type")).rpartition(":")[2], ProblemError)
        try:
            return kind(document, retry_after_s)
        except (KeyError, TypeError, ValueError):
            pass
    return UnexpectedAnswerError(
        f"the answer has status {status} and is no problem document", status, retry_after_s
    )


class BadImagePathError(ProblemError):
    """400: The path does not name a picture by the IIIF Image API."""

    slug = "bad-image-path"


class BadRequestError(ProblemError):
    """400: The request is malformed."""

    slug = "bad-request"


class BadStreamError(ProblemError):
    """400: The bytes are not a whole Rankpress stream."""

    slug = "bad-stream"


class UnauthorizedError(ProblemError):
    """401: The bearer token is missing or wrong."""

    slug = "unauthorized"


class ForbiddenError(ProblemError):
    """403: The server was started without an admin token."""

    slug = "forbidden"


class ForeignOriginError(ProblemError):
    """403: Pages of that origin may not change anything here."""

    slug = "foreign-origin"


class JobsOffError(ProblemError):
    """404: This server offers no jobs."""

    slug = "jobs-off"


class NoSuchObjectError(ProblemError):
    """404: There is no object of this hash."""

    slug = "no-such-object"


class NoSuchPictureError(ProblemError):
    """404: There is no picture of this name."""

    slug = "no-such-picture"


class NotFoundError(ProblemError):
    """404: There is nothing at this path."""

    slug = "not-found"


class UnknownAdapterError(ProblemError):
    """404: No adapter with this hash is loaded."""

    slug = "unknown-adapter"


class UnknownJobError(ProblemError):
    """404: There is no such job."""

    slug = "unknown-job"


class MethodNotAllowedError(ProblemError):
    """405: The path does not take this method."""

    slug = "method-not-allowed"


class NotAcceptableError(ProblemError):
    """406: No format that the client accepts can be written."""

    slug = "not-acceptable"


class BodyTimeoutError(ProblemError):
    """408: The body did not arrive in time."""

    slug = "body-timeout"


class JobEndedError(ProblemError):
    """409: The job has ended otherwise."""

    slug = "job-ended"


class JobUnfinishedError(ProblemError):
    """409: The job has no such stream yet."""

    slug = "job-unfinished"


class ExpiredJobError(ProblemError):
    """410: The job's result is no longer kept."""

    slug = "expired-job"


class TooManyBytesError(ProblemError):
    """413: The body is larger than the byte limit."""

    slug = "too-many-bytes"


class BadImageError(ProblemError):
    """415: The bytes are not an image file that can be read."""

    slug = "bad-image"


class UnsupportedEncodingError(ProblemError):
    """415: The body has a content coding."""

    slug = "unsupported-encoding"


class RangeUnsatisfiableError(ProblemError):
    """416: The range lies beyond the end."""

    slug = "range-unsatisfiable"


class UnknownHostError(ProblemError):
    """421: The Host header does not name this server."""

    slug = "unknown-host"


class BadAdapterError(ProblemError):
    """422: The bytes are not a rate adapter that fits its base."""

    slug = "bad-adapter"


class BadParameterError(ProblemError):
    """422: A parameter is wrong."""

    slug = "bad-parameter"


class ModelUnavailableError(ProblemError):
    """422: No model of this name is loaded."""

    slug = "model-unavailable"


class RateUnavailableError(ProblemError):
    """422: There are no weights for this rate."""

    slug = "rate-unavailable"


class TargetUnreachableError(ProblemError):
    """422: No rate or quality meets the target."""

    slug = "target-unreachable"


class TooManyPixelsError(ProblemError):
    """422: The picture is larger than the pixel limit."""

    slug = "too-many-pixels"


class UnknownModelError(ProblemError):
    """422: The stream was made with weights not loaded here."""

    slug = "unknown-model"


class UnsupportedStreamError(ProblemError):
    """422: The stream needs a newer decoder."""

    slug = "unsupported-stream"


class TooManyRequestsError(ProblemError):
    """429: One client asks for too much at a time."""

    slug = "too-many-requests"


class CheckFailedError(ProblemError):
    """500: The stream that was made failed its check."""

    slug = "check-failed"


class DamagedObjectError(ProblemError):
    """500: The stored object is not what it should be."""

    slug = "damaged-object"


class InternalError(ProblemError):
    """500: The server failed."""

    slug = "internal"


class UpscalingUnsupportedError(ProblemError):
    """501: Pictures are not enlarged."""

    slug = "upscaling-unsupported"


class JobsUnavailableError(ProblemError):
    """503: The database of the jobs fails."""

    slug = "jobs-unavailable"


class NotReadyError(ProblemError):
    """503: The server has not passed its self-test."""

    slug = "not-ready"


class ObjectsUnavailableError(ProblemError):
    """503: The object store cannot be used."""

    slug = "objects-unavailable"


class SaturatedError(ProblemError):
    """503: The server has too much to do or is shutting down."""

    slug = "saturated"


PROBLEMS: Final[Mapping[str, type[ProblemError]]] = {
    kind.slug: kind for kind in ProblemError.__subclasses__()
}
"""The exception of every type of problem, by its slug."""
