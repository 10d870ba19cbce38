"""Where requests ask about jobs: every question runs in a thread, and none holds up the event loop.

The database is opened when it is first needed, and again when that failed, so that a server starts
and compresses without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from service.engine.types import ModelInfo
from service.errors import JobsOff, JobsUnavailable, ObjectsUnavailable, Saturated
from service.http.calls import BlockingCalls
from service.jobs import database
from service.jobs.jobs import Jobs, open_jobs
from service.settings import Settings

T = TypeVar("T")

THREADS: Final = 4
"""Questions of the database that run at a time, and as many that need files; the database's client
has five connections."""

ANSWER_S: Final = 30.0
MAX_WATCHERS: Final = 64
"""Event streams at a time; each asks about once a second."""


class Desk:
    """Asks the jobs of one app. Use from the event loop's thread.

    Attributes:
        watchers: event streams that are open.
        models: that were there at the start. A worker has those of the store too, but no adapters
            that are loaded later.
    """

    def __init__(self, settings: Settings, models: tuple[ModelInfo, ...]) -> None:
        """Raises BadParameter: the settings name no place for the jobs."""
        database.check_places(settings)
        self._settings, self.models = settings, models
        self._call = BlockingCalls("jobs' database", THREADS, JobsUnavailable)
        self._call_files = BlockingCalls("jobs' files", THREADS, ObjectsUnavailable)
        self._opening = threading.Lock()
        self._jobs: Jobs | None = None
        self.watchers = 0

    @property
    def offered(self) -> bool:
        """Whether there are jobs here."""
        return self._settings.jobs

    def check(self) -> None:
        """Raise JobsOff where jobs are not offered."""
        if not self.offered:
            raise JobsOff("this server was started without jobs (RANKPRESS_JOBS=false)")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count an event stream while it is open. Raises Saturated: no further one may begin."""
        if self.watchers >= MAX_WATCHERS:
            raise Saturated(f"{self.watchers} event streams are open already", 10)
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    async def ask(self, question: Callable[[Jobs], T], timeout_s: float = ANSWER_S) -> T:
        """The answer to a question that the database alone answers.

        Raises:
            JobsOff: jobs are not offered. JobsUnavailable: no answer in time.
            Saturated: too many questions wait.
            RankpressError: whatever the question raises.
        """
        self.check()
        return await self._call(lambda: question(self._open()), timeout_s)

    async def ask_files(self, question: Callable[[Jobs], T], timeout_s: float | None = None) -> T:
        """The answer to a question for which jobs' files are read or written too.

        Args:
            question: to answer. timeout_s: to wait at most, None for the time of a request.

        Raises:
            ObjectsUnavailable: no answer in time. Others as `ask`.
        """
        self.check()
        if timeout_s is None:
            timeout_s = self._settings.request_timeout_s
        return await self._call_files(lambda: question(self._open()), timeout_s)

    @property
    def waiting(self) -> int:
        """Questions that wait or are being answered."""
        return self._call.waiting + self._call_files.waiting

    async def close(self) -> None:
        """Ask nothing any more."""
        await asyncio.gather(self._call.close(), self._call_files.close())
        if self._jobs is not None:
            self._jobs.close()

    def _open(self) -> Jobs:
        with self._opening:
            if self._jobs is None:
                self._jobs = open_jobs(self._settings, database.prepare(self._settings))
            return self._jobs
