"""A job as server-sent events, which a client that was cut off takes up where it was.

Every event is the whole document of the job after one of its steps; its id is the number of the
step and the state. A client that sends an id (`Last-Event-ID`) gets the steps since.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.desk import Desk
from service.api.job_schemas import document_of
from service.errors import RankpressError
from service.jobs.job import ENDED, Job

MEDIA_TYPE: Final = "text/event-stream"
POLL_S: Final = 1.0
KEEP_ALIVE_POLLS: Final = 15
"""Looks without news after which a comment is sent, so that nobody takes the line for dead."""

RECONNECT_MS: Final = 2000

_ID = re.compile(r"(\d{1,9})\.([a-z]{1,20})")


@dataclass(frozen=True)
class Seen:
    """What a client has seen last: the number of a step and the state then."""

    steps: int
    state: str


def parse_id(text: str | None) -> Seen | None:
    """What an event's id says, None if it is none of ours."""
    found = _ID.fullmatch(text or "")
    return Seen(int(found[1]), found[2]) if found else None


class EventStream(StreamingResponse):
    """A stream of events that counts among the desk's watchers while it is sent."""

    def __init__(self, desk: Desk, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers, media_type=MEDIA_TYPE)
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises Saturated, before anything is sent: too many are open."""
        with self._desk.watching():
            await super().__call__(scope, receive, send)


async def watch(
    desk: Desk, first: Job, seen: Seen | None, root_path: str, must_end: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Events of a job until it has ended, or until the server must.

    Args:
        desk: to ask. first: the job as it is. seen: by the client, None for nothing.
        root_path: that links begin with.
        must_end: whether to stop; the client then comes back elsewhere.
    """
    try:
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        # Another run of the job may have fewer steps than were seen.
        seen = seen if seen is not None and seen.steps <= first.steps else None
        shown = Seen(first.steps, "") if seen is None else seen
        quiet = 0
        while not must_end():
            news = await _news(desk, first.id, shown)
            for job in news:
                yield event_of(job, root_path)
                shown = Seen(job.steps, job.state)
            if news and news[-1].state in ENDED:
                return
            quiet = 0 if news else quiet + 1
            if quiet % KEEP_ALIVE_POLLS == KEEP_ALIVE_POLLS - 1:
                yield b": still here\n\n"
            await asyncio.sleep(POLL_S)
    except RankpressError:
        return  # the client comes back, and is then told what is wrong


def event_of(job: Job, root_path: str) -> bytes:
    """One event; the last of a job is named `end`, the others have no name."""
    name = "event: end\n" if job.state in ENDED else ""
    data = document_of(job, root_path).model_dump_json()
    return f"id: {job.steps}.{job.state}\n{name}data: {data}\n\n".encode()


async def _news(desk: Desk, job_id: str, shown: Seen) -> list[Job]:
    """The job after each step that was not shown, and as it is now if that differs."""
    job, steps = await desk.ask(lambda jobs: jobs.since(job_id, shown.steps))
    number = steps[-1][0] if steps else shown.steps
    past = [job.during(n, record) for n, record in steps]
    if job.state == "running" and steps:
        return past
    if job.state == shown.state and not past:
        return []
    now = await desk.ask(lambda jobs: jobs.get(job_id))
    return [*(p for p in past if p.steps < now.steps), now] if now.steps >= number else [now]
