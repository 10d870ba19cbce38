"""Asks about jobs for the endpoints: every call runs in a thread and never blocks the event loop.

The database is opened when it is first needed, and again after a failure, so that a server starts
and compresses without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from service.engine.types import ModelInfo
from service.errors import JobsOff, JobsUnavailable, ObjectsUnavailable
from service.http.call_pool import CallPool
from service.jobs import database
from service.jobs.followups import Followup, add_followup
from service.jobs.jobs import Jobs, open_jobs
from service.settings import Settings
from service.webhooks.recipients import check_settings, recipients_of

T = TypeVar("T")

THREADS: Final = 4
"""Calls of the database that run at the same time, and as many that also need files; the database's
client has five connections."""

TIMEOUT_S: Final = 30.0


class JobClient:
    """The jobs of one app. Use from the event loop's thread.

    Attributes:
        is_enabled: whether this server offers jobs.
        watchers: number of event streams that are open.
        models: those loaded at the start. A worker has the models of the store too, but not the
            adapters that are loaded later.
    """

    def __init__(self, settings: Settings, models: tuple[ModelInfo, ...]) -> None:
        """Open nothing yet. Raises BadParameter: the settings name no place for the jobs, or
        webhooks that cannot be sent."""
        database.check_places(settings)
        check_settings(settings)
        self._settings, self.models = settings, models
        self.is_enabled = settings.jobs
        self._calls = CallPool("jobs' database", THREADS, JobsUnavailable)
        self._file_calls = CallPool("jobs' files", THREADS, ObjectsUnavailable)
        self._opening = threading.Lock()
        self._jobs: Jobs | None = None
        self.watchers = 0

    @property
    def pending(self) -> int:
        """Number of calls that wait or run."""
        return self._calls.pending + self._file_calls.pending

    def check(self) -> None:
        """Raise JobsOff if this server offers no jobs."""
        if not self.is_enabled:
            raise JobsOff("this server was started without jobs (RANKPRESS_JOBS=false)")

    def recipients(self, url: str | None) -> tuple[str, ...]:
        """The URLs to tell of the end of a job. Raises BadParameter: as `recipients_of`."""
        return recipients_of(self._settings, url)

    async def call(self, call: Callable[[Jobs], T], timeout_s: float = TIMEOUT_S) -> T:
        """The result of a call that needs only the database.

        Raises:
            JobsOff: jobs are not offered.
            JobsUnavailable: the database gave no answer in time.
            Saturated: too many calls are pending.
            RankpressError: whatever the call raises.
        """
        self.check()
        return await self._calls(lambda: call(self._open()), timeout_s)

    async def call_with_files(self, call: Callable[[Jobs], T], timeout_s: float | None = None) -> T:
        """The result of a call that also reads or writes files of jobs.

        Args:
            timeout_s: to wait at most, None for the time of a request.

        Raises:
            ObjectsUnavailable: no answer in time. Others as `call`.
        """
        self.check()
        timeout_s = timeout_s or self._settings.request_timeout_s
        return await self._file_calls(lambda: call(self._open()), timeout_s)

    async def close(self) -> None:
        """Make no more calls."""
        await asyncio.gather(self._calls.close(), self._file_calls.close())
        if self._jobs is not None:
            self._jobs.close()

    def _open(self) -> Jobs:
        with self._opening:
            if self._jobs is None:
                self._jobs = open_jobs(self._settings, database.prepare(self._settings))
            return self._jobs


def watch_for(
    jobs: Jobs, job_id: str, recipients: tuple[str, ...], name: str | None = None
) -> None:
    """Have programs told when a job has ended. Call this before the job is submitted.

    Args:
        recipients: their URLs, of `JobClient.recipients`.
        name: of the picture that the job is to make better, None for none.

    Raises:
        ObjectsUnavailable: it cannot be written down.
    """
    for url in recipients:
        details = {"url": url} if name is None else {"url": url, "name": name}
        add_followup(jobs, Followup(job_id, "webhook", details))
