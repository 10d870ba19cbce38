"""What is done once when a job has ended: a name gets the job's stream, or a program is told.

A follow-up is an object `followups/JOB/KIND-RANDOM`. It is written before the job is queued, so
that no end is missed, however the job ends and whichever process dies. Workers list these objects
every few seconds. They act on those whose job has ended, and remove each once its action has
returned. So every action is done at least once, and must give the same when it is done twice.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, Literal, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.adapt.task import AdaptProgress
from service.blobs import ObjectInfo, Objects
from service.errors import DamagedObject, ExpiredJob, NoSuchObject, RankpressError, UnknownJob
from service.jobs.job import ENDED, Job, is_job_id
from service.jobs.jobs import Jobs
from service.names.picture_names import PictureNames
from service.names.version import Token, mse_of

Kind = Literal["name", "webhook"]
Details = Mapping[str, str | int | float]

PREFIX: Final = "followups"
MAX_BYTES: Final = 8192
"""Bytes of the largest follow-up that is read."""

KEPT_S: Final = 3600.0
"""Age in seconds from which a follow-up is dropped whose job is unknown or ended before it, or
which cannot be read or done for lack of an object."""

log = structlog.get_logger("rankpress.followups")


@dataclass(frozen=True)
class Followup:
    """What to do when a job has ended.

    Attributes:
        job: id of the job. kind: which action. details: of the action, plain values.
        earlier_end_s: when the job had ended before this was asked for, 0 if it had not; as its row
            tells it, for clocks may differ. `add_followup` sets it. That end is not meant, unless
            the job had succeeded.
    """

    job: str
    kind: Kind
    details: Details
    earlier_end_s: float = 0.0


Action = Callable[[Followup, Job], None]
"""Does what a follow-up says for a job that has ended: called at least once, from one thread.

An action that cannot do it now raises RankpressError and is called again; one that never can (the
name is gone, the address is refused) logs that and returns."""


class NameDetails(BaseModel):
    """Details of a follow-up of the kind `name`: which name gets the job's stream if it is better.

    Attributes:
        put: token of the put that began the job. lmbda: weight of the error in the job's loss.
        max_bytes, min_psnr_db: limits that the stream must keep too, None without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    put: Token
    lmbda: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_bytes: int | None = None
    min_psnr_db: float | None = None


def add_followup(jobs: Jobs, followup: Followup) -> None:
    """Keep a follow-up until its job has ended. Call this before the job is submitted.

    Raises:
        JobsUnavailable, ObjectsUnavailable: it cannot be written.
    """
    job = jobs.table.find(followup.job)
    earlier_end_s = 0.0 if job is None or job.ended_s is None else job.ended_s
    data = json.dumps(asdict(replace(followup, earlier_end_s=earlier_end_s))).encode()
    # Each has a key of its own: a worker that removes one cannot remove a newer one.
    name = f"{followup.kind}-{secrets.token_hex(16)}"
    jobs.objects.put_named(f"{PREFIX}/{followup.job}/{name}", data)


class Followups:
    """The follow-ups of all jobs of one database and object store."""

    def __init__(self, jobs: Jobs, actions: Mapping[Kind, Action]) -> None:
        """Use `actions` of the kinds that this process can do; it leaves other kinds alone."""
        self._jobs, self._actions = jobs, actions

    def process(self) -> int:
        """Do what is due, and return how many follow-ups were removed.

        One that fails is logged and tried again in the next call, and keeps none of the others.

        Raises:
            ObjectsUnavailable: they cannot be listed. JobsUnavailable: no job can be read.
        """
        by_job: dict[str, list[ObjectInfo]] = {}
        for info in self._jobs.objects.list_sorted(PREFIX):  # names first, then those told of them
            by_job.setdefault(info.key.split("/")[1], []).append(info)
        return sum(self._process_job(job_id, infos) for job_id, infos in by_job.items())

    def _process_job(self, job_id: str, infos: list[ObjectInfo]) -> int:
        job = self._job(job_id)
        if job is not None and job.state not in ENDED:
            return 0
        removed = 0
        for info in infos:
            try:
                removed += self._process_one(job, info)
            except RankpressError as error:
                log.warning("follow-up waits", key=info.key, job=job_id, reason=str(error))
            except Exception:  # the top of a worker's upkeep: others must go on
                log.exception("follow-up failed", key=info.key, job=job_id)
        return removed

    def _process_one(self, job: Job | None, info: ObjectInfo) -> bool:
        """Do what a follow-up says if its time has come; return whether it was removed."""
        try:
            followup = read_followup(self._jobs.objects, info)
        except NoSuchObject:  # another worker has done it
            return False
        except DamagedObject as error:
            return self._drop_old(info, str(error))
        if job is None or not _is_meant(followup, job):
            return self._drop_old(info, "its job is unknown, or ended before it")
        action = self._actions.get(followup.kind)
        if action is None:
            return False
        try:
            action(followup, job)
        except (NoSuchObject, DamagedObject) as error:  # a repeated job may bring it back
            return self._drop_old(info, str(error))
        self._jobs.objects.delete(info.key)
        return True

    def _job(self, job_id: str) -> Job | None:
        """The job with its last step; None if there is none, or its result is no longer kept."""
        try:
            return self._jobs.table.get(job_id)
        except (UnknownJob, ExpiredJob):
            return None

    def _drop_old(self, info: ObjectInfo, reason: str) -> bool:
        """Remove a follow-up that will never be done, once it is old enough."""
        if time.time() - info.written_s < KEPT_S:
            return False
        log.warning("follow-up dropped", key=info.key, reason=reason)
        self._jobs.objects.delete(info.key)
        return True


