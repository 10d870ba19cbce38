"""Every end of a job reaches its receiver at least once, whatever happens to workers.

Workers are processes of their own, on a real SQLite file; receivers are servers of this process.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from jobs.conftest import MakePlace
from jobs.machines import Place, png, until
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from service.api.job_client import watch_for
from service.jobs.job import Job
from service.webhooks import delivery
from service.webhooks.delivery import Deliverer, Delivery
from service.webhooks.signing import Signer
from webhooks.receivers import SECRET, Call, Receiver, receiving

WITH_WORKERS = pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place(webhook_secret=SECRET, webhook_private=True)


def message_of(call: Call) -> Any:
    """The message of a request whose signature is right."""
    return Webhook(SECRET).verify(call.body, call.headers)


def submit(place: Place, receiver: Receiver, effort: int = 1, seed: int = 0) -> Job:
    data = png(seed)
    watch_for(place.jobs, place.spec(data, effort).id, (receiver.url,))
    return place.submit(data, effort)


@WITH_WORKERS
def test_failed_and_cancelled_jobs_are_told_too(place: Place) -> None:
    with receiving() as receiver:
        cancelled = submit(place, receiver)
        place.jobs.cancel(cancelled.id)
        failed = submit(place, receiver, seed=1)
        place.jobs.objects.delete(failed.spec.image_key)
        place.worker()
        until(lambda: len(receiver.calls) == 2)
    told = {m["data"]["job"]: m for m in map(message_of, receiver.calls)}
    assert told[cancelled.id]["type"] == "job.cancelled"
    assert told[cancelled.id]["data"]["sha256"] is told[cancelled.id]["data"]["bytes"] is None
    assert told[failed.id]["type"] == "job.failed"
    assert "no longer stored" in told[failed.id]["data"]["error"]


@WITH_WORKERS
def test_a_worker_killed_in_an_attempt_leaves_it_to_the_next(place: Place) -> None:
    begun, going_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            begun.set()
            going_on.wait(60)

    with receiving(500) as receiver:
        receiver.hold = hold
        job = submit(place, receiver)
        worker = place.worker()
        assert begun.wait(60)
        worker.end()  # SIGKILL, while the second attempt waits for its answer
        assert [j.id for j in place.jobs.table.recent()] == [job.id], "attempts are no jobs"
        assert place.jobs.table.active() == [] and len(place.jobs.table.busy_workers()) == 1
        going_on.set()
        place.worker()
        until(lambda: len(receiver.calls) == 3)
        until(lambda: not place.jobs.table.busy_workers())
    job = place.jobs.table.get(job.id)
    messages = [message_of(call) for call in receiver.calls]
    assert messages[0] == messages[1] == messages[2]
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 1
    assert messages[0]["type"] == "job.succeeded"
    data = messages[0]["data"]
    assert data["job"] == job.id and data["status"] == "succeeded" and data["error"] is None
    assert (data["rate"], data["effort"]) == (4.0, 1)
    assert job.record is not None and job.record.stream.endswith(data["sha256"])
    assert data["bytes"] == job.record.progress.bytes < data["first_bytes"]


@WITH_WORKERS
def test_slow_receivers_hold_up_neither_jobs_nor_other_receivers(place: Place) -> None:
    going_on = threading.Event()
    with receiving() as slow, receiving() as quick:
        slow.hold = lambda _: going_on.wait(60)
        quick.url = quick.url.replace("127.0.0.1", "localhost")
        jobs = [submit(place, slow, seed=seed) for seed in range(delivery.AT_ONCE_PER_HOST + 1)]
        place.worker(steps=2)
        for job in jobs:
            place.wait(job.id, lambda job: job.state == "succeeded")
        until(lambda: len(slow.calls) == delivery.AT_ONCE_PER_HOST)
        last = submit(place, quick, seed=99)
        until(lambda: len(quick.calls) == 1)
        assert place.jobs.table.get(last.id).state == "succeeded"
        assert len(slow.calls) == delivery.AT_ONCE_PER_HOST
        going_on.set()
        until(lambda: len(slow.calls) == len(jobs))


@WITH_WORKERS
def test_the_same_end_is_told_once_to_a_url_and_forgotten_with_its_job(place: Place) -> None:
    with receiving() as receiver, receiving() as other:
        job = submit(place, receiver)
        place.worker(steps=2)
        until(lambda: len(receiver.calls) == 1)
        for each in (receiver, receiver, other):  # posted again, and by another program
            submit(place, each)
        until(lambda: len(other.calls) == 1)
        until(lambda: not list(place.jobs.objects.list("followups")))
        until(lambda: not place.jobs.table.busy_workers())
        assert len(receiver.calls) == 1
        place.jobs.table.delete_ended(time.time() + 60)
        assert place.jobs.table.find(job.id) is None
        (message,) = {call.headers["webhook-id"] for call in receiver.calls}
        place.jobs.table.enqueue_delivery(Delivery(message, receiver.url, "{}"))
        until(lambda: len(receiver.calls) == 2)  # so its row was deleted too
    assert other.calls[0].headers["webhook-id"] != message


DELIVERER = Deliverer(Signer.of_secrets(SECRET), allow_private=True)


def attempt(receiver: Receiver, number: int = 1) -> float | None:
    return DELIVERER.attempt(Delivery("msg_1", receiver.url, "{}", number))


def test_pauses_grow_over_about_a_day_and_end() -> None:
    assert 20 * 3600 <= sum(delivery.PAUSES_S) <= 28 * 3600
    assert list(delivery.PAUSES_S) == sorted(delivery.PAUSES_S)
    with receiving(*[500] * 99) as receiver, capture_logs() as logs:
        for number, planned_s in enumerate(delivery.PAUSES_S, 1):
            pauses = [attempt(receiver, number) for _ in range(3)]
            assert all(0.8 * planned_s <= (pause or 0) <= 1.2 * planned_s for pause in pauses)
            assert len(set(pauses)) > 1
        assert attempt(receiver, len(delivery.PAUSES_S) + 1) is None
    assert logs[-1]["event"] == "webhook given up"


@pytest.mark.parametrize(
    ("status", "again"),
    [(200, False), (299, False), (300, True), (307, True), (400, True), (404, True), (410, False)],
)
def test_2xx_is_success_410_ends_and_all_else_is_tried_again(status: int, again: bool) -> None:
    with receiving(status) as receiver:
        assert (attempt(receiver) is not None) == again


@pytest.mark.parametrize(("text", "low_s", "high_s"), [("1", 4, 6), ("90", 90, 90)])
def test_no_attempt_comes_sooner_than_the_receiver_asked(
    text: str, low_s: float, high_s: float
) -> None:
    with receiving() as receiver:
        receiver.answers = [(503, {"Retry-After": text}), (429, {"Retry-After": "9" * 9})]
        assert low_s <= (attempt(receiver) or 0) <= high_s
        assert attempt(receiver) == delivery.LONGEST_PAUSE_S


def test_a_worker_without_the_secret_sends_nothing_and_loses_nothing() -> None:
    with receiving() as receiver, capture_logs() as logs:
        assert Deliverer(None).attempt(Delivery("msg_1", receiver.url, "{}")) is not None
    assert receiver.calls == [] and "RANKPRESS_WEBHOOK_SECRET" in logs[0]["reason"]


def test_the_log_has_the_host_and_neither_path_nor_body_nor_secret() -> None:
    with receiving(500, 200) as receiver, capture_logs() as logs:
        attempt(receiver)
        attempt(receiver)
    assert [line["host"] for line in logs] == ["127.0.0.1"] * 2
    assert not {"hook", "token", "whsec"} & set(re.findall(r"[a-z]+", str(logs)))
