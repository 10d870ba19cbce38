"""What is known of one request while it runs: for its log line, its metrics and its answer.

The middleware makes a `Record` and puts it into the ASGI scope; whoever learns something adds it.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from starlette.types import Scope

from service.http.holds import ClientHold

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = "rankpress.record"


@dataclass
class Record:
    """One request.

    Attributes:
        id: the client's X-Request-Id if it is a sane one, else a fresh one.
        hold: bytes that the request keeps in memory and on disk.
        problem: end of the problem type, None for a success.
        rate: the rate of the stream that was written or read.
        bpp: bits per pixel of the stream that was written.
        pixels: pixels of the picture that was read or written.
        model: name of the model that decoded.
        queue_s: seconds spent waiting for a worker.
    """

    id: str
    hold: ClientHold
    problem: str | None = None
    rate: float | None = None
    bpp: float | None = None
    pixels: int | None = None
    model: str | None = None
    queue_s: float | None = None

    def attach(self, scope: Scope) -> None:
        """Make the record findable by `record_of`."""
        scope[_KEY] = self


def record_of(scope: Scope) -> Record:
    """The record of the request with this scope."""
    record = scope[_KEY]
    assert isinstance(record, Record)  # the middleware wraps every route
    return record


def request_id(offered: str | None) -> str:
    """The offered id if it is 1–64 letters, digits or any of "._-", or a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex
