"""The worker process: takes jobs from the queue, one at a time, and works on them step by step.

Killed in any way, it loses at most the step it was doing: by the same name it finds its jobs again,
and other workers take the jobs of a worker that stays away. Asked to end, it finishes its step and
hands its job back. It runs at low priority, so that requests on the same machine come first.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from structlog.contextvars import bound_contextvars

from service.blobs import open_objects
from service.errors import JobsUnavailable, RankpressError
from service.jobs import database, heartbeat
from service.jobs.dbos_logs import DBOS_LOG, CancelledFilter, RepeatedFilter
from service.jobs.job import Job, JobFailed, JobSpec, StepRecord
from service.jobs.jobs import Jobs, open_jobs
from service.jobs.step_runner import (
    StepRunner,
    WaitPolicy,
    reason_in_log,
)
from service.jobs.storage_outages import growing_pauses, lacks_room, wait_out_sqlite_outages
from service.jobs.upkeep import Upkeep
from service.settings import Settings
from service.tracing.opening import open_tracing
from service.webhooks import delivery
from service.webhooks.recipients import signer_of

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.tracing.spans import JobTrace, Tracing

NICENESS: Final = 15
AUTOGROUP: Final = Path("/proc/self/autogroup")
POLL_S: Final = 0.5
"""Seconds between two reads of the queue."""

STOP_S: Final = 30.0
"""Seconds that a step may take to end when the worker is asked to end."""

log = structlog.get_logger("rankpress.worker")


def run_worker(
    open_engine: Callable[[], Engine], settings: Settings, parent: int | None = None
) -> None:
    """Work on jobs until SIGTERM or SIGINT, or until the process `parent`, if any, has ended.

    This does not return: it ends the process, also while native code still runs in a thread.

    Raises:
        JobsUnavailable, ObjectsUnavailable: database or objects cannot be reached.
        BadParameter, StoreError: as `open_engine` does.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    lower_priority()
    url = database.prepare(settings)
    open_objects(settings.objects_place, settings.objects_timeout_s).check()
    name = heartbeat.WorkerName(settings.state_folder / "workers")
    tracing = open_tracing("rankpress-worker")
    worker = Worker(open_engine(), settings, url, name.name, tracing)
    worker.start()
    while not stop.wait(1.0):
        if parent is not None and os.getppid() != parent:
            log.warning("the parent process has ended", parent=parent)
            break
    worker.stop()
    if tracing is not None:
        tracing.close()
    logging.shutdown()
    os._exit(0)


