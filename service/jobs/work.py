"""The steps of one job: optimise for a while, then keep the best stream and a checkpoint.

Knows nothing of queues and databases. A step begins from the record of the step before it and ends
in its own, so that it may be repeated, or done by another worker, at any time. Between two steps in
one process the adaptation stays in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from service.engine.types import Adaptation, Adapter
from service.errors import BadImage, DamagedObject, NoSuchObject, RankpressError
from service.images import read_image
from service.jobs.job import JobSpec, StepRecord, model_identity
from service.objects import Objects, digest_of

T = TypeVar("T")

RETRY_S: Final = 1.0
"""Seconds before a failed step is tried again; doubled each time."""

OPTIMISING: Final = 0.9
"""Share of a job's time that the optimiser plans to end in; the rest is for files and restarts."""

log = structlog.get_logger("rankpress.jobs")


class StepFailed(Exception):
    """A step of a job failed as often as it may; the message is fit for the one who posted it."""


@dataclass(frozen=True)
class WorkLimits:
    """Seconds of a step and of a job's work, times a step is tried, pixels of a picture."""

    step_s: float
    job_s: float
    attempts: int
    max_pixels: int


class JobWork:
    """Does steps of jobs with one adapter."""

    def __init__(self, adapter: Adapter, objects: Objects, limits: WorkLimits) -> None:
        self._adapter, self._objects, self._limits = adapter, objects, limits
        self._live: dict[str, tuple[StepRecord, Adaptation]] = {}
        self._lock = threading.Lock()

    def try_step(
        self, spec: JobSpec, before: StepRecord | None, stale: StepRecord | None
    ) -> StepRecord:
        """Do the step after `before`, again where it fails.

        Args:
            spec: the job. before: the last record, None for the first step.
            stale: the record before that, whose objects nobody needs any more.

        Raises:
            StepFailed: it failed `attempts` times, or in a way that will not change.
        """
        self._try(spec, lambda: self._sweep(stale, before))
        return self._try(spec, lambda: self._step(spec, before))

    def try_finish(self, spec: JobSpec, last: StepRecord) -> None:
        """Remove what only an unfinished job needs: all objects of the job but its result."""
        self._try(spec, lambda: self._finish(spec, last))

    def _try(self, spec: JobSpec, work: Callable[[], T]) -> T:
        attempts = self._limits.attempts
        for attempt in range(1, attempts + 1):
            try:
                return work()
            except Exception as error:  # the top of a worker's step
                log.exception("step failed", job=spec.id, attempt=attempt, of=attempts)
                last = isinstance(error, BadImage | NoSuchObject | WrongModel)
                if last or attempt == attempts:
                    times = "" if last else f" {attempts} times"
                    raise StepFailed(f"a step failed{times}: {_told(error)}") from error
                time.sleep(RETRY_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable: there is at least one attempt")

    def _step(self, spec: JobSpec, before: StepRecord | None) -> StepRecord:
        begun_s = time.monotonic()
        spent_s = 0.0 if before is None else before.seconds
        adaptation = self._take(spec, before) or self._open(spec, before)
        if not adaptation.done:
            left_s = self._limits.job_s - spent_s
            adaptation.advance(max(0.0, min(self._limits.step_s, left_s)))
        stream = self._objects.put(adaptation.best(), spec.folder)
        seconds = spent_s + time.monotonic() - begun_s
        done = adaptation.done or seconds >= self._limits.job_s
        checkpoint = None
        if not done:
            checkpoint = self._objects.put(adaptation.checkpoint(), spec.folder)
        record = StepRecord(adaptation.progress, stream, checkpoint, seconds, done)
        if not done:
            with self._lock:
                self._live = {spec.id: (record, adaptation)}
        return record

    def _take(self, spec: JobSpec, before: StepRecord | None) -> Adaptation | None:
        """The adaptation as `before` left it, if it is in memory; nobody else gets it then.

        A job cancelled and posted again may run in two threads until the first notices.
        """
        with self._lock:
            record, adaptation = self._live.pop(spec.id, (None, None))
        return adaptation if record is not None and record == before else None

    def _open(self, spec: JobSpec, before: StepRecord | None) -> Adaptation:
        found = model_identity(self._adapter.models()[0], spec.rate16)
        if found != spec.model:
            raise WrongModel(
                f"the job needs weights {spec.model[:8]}, this worker has {found[:8]}; "
                "post the picture again"
            )
        data = self._objects.get(spec.image_key)
        if digest_of(data) != spec.image:
            raise BadImage("the stored picture is damaged: post it again")
        picture = read_image(data, max_pixels=self._limits.max_pixels, frame=spec.frame)
        checkpoint = self._checkpoint(spec, before)
        begin = partial(
            self._adapter.adapt,
            picture,
            spec.rate,
            effort=spec.effort,
            seed=spec.seed,
            max_seconds=OPTIMISING * self._limits.job_s,
        )
        if checkpoint is not None:
            try:
                return begin(checkpoint=checkpoint)
            except RankpressError:  # of another version; the job is worth more than the steps
                log.warning("checkpoint refused: from the start", job=spec.id, exc_info=True)
        return begin()

    def _checkpoint(self, spec: JobSpec, before: StepRecord | None) -> bytes | None:
        if before is None or before.checkpoint is None:
            return None
        try:
            return self._objects.get(before.checkpoint)
        except (NoSuchObject, DamagedObject):
            log.warning("checkpoint lost: from the start", job=spec.id, exc_info=True)
            return None

    def _sweep(self, stale: StepRecord | None, kept: StepRecord | None) -> None:
        if stale is None or kept is None:
            return
        for key in {stale.stream, stale.checkpoint} - {kept.stream, kept.checkpoint}:
            if key is not None:
                self._objects.delete(key)

    def _finish(self, spec: JobSpec, last: StepRecord) -> None:
        for found in self._objects.list(spec.folder):
            if found.key != last.stream:
                self._objects.delete(found.key)


class WrongModel(RankpressError):
    """The worker's weights are not those that the job was posted for."""


def _told(error: Exception) -> str:
    """What may be said of an error outside: our own messages, of others only the kind."""
    if isinstance(error, RankpressError):
        return str(error)
    return f"unexpected {type(error).__name__}, see the worker's log"
