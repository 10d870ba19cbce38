"""The worker process: takes jobs from the queue, one at a time, and sees to the upkeep.

Killed in any way, it loses at most the step it was at: by the same name it finds its jobs again,
and other workers take those of one that stays away. Asked to end, it finishes its step and hands
its job back. It runs at low priority, so that requests on the same machine come first.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from service.blobs import Objects, open_objects
from service.engine.types import AdaptationEngine
from service.errors import JobsUnavailable, RankpressError
from service.jobs import database, heartbeat
from service.jobs.dbos_logs import DBOS_LOG, Cancelled, Repeated
from service.jobs.expiry import expire
from service.jobs.job import JobSpec, StepRecord
from service.jobs.jobs import open_jobs
from service.jobs.notes import JobNotes
from service.jobs.outage import growing_pauses, lacks_room, wait_out_sqlite_outages
from service.jobs.rows import JobFailed
from service.jobs.work import JobWork, Pauses, StepFailed, WorkLimits, logged_reason
from service.settings import Settings

NICENESS: Final = 15
AUTOGROUP: Final = Path("/proc/self/autogroup")
POLL_S: Final = 0.5
"""Seconds between looks at the queue."""

STOP_S: Final = 30.0
"""Seconds that a step may take to end when the worker is asked to."""

log = structlog.get_logger("rankpress.worker")


def run_worker(
    open_adapter: Callable[[], AdaptationEngine], settings: Settings, parent: int | None = None
) -> None:
    """Work on jobs until SIGTERM or SIGINT, or until the parent process is gone.

    Does not return: what still runs in native code must not keep the process.

    Args:
        open_adapter: loads the models. settings: of the worker.
        parent: process to end with, None for none.

    Raises:
        JobsUnavailable, ObjectsUnavailable: database or objects cannot be reached.
        BadParameter, StoreError: as `open_adapter` does.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    let_others_first()
    url = database.prepare(settings)
    objects = open_objects(settings.objects_place, settings.objects_timeout_s)
    objects.check()
    name = heartbeat.WorkerName(settings.state_folder / "workers")
    limits = WorkLimits(
        settings.job_step_s, settings.job_max_s, settings.job_attempts, settings.max_pixels
    )
    worker = Worker(open_adapter(), limits, objects, settings, url, name.name)
    worker.start()
    for keep in (worker.keep_beating, worker.keep_up):
        threading.Thread(target=keep, name=keep.__name__, daemon=True).start()
    while not stop.wait(1.0):
        if parent is not None and os.getppid() != parent:
            log.warning("the parent is gone", parent=parent)
            break
    worker.stop()
    logging.shutdown()
    os._exit(0)