def lower_priority() -> None:
    """Run at low priority, also where the system gives each session the same share.

    Linux gives every session (`setsid`) the same share of the processor, and niceness counts only
    within one, unless the session's own niceness is set: sched(7), autogroup.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))


class Worker(WaitPolicy):
    """DBOS with the workflow of a job. A process can have only one, because DBOS is a singleton."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        url: str,
        name: str,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings, self._url, self._name = settings, url, name
        self._tracing = tracing
        self._jobs: Jobs = open_jobs(settings, url)
        self._table = self._jobs.table
        self._runner = StepRunner(engine, self._jobs.objects, settings, self)
        self._upkeep = Upkeep(name, self._jobs, settings)
        self._deliverer = delivery.Deliverer(
            signer_of(settings), allow_private=settings.webhook_private
        )
        self._stopping = threading.Event()
        self._in_step = threading.Lock()
        self._has_new_step = False

    def start(self) -> None:
        """Show a heartbeat and begin to take jobs, those first that were left at a restart."""
        from dbos import DBOS, DBOSPortableJSONSerializer

        self._upkeep.start()
        wait_out_sqlite_outages()
        for each in (CancelledFilter(), RepeatedFilter()):
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
        self._register_workflow()
        delivery.register_workflow(self._deliverer, database.VERSION)
        self._table.register_queues(POLL_S)
        # Without the secret, this worker leaves webhooks to others, or to the day it has one.
        webhooks = [delivery.QUEUE] if self._settings.webhook_secret else []
        DBOS.listen_queues([database.QUEUE, *webhooks])
        DBOS.launch()
        self._upkeep.start_threads()
        log.info("worker started", worker=self._name)

    def stop(self) -> None:
        """Finish the step, then let other workers have the job."""
        from dbos import DBOS

        log.info("worker stopping", worker=self._name)
        self._stopping.set()
        self._upkeep.stop()
        idle = self._in_step.acquire(timeout=STOP_S)  # kept, so that no further step begins
        DBOS.destroy()
        with suppress(RankpressError):
            own = [job.id for job in self._table.active() if self._is_own(job)]
            if own:
                self._table.resume(own)
            heartbeat.leave(self._jobs.objects, self._name)
            log.info("worker stopped", worker=self._name, idle=idle, handed_back=own)

    def wait(self, job_id: str, seconds: float) -> None:
        """Wait within a step. If the worker is stopped meanwhile, this never returns.

        Raises DBOSWorkflowCancelledError if the job no longer belongs to this worker; DBOS then
        records no step.
        """
        from dbos import error

        self._in_step.release()
        self._stopping.wait(seconds)
        self._in_step.acquire()
        with suppress(JobsUnavailable):
            job = self._table.find(job_id)
            if job is None or not self._is_own(job):
                raise error.DBOSWorkflowCancelledError(f"job {job_id} was taken from this worker")

    def note_outage(self, job_id: str, error: Exception) -> None:
        """Record that a job waits for storage, and make room if the disk is full."""
        with suppress(RankpressError):
            self._table.record_waiting(job_id)
        if lacks_room(error):
            self._upkeep.make_room()

    def _is_own(self, job: Job) -> bool:
        return job.state == "running" and job.worker == self._name

    def _record_step(
        self, job_id: str, number: int, record: dict[str, Any], trace: JobTrace | None
    ) -> None:
        self._has_new_step = False
        carrier = None if trace is None else trace.carrier
        with suppress(RankpressError):  # the next step is recorded again
            self._table.record_step(job_id, number, StepRecord.from_json(record), carrier)

    def _trace_of(self, job_id: str) -> JobTrace | None:
        """The trace of the request that posted a job; None where nothing is traced."""
        if self._tracing is None:
            return None
        with suppress(RankpressError):
            job = self._table.find(job_id)
            return None if job is None else self._tracing.continue_job(job_id, job.trace)
        return None

    def _begin(self, job_id: str) -> None:
        """Record that the job begins. Raises JobFailed: it killed too many workers in a row."""
        for pause_s in growing_pauses():
            try:
                deaths = self._table.record_start(job_id)
                break
            except JobsUnavailable as error:
                log.warning("job waits for storage", job=job_id, reason=str(error))
                time.sleep(pause_s)
        if deaths >= self._settings.job_attempts:
            raise JobFailed(
                f"the worker died {deaths} times in a row at this job, which made no progress"
            )

    def _end_failed(self, job_id: str, spec: JobSpec, error: Exception) -> str:
        """Clean up after a job that fails, and return the reason that users may see."""
        # DBOS returns what a step raised before a restart as an exception with the class's name.
        is_replayed = getattr(error, "name", None) == JobFailed.__name__
        if is_replayed or isinstance(error, JobFailed):
            reason = str(error)
            with suppress(RankpressError):  # expiry removes it later
                self._runner.clean_failed(spec, self._table.get(job_id).record)
        else:
            error_id = secrets.token_hex(8)
            log.exception("unexpected error in a job", job=job_id, error_id=error_id)
            reason = reason_in_log(error_id)
        log.warning("job failed", job=job_id, reason=reason)
        return reason

    def _register_workflow(self) -> None:
        from dbos import DBOS

        @DBOS.step(name=database.ADVANCE)
        def advance(
            spec: dict[str, Any], before: dict[str, Any] | None, stale: dict[str, Any] | None
        ) -> dict[str, Any]:
            with self._in_step:
                record = self._runner.try_step(JobSpec(**spec), _record(before), _record(stale))
            self._has_new_step = True
            return record.to_json()

        @DBOS.step(name="finish")
        def finish(spec: dict[str, Any], last: dict[str, Any]) -> None:
            with self._in_step:
                self._runner.try_finish(JobSpec(**spec), StepRecord.from_json(last))

        def work(job_id: str, spec: dict[str, Any], trace: JobTrace | None) -> dict[str, Any]:
            """Everything that decides what is done next is recorded, so that replays agree."""
            stale: dict[str, Any] | None = None
            last: dict[str, Any] | None = None
            log.info("job begun", job=job_id, worker=self._name)
            begun_ns = time.time_ns()
            try:
                self._begin(job_id)
                _add_span(trace, "job begin", begun_ns, worker=self._name)
                number = 0
                while last is None or not last["done"]:
                    begun_ns = time.time_ns()
                    last, stale, number = advance(spec, last, stale), last, number + 1
                    if self._has_new_step:  # not a step of a replay
                        size = last["progress"]["bytes"]
                        _add_span(trace, "job step", begun_ns, step=number, bytes=size)
                    if self._has_new_step or last["done"]:
                        self._record_step(job_id, number, last, trace)
                begun_ns = time.time_ns()
                finish(spec, last)
            except Exception as error:
                reason = self._end_failed(job_id, JobSpec(**spec), error)
                _add_span(trace, "job end", begun_ns, type(error).__name__, reason=reason)
                raise JobFailed(reason) from error
            finally:
                self._upkeep.note_end()
            size = last["progress"]["bytes"]
            _add_span(trace, "job end", begun_ns, bytes=size)
            log.info("job done", job=job_id, bytes=size)
            return last

        # DBOS would count all deaths of workers; `_begin` counts those without progress.
        @DBOS.workflow(name=database.WORKFLOW, max_recovery_attempts=None)
        def adapt(spec: dict[str, Any]) -> dict[str, Any]:
            job_id = str(DBOS.workflow_id)
            trace = self._trace_of(job_id)
            with nullcontext() if trace is None else bound_contextvars(trace_id=trace.id):
                return work(job_id, spec, trace)


def _add_span(
    trace: JobTrace | None,
    name: str,
    begun_ns: int,
    error_type: str = "",
    **attributes: str | int,
) -> None:
    """Add a span to a job's trace, if it has one, see `JobTrace.add`."""
    if trace is not None:
        named = {f"rankpress.{key}": value for key, value in attributes.items()}
        trace.add(name, begun_ns, named, error_type)


def _record(values: dict[str, Any] | None) -> StepRecord | None:
    return None if values is None else StepRecord.from_json(values)
