"""Accepted jobs end with the right result, whatever happens to the workers.

Workers are processes of their own, on a real SQLite file and a real PostgreSQL server.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter

import pytest

from jobs.conftest import MakePlace
from jobs.fake_adapter import expected_result, name_of
from jobs.machines import Place, Worker, picture, png, until
from service.errors import DamagedObject, ExpiredJob, JobEnded, UnknownJob
from service.jobs.job import Job

only_sqlite = pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
only_postgres = pytest.mark.parametrize("make_place", ["postgres"], indirect=True)


def has_steps(count: int):
    return lambda job: job.steps >= count


def never(_: Job) -> bool:
    return False


def succeeded(job: Job) -> bool:
    return job.state == "succeeded"


def steps_done(place: Place, name: str) -> Counter[str]:
    """How often each step of a job was done, by any worker."""
    lines = [line.split() for line in place.log()]
    return Counter(step for _, job, step in lines if job == name and step.isdigit())


def stop_between_writes(place: Place, worker: Worker) -> None:
    """Stop a worker while it holds no lock on the SQLite file, which would stop all others."""
    while True:
        worker.send(signal.SIGSTOP)
        if place.server is not None:
            return
        file = sqlite3.connect(place.settings.state_folder / "jobs.sqlite", timeout=0.1)
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            worker.send(signal.SIGCONT)
            time.sleep(0.02)
        else:
            return
        finally:
            file.close()


def test_a_job_killed_in_its_middle_goes_on_from_its_last_step(place: Place) -> None:
    job = place.submit(effort=4)
    first = place.worker()
    place.wait(job.id, has_steps(3))
    first.end()
    left = place.jobs.table.get(job.id)
    assert left.state == "running" and left.record is not None
    place.worker()
    done = place.wait(job.id, succeeded)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 4)
    assert done.attempts == 2 and done.steps > left.steps
    counts = steps_done(place, name_of(picture(png())))
    assert set(counts) == {str(n) for n in range(1, 81)}
    repeated = {int(step) for step, count in counts.items() if count > 1}
    assert all(step > left.record.progress.step for step in repeated)


def test_two_workers_share_a_queue_and_do_no_step_twice(place: Place) -> None:
    workers = [place.worker(), place.worker()]
    pictures = [png(seed) for seed in range(5)]
    jobs = [place.submit(data) for data in pictures]
    for job, data in zip(jobs, pictures, strict=True):
        place.wait(job.id, succeeded)
        assert place.jobs.result(job.id)[1] == expected_result(picture(data), 4.0, 1)
        counts = steps_done(place, name_of(picture(data)))
        assert counts == Counter({str(n): 1 for n in range(1, 21)})
    assert {int(line.split()[0]) for line in place.log()} == {w.pid for w in workers}


def test_a_job_taken_from_a_worker_that_comes_back_has_one_result(place: Place) -> None:
    job = place.submit(effort=4)
    slow = place.worker()
    place.wait(job.id, has_steps(2))
    stop_between_writes(place, slow)
    assert place.jobs.rescue([job.id]) == [job.id]
    quick = place.worker()
    place.wait(job.id, lambda job: job.worker is not None and job.worker.endswith("-1"))
    place.wait(job.id, has_steps(6))
    slow.send(signal.SIGCONT)
    done = place.wait(job.id, succeeded)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 4)
    # The one that lost the job noticed at its next step, and takes other jobs.
    by_slow = [line for line in place.log() if line.startswith(f"{slow.pid} ")]
    assert not any(line.endswith(" 80") for line in by_slow)
    quick.end()
    other = place.submit(png(1))
    place.wait(other.id, succeeded)
    assert place.jobs.table.get(job.id) == done


@only_postgres
def test_jobs_of_a_lost_worker_are_taken_over(place: Place) -> None:
    job = place.submit(effort=4)
    dead, alive = place.worker(hasty=True), place.worker(hasty=True)
    place.wait(job.id, has_steps(2))
    worker = place.jobs.table.get(job.id).worker
    assert worker is not None
    # The other one holds the other name, so nobody comes back under this one.
    owner = next(line.split()[0] for line in place.log())
    killed, left = (dead, alive) if int(owner) == dead.pid else (alive, dead)
    killed.end()
    done = place.wait(job.id, succeeded)
    assert done.worker != worker and done.attempts == 2
    assert any(line.startswith(f"{left.pid} ") and line.endswith(" again") for line in place.log())
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 4)


@only_postgres
def test_a_job_goes_on_by_itself_when_its_database_is_back(make_place: MakePlace) -> None:
    place = make_place(job_attempts=1)
    job = place.submit(effort=4)
    place.worker()
    place.wait(job.id, has_steps(3))
    assert place.server is not None
    place.server.stop()
    until(lambda: place.errors().count("Database connection failed") >= 2)
    place.server.start()
    place.jobs.close()
    place.jobs = place.client()
    done = place.wait(job.id, lambda job: job.state in ("succeeded", "failed"))
    assert (done.state, done.error, done.attempts) == ("succeeded", None, 1)
    counts = steps_done(place, name_of(picture(png())))
    assert counts == Counter({str(n): 1 for n in range(1, 81)})


def test_cancelling_stops_within_a_step_and_posting_again_goes_on(place: Place) -> None:
    queued = place.submit(png(1), priority=9)
    job = place.submit(effort=4, priority=1)
    place.worker()
    place.wait(job.id, has_steps(3))
    assert place.jobs.cancel(job.id).state == "cancelled"
    assert place.jobs.cancel(queued.id).state == "cancelled"
    steps = place.jobs.table.get(job.id).steps
    name, counts = name_of(picture(png())), []
    for seed in (2, 3):  # the worker does other jobs, and no more of the cancelled one
        place.wait(place.submit(png(seed)).id, succeeded)
        counts.append(steps_done(place, name).total())
    assert counts[0] == counts[1]
    assert "Traceback" not in place.errors()  # somebody's wish is no crash
    assert place.jobs.table.get(job.id).steps == steps
    assert place.jobs.best(job.id)[1].startswith(b"rkp ")
    with pytest.raises(JobEnded):
        place.jobs.result(job.id)
    assert place.submit(effort=4).state == "queued"
    done = place.wait(job.id, succeeded)
    assert done.steps > steps
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 4)
    with pytest.raises(JobEnded, match="succeeded"):
        place.jobs.cancel(job.id)
    assert place.jobs.table.get(queued.id).state == "cancelled"


@only_sqlite
def test_a_job_that_raises_fails_after_its_attempts_and_tells_no_secret(
    make_place: MakePlace,
) -> None:
    place = make_place(job_attempts=2)
    bad, good = place.submit(priority=1), place.submit(png(1))
    worker = place.worker(poison="raise", poisoned=name_of(picture(png())))
    place.wait(good.id, succeeded)
    failed = place.jobs.table.get(bad.id)
    assert failed.state == "failed"
    assert failed.error is not None
    said, _, error_id = failed.error.rpartition(" ")
    assert said == "a step failed 2 times: internal error, logged by the worker as"
    assert sum(line.endswith("poison") for line in place.log()) == 2
    with pytest.raises(JobEnded, match=error_id):
        place.jobs.result(bad.id)
    (line,) = [
        line for line in place.errors().splitlines() if error_id in line and "step failed" in line
    ][:1]
    assert "secret detail" in line
    worker.end()
    assert place.submit().state == "queued"
    place.worker()
    place.wait(bad.id, succeeded)
    assert place.jobs.result(bad.id)[1] == expected_result(picture(png()), 4.0, 1)


def test_a_job_that_kills_its_worker_fails_after_its_attempts(make_place: MakePlace) -> None:
    # However slow the machine is, it is the first step that each of them dies in.
    place = make_place(job_attempts=2, job_step_s=30)
    bad, good = place.submit(priority=1), place.submit(png(1))
    options = {"poison": "kill", "poisoned": name_of(picture(png()))}
    for _ in range(2):
        assert place.worker(**options).wait() == -signal.SIGKILL
    place.worker(**options)
    place.wait(good.id, succeeded)
    failed = place.jobs.table.get(bad.id)
    assert failed.state == "failed"
    assert failed.error == "the worker died 2 times in a row at this job, which made no progress"
    assert place.jobs.rescue([bad.id]) == [bad.id]


def test_nothing_accepted_is_lost_when_everything_is_restarted(place: Place) -> None:
    pictures = [png(seed) for seed in range(3)]
    jobs = [place.submit(data, effort=2) for data in pictures]
    worker = place.worker()
    place.wait(jobs[0].id, has_steps(2))
    worker.end()
    place.jobs.close()
    if place.server:
        place.server.stop()
        place.server.start()
    place.jobs = place.client()
    assert {job.id for job in place.jobs.table.recent()} == {job.id for job in jobs}
    place.worker()
    for job, data in zip(jobs, pictures, strict=True):
        place.wait(job.id, succeeded)
        assert place.jobs.result(job.id)[1] == expected_result(picture(data), 4.0, 2)


def test_an_expired_job_is_gone_for_a_while_and_then_unknown(place: Place) -> None:
    job = place.submit()
    patient = place.worker()
    place.wait(job.id, succeeded)
    patient.end()
    (kept,) = place.jobs.objects.list(f"jobs/{job.id}")  # neither image nor checkpoints
    place.settings = place.settings.model_copy(update={"result_ttl_s": 1.0})
    brief = place.client(result_ttl_s=1.0)
    with pytest.raises(ExpiredJob):
        place.wait(job.id, never, jobs=brief)
    place.worker()
    with pytest.raises(UnknownJob):
        place.wait(job.id, never)
    with pytest.raises(UnknownJob):
        brief.table.get(job.id)
    assert place.jobs.objects.head(kept.key) is None
    brief.close()


@only_sqlite
def test_a_job_posted_again_after_it_expired_is_done_again(place: Place) -> None:
    job = place.submit()
    place.worker()
    place.wait(job.id, succeeded)
    brief = place.client(result_ttl_s=0.1)
    with pytest.raises(ExpiredJob):
        place.wait(job.id, never, jobs=brief)
    assert brief.submit(png(), place.spec(png()), 5).state in ("queued", "running")
    place.wait(job.id, succeeded)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 1)
    assert steps_done(place, name_of(picture(png())))["20"] == 2
    brief.close()


@only_sqlite
def test_a_job_posted_again_whose_result_is_damaged_is_done_again(place: Place) -> None:
    job = place.submit()
    place.worker()
    (key,) = {place.wait(job.id, succeeded).record.stream}  # type: ignore[union-attr]
    expected = expected_result(picture(png()), 4.0, 1)
    for damaged in (bytes([expected[0] ^ 1]) + expected[1:], expected[:-1], b""):
        place.jobs.objects.put_named(key, damaged)
        with pytest.raises(DamagedObject):
            place.jobs.result(job.id)
        assert place.submit().state in ("queued", "running")
        place.wait(job.id, succeeded)
        assert place.jobs.result(job.id)[1] == expected
    assert place.submit().state == "succeeded", "a whole one is not done again"


@only_sqlite
def test_a_worker_asked_to_end_hands_its_job_back(make_place: MakePlace) -> None:
    place = make_place()
    job = place.submit(effort=4)
    worker = place.worker()
    place.wait(job.id, has_steps(2))
    assert worker.end(signal.SIGTERM) == 0
    left = place.jobs.table.get(job.id)
    assert (left.state, left.attempts) == ("queued", 0)
    place.worker()
    place.wait(job.id, succeeded)
    counts = steps_done(place, name_of(picture(png())))
    assert counts == Counter({str(n): 1 for n in range(1, 81)})


@only_sqlite
def test_urgent_jobs_are_done_first(make_place: MakePlace) -> None:
    place = make_place()
    pictures = [png(seed) for seed in range(3)]
    jobs = [place.submit(d, priority=p) for d, p in zip(pictures, (5, 9, 1), strict=True)]
    place.worker(steps=1)
    for job in jobs:
        place.wait(job.id, succeeded)
    begun = [line.split()[1] for line in place.log() if line.endswith(" new")]
    assert begun == [name_of(picture(pictures[n])) for n in (2, 0, 1)]


@only_sqlite
def test_a_worker_of_another_model_refuses_the_job(make_place: MakePlace) -> None:
    place = make_place()
    job = place.submit()
    place.worker(model="ef" * 32)
    failed = place.wait(job.id, lambda job: job.state == "failed")
    assert failed.error is not None and "post the picture again" in failed.error
    assert failed.attempts == 1


@only_sqlite
def test_a_job_ends_with_its_best_stream_when_its_time_is_up(make_place: MakePlace) -> None:
    place = make_place(job_max_s=0.5)
    job = place.submit(effort=4)
    worker = place.worker()
    done = place.wait(job.id, succeeded)
    assert done.record is not None and 0 < done.record.progress.step < 80
    assert done.record.seconds >= 0.5
    assert place.jobs.result(job.id)[1].startswith(b"rkp %d " % done.record.progress.step)
    assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.nice(0) + 1