def let_others_first() -> None:
    """Run at low priority, also where the system weighs whole sessions.

    Linux gives every session (`setsid`) the same share of the processor and niceness counts only
    within one, unless the session's own is set: sched(7), autogroup.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))


class Worker(Pauses):
    """DBOS with the one workflow of a job. One in a process, for DBOS is one."""

    def __init__(
        self,
        adapter: AdaptationEngine,
        limits: WorkLimits,
        objects: Objects,
        settings: Settings,
        url: str,
        name: str,
    ) -> None:
        self._work = JobWork(adapter, objects, limits, self)
        self._objects, self._settings, self._url, self._name = objects, settings, url, name
        # Of its own, and impatient: a call that hangs must not make a live worker look dead.
        pulse_s = min(settings.objects_timeout_s, heartbeat.BEAT_S)
        self._pulse = open_objects(settings.objects_place, pulse_s)
        self._beating_since_s: float | None = None
        self._jobs = open_jobs(settings, url)
        self._client = database.open_client(url)
        self._notes = JobNotes(self._client, self._jobs)
        self._stopping = threading.Event()
        self._at_work = threading.Lock()
        self._worked = False

    def start(self) -> None:
        """Show a heartbeat and begin to take jobs, those first that were left at a restart."""
        from dbos import DBOS, DBOSPortableJSONSerializer

        heartbeat.beat(self._pulse, self._name)
        self._beating_since_s = time.monotonic()
        wait_out_sqlite_outages()
        for each in (Cancelled(), Repeated()):
            logging.getLogger(DBOS_LOG).addFilter(each)
        DBOS(
            config={
                "name": database.APPLICATION,
                "system_database_url": self._url,
                "application_version": database.VERSION,
                "executor_id": self._name,
                "serializer": DBOSPortableJSONSerializer(),
                "log_level": "WARNING",
                "run_migrations": False,
            }
        )
        self._register()
        # Written where it is not, or else, before a look at the queue could find another limit.
        self._client.register_queue(
            database.QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S
        )
        DBOS.listen_queues([database.QUEUE])
        DBOS.launch()
        log.info("worker started", worker=self._name)

    def stop(self) -> None:
        """Finish the step, then let others have the job."""
        from dbos import DBOS

        log.info("worker stopping", worker=self._name)
        self._stopping.set()
        idle = self._at_work.acquire(timeout=STOP_S)  # kept: no step begins any more
        DBOS.destroy()
        with suppress(RankpressError), database.reported():
            mine = [j.id for j in self._jobs.active() if (j.state, j.worker) == self._holding]
            if mine:
                self._client.resume_workflows(mine, queue_name=database.QUEUE)
            heartbeat.leave(self._objects, self._name)
            log.info("worker stopped", worker=self._name, idle=idle, handed_back=mine)

    def keep_beating(self) -> None:
        """Show heartbeats; for ever, and behind nothing else that may take long."""
        while not self._stopping.wait(heartbeat.BEAT_S):
            try:
                heartbeat.beat(self._pulse, self._name)
            except Exception as error:  # the top of a thread that must not end
                self._beating_since_s = None
                log.warning("no heartbeat", worker=self._name, reason=str(error))
            else:
                self._beating_since_s = self._beating_since_s or time.monotonic()

    def keep_up(self) -> None:
        """Take the jobs of lost workers and remove what has expired; for ever."""
        ttl_s = self._settings.result_ttl_s
        last_sweep_s = last_rescue_s = time.monotonic()
        while not self._stopping.wait(min(heartbeat.BEAT_S, ttl_s)):
            now_s = time.monotonic()
            try:
                if now_s - last_rescue_s >= heartbeat.LOST_S:
                    last_rescue_s = now_s
                    self._rescue()
                if now_s - last_sweep_s >= min(3600.0, ttl_s):
                    last_sweep_s = now_s
                    expire(self._client, self._jobs, self._objects, ttl_s)
            except RankpressError:
                log.exception("upkeep failed", worker=self._name)
            except Exception:  # the top of a thread that must not end
                log.exception("unexpected error in upkeep", worker=self._name)

    @property
    def _holding(self) -> tuple[str, str]:
        return "running", self._name

    def wait(self, job_id: str, seconds: float) -> None:
        """Wait in mid-step, which holds up no end of the worker: then this never returns.

        Raises:
            DBOSWorkflowCancelledError: the job is this worker's no longer; DBOS records no step.
        """
        from dbos import error

        self._at_work.release()
        self._stopping.wait(seconds)
        self._at_work.acquire()
        with suppress(JobsUnavailable):
            job = self._jobs.find(job_id)
            if job is None or (job.state, job.worker) != self._holding:
                raise error.DBOSWorkflowCancelledError(f"job {job_id} was taken from this worker")

    def note_outage(self, job_id: str, error: Exception) -> None:
        """Say that a job waits for storage, and make room where that is what lacks."""
        with suppress(RankpressError):
            self._notes.waits(job_id)
        if lacks_room(error):
            with suppress(RankpressError):
                ttl_s = self._settings.result_ttl_s
                removed = expire(self._client, self._jobs, self._objects, ttl_s, full=True)
                log.info("room made", worker=self._name, removed=removed)

    def _rescue(self) -> None:
        """Queue the jobs of lost workers again. Attempts go on counting: such a job may kill.

        After an outage others first get the time to show that they live.
        """
        from dbos import DBOS

        since_s = self._beating_since_s
        if since_s is None or time.monotonic() - since_s < heartbeat.LOST_S:
            return
        lost = {job.worker for job in self._jobs.lost()} - {None, self._name}
        still = lost - heartbeat.live_workers(self._objects)
        if still:
            log.warning("jobs of lost workers taken over", lost=sorted(map(str, still)))
            # Without a public name since DBOS 2; the client's resume would reset the attempts.
            DBOS._recover_pending_workflows(sorted(map(str, still)))

    def _show(self, job_id: str, number: int, record: dict[str, Any]) -> None:
        self._worked = False
        with suppress(RankpressError):  # the next step is shown again
            self._notes.step(job_id, number, StepRecord.from_json(record))

    def _begin(self, job_id: str) -> None:
        """Note that the job is begun. Raises JobFailed: it killed too many workers in a row."""
        for pause_s in growing_pauses():
            try:
                deaths = self._notes.begin(job_id)
                break
            except JobsUnavailable as error:
                log.warning("job waits for storage", job=job_id, reason=str(error))
                time.sleep(pause_s)
        if deaths >= self._settings.job_attempts:
            raise JobFailed(
                f"the worker died {deaths} times in a row at this job, which got no further"
            )

    def _end_failed(self, job_id: str, spec: JobSpec, error: Exception) -> str:
        """Clean up after a job that fails, and return what is said of the reason outside."""
        # What a step raised before the worker was restarted comes back from the database as this.
        again = getattr(error, "name", None) == StepFailed.__name__
        if again or isinstance(error, StepFailed | JobFailed):
            reason = str(error)
            with suppress(RankpressError):  # it is swept later
                self._work.clean_failed(spec, self._jobs.get(job_id).record)
        else:
            error_id = secrets.token_hex(8)
            log.exception("unexpected error in a job", job=job_id, error_id=error_id)
            reason = logged_reason(error_id)
        log.warning("job failed", job=job_id, reason=reason)
        return reason

    def _register(self) -> None:
        from dbos import DBOS

        @DBOS.step(name=database.ADVANCE)
        def advance(
            spec: dict[str, Any], before: dict[str, Any] | None, stale: dict[str, Any] | None
        ) -> dict[str, Any]:
            with self._at_work:
                record = self._work.try_step(JobSpec(**spec), _record(before), _record(stale))
            self._worked = True
            return record.to_json()

        @DBOS.step(name="finish")
        def finish(spec: dict[str, Any], last: dict[str, Any]) -> None:
            with self._at_work:
                self._work.try_finish(JobSpec(**spec), StepRecord.from_json(last))

        # DBOS would count all deaths of workers; `_begin` counts those without progress.
        @DBOS.workflow(name=database.WORKFLOW, max_recovery_attempts=None)
        def adapt(spec: dict[str, Any]) -> dict[str, Any]:
            """Whatever decides what is done next comes from records, so that a replay agrees."""
            stale: dict[str, Any] | None = None
            last: dict[str, Any] | None = None
            job_id = str(DBOS.workflow_id)
            log.info("job begun", job=job_id, worker=self._name)
            try:
                self._begin(job_id)
                number = 0
                while last is None or not last["done"]:
                    last, stale, number = advance(spec, last, stale), last, number + 1
                    if self._worked or last["done"]:  # not for each step of a replay
                        self._show(job_id, number, last)
                finish(spec, last)
            except Exception as error:
                raise JobFailed(self._end_failed(job_id, JobSpec(**spec), error)) from error
            log.info("job done", job=job_id, bytes=last["progress"]["bytes"])
            return last


def _record(values: dict[str, Any] | None) -> StepRecord | None:
    return None if values is None else StepRecord.from_json(values)
