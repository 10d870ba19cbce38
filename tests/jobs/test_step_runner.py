"""What a job's steps keep, and what becomes of a step that finds it damaged or gone."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from jobs.fake_adapter import FakeAdaptation, FakeAdapter, expected_result, model_info
from jobs.machines import picture, png
from service.adapt.task import AdaptProgress
from service.blobs import Objects, open_objects
from service.codec import container
from service.engine.types import AutoencoderInfo
from service.errors import (
    BadParameter,
    ModelUnavailable,
    ObjectsFull,
    ObjectsUnavailable,
    RangeUnsatisfiable,
    RankpressError,
    RateUnavailable,
    RetryLater,
    TargetUnreachable,
)
from service.jobs import storage_outages
from service.jobs.job import (
    STREAM_FORMAT,
    JobFailed,
    JobSpec,
    StepRecord,
    autoencoder_named,
    is_job_id,
    latent_spec_of,
    model_identity,
    spec_of,
)
from service.jobs.step_runner import PUBLIC, StepRunner, WaitPolicy
from service.jobs.storage_outages import lacks_room
from service.settings import Settings

LIMITS = Settings(job_step_s=1e-9, job_max_s=60.0, job_attempts=3, max_pixels=1000)
SPEC = spec_of(png(), 20, 12, 4.0, 1, (model_info(),))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_outages, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    objects = open_objects(tmp_path / "objects")
    objects.put_named(SPEC.image_key, png())
    return objects


class Waits(WaitPolicy):
    """Counts the outages and the waits, and does not wait."""

    def __init__(self) -> None:
        self.outages = self.waits = 0

    def wait(self, _job_id: str, _seconds: float) -> None:
        self.waits += 1

    def note_outage(self, _job_id: str, _error: Exception) -> None:
        self.outages += 1


def adapter(folder: Path) -> FakeAdapter:
    return FakeAdapter(folder, steps=5, step_s=0.0)


def run(work: StepRunner, record: StepRecord | None = None) -> StepRecord:
    stale = None
    while record is None or not record.done:
        record, stale = work.try_step(SPEC, record, stale), record
    return record


def opened(folder: Path) -> list[str]:
    lines = (folder / "log").read_text().splitlines()
    return [line.split()[2] for line in lines if line.endswith((" new", " again"))]


def test_one_process_opens_the_picture_once(tmp_path: Path, objects: Objects) -> None:
    record = run(StepRunner(adapter(tmp_path), objects, LIMITS))
    assert opened(tmp_path) == ["new"]
    assert record.checkpoint is None and record.progress.step == 5
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_every_step_by_another_process_gives_the_same_result(
    tmp_path: Path, objects: Objects
) -> None:
    record: StepRecord | None = None
    stale = None
    while record is None or not record.done:
        work = StepRunner(adapter(tmp_path), objects, LIMITS)
        record, stale = work.try_step(SPEC, record, stale), record
    assert opened(tmp_path) == ["new"] + ["again"] * 4
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_a_latent_job_goes_on_in_other_processes_to_the_same_result(
    tmp_path: Path, objects: Objects
) -> None:
    spec = latent_spec_of(png(), 20, 12, 2.5, 1, AutoencoderInfo("kl", 32 * "6b"))
    assert (spec.rate, spec.quality, spec.rate16) == (None, 2.5, 40)
    assert JobSpec(**vars(spec)).id == spec.id != replace(spec, autoencoder="own").id
    objects.put_named(spec.image_key, png())
    record: StepRecord | None = None
    while record is None or not record.done:
        record = StepRunner(adapter(tmp_path), objects, LIMITS).try_step(spec, record, None)
    assert opened(tmp_path) == ["new"] + ["again"] * 4
    expected = expected_result(picture(png()), 2.5, 1, steps=5, autoencoder="kl")
    assert objects.get(record.stream) == expected


def test_a_latent_job_needs_the_autoencoder_that_it_was_posted_for(
    tmp_path: Path, objects: Objects
) -> None:
    known = AutoencoderInfo("kl", 32 * "6b")
    spec = latent_spec_of(png(), 20, 12, 2.5, 1, known)
    objects.put_named(spec.image_key, png())
    retrained = FakeAdapter(tmp_path, steps=5, step_s=0.0, model="ab" * 31 + "cd")
    with pytest.raises(JobFailed, match="needs weights"):
        StepRunner(retrained, objects, LIMITS).try_step(spec, None, None)  # type: ignore[arg-type]
    elsewhere = replace(spec, autoencoder="elsewhere")
    objects.put_named(elsewhere.image_key, png())
    with pytest.raises(JobFailed, match="'elsewhere', expected one of kl, own"):
        StepRunner(adapter(tmp_path), objects, LIMITS).try_step(elsewhere, None, None)
    assert autoencoder_named(None, (known,)) == known
    for autoencoders, message in (((known,), "expected one of kl"), ((), "no autoencoder")):
        with pytest.raises(ModelUnavailable, match=message):
            autoencoder_named("own", autoencoders)
    with pytest.raises(BadParameter, match="quality is 9"):
        latent_spec_of(png(), 20, 12, 9, 1, known)


def test_a_step_done_again_from_an_older_record_ignores_what_is_in_memory(
    tmp_path: Path, objects: Objects
) -> None:
    work = StepRunner(adapter(tmp_path), objects, LIMITS)
    first = work.try_step(SPEC, None, None)
    second = work.try_step(SPEC, first, None)
    assert replace(work.try_step(SPEC, first, None), seconds=0) == replace(second, seconds=0)


@pytest.mark.parametrize("harm", ["delete", "flip", "cut", "empty", "refuse"])
def test_a_job_whose_checkpoint_is_of_no_use_begins_again(
    tmp_path: Path, objects: Objects, harm: str
) -> None:
    first = StepRunner(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)
    assert first.checkpoint is not None
    if harm == "delete":
        objects.delete(first.checkpoint)
    elif harm != "refuse":
        whole = objects.get(first.checkpoint)
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        harmed = {"flip": flipped, "cut": whole[:-1], "empty": b""}[harm]
        objects.put_named(first.checkpoint, harmed)
    else:
        first = replace(first, checkpoint=objects.put(b"of another version", SPEC.folder))
    record = run(StepRunner(adapter(tmp_path), objects, LIMITS), first)
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_only_the_last_two_steps_are_kept_and_then_the_result(
    tmp_path: Path, objects: Objects
) -> None:
    work = StepRunner(adapter(tmp_path), objects, LIMITS)
    record, stale = None, None
    for _ in range(4):
        record, stale = work.try_step(SPEC, record, stale), record
    assert record is not None and stale is not None
    kept = {info.key for info in objects.list(SPEC.folder)}
    both = {record.stream, record.checkpoint, stale.stream, stale.checkpoint}
    assert kept == both | {SPEC.image_key}
    record = run(work, record)
    work.try_finish(SPEC, record)
    work.try_finish(SPEC, record)
    assert [info.key for info in objects.list(SPEC.folder)] == [record.stream]


class Counting(FakeAdapter):
    """Counts the steps of all its adaptations."""

    advances = 0

    def before_step(self, _: FakeAdaptation) -> None:
        self.advances += 1


@pytest.mark.parametrize("kind", [ObjectsUnavailable, ObjectsFull])
@pytest.mark.parametrize("name", ["get", "put", "list", "delete"])
@pytest.mark.parametrize("failures", [40, 41])
def test_a_store_that_is_away_costs_a_job_no_attempt_and_no_work(
    tmp_path: Path,
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[ObjectsUnavailable],
    name: str,
    failures: int,
) -> None:
    """It fails far more often than a job has attempts, from the second step on."""
    waits, counting = Waits(), Counting(tmp_path, steps=5, step_s=0.0)
    left = iter([True] * failures)

    def away(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if counting.advances >= 2 and next(left, False):
                raise kind("the store is away: /srv/secret")
            return original(*arguments)

        return call

    for each in (name, "check"):
        monkeypatch.setattr(objects, each, away(getattr(objects, each)))
    record, stale = None, None
    while record is None or not record.done:  # each step in another process
        work = StepRunner(counting, objects, LIMITS.model_copy(update={"job_attempts": 1}), waits)
        record, stale = work.try_step(SPEC, record, stale), record
    work.try_finish(SPEC, record)
    monkeypatch.undo()
    assert counting.advances == 5 and waits.outages >= failures // 2
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)
    assert [info.key for info in objects.list(SPEC.folder)] == [record.stream]


def test_the_time_of_an_outage_is_no_work_on_a_job(
    tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an outage of an hour would end jobs early, with other bytes."""
    put, waits, clock = objects.put, Waits(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600 * waits.waits)
    failures = iter([True] * 5)

    def away(data: bytes, under: str | None = None) -> str:
        if next(failures, False):
            raise ObjectsFull("the disk is full")
        return put(data, under)

    monkeypatch.setattr(objects, "put", away)
    work = StepRunner(adapter(tmp_path), objects, LIMITS, waits)
    record = run(work)
    assert waits.outages == 5
    assert record.progress.step == 5


