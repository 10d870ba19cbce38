"""The steps of one job: optimise for a while, then keep the best stream and a checkpoint.

This knows nothing of queues and databases. A step begins from the record of the step before it and
ends with its own record, so that it may be repeated, or done by another worker, at any time.
Between two steps in one process the adaptation stays in memory, also while the object store cannot
be used: the step then waits with its result.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from service.blobs import Objects, digest_of
from service.errors import (
    BadImage,
    DamagedObject,
    ModelUnavailable,
    NoSuchObject,
    ObjectsUnavailable,
    RankpressError,
)
from service.images.read import read_image
from service.jobs.job import (
    JobFailed,
    JobSpec,
    StepRecord,
    autoencoder_identity,
    autoencoder_named,
    model_identity,
)
from service.jobs.storage_outages import growing_pauses, is_outage, lacks_room
from service.settings import Settings

if TYPE_CHECKING:
    from service.adapt.task import Adaptation
    from service.engine.engine import Engine
    from service.picture import Picture

T = TypeVar("T")

OPTIMISING: Final = 0.9
"""Share of a job's time that the optimiser may plan with; the rest is for files and restarts."""

log = structlog.get_logger("rankpress.jobs")


class WrongModel(RankpressError):
    """The worker has other weights than those that the job was posted for."""


PUBLIC: Final = (BadImage, ModelUnavailable, NoSuchObject, WrongModel)
"""Errors whose message may be shown to users, and which another attempt would meet again. Messages
of other errors may name paths, hosts and libraries."""


class WaitPolicy:
    """How a step waits when it cannot go on at once. A worker has one that can be interrupted."""

    def wait(self, job_id: str, seconds: float) -> None:
        """Wait before a job is tried again."""
        del job_id
        time.sleep(seconds)

    def note_outage(self, job_id: str, error: Exception) -> None:
        """Take note of a storage error that a job is about to wait for."""


