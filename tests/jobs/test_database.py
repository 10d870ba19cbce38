"""What is in the database, and where it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOSClient, PortableWorkflowError, StepInfo

from jobs.conftest import MakePlace
from jobs.fake_adapter import expected_result
from jobs.machines import Place, picture, png
from service.adapt.task import AdaptProgress
from service.errors import BadParameter, JobsUnavailable
from service.jobs import database, rows
from service.jobs.database import database_url, prepare
from service.jobs.job import StepRecord
from service.jobs.jobs import open_jobs
from service.jobs.rows import job_of
from service.settings import Settings


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_the_file_keeps_json_and_no_pickles_and_writes_ahead(make_place: MakePlace) -> None:
    place = make_place()
    job = place.submit(effort=0)
    failing = place.submit(png(1), effort=1)
    place.worker(poison="raise", steps=5)
    place.wait(job.id, lambda job: job.state == "succeeded")
    place.jobs.cancel(failing.id)
    with sqlite3.connect(place.folder / "state" / "jobs.sqlite") as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        kinds = set()
        for table in ("workflow_status", "operation_outputs"):
            kinds |= set(file.execute(f"SELECT DISTINCT serialization FROM {table}"))
        assert kinds == {("portable_json",)}
        (inputs,) = file.execute(
            "SELECT inputs FROM workflow_input WHERE workflow_uuid = ?", (job.id,)
        ).fetchone()
        assert len(inputs) < 400 and inputs.startswith('{"namedArgs"')
        (priority,) = file.execute("SELECT min(priority) FROM workflow_status").fetchone()
        assert priority == 5
    mode = (place.folder / "state").stat().st_mode
    assert mode & 0o077 == 0


def test_urls_are_checked_and_get_a_time_limit(tmp_path: Path) -> None:
    url = database_url(Settings(jobs_url="postgres://u:p@host/db?sslmode=require"))
    assert url == "postgresql://u:p@host/db?sslmode=require&connect_timeout=10"
    assert database_url(Settings(state=tmp_path)) == f"sqlite:///{tmp_path}/jobs.sqlite"
    with pytest.raises(BadParameter):
        database_url(Settings(jobs_url="mysql://host/db"))


def test_a_password_is_neither_shown_nor_told(tmp_path: Path) -> None:
    settings = Settings(state=tmp_path, jobs_url="postgresql://u:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in repr(settings)
    with pytest.raises(JobsUnavailable) as raised:
        prepare(settings)
    assert "hunter2" not in str(raised.value)


@pytest.mark.platform
def test_a_lost_database_is_reported_and_comes_back(place: Place) -> None:
    if place.server is None:
        pytest.skip("a file does not go away")
    job = place.submit()
    place.server.stop()
    try:
        with pytest.raises(JobsUnavailable):
            place.jobs.table.get(job.id)
        with pytest.raises(JobsUnavailable):
            open_jobs(place.settings, place.url)
    finally:
        place.server.start()
    assert place.jobs.table.get(job.id).id == job.id


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_a_look_at_jobs_reads_none_of_their_steps(
    make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every reading of a long job would read thousands of steps."""
    list_steps, read = DBOSClient.list_workflow_steps, []
    place = make_place()
    jobs = [place.submit(png(seed), effort=1) for seed in range(2)]
    place.worker()
    for job in jobs:
        place.wait(job.id, lambda job: job.state == "succeeded")
    expected = {job.id: place.jobs.table.steps(job.id, 0)[-1] for job in jobs}

    def count(*arguments: Any, **options: Any) -> list[StepInfo]:
        steps = list_steps(*arguments, **options)
        read.append([step["function_name"] for step in steps])
        return steps

    monkeypatch.setattr(DBOSClient, "list_workflow_steps", count)
    shown = place.jobs.table.recent()
    assert not read
    shown += [place.jobs.table.get(job.id) for job in jobs]
    assert read == [["finish"], ["finish"]]
    assert len(shown) == 4
    for job in shown:
        assert (job.steps, job.record) == expected[job.id]


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_a_job_whose_last_steps_are_not_in_its_row_is_shown_as_it_is(
    make_place: MakePlace,
) -> None:
    """The worker could not write to the row, and the files that the row names were deleted."""
    place = make_place()
    job = place.submit(effort=2)
    place.worker()
    done = place.wait(job.id, lambda job: job.state == "succeeded")
    first, *_ = place.jobs.table.steps(job.id, 0)
    client = database.open_client(place.url)
    for behind in ({rows.LAST_STEP: [first[0], first[1].to_json()]}, None):
        client.update_workflow_attributes(job.id, behind)
        assert place.jobs.table.get(job.id) == done
        assert place.jobs.result(job.id) == (done, expected_result(picture(png()), 4.0, 2))
        assert place.submit(effort=2) == done, "there is nothing to do again"
    client.destroy()


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("ended", "state"), [(False, "running"), (True, "failed")])
def test_a_status_that_is_not_known_is_shown_and_breaks_no_list(
    make_place: MakePlace, ended: bool, state: str
) -> None:
    place = make_place()
    job, other = place.submit(), place.submit(png(1))
    with sqlite3.connect(place.folder / "state" / "jobs.sqlite") as file:
        file.execute(
            "UPDATE workflow_status SET status = 'PAUSED', completed_at = ? "
            "WHERE workflow_uuid = ?",
            (1_700_000_000_000 if ended else None, job.id),
        )
    jobs_by_id = {each.id: each for each in place.jobs.table.recent()}
    assert jobs_by_id[other.id].state == "queued" and jobs_by_id[job.id].state == state
    assert ("PAUSED" in (jobs_by_id[job.id].error or "")) == ended


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_deaths_of_workers_count_since_the_last_step_and_not_while_they_waited(
    make_place: MakePlace,
) -> None:
    place = make_place()
    job = place.submit()

    def begin(attempt: int) -> int:
        with sqlite3.connect(place.folder / "state" / "jobs.sqlite") as file:
            file.execute("UPDATE workflow_status SET recovery_attempts = ?", (attempt,))
        return place.jobs.table.record_start(job.id)

    assert [begin(attempt) for attempt in (1, 2, 3)] == [0, 1, 2]
    place.jobs.table.record_waiting(job.id)
    assert [begin(attempt) for attempt in (4, 5)] == [0, 1]
    progress = AdaptProgress("latents", 1, 2, 3, 0.5, 30.0, 4, 0.75, 30.0)
    place.jobs.table.record_step(
        job.id, 1, StepRecord(progress, "stream", "checkpoint", 1.0, False)
    )
    assert [begin(attempt) for attempt in (6, 7)] == [0, 1]
    assert [begin(attempt) for attempt in (1, 2)] == [0, 1], "after it was queued again by hand"
    place.jobs.table.record_waiting(job.id)
    assert place.jobs.table.get(job.id).waiting_since_s is None, "it is queued"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PortableWorkflowError("the reason", "JobFailed"), "the reason"),
        (PortableWorkflowError("/srv/secret", "OperationalError"), None),
        (ValueError("/srv/secret"), None),
        (None, None),
    ],
)
@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_of_errors_in_the_database_only_a_job_s_own_is_shown(
    make_place: MakePlace, error: Exception | None, said: str | None
) -> None:
    place = make_place()
    job = place.submit()
    client = database.open_client(place.url)
    (row,) = client.list_workflows(workflow_ids=[job.id])
    client.destroy()
    row.status, row.error = "ERROR", error
    assert job_of(row, 1.0).error == (
        said or "internal error, logged by the worker under the job's id"
    )
