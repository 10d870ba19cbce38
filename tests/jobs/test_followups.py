"""What is asked for before a job is done once it has ended, whoever dies in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.conftest import MakePlace
from jobs.fake_adapter import expected_result, model_info
from jobs.machines import Place, picture, png, until
from service.adapt.task import AdaptProgress
from service.blobs import Objects, digest_of, open_objects, shared_key
from service.engine.types import RateInfo
from service.errors import DamagedObject, ObjectsUnavailable, UnknownJob
from service.jobs import followups
from service.jobs.followups import (
    Followup,
    Followups,
    add_followup,
    improve_name,
    read_followup,
)
from service.jobs.job import Job, StepRecord, lmbda_of
from service.jobs.jobs import Jobs
from service.names.picture_names import PictureNames
from service.names.version import NamedStream, PictureVersion, mse_of
from service.store.model import StoredModel, StoredRate

NAME = "cat.jpg"
PLAIN, BETTER = bytes(1000), bytes(600)
SPEC = Place.spec(png())
ID = SPEC.id


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "objects")


def ended(objects: Objects, **changes: Any) -> Job:
    """A job that has succeeded just now, with its result in the store."""
    bpp, plain_bpp = 8 * len(BETTER) / 240, 8 * len(PLAIN) / 240
    progress = AdaptProgress("done", 9, 9, len(BETTER), bpp, 30.0, len(PLAIN), plain_bpp, 30.0)
    record = StepRecord(progress, objects.put(BETTER, SPEC.folder), None, 1.0, True)
    now_s = time.time()
    job = Job(
        id=ID, state="succeeded", spec=SPEC, priority=5, steps=1, record=record, created_s=now_s,
        ended_s=now_s + 1, expires_s=now_s + 99, attempts=1, worker="w", error=None,
        waiting_since_s=None, queued_since_s=None, again_after=None, trace=None,
    )  # fmt: skip
    return replace(job, **changes)


def jobs_of(objects: Objects, job: Job | None) -> Jobs:
    """The jobs of a database that has one job or none."""

    def find(job_id: str) -> Job | None:
        return job if job is not None and job_id == job.id else None

    def get(job_id: str) -> Job:
        if (there := find(job_id)) is None:
            raise UnknownJob(job_id)
        return there

    table = SimpleNamespace(get=get, find=find)
    return cast(Jobs, SimpleNamespace(objects=objects, table=table))


def put_plain(objects: Objects, name: str = NAME, psnr_db: float = 30.0) -> PictureVersion:
    stream = NamedStream(
        sha256=digest_of(PLAIN), size_bytes=len(PLAIN), width=20, height=12, rate=4.0, tune="psnr",
        mse=mse_of(psnr_db), visible=1.0,
    )  # fmt: skip
    return PictureNames(objects).put(name, PLAIN, stream, digest_of(b"source")).version


def watch(
    objects: Objects,
    version: PictureVersion,
    name: str = NAME,
    earlier: Job | None = None,
    **more: Any,
) -> None:
    """Have a name improved; `earlier` is the job as it was before that."""
    details = {"name": name, "put": version.put, "lmbda": 0.013, **more}
    add_followup(jobs_of(objects, earlier), Followup(ID, "name", details))


def process(objects: Objects, job: Job | None) -> int:
    """What a worker does every few seconds."""
    return Followups(jobs_of(objects, job), {"name": improve_name(objects)}).process()


def pending(objects: Objects) -> list[str]:
    return [info.key for info in objects.list("followups")]


def test_a_name_gets_the_stream_of_its_job_once_that_has_succeeded(objects: Objects) -> None:
    first = put_plain(objects)
    watch(objects, first)
    running = ended(objects, state="running", ended_s=None)
    assert process(objects, running) == 0 and len(pending(objects)) == 1
    assert process(objects, ended(objects)) == 1 and pending(objects) == []
    version = PictureNames(objects).present(NAME)
    assert version.stream is not None
    assert (version.number, version.job, version.put) == (2, ID, first.put)
    assert objects.get(shared_key(version.stream.sha256)) == BETTER


def test_a_job_that_has_not_succeeded_or_misses_the_target_leaves_the_name(
    objects: Objects,
) -> None:
    first = put_plain(objects)
    for state in ("failed", "cancelled"):
        watch(objects, first)
        assert process(objects, ended(objects, state=state)) == 1
    for limit in ({"max_bytes": len(BETTER) - 1}, {"min_psnr_db": 30.1}):
        watch(objects, first, **limit)
        assert process(objects, ended(objects)) == 1
    assert PictureNames(objects).present(NAME) == first
    watch(objects, first, max_bytes=len(BETTER), min_psnr_db=30.0)
    process(objects, ended(objects))
    assert PictureNames(objects).present(NAME).number == 2


class Killed(BaseException):
    """The process ends here."""


def kill_at(objects: Objects, number: int, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the process end before or after its call of that number that changes the store."""
    calls = 0

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                raise Killed
            result = call(*given)
            if calls == number:
                raise Killed
            return result

        return counted

    for name in ("put", "create", "delete"):
        monkeypatch.setattr(objects, name, wrapped(getattr(objects, name)))


