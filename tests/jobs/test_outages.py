"""Jobs outlive what happens to their storage and to their workers, and use up no attempts by it.

Workers are processes of their own, and the outages real: a folder that is gone, a database that
cannot be written, a full disk.
"""

from __future__ import annotations

import logging
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import event

from jobs.conftest import MakePlace
from jobs.fake_adapter import expected_result, name_of
from jobs.machines import Place, objects_away, picture, png, until
from service.jobs import database, expiry, storage_outages
from service.jobs.dbos_logs import RepeatedFilter
from service.jobs.expiry import expire
from service.jobs.job import Job

pytestmark = pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)


def succeeded(job: Job) -> bool:
    return job.state == "succeeded"


def steps_done(place: Place, data: bytes) -> Counter[str]:
    """How often each step of a picture's job was done, by any worker."""
    name = name_of(picture(data))
    return Counter(line.split()[2] for line in place.log() if line.split()[1] == name)


def check_ended_well(place: Place, jobs: dict[str, bytes]) -> None:
    """Every job has succeeded at its only attempt, with the bytes that it would always have."""
    for job_id, data in jobs.items():
        done = place.wait(job_id, lambda job: job.state in ("succeeded", "failed"))
        assert (done.state, done.error, done.attempts) == ("succeeded", None, 1), place.errors()
        assert place.jobs.result(job_id)[1] == expected_result(picture(data), 4.0, 1)
        steps = steps_done(place, data)
        assert steps == Counter({"new": 1, **{str(n): 1 for n in range(1, 21)}})


def test_jobs_wait_for_an_object_store_that_is_away(make_place: MakePlace) -> None:
    place = make_place(job_attempts=1)
    jobs = {place.submit(data).id: data for data in map(png, range(6))}
    first = next(iter(jobs))
    place.worker(hasty=True, step_s=0.03)
    place.wait(first, lambda job: job.steps >= 2)
    with objects_away(place):
        waiting = place.wait(first, lambda job: job.waiting_since_s is not None)
        assert waiting.state == "running"
        until(lambda: place.errors().count("step waits for storage") > 5)
        active = {job.id: job.state for job in place.jobs.table.active()}
        assert active == dict.fromkeys(jobs, "queued") | {first: "running"}
    assert place.wait(first, lambda job: job.waiting_since_s is None)
    check_ended_well(place, jobs)


def test_what_waits_for_storage_can_be_cancelled_and_its_worker_stopped(
    make_place: MakePlace,
) -> None:
    place = make_place()
    first, second = place.submit(effort=4, priority=1), place.submit(png(1))
    worker = place.worker()
    place.wait(first.id, lambda job: job.steps >= 2)
    with objects_away(place):
        place.wait(first.id, lambda job: job.waiting_since_s is not None)
        place.jobs.cancel(first.id)
        place.wait(second.id, lambda job: job.waiting_since_s is not None)
        assert worker.end(signal.SIGTERM) == 0
        left = place.jobs.table.get(second.id)
        assert (left.state, left.attempts) == ("queued", 0)
    assert place.jobs.table.get(first.id).state == "cancelled"
    place.worker()
    check_ended_well(place, {second.id: png(1)})


def test_jobs_wait_for_a_database_that_cannot_be_written(make_place: MakePlace) -> None:
    place = make_place(job_attempts=1)
    jobs = {place.submit(data).id: data for data in map(png, range(3))}
    worker = place.worker(step_s=0.03)
    place.wait(next(iter(jobs)), lambda job: job.steps >= 2)
    # The log of what is written ahead is far longer than any object.
    written = (place.settings.state_folder / "jobs.sqlite-wal").stat().st_size
    before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    assert written > 100_000
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (100_000, before[1]))
    until(lambda: place.errors().count("Database connection failed") >= 2)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
    check_ended_well(place, jobs)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can only be mounted by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_jobs_wait_for_room_on_a_full_disk(make_place: MakePlace, small_disk: Path) -> None:
    place = make_place(job_attempts=1, state=small_disk)
    jobs = {place.submit(data).id: data for data in map(png, range(3))}
    place.worker(step_s=0.03)
    place.wait(next(iter(jobs)), lambda job: job.steps >= 2)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    messages = "step waits for storage", "Database connection failed"
    until(lambda: sum(map(place.errors().count, messages)) > 3)
    filler.unlink()
    check_ended_well(place, jobs)


def test_sqlite_s_outages_are_lost_connections_and_its_other_errors_are_not(
    make_place: MakePlace, tmp_path: Path
) -> None:
    """DBOS repeats what failed with a lost connection until it succeeds."""
    del make_place
    storage_outages.wait_out_sqlite_outages()
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/file")
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (x BLOB NOT NULL)"))

        def execute(*statements: str) -> sqlalchemy.exc.DBAPIError:
            with pytest.raises(sqlalchemy.exc.DBAPIError) as raised, engine.begin() as connection:
                for statement in statements:
                    connection.execute(sqlalchemy.text(statement))
            return raised.value

        full = execute("PRAGMA max_page_count=4", "INSERT INTO t VALUES (zeroblob(100000))")
        assert "full" in str(full) and full.connection_invalidated
        readonly = execute("PRAGMA query_only=1", "INSERT INTO t VALUES (1)")
        assert "readonly" in str(readonly) and readonly.connection_invalidated
        wrong = execute("INSERT INTO t VALUES (NULL)")
        assert not wrong.connection_invalidated
        away = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/nowhere/file")
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="unable to open") as raised:
            away.connect()
        assert raised.value.connection_invalidated
    finally:
        event.remove(sqlalchemy.Engine, "handle_error", storage_outages.mark_outage)
        engine.dispose()