def read_followup(objects: Objects, info: ObjectInfo) -> Followup:
    """Read a follow-up from the store, which is not trusted.

    Raises:
        NoSuchObject, ObjectsUnavailable: as `Objects.get`.
        DamagedObject: it is not what `add_followup` writes.
    """
    if info.size_bytes > MAX_BYTES:
        raise DamagedObject(f"{info.key} has {info.size_bytes} bytes, expected {MAX_BYTES} at most")
    try:
        values = json.loads(objects.get(info.key))
    except (ValueError, RecursionError) as error:
        raise DamagedObject(f"{info.key} is not JSON: {error}") from error
    problem = _problem_of(values, info.key)
    if problem:
        raise DamagedObject(f"{info.key} is no follow-up: {problem}")
    return Followup(**values)


def _problem_of(values: Any, key: str) -> str | None:
    """What is wrong with the values of a follow-up, None if nothing is."""
    if not isinstance(values, dict) or values.keys() != Followup.__annotations__.keys():
        return f"expected an object with {', '.join(Followup.__annotations__)}"
    job, kind, details = values["job"], values["kind"], values["details"]
    if not (isinstance(job, str) and is_job_id(job) and key.split("/")[1] == job):
        return "its job is not the one of its key"
    if kind not in get_args(Kind):
        return f"its kind is {kind!r}, expected {' or '.join(get_args(Kind))}"
    if not isinstance(details, dict) or not all(map(_is_plain, details.values())):
        return "its details are not texts and finite numbers"
    end_s = values["earlier_end_s"]
    return None if type(end_s) is float and math.isfinite(end_s) else "it has no earlier end"


def _is_plain(value: object) -> bool:
    return type(value) in (str, int) or (type(value) is float and math.isfinite(value))


def _is_meant(followup: Followup, job: Job) -> bool:
    """Whether the end of a job is one that the follow-up waits for.

    A job that failed or was cancelled earlier is about to be queued again. One that has succeeded
    is not.
    """
    return job.state == "succeeded" or job.ended_s != followup.earlier_end_s


def improve_name(objects: Objects) -> Action:
    """The action of the kind `name`: the name gets the job's stream if that is better."""
    names = PictureNames(objects)

    def act(followup: Followup, job: Job) -> None:
        details, record = _name_details(followup), job.record
        version = None
        if job.state == "succeeded" and record and _keeps_limits(details, record.progress):
            mse, plain_mse = map(mse_of, (record.progress.psnr_db, record.progress.first_psnr_db))
            data = objects.get(record.stream)
            version = names.improve(
                details.name, details.put, data, mse, job.id, details.lmbda, plain_mse
            )
        event = "name kept its stream" if version is None else "name improved"
        log.info(event, name=details.name, job=job.id, state=job.state)

    return act


def tell_program(jobs: Jobs) -> Action:
    """The action of the kind `webhook`: a program is told how the job has ended."""
    return lambda followup, job: jobs.tell(job, followup.details)


def _name_details(followup: Followup) -> NameDetails:
    """Details that were checked. Raises DamagedObject: they are not those of a name."""
    try:
        return NameDetails.model_validate(followup.details)
    except ValidationError as error:
        raise DamagedObject(f"follow-up of job {followup.job} without a name: {error}") from error


def _keeps_limits(details: NameDetails, progress: AdaptProgress) -> bool:
    """Whether the best stream of a job meets the target that the name was put with."""
    fits = details.max_bytes is None or progress.bytes <= details.max_bytes
    return fits and (details.min_psnr_db is None or progress.psnr_db >= details.min_psnr_db)
