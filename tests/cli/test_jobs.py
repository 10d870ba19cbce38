"""The commands `rankpress jobs` and `rankpress worker`."""

from __future__ import annotations

import io
import json
import signal

import pytest
from jobs.conftest import MakePlace
from jobs.fake_adapter import name_of
from jobs.machines import Place, picture, png, until
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli import jobs, main

pytestmark = pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)


@pytest.fixture
def place(make_place: MakePlace, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = make_place(job_attempts=1)
    for name, value in place.settings.as_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "300")
    return place


def rankpress(*arguments: str) -> Result:
    return CliRunner().invoke(main.app, list(arguments))


def test_jobs_are_listed_shown_and_cancelled(place: Place) -> None:
    assert rankpress("jobs", "list").exit_code == 0
    first, second = place.submit(effort=2, priority=3), place.submit(png(1))
    place.jobs.cancel(second.id)
    place.worker()
    until(lambda: place.jobs.table.get(first.id).state == "succeeded")
    listed = rankpress("jobs", "list", "--json")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(row["id"], row["state"]) for row in rows] == [
        (second.id, "cancelled"),
        (first.id, "succeeded"),
    ]
    assert rows[1]["record"]["progress"]["step"] == 40 and rows[1]["priority"] == 3
    table = rankpress("jobs", "list", "--status", "succeeded").stdout
    assert first.id in table and "40/40" in table and second.id not in table
    shown = rankpress("jobs", "show", first.id).stdout
    assert "succeeded" in shown and "rate 4, effort 2, priority 3" in shown and "(-4.0 %)" in shown
    assert json.loads(rankpress("jobs", "show", first.id, "--json").stdout) == rows[1]
    third = place.submit(png(2))
    cancelled = rankpress("jobs", "cancel", third.id)
    assert (cancelled.exit_code, cancelled.stdout) == (0, f"{third.id} cancelled\n")
    for arguments, message in (
        (("show", "0" * 32), "there is no job"),
        (("cancel", first.id), "there is nothing to cancel"),
    ):
        refused = rankpress("jobs", *arguments)
        assert refused.exit_code == 1 and message in refused.stderr


def test_a_stream_that_is_larger_than_its_source_says_so(place: Place) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (20, 12), "red").save(flat, "PNG")
    padded = flat.getvalue() + bytes(10_000)
    jobs = [place.submit(data, effort=2) for data in (flat.getvalue(), padded)]
    place.worker()
    larger, smaller = (place.wait(job.id, lambda j: j.state == "succeeded") for job in jobs)
    assert larger.record is not None
    stream_bytes, source_bytes = larger.record.progress.bytes, len(flat.getvalue())
    note = f"the stream of {stream_bytes} bytes is larger than its source of {source_bytes}"
    shown = rankpress("jobs", "show", larger.id).stdout
    assert note in shown and f"{source_bytes} bytes" in shown
    assert json.loads(rankpress("jobs", "show", larger.id, "--json").stdout)["notes"] == [note]
    assert "larger" not in rankpress("jobs", "show", smaller.id).stdout
    assert json.loads(rankpress("jobs", "show", smaller.id, "--json").stdout)["notes"] == []


def test_rescue_queues_failed_and_named_jobs_again(place: Place) -> None:
    assert "nothing to rescue" in rankpress("jobs", "rescue").stderr
    job = place.submit()
    worker = place.worker(poison="raise", poisoned=name_of(picture(png())))
    until(lambda: place.jobs.table.get(job.id).state == "failed")
    assert "internal error, logged by the worker as" in rankpress("jobs", "show", job.id).stdout
    worker.end(signal.SIGTERM)
    assert rankpress("jobs", "rescue", job.id).stdout == f"{job.id} queued again\n"
    worker = place.worker()
    until(lambda: place.jobs.table.get(job.id).state == "succeeded")
    assert "nothing to rescue" in rankpress("jobs", "rescue", job.id).stderr


def test_rescue_alone_takes_the_jobs_of_dead_workers(place: Place) -> None:
    job = place.submit(effort=4)
    worker = place.worker()
    until(lambda: place.jobs.table.get(job.id).steps >= 2)
    assert "nothing to rescue" in rankpress("jobs", "rescue").stderr
    worker.end()
    name = place.jobs.table.get(job.id).worker
    place.jobs.objects.delete(f"workers/{name}")  # as it is a minute later
    assert rankpress("jobs", "rescue").stdout == f"{job.id} queued again\n"
    assert place.jobs.table.get(job.id).state == "queued"


def test_a_worker_without_torch_says_what_to_install(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    del place
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda _: None)
    refused = rankpress("worker")
    assert refused.exit_code == 1
    assert "a worker needs torch: pip install 'rankpress[server]'" in refused.stderr
