"""What a job's steps keep, and what becomes of a step that finds it damaged or gone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.fake_adapter import FakeAdapter, expected_result, model_info
from jobs.machines import picture, png
from service.codec import container
from service.engine.types import AdaptProgress
from service.errors import BadParameter, ObjectsUnavailable, RateUnavailable
from service.jobs import work as work_module
from service.jobs.job import (
    STREAM_FORMAT,
    JobSpec,
    StepRecord,
    is_job_id,
    model_identity,
    spec_of,
)
from service.jobs.work import JobWork, StepFailed, WorkLimits
from service.objects import Objects, open_objects

LIMITS = WorkLimits(step_s=0.0, job_s=60.0, attempts=3, max_pixels=1000)
SPEC = spec_of(png(), 20, 12, 4.0, 1, (model_info(),))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "RETRY_S", 0.0)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    objects = open_objects(tmp_path / "objects")
    objects.put_named(SPEC.image_key, png())
    return objects


def adapter(folder: Path) -> FakeAdapter:
    return FakeAdapter(folder, steps=5, step_s=0.0)


def run(work: JobWork, record: StepRecord | None = None) -> StepRecord:
    stale = None
    while record is None or not record.done:
        record, stale = work.try_step(SPEC, record, stale), record
    return record


def opened(folder: Path) -> list[str]:
    lines = (folder / "log").read_text().splitlines()
    return [line.split()[2] for line in lines if line.endswith((" new", " again"))]


def test_one_process_opens_the_picture_once(tmp_path: Path, objects: Objects) -> None:
    record = run(JobWork(adapter(tmp_path), objects, LIMITS))
    assert opened(tmp_path) == ["new"]
    assert record.checkpoint is None and record.progress.step == 5
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_every_step_by_another_process_gives_the_same_result(
    tmp_path: Path, objects: Objects
) -> None:
    record: StepRecord | None = None
    stale = None
    while record is None or not record.done:
        work = JobWork(adapter(tmp_path), objects, LIMITS)
        record, stale = work.try_step(SPEC, record, stale), record
    assert opened(tmp_path) == ["new"] + ["again"] * 4
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_a_step_done_again_from_an_older_record_ignores_what_is_in_memory(
    tmp_path: Path, objects: Objects
) -> None:
    work = JobWork(adapter(tmp_path), objects, LIMITS)
    first = work.try_step(SPEC, None, None)
    second = work.try_step(SPEC, first, None)
    assert replace(work.try_step(SPEC, first, None), seconds=0) == replace(second, seconds=0)


@pytest.mark.parametrize("harm", ["delete", "flip", "cut", "empty", "refuse"])
def test_a_job_whose_checkpoint_is_of_no_use_begins_again(
    tmp_path: Path, objects: Objects, harm: str
) -> None:
    first = JobWork(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)
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
    record = run(JobWork(adapter(tmp_path), objects, LIMITS), first)
    assert objects.get(record.stream) == expected_result(picture(png()), 4.0, 1, steps=5)


def test_only_the_last_two_steps_are_kept_and_then_the_result(
    tmp_path: Path, objects: Objects
) -> None:
    work = JobWork(adapter(tmp_path), objects, LIMITS)
    record, stale = None, None
    for _ in range(4):
        record, stale = work.try_step(SPEC, record, stale), record
    assert record is not None and stale is not None
    kept = {found.key for found in objects.list(SPEC.folder)}
    both = {record.stream, record.checkpoint, stale.stream, stale.checkpoint}
    assert kept == both | {SPEC.image_key}
    record = run(work, record)
    work.try_finish(SPEC, record)
    work.try_finish(SPEC, record)
    assert [found.key for found in objects.list(SPEC.folder)] == [record.stream]


def test_a_step_that_fails_for_a_while_is_tried_again(
    tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True, True, False])
    put = objects.put

    def unsteady(data: bytes, under: str | None = None) -> str:
        if next(failures, False):
            raise ObjectsUnavailable("the disk is full")
        return put(data, under)

    monkeypatch.setattr(objects, "put", unsteady)
    record = JobWork(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)
    assert record.progress.step == 1
    monkeypatch.setattr(objects, "put", lambda *_: unsteady(b""))
    failures = iter([True] * 3)
    with pytest.raises(StepFailed, match="3 times: the disk is full"):
        JobWork(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)


def test_a_picture_that_is_gone_fails_at_once(tmp_path: Path, objects: Objects) -> None:
    objects.delete(SPEC.image_key)
    with pytest.raises(StepFailed, match="there is no object"):
        JobWork(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)


def test_another_picture_than_the_job_s_is_not_taken_for_it(
    tmp_path: Path, objects: Objects
) -> None:
    """Damage in the middle of a file may change pixels and nothing else."""
    objects.put_named(SPEC.image_key, png(seed=1))
    with pytest.raises(StepFailed, match="the stored picture is damaged: post it again"):
        JobWork(adapter(tmp_path), objects, LIMITS).try_step(SPEC, None, None)


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
    with pytest.raises(RateUnavailable, match="rate 3 is not in the store; it holds 2, 4"):
        model_identity(model, 48)
    with pytest.raises(RateUnavailable):
        model_identity(model, 65)
    for rate in (0.5, 9.0, math.nan):
        with pytest.raises(BadParameter):
            spec_of(b"", 1, 1, rate, 0, (model,))
    with pytest.raises(BadParameter):
        spec_of(b"", 1, 1, 4.0, 5, (model,))