def test_a_swap_that_was_cut_anywhere_is_completed_and_done_once(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls: store the bytes, create the version, remove the follow-up."""
    for number in (1, 2, 3):
        for after in (False, True):
            name = f"cat{number}{after}.jpg"
            first = put_plain(objects, name)
            watch(objects, first, name)
            job = ended(objects)
            with monkeypatch.context() as patch, pytest.raises(Killed):
                kill_at(objects, number, after, patch)
                process(objects, job)
            present = PictureNames(objects).present(name)
            assert present.stream is not None
            assert objects.get(shared_key(present.stream.sha256)) in (PLAIN, BETTER)
            process(objects, job)
            assert [v.event for v in PictureNames(objects).history(name)] == ["improved", "put"]
            assert pending(objects) == [] and process(objects, job) == 0


def test_an_end_before_the_follow_up_is_not_meant_unless_the_job_has_succeeded(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is about to be queued again, by whoever wrote the follow-up."""
    first, failed = put_plain(objects), ended(objects, state="failed")
    watch(objects, first, earlier=failed)
    assert process(objects, failed) == 0
    assert process(objects, None) == 0
    assert process(objects, ended(objects, ended_s=failed.ended_s)) == 1
    assert PictureNames(objects).present(NAME).number == 2
    watch(objects, first, earlier=failed)
    assert process(objects, ended(objects, state="failed", ended_s=time.time() + 60)) == 1
    watch(objects, first)
    monkeypatch.setattr(followups, "KEPT_S", 0.0)
    assert process(objects, None) == 1 and pending(objects) == []


def test_a_result_that_is_gone_may_come_back_for_a_while(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, job = put_plain(objects), ended(objects)
    watch(objects, first)
    assert job.record is not None
    objects.delete(job.record.stream)
    assert process(objects, job) == 0 and len(pending(objects)) == 1
    assert process(objects, ended(objects)) == 1
    assert PictureNames(objects).present(NAME).number == 2
    watch(objects, first)
    objects.delete(job.record.stream)
    monkeypatch.setattr(followups, "KEPT_S", 0.0)
    assert process(objects, job) == 1 and pending(objects) == []


def test_one_that_fails_is_tried_again_and_holds_up_no_other(objects: Objects) -> None:
    done: list[str] = []

    def act(followup: Followup, _: Job) -> None:
        done.append(str(followup.details["url"]))
        if followup.details["url"] == "bad" and done.count("bad") < 3:
            raise ObjectsUnavailable("away") if done.count("bad") == 1 else ValueError("a bug")

    for url in ("bad", "good", "better"):
        add_followup(jobs_of(objects, None), Followup(ID, "webhook", {"url": url}))
    all_jobs = Followups(jobs_of(objects, ended(objects)), {"webhook": act})
    assert [all_jobs.process() for _ in range(4)] == [2, 0, 1, 0]
    assert sorted(done) == ["bad", "bad", "bad", "better", "good"]


def test_a_kind_that_a_worker_cannot_do_is_left_to_others(objects: Objects) -> None:
    add_followup(jobs_of(objects, None), Followup(ID, "webhook", {"url": "x"}))
    assert process(objects, ended(objects)) == 0 and len(pending(objects)) == 1


def test_what_is_no_follow_up_is_never_acted_on(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(objects, put_plain(objects))
    (info,) = objects.list("followups")
    good = json.loads(objects.get(info.key))
    assert read_followup(objects, info) == Followup(**good)
    broken = (
        b"", b"[]", b"{}", b"\xff", b"[" * 5000, b" " * 9000,
        *(json.dumps(good | more).encode() for more in (
            {"job": "0" * 32}, {"job": 1}, {"kind": "shell"}, {"kind": ["name"]}, {"more": 1},
            {"details": []}, {"details": {"name": [1]}}, {"details": {"lmbda": float("nan")}},
            {"earlier_end_s": "1"}, {"earlier_end_s": float("inf")},
        )),
    )  # fmt: skip
    for data in broken:
        objects.put_named(info.key, data)
        (info,) = objects.list("followups")
        with pytest.raises(DamagedObject):
            read_followup(objects, info)
        assert process(objects, ended(objects)) == 0
    for details in ({}, {"name": "x"}, good["details"] | {"lmbda": -1.0}, {"name": "..", "put": 1}):
        objects.put_named(info.key, json.dumps(good | {"details": details}).encode())
        assert process(objects, ended(objects)) == 0
    escape = good["details"] | {"name": "../../objects"}
    objects.put_named(info.key, json.dumps(good | {"details": escape}).encode())
    assert process(objects, ended(objects)) == 0
    assert PictureNames(objects).present(NAME).number == 1
    monkeypatch.setattr(followups, "KEPT_S", 0.0)
    objects.put_named(info.key, b"junk")
    objects.put_named("followups/junk", b"junk")
    assert process(objects, ended(objects)) == 2 and pending(objects) == []


def test_the_weight_of_the_error_is_that_of_the_store(small_model: StoredModel) -> None:
    weights = {1: 0.0018, 2: 0.0035, 5: 0.025}
    rates = tuple(StoredRate(rate, lmbda, None, None) for rate, lmbda in weights.items())
    stored = replace(small_model, rates=rates)
    infos = tuple(RateInfo(r.rate, r.tune, r.lmbda, None, None, None) for r in rates)
    info = replace(model_info(), rates=(*infos, RateInfo(3.0, "psnr", None, None, None, None)))
    for rate16 in (16, 17, 24, 31, 32, 80):
        assert lmbda_of(info, rate16) == pytest.approx(stored.lmbda_at(rate16))
    assert [lmbda_of(info, rate16) for rate16 in (33, 48, 64, 81)] == [None] * 4


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_a_name_gets_better_though_the_worker_dies_between_end_and_swap(
    make_place: MakePlace,
) -> None:
    place = make_place()
    objects, data = place.jobs.objects, png()
    first = put_plain(objects, psnr_db=20.0)
    watch(objects, first)
    place.submit(data)
    deaf = place.worker(follow_up_s=3600.0)
    place.wait(ID, lambda job: job.state == "succeeded")
    deaf.end()
    assert PictureNames(objects).present(NAME) == first and len(pending(objects)) == 1
    place.worker()
    until(lambda: not pending(objects))
    version = PictureNames(objects).present(NAME)
    assert version.stream is not None and version.number == 2
    result = expected_result(picture(data), 4.0, 1)
    assert objects.get(shared_key(version.stream.sha256)) == result