def test_a_look_at_the_queue_that_fails_all_the_time_is_told_once_a_minute(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    del make_place
    repeated, now_s = RepeatedFilter(), 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)

    def passes(text: str, level: int = logging.WARNING) -> bool:
        return repeated.filter(logging.LogRecord("dbos", level, "", 0, text, None, None))

    fails = "Exception encountered in queue thread for adapt: (sqlite3.OperationalError) full"
    assert [passes(fails), passes(fails), passes("Exception listing queues: x")] == [
        True,
        False,
        True,
    ]
    assert passes("Retrying in 1 s") and passes("Retrying in 1 s"), "that has growing pauses"
    failed = "Exception encountered in background workflow:"
    assert passes(failed, logging.ERROR) and passes(failed, logging.ERROR), "another job's, maybe"
    now_s += 61
    assert passes(fails)


def test_a_job_outlives_more_deaths_of_workers_than_it_has_attempts_if_it_gets_further(
    make_place: MakePlace,
) -> None:
    place = make_place(job_attempts=2)
    job = place.submit(effort=4)
    steps = 0
    for _ in range(5):
        worker = place.worker()
        steps = place.wait(job.id, lambda job, last=steps: job.steps > last + 1).steps
        worker.end()
    place.worker()
    done = place.wait(job.id, lambda job: job.state in ("succeeded", "failed"))
    assert (done.state, done.error, done.attempts) == ("succeeded", None, 6)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 4)
    repeated = [count for step, count in steps_done(place, png()).items() if step.isdigit()]
    assert len(repeated) == 80 and sum(repeated) <= 80 + 5 * 10  # nothing began again


def test_a_failed_job_keeps_what_it_goes_on_from_and_goes_on_from_there(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(job_attempts=1)
    job = place.submit()
    worker = place.worker(poison="raise", step_s=0.11)  # a step of the job is one of the adapter
    failed = place.wait(job.id, lambda job: job.state == "failed")
    worker.end()
    objects, record = place.jobs.objects, failed.record
    assert failed.steps == 3 and record is not None and record.checkpoint is not None
    kept = {job.spec.image_key, record.stream, record.checkpoint}
    assert {info.key for info in objects.list(job.spec.folder)} == kept

    left = objects.put(b"of a step that was not recorded", job.spec.folder)
    client = database.open_client(place.url)
    monkeypatch.setattr(expiry, "REFRESH_S", 0.0)
    assert expire(place.jobs.table, objects) == 1
    assert objects.head(left) is None
    assert {info.key for info in objects.list(job.spec.folder)} == kept
    client.destroy()

    assert place.submit().state == "queued"
    place.worker()
    done = place.wait(job.id, lambda job: job.state in ("succeeded", "failed"))
    assert (done.state, done.error) == ("succeeded", None)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 1)
    steps = steps_done(place, png())
    assert steps.pop("poison") == steps.pop("new") == steps.pop("again") == 1
    assert steps == Counter({str(n): 1 for n in range(1, 21)})


def test_a_job_that_fails_again_at_the_same_place_then_begins_anew(
    make_place: MakePlace,
) -> None:
    """The reason of the failure may be its last checkpoint."""
    place = make_place(job_attempts=1)
    place.worker(poison="raise", step_s=0.11)
    for attempt in range(3):
        job = place.submit()
        place.wait(job.id, lambda job: job.state == "failed")
        assert place.jobs.table.get(job.id).steps == 3, attempt
    opened = [line.split()[2] for line in place.log() if line.endswith((" new", " again"))]
    assert opened == ["new", "again", "new"]


def test_a_full_disk_takes_the_checkpoints_of_stopped_jobs_and_leaves_their_streams(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place()
    job, running = place.submit(priority=1), place.submit(png(1))
    worker = place.worker(step_s=0.11)
    place.wait(job.id, lambda job: job.steps >= 2)
    stopped = place.jobs.cancel(job.id)
    place.wait(running.id, lambda job: job.steps >= 1)
    worker.end()
    objects, client = place.jobs.objects, database.open_client(place.url)
    before = {info.key for info in objects.list(running.spec.folder)}
    monkeypatch.setattr(expiry, "FULL_SPARED_S", 0.0)
    assert expire(place.jobs.table, objects, full=True) > 0
    client.destroy()
    assert stopped.record is not None
    kept = {info.key for info in objects.list(job.spec.folder)}
    assert kept == {job.spec.image_key, stopped.record.stream}
    assert {info.key for info in objects.list(running.spec.folder)} == before
    assert place.jobs.best(job.id)[1].startswith(b"rkp ")
    place.submit()
    place.worker()
    place.wait(job.id, succeeded)
    assert place.jobs.result(job.id)[1] == expected_result(picture(png()), 4.0, 1)


def test_a_slow_expiry_makes_no_live_worker_look_dead(make_place: MakePlace) -> None:
    place = make_place(result_ttl_s=0.2)
    place.worker(hasty=True, stuck=True)
    objects = place.jobs.objects

    def beats() -> float:
        return max((info.written_s for info in objects.list("workers")), default=0.0)

    until((place.folder / "expiring").exists)
    for _ in range(2):
        last_s = beats()
        until(lambda last_s=last_s: beats() > last_s)
