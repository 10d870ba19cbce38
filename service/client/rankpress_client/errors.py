"""The exceptions of the client; problems.py has one for each type of problem of a server.

`RankpressClientError` is the base of all. Errors in arguments are Python's own `TypeError` and
`ValueError`, and errors of files are `OSError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import httpx

if TYPE_CHECKING:
    from .results import JobState


class RankpressClientError(Exception):
    """Base of every error that is raised on purpose.

    Attributes:
        status: HTTP status of the answer; None where there was no answer.
        retry_after_s: seconds after which the server asks to try again; None if it does not.
    """

    status: int | None = None
    retry_after_s: float | None = None


class TransportError(RankpressClientError):
    """No whole answer arrived. The server may have done the work nevertheless."""


class ConnectionFailedError(TransportError):
    """There was no connection, so the request was not sent."""


class ConnectionLostError(TransportError):
    """The connection ended before the whole answer had arrived."""


class TimedOutError(TransportError):
    """A time limit of this client was reached."""


class DamagedAnswerError(TransportError):
    """The bytes that arrived do not have the hash that the server named."""


class UnexpectedAnswerError(RankpressClientError):
    """The answer is not one of Rankpress's interface, such as an error page of a proxy."""

    def __init__(
        self, message: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True)
class WrongParameter:
    """One parameter that is wrong, and why."""

    parameter: str
    reason: str


class ProblemError(RankpressClientError):
    """A server's answer that is not a success.

    Attributes:
        type: stable name of the kind of problem. title: the kind in words.
        status: of HTTP. detail: what is wrong with this request.
        instance: name of the request, under which the server's log has it.
        available: the rates that exist, of `rate-unavailable`.
        found: nearest value that can be reached, of `target-unreachable`. asked: the target.
        invalid: the wrong parameters, of `bad-parameter`.
        retry_after_s: seconds after which to try again; None where the server does not say.
    """

    slug: ClassVar[str] = ""

    def __init__(self, document: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        """Take the fields of a document. Raises KeyError, TypeError or ValueError: it is none."""
        self.type, self.title = str(document["type"]), str(document["title"])
        self.status, self.detail = int(document["status"]), str(document["detail"])
        self.instance = str(document.get("instance", ""))
        available, invalid = document.get("available"), document.get("invalid")
        self.available = None if available is None else tuple(map(float, available))
        self.found: float | None = document.get("found")
        self.asked: float | None = document.get("asked")
        self.invalid = None if invalid is None else tuple(WrongParameter(**i) for i in invalid)
        self.retry_after_s = retry_after_s
        super().__init__(f"{self.title}: {self.detail}")


class UnfinishedJobError(RankpressClientError):
    """A job has not succeeded.

    Attributes:
        state: of the job, when it was last seen; None if it never was.
    """

    def __init__(self, message: str, state: JobState | None) -> None:
        super().__init__(message)
        self.state = state


class JobFailedError(UnfinishedJobError):
    """The job has failed; `state.error` says why."""


class JobCancelledError(UnfinishedJobError):
    """The job was cancelled; its best stream so far is kept."""


class WaitTimeoutError(UnfinishedJobError):
    """The job has not ended within the time limit of the wait. It continues on the server."""


def transport_error(error: httpx.TransportError | httpx.DecodingError) -> RankpressClientError:
    """Return what an exception of httpx becomes."""
    message = str(error) or type(error).__name__
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return ConnectionFailedError(f"no connection: {message}")
        case httpx.TimeoutException():
            return TimedOutError(f"the server did not answer, or read, in time: {message}")
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.DecodingError():
            return UnexpectedAnswerError(message)
    return ConnectionLostError(f"the connection was lost: {message}")