def test_one_object_that_cannot_be_read_is_the_job_s_own_error(
    tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a bad sector concerns only its own job: other files can be stored."""

    def unreadable(key: str) -> bytes:
        raise ObjectsUnavailable(f"the object store cannot get /srv/secret/{key}")

    waits = Waits()
    work = StepRunner(adapter(tmp_path), objects, LIMITS, waits)
    get = objects.get
    monkeypatch.setattr(
        objects, "get", lambda key: unreadable(key) if key == SPEC.image_key else get(key)
    )
    with pytest.raises(JobFailed, match="a step failed 3 times: internal error") as failed:
        work.try_step(SPEC, None, None)
    assert "secret" not in str(failed.value) and waits.outages == 0


def test_a_full_disk_that_the_adapter_meets_by_itself_is_waited_for(
    tmp_path: Path, objects: Objects
) -> None:
    class Full(FakeAdapter):
        failures = 10

        def before_step(self, _: FakeAdaptation) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/secret")

    waits = Waits()
    full = Full(tmp_path, steps=5, step_s=0.0)
    record = run(StepRunner(full, objects, LIMITS.model_copy(update={"job_attempts": 1}), waits))
    assert record.progress.step == 5 and waits.outages == 10


def all_errors() -> list[Exception]:
    """An error of every class of ours and of some others, each with a path in its message."""
    kinds, ours = [RankpressError], []
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        extra = {
            RangeUnsatisfiable: (1,),
            RateUnavailable: ((1.0,),),
            TargetUnreachable: (1.0, 1.0),
            RetryLater: (1,),
        }
        more = next((values for base, values in extra.items() if issubclass(kind, base)), ())
        ours.append(kind("reason with /srv/secret", *more))
    others = [
        RuntimeError("/srv/secret"),
        KeyError("/srv/secret"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/srv/secret"),
        MemoryError("/srv/secret"),
        ValueError("/srv/secret\nTraceback"),
    ]
    return [error for error in ours + others if not lacks_room(error)]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_a_job_s_public_error_names_no_path_and_the_log_has_it_under_an_id(
    tmp_path: Path, objects: Objects, error: Exception
) -> None:
    """Messages of errors of the picture and of the weights are ours, and meant for the user."""

    class Raising(FakeAdapter):
        def before_step(self, _: FakeAdaptation) -> None:
            raise error

    work = StepRunner(Raising(tmp_path), objects, LIMITS, Waits())
    with capture_logs() as lines, pytest.raises(JobFailed) as failed:
        work.try_step(SPEC, None, None)
    if isinstance(error, PUBLIC):
        assert str(failed.value) == f"a step failed: {error}"
        return
    said = str(failed.value)
    assert "secret" not in said and type(error).__name__ not in said
    error_id = said.rpartition(" ")[2]
    (line,) = [line for line in lines if line.get("error_id") == error_id]
    assert line["job"] == SPEC.id and line["exc_info"]


def test_a_picture_that_is_gone_fails_at_once(tmp_path: Path, objects: Objects) -> None:
    objects.delete(SPEC.image_key)
    with pytest.raises(JobFailed, match="no longer stored: post it again"):
        StepRunner(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)


def test_another_picture_than_the_job_s_is_not_taken_for_it(
    tmp_path: Path, objects: Objects
) -> None:
    """Damage in the middle of a file may change pixels and nothing else."""
    objects.put_named(SPEC.image_key, png(seed=1))
    with pytest.raises(JobFailed, match="the stored picture is damaged: post it again"):
        StepRunner(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)


def test_a_record_goes_through_json_also_when_the_picture_is_exact() -> None:
    progress = AdaptProgress("done", 1, 2, 3, 0.5, math.inf, 4, 0.75, 40.0)
    record = StepRecord(progress, "stream", None, 1.5, True)
    text = json.dumps(record.to_json(), allow_nan=False)
    assert StepRecord.from_json(json.loads(text)) == record


def test_the_id_of_a_job_depends_on_all_that_its_result_does() -> None:
    assert is_job_id(SPEC.id) and not is_job_id("../" + SPEC.id[3:])
    others = [
        replace(SPEC, image="0" * 64),
        replace(SPEC, rate16=65),
        replace(SPEC, effort=2),
        replace(SPEC, model="0" * 64),
        replace(SPEC, seed=1),
        replace(SPEC, format=2),
    ]
    assert len({SPEC.id, *(other.id for other in others)}) == 7
    assert JobSpec(**vars(SPEC)).id == SPEC.id


def test_results_have_the_format_that_is_written() -> None:
    assert container.VERSION == STREAM_FORMAT


def test_a_rate_s_identity_is_that_of_the_weights_it_needs() -> None:
    model = model_info()
    assert model_identity(model, 64) != model_identity(model, 32)
    assert model_identity(model, 64) != model_identity(model_info("ef" * 32), 64)
    with pytest.raises(RateUnavailable, match="model fake has no rate 3; it has 2, 4"):
        model_identity(model, 48)
    with pytest.raises(RateUnavailable):
        model_identity(model, 65)
    for rate in (0.5, 9.0, math.nan):
        with pytest.raises(BadParameter):
            spec_of(b"", 1, 1, rate, 0, (model,))