class StepRunner:
    """Does steps of jobs with one engine."""

    def __init__(
        self,
        engine: Engine,
        objects: Objects,
        settings: Settings,
        wait_policy: WaitPolicy | None = None,
    ) -> None:
        self._engine, self._objects, self._settings = engine, objects, settings
        self._wait_policy = wait_policy or WaitPolicy()
        self._in_memory: dict[str, tuple[StepRecord, Adaptation]] = {}
        self._lock = threading.Lock()

    def try_step(
        self, spec: JobSpec, before: StepRecord | None, stale: StepRecord | None
    ) -> StepRecord:
        """Do the step after `before`, trying again if it fails and waiting for the storage.

        Args:
            before: the last record, None for the first step.
            stale: the record before that, whose objects are no longer needed.

        Raises:
            JobFailed: it failed too often, or in a way that another try would not change.
        """
        self._try(spec, lambda: self._sweep(spec, stale, before))
        return self._try(spec, lambda: self._step(spec, before))

    def try_finish(self, spec: JobSpec, last: StepRecord) -> None:
        """Remove what only an unfinished job needs: all objects of the job except its result."""

        def finish() -> None:
            for key in self._stored(spec, lambda: self._keys(spec)) - {last.stream}:
                self._delete(spec, key)

        self._try(spec, finish)

    def clean_failed(self, spec: JobSpec, last: StepRecord | None) -> None:
        """Remove a failed job's objects except those that it goes on from if it is posted again.

        Raises ObjectsUnavailable: expiry removes them later.
        """
        kept = {spec.image_key}
        if last is not None:
            kept |= {last.stream, last.checkpoint or last.stream}
        for key in self._keys(spec) - kept:
            self._objects.delete(key)

    def _try(self, spec: JobSpec, work: Callable[[], T]) -> T:
        attempts, attempt, pauses = self._settings.job_attempts, 1, growing_pauses()
        while True:
            try:
                return work()
            except Exception as error:  # the top of a worker's step
                if lacks_room(error):  # of another disk: calls of the store wait by themselves
                    self._wait_out(spec, error, next(pauses))
                    continue
                error_id = secrets.token_hex(8)
                log.exception(
                    "step failed", job=spec.id, attempt=attempt, of=attempts, error_id=error_id
                )
                is_final = isinstance(error, PUBLIC)
                if is_final or attempt == attempts:
                    times = "" if is_final else f" {attempts} times"
                    reason = str(error) if is_final else reason_in_log(error_id)
                    raise JobFailed(f"a step failed{times}: {reason}") from error
                attempt += 1
                self._wait_policy.wait(spec.id, next(pauses))

    def _stored(self, spec: JobSpec, call: Callable[[], T]) -> T:
        """The result of a call of the object store, however long the store cannot be used."""
        for pause_s in growing_pauses():
            try:
                return call()
            except ObjectsUnavailable as error:
                if not is_outage(error, self._objects):
                    return call()  # the store may have come back just now
                self._wait_out(spec, error, pause_s)
        raise AssertionError("unreachable: there is always another pause")

    def _wait_out(self, spec: JobSpec, error: Exception, pause_s: float) -> None:
        log.warning("step waits for storage", job=spec.id, pause_s=pause_s, reason=str(error))
        self._wait_policy.note_outage(spec.id, error)
        self._wait_policy.wait(spec.id, pause_s)

    def _step(self, spec: JobSpec, before: StepRecord | None) -> StepRecord:
        adaptation = self._take(spec, before)
        kept = None if adaptation else self._read(spec, before)
        begun_s = time.monotonic()  # of the work alone, without calls of the store
        spent_s = 0.0 if before is None else before.seconds
        if kept is not None:
            adaptation = self._open(spec, *kept)
        assert adaptation is not None
        if not adaptation.done:
            left_s = self._settings.job_max_s - spent_s
            adaptation.advance(max(0.0, min(self._settings.job_step_s, left_s)))
        best = adaptation.best()
        seconds = spent_s + time.monotonic() - begun_s
        done = adaptation.done or seconds >= self._settings.job_max_s
        state = None if done else adaptation.checkpoint()
        stream = self._stored(spec, lambda: self._objects.put(best, spec.folder))
        checkpoint = None
        if state is not None:
            checkpoint = self._stored(spec, lambda: self._objects.put(state, spec.folder))
        record = StepRecord(adaptation.progress, stream, checkpoint, seconds, done)
        if not done:
            with self._lock:
                self._in_memory = {spec.id: (record, adaptation)}
        return record

    def _take(self, spec: JobSpec, before: StepRecord | None) -> Adaptation | None:
        """Take the adaptation out of memory if it is there as `before` left it, else None.

        A job that was cancelled and posted again may run in two threads until the first notices.
        """
        with self._lock:
            record, adaptation = self._in_memory.pop(spec.id, (None, None))
        return adaptation if record is not None and record == before else None

    def _read(self, spec: JobSpec, before: StepRecord | None) -> tuple[bytes, bytes | None]:
        """The image file and the checkpoint that a step starts from, None for the beginning."""
        try:
            image = self._stored(spec, lambda: self._objects.get(spec.image_key))
        except NoSuchObject as error:
            raise NoSuchObject("the job's picture is no longer stored: post it again") from error
        return image, self._checkpoint(spec, before)

    def _open(self, spec: JobSpec, image: bytes, checkpoint: bytes | None) -> Adaptation:
        model = self._identity(spec)
        if model != spec.model:
            raise WrongModel(
                f"the job needs weights {spec.model[:8]}, this worker has {model[:8]}; "
                "post the picture again"
            )
        if digest_of(image) != spec.image:
            raise BadImage("the stored picture is damaged: post it again")
        picture = read_image(image, max_pixels=self._settings.max_pixels, frame=spec.frame)
        begin = self._beginning(spec, picture)
        if checkpoint is not None:
            try:
                return begin(checkpoint=checkpoint)
            except RankpressError:  # of another version: begin anew rather than fail
                log.warning("checkpoint refused: from the start", job=spec.id, exc_info=True)
        return begin()

    def _identity(self, spec: JobSpec) -> str:
        """What this worker has in place of the weights that the job needs."""
        if spec.method == "latent":
            known = self._engine.autoencoders()
            return autoencoder_identity(autoencoder_named(spec.autoencoder, known))
        return model_identity(self._engine.models()[0], spec.rate16)

    def _beginning(self, spec: JobSpec, picture: Picture) -> Callable[..., Adaptation]:
        """Begins the job's adaptation, or goes on from the `checkpoint` that it is given."""
        begin: Callable[..., Adaptation] = self._engine.adapt
        if spec.method == "latent":
            begin = partial(self._engine.fit_latents, autoencoder=spec.autoencoder)
        return partial(
            begin,
            picture,
            spec.level,
            effort=spec.effort,
            seed=spec.seed,
            max_seconds=OPTIMISING * self._settings.job_max_s,
        )

    def _checkpoint(self, spec: JobSpec, before: StepRecord | None) -> bytes | None:
        if before is None or before.checkpoint is None:
            return None
        try:
            return self._stored(spec, partial(self._objects.get, before.checkpoint))
        except (NoSuchObject, DamagedObject, ObjectsUnavailable):
            log.warning("checkpoint lost: from the start", job=spec.id, exc_info=True)
            return None

    def _sweep(self, spec: JobSpec, stale: StepRecord | None, kept: StepRecord | None) -> None:
        if stale is None or kept is None:
            return
        for key in {stale.stream, stale.checkpoint} - {kept.stream, kept.checkpoint}:
            if key is not None:
                self._delete(spec, key)

    def _delete(self, spec: JobSpec, key: str) -> None:
        self._stored(spec, lambda: self._objects.delete(key))

    def _keys(self, spec: JobSpec) -> set[str]:
        return {info.key for info in self._objects.list(spec.folder)}


def reason_in_log(error_id: str) -> str:
    """The reason that users see for an error whose details are only in the log."""
    return f"internal error, logged by the worker as {error_id}"
