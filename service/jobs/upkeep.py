"""What a worker does besides its jobs: heartbeats, follow-ups, taking over lost jobs, and expiry.

Each runs in a thread of its own, so that a slow one does not make a live worker look dead.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Final

import structlog

from service.blobs import open_objects
from service.errors import RankpressError
from service.jobs import heartbeat
from service.jobs.expiry import expire
from service.jobs.followups import Followups, improve_name, tell_program
from service.jobs.jobs import Jobs
from service.jobs.storage_outages import growing_pauses
from service.settings import Settings

MAX_EXPIRY_INTERVAL_S: Final = 3600.0

FOLLOW_UP_S: Final = 5.0
"""Seconds between two looks at the follow-ups, where no job of this worker ends."""

END_WRITTEN_S: Final = 0.5
"""Seconds after the return of a job's workflow by which DBOS has usually written its end."""

log = structlog.get_logger("rankpress.worker")


class Upkeep:
    """The upkeep by one worker."""

    def __init__(self, name: str, jobs: Jobs, settings: Settings) -> None:
        self._name, self._jobs = name, jobs
        self._ttl_s = settings.result_ttl_s
        # A client of its own with short timeouts, for a call that hangs would delay heartbeats.
        timeout_s = min(settings.objects_timeout_s, heartbeat.BEAT_S)
        self._pulse = open_objects(settings.objects_place, timeout_s)
        self._followups = Followups(
            jobs, {"name": improve_name(jobs.objects), "webhook": tell_program(jobs)}
        )
        self._beating_since_s: float | None = None
        self._stopping, self._job_ending = threading.Event(), threading.Event()

    def start(self) -> None:
        """Show the first heartbeat."""
        heartbeat.beat(self._pulse, self._name)
        self._beating_since_s = time.monotonic()

    def start_threads(self) -> None:
        """Begin to do everything regularly, until `stop`."""
        for work in (self._keep_beating, self._keep_following_up, self._keep_clean):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def stop(self) -> None:
        """Do nothing regularly any more."""
        self._stopping.set()

    def note_end(self) -> None:
        """Look at the follow-ups soon: a job of this worker is about to end."""
        self._job_ending.set()

    def make_room(self) -> None:
        """Remove everything that can be spared on a full disk."""
        with suppress(RankpressError):
            removed = expire(self._jobs.table, self._jobs.objects, full=True)
            log.info("room made", worker=self._name, removed=removed)

    def _keep_beating(self) -> None:
        while not self._stopping.wait(heartbeat.BEAT_S):
            try:
                heartbeat.beat(self._pulse, self._name)
            except Exception as error:  # the top of a thread that must not end
                self._beating_since_s = None
                log.warning("no heartbeat", worker=self._name, reason=str(error))
            else:
                self._beating_since_s = self._beating_since_s or time.monotonic()

    def _keep_following_up(self) -> None:
        """Do what is to be done for jobs that have ended, here or anywhere."""
        pauses = growing_pauses()
        while not self._stopping.is_set():
            if self._job_ending.wait(FOLLOW_UP_S):
                self._job_ending.clear()
                self._stopping.wait(END_WRITTEN_S)
            try:
                self._followups.process()
            except Exception as error:  # the top of a thread that must not end
                log.warning("no follow-ups", worker=self._name, reason=str(error))
                self._stopping.wait(next(pauses))
            else:
                pauses = growing_pauses()

    def _keep_clean(self) -> None:
        """Take over the jobs of lost workers and remove what has expired."""
        last_expiry_s = last_rescue_s = time.monotonic()
        while not self._stopping.wait(min(heartbeat.BEAT_S, self._ttl_s)):
            now_s = time.monotonic()
            try:
                if now_s - last_rescue_s >= heartbeat.LOST_S:
                    last_rescue_s = now_s
                    self._take_over_lost()
                if now_s - last_expiry_s >= min(MAX_EXPIRY_INTERVAL_S, self._ttl_s):
                    last_expiry_s = now_s
                    expire(self._jobs.table, self._jobs.objects)
            except Exception:  # the top of a thread that must not end
                log.exception("upkeep failed", worker=self._name)

    def _take_over_lost(self) -> None:
        """Queue the jobs and the attempts to deliver of lost workers again.

        Their attempts go on counting, because such a job may have killed its worker. After an
        outage the other workers first get the time to show that they are alive.
        """
        from dbos import DBOS

        since_s = self._beating_since_s
        if since_s is None or time.monotonic() - since_s < heartbeat.LOST_S:
            return
        workers = self._jobs.table.busy_workers() - {self._name}
        if not workers:
            return
        lost = sorted(workers - heartbeat.live_workers(self._jobs.objects))
        if lost:
            log.warning("jobs of lost workers taken over", lost=lost)
            # DBOS 2 has no public name for this; its client's resume would reset the attempts.
            DBOS._recover_pending_workflows(lost)
