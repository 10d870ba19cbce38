"""What is known of one request while it runs, and how many bytes it keeps in memory and on disk.

The middleware makes a `RequestContext` and puts it into the ASGI scope. Endpoints add what they
learn, for the log line and the metrics.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.types import Scope

from service.engine.admission import Admission
from service.errors import Saturated
from service.http.clients import RETRY_S, SharedLimit
from service.http.spool import Spool

if TYPE_CHECKING:
    from service.tracing.spans import RequestTrace

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CONTEXT_KEY: Final = "rankpress.context"
"""Of the context in the ASGI scope of a request."""


class RequestBytes:
    """Counts the bytes of one request (body and answer) against all limits that apply to them.

    The limits are those of the whole server and those of the request's client.

    Attributes:
        client: whose request it is, see `clients.client_of`.
    """

    def __init__(
        self, admission: Admission, memory: SharedLimit, spool: Spool, client: str
    ) -> None:
        self._hold, self._memory, self.client = admission.hold(), memory, client
        self.spool = spool
        self._memory_bytes = self._disk_bytes = 0

    def check(self, more_bytes: int) -> None:
        """Raise QuotaReached if the client would have more than its share of the memory."""
        self._memory.check(self.client, more_bytes, self._memory_bytes)

    def grow(self, more_bytes: int) -> None:
        """Count bytes that arrive.

        Raises:
            Saturated, SelfTestFailed: the client's share or the server's limit is reached, or the
                server stops. Nothing is counted then.
        """
        self.check(more_bytes)
        self._hold.grow(more_bytes)
        self._count(more_bytes)

    def add(self, more_bytes: int) -> None:
        """Count bytes that exist already (such as an answer), even beyond the limit.

        A negative number gives bytes back.
        """
        self._hold.add(more_bytes)
        self._count(more_bytes)

    def grow_on_disk(self, more_bytes: int) -> None:
        """Count bytes that will be written to disk.

        Raises:
            Saturated: the client's share of the disk or the server's limit is reached.
        """
        limit = self.spool.limit
        limit.check(self.client, more_bytes, self._disk_bytes)
        if more_bytes > limit.available:
            raise Saturated("too many bytes of bodies are already on disk", RETRY_S)
        limit.take(self.client, more_bytes)
        self._disk_bytes += more_bytes

    def move_to_memory(self) -> None:
        """Count the bytes on disk as bytes in memory. Raises as `grow`."""
        self.grow(self._disk_bytes)
        self.release_disk()

    def release(self) -> None:
        """Give everything back; calling it again does nothing."""
        self._hold.release()
        self._count(-self._memory_bytes)
        self.release_disk()

    def release_disk(self) -> None:
        """Give the bytes on disk back."""
        self.spool.limit.take(self.client, -self._disk_bytes)
        self._disk_bytes = 0

    def _count(self, more_bytes: int) -> None:
        self._memory_bytes += more_bytes
        self._memory.take(self.client, more_bytes)


@dataclass
class RequestContext:
    """What is known of one request.

    Attributes:
        id: the client's X-Request-Id if it is valid, else a new one.
        bytes: the bytes that the request keeps in memory and on disk.
        is_head: whether only the headers of the answer are sent.
        problem: end of the problem type of the answer, None for a success.
        rate: the rate of the stream that was written or read.
        bpp: bits per pixel of the stream that was written.
        pixels: pixels of the picture that was read or written.
        model: name of the model that decoded.
        queue_s: seconds spent waiting for a worker thread.
        trace: the spans of the request, None where it is not traced.
    """

    id: str
    bytes: RequestBytes
    is_head: bool = False
    problem: str | None = None
    rate: float | None = None
    bpp: float | None = None
    pixels: int | None = None
    model: str | None = None
    queue_s: float | None = None
    trace: RequestTrace | None = None

    @property
    def trace_carrier(self) -> Mapping[str, str] | None:
        """The context of the trace as W3C's headers, for a job; None where there is none."""
        return None if self.trace is None else self.trace.carrier


def context_of(scope: Scope) -> RequestContext:
    """The context of the request with this ASGI scope."""
    context = scope[CONTEXT_KEY]
    assert isinstance(context, RequestContext)  # the middleware wraps every route
    return context


def request_id(client_id: str | None) -> str:
    """The id that the client sent if it is 1-64 letters, digits or any of "._-", else a new one."""
    if client_id is not None and _VALID_ID.fullmatch(client_id):
        return client_id
    return uuid.uuid4().hex
