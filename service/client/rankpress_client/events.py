"""Watching a job: server-sent events, and what to do when they end too early.

A stream of events may end at any time: a server restarts, or a proxy drops the connection or keeps
events back. Then the job is asked for once, and events are read again from the last one on. So a
watch goes on for as long as the job can be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

from . import calls
from .answers import from_document
from .errors import (
    JobCancelledError,
    JobFailedError,
    RankpressClientError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from .results import JobState
from .retries import Repeat, may_repeat

SILENCE_S: Final = 45.0
"""Seconds without a byte after which a stream of events is given up; servers send a comment every
15 seconds."""

POLLED_S: Final = 20.0
"""The last seconds of a wait, in which the job is asked for instead: a silent stream could not be
left on time."""

PAUSE_S: Final = 2.0
"""Seconds between two streams of events, where the server asks for none itself."""

LEAST_PAUSE_S: Final = 0.1
MAX_LINE_BYTES: Final = 1 << 20


class EventParser:
    """Parses server-sent events (WHATWG HTML, 9.2) from pieces of any size.

    Attributes:
        last_id: of the last event that had one. retry_s: pause that the server asks for.
    """

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.retry_s: float | None = None
        self._rest = b""
        self._data: list[str] = []

    def begin(self) -> None:
        """Forget what is not complete, because a new stream begins."""
        self._rest, self._data = b"", []

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the data of every event that is complete.

        Raises:
            UnexpectedAnswerError: the bytes are no events.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise UnexpectedAnswerError(f"a line of events has over {MAX_LINE_BYTES} bytes")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if text:
                self._take(*text.partition(":")[::2])
            elif self._data:
                yield "\n".join(self._data)
                self._data = []

    def _take(self, name: str, value: str) -> None:
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "id":
                self.last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value[:9]) / 1000


class JobWatch:
    """What a watch of one job knows, apart from how requests are sent.

    Attributes:
        state: of the job when it was last seen; None at first.
    """

    def __init__(
        self, job_id: str, clock: Callable[[], float], timeout_s: float | None = None
    ) -> None:
        """Begin now. Args: timeout_s: after which the watch ends; None for never."""
        self._job_id, self._clock = job_id, clock
        self._end_s = None if timeout_s is None else clock() + timeout_s
        self._parser = EventParser()
        self._refused_s: float | None = None
        self.state: JobState | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.state is not None and self.state.has_ended

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left, at least 0; None without a time limit."""
        return None if self._end_s is None else max(0.0, self._end_s - self._clock())

    @property
    def may_stream(self) -> bool:
        """Whether there is time to read events."""
        return self.remaining_s is None or self.remaining_s > POLLED_S

    @property
    def silence_s(self) -> float:
        """Seconds without a byte after which to give up a stream of events."""
        return SILENCE_S if self.remaining_s is None else min(SILENCE_S, self.remaining_s)

    def begin_stream(self) -> calls.Call[None]:
        """Return the call for the events that are not known yet."""
        self._parser.begin()
        self._refused_s = None
        return calls.job_events(self._job_id, self._parser.last_id)

    def feed(self, piece: bytes) -> Iterator[JobState]:
        """Yield the states that a piece of a stream of events completes, where they are new."""
        for data in self._parser.feed(piece):
            try:
                document = json.loads(data)
            except ValueError as error:
                raise UnexpectedAnswerError("an event is no JSON document") from error
            yield from self.see(from_document(JobState, document))

    def see(self, state: JobState) -> Iterator[JobState]:
        """Take a state of the job; yield it if it is new."""
        if state != self.state:
            self.state = state
            yield state

    def accept(self, error: RankpressClientError) -> None:
        """Take the error that ended a stream of events. Raises it if the next would end so too."""
        if not may_repeat(error, Repeat.ALWAYS):
            raise error
        self._refused_s = error.retry_after_s

    def pause_s(self) -> float:
        """Return the seconds until the next stream of events."""
        asked = (s for s in (self._refused_s, self._parser.retry_s) if s is not None)
        pause_s = max(LEAST_PAUSE_S, next(asked, PAUSE_S))
        return pause_s if self.remaining_s is None else min(self.remaining_s, pause_s)

    def check_time(self) -> None:
        """Raise WaitTimeoutError if no time is left."""
        if self.remaining_s == 0:
            raise WaitTimeoutError(
                f"job {self._job_id} has not ended in time; it continues on the server", self.state
            )


def succeeded(state: JobState) -> JobState:
    """Return the state of a job that has ended.

    Raises:
        JobFailedError, JobCancelledError: it ended so.
    """
    if state.status == "failed":
        raise JobFailedError(f"job {state.id} failed: {state.error}", state)
    if state.status == "cancelled":
        raise JobCancelledError(f"job {state.id} was cancelled", state)
    return state
