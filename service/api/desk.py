"""Where requests ask about jobs: every question runs in a thread, and none holds up the event loop.

The database is opened when it is first needed, and again when that failed, so that a server starts
and compresses without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from service.engine.types import ModelInfo
from service.errors import JobsOff, JobsUnavailable, Saturated
from service.jobs import database
from service.jobs.jobs import Jobs, open_jobs
from service.settings import Settings

T = TypeVar("T")

THREADS: Final = 4
"""No more than the database client has connections."""

MAX_CALLS: Final = 256
"""Questions that may wait; more come only when the database does not answer."""

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
        self._settings, self.models = settings, models
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rankpress-jobs")
        self._opening = threading.Lock()
        self._jobs: Jobs | None = None
        self._calls = 0
        self.watchers = 0

    @property
    def offered(self) -> bool:
        """Whether there are jobs here."""
        return self._settings.jobs

    def check(self) -> None:
        """Raise JobsOff where jobs are not offered."""
        if not self.offered:
            raise JobsOff("this server was started without jobs (RANKPRESS_JOBS=false)")

    def check_watchers(self) -> None:
        """Raise Saturated where no further event stream may begin."""
        if self.watchers >= MAX_WATCHERS:
            raise Saturated(f"{self.watchers} event streams are open already", 10)

    async def ask(self, question: Callable[[Jobs], T], timeout_s: float = ANSWER_S) -> T:
        """The answer to a question.

        Raises:
            JobsOff: jobs are not offered. JobsUnavailable: no answer in time.
            Saturated: too many questions wait.
            RankpressError: whatever the question raises.
        """
        self.check()
        if self._calls >= MAX_CALLS:
            raise Saturated(f"{self._calls} questions about jobs wait already", 5)
        self._calls += 1
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._pool, lambda: question(self._open()))
        asked.add_done_callback(self._count_answer)
        try:
            return await asyncio.wait_for(asyncio.shield(asked), timeout_s)
        except TimeoutError:
            raise JobsUnavailable(f"the jobs' database gave no answer in {timeout_s:g} s") from None

    def close(self) -> None:
        """Ask nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._jobs is not None:
            self._jobs.close()

    def _open(self) -> Jobs:
        with self._opening:
            if self._jobs is None:
                self._jobs = open_jobs(self._settings, database.prepare(self._settings))
            return self._jobs

    def _count_answer(self, asked: asyncio.Future[T]) -> None:
        self._calls -= 1
        if not asked.cancelled():
            asked.exception()  # of one that nobody waits for any more
