"""Jobs over HTTP, on a real port, with the fake adapter in a worker process."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from api.fake_codec import FakeCodec
from PIL import Image
from structlog.testing import capture_logs

from jobs.conftest import MakePlace
from jobs.fake_adapter import expected_result
from jobs.machines import Place, objects_away, picture, png, until
from service.api import job_client, job_monitoring, job_routes
from service.api.service import Service
from service.blobs import Objects
from service.errors import ExpiredJob, ObjectsUnavailable
from service.jobs import job_table
from service.picture import Picture
from service.server.run import Server
from service.tracing.spans import Tracing

pytestmark = pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)


class Client(httpx.Client):
    """A client of a server, with the service behind it."""

    service: Service


@contextmanager
def served(
    place: Place, codec: FakeCodec | None = None, tracing: Tracing | None = None
) -> Iterator[Client]:
    """A client of a server on the place's settings."""
    codec = codec or FakeCodec()
    server = Server(codec, place.settings, tracing)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.service = server.service
            until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        codec.gate.set()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place(port=0, drain_s=2.0)


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return str(answer.json()["type"]).rpartition(":")[2]


def events(client: httpx.Client, path: str, last_id: str | None = None) -> list[dict[str, Any]]:
    """All events until the server ends the stream: id, event and data."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(answer.iter_text()).split("\n\n")
    entries = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
    return [event | {"data": json.loads(event["data"])} for event in entries if "data" in event]


def test_a_job_has_a_rate_with_a_number(place: Place) -> None:
    """A lossless stream has nothing that could be fitted."""
    with served(place) as client:
        refused = client.post("/adapt?rate=lossless", content=png())
        assert (refused.status_code, problem(refused)) == (422, "bad-parameter")
        assert [wrong["parameter"] for wrong in refused.json()["invalid"]] == ["rate"]


def test_a_picture_is_posted_watched_and_fetched(place: Place) -> None:
    with served(place) as client:
        posted = client.post("/adapt?rate=4&effort=2", content=png())
        assert posted.status_code == 202 and posted.headers["retry-after"] == "1"
        job = posted.json()
        path = posted.headers["location"]
        assert path == f"/jobs/{job['id']}" == job["links"]["self"]
        assert (job["status"], job["rate"], job["effort"], job["priority"]) == ("queued", 4, 2, 5)
        assert (job["width"], job["height"], job["step"], job["bpp"]) == (20, 12, None, None)
        for part in ("stream", "result"):
            early = client.get(f"{path}/{part}")
            assert (early.status_code, problem(early)) == (409, "job-unfinished")
            assert early.headers["retry-after"] == "1"
        place.worker()
        all_events = events(client, f"{path}/events")
        steps = [e["data"]["step"] for e in all_events if e["data"]["step"] is not None]
        assert steps == sorted(steps) and steps[-1] == 40
        assert [event.get("event") for event in all_events] == [None] * (len(all_events) - 1) + [
            "end"
        ]
        last = all_events[-1]["data"]
        assert last == client.get(path).json()
        assert (last["status"], last["phase"], last["total"]) == ("succeeded", "done", 40)
        assert last["bytes"] < last["first_bytes"] and last["bpp"] < last["first_bpp"]
        assert last["psnr_db"] > last["first_psnr_db"] == 30
        result = client.get(last["links"]["result"])
        assert result.content == expected_result(picture(png()), 4.0, 2)
        assert result.headers["content-type"] == "application/vnd.rankpress"
        assert result.headers["x-rankpress-step"] == "40"
        assert client.get(last["links"]["stream"]).content == result.content
        ended = client.delete(path)
        assert (ended.status_code, problem(ended)) == (409, "job-ended")


def test_latents_are_fitted_at_a_quality_and_survive_a_killed_worker(place: Place) -> None:
    with served(place) as client:
        posted = client.post("/adapt?method=latent&quality=2.5&effort=1", content=png())
        assert posted.status_code == 202, posted.text
        job, path = posted.json(), posted.headers["location"]
        values = [job[name] for name in ("method", "rate", "quality", "autoencoder")]
        assert values == ["latent", None, 2.5, "kl"]
        again = "/adapt?method=latent&quality=2.5&autoencoder=kl&effort=1"
        assert client.post(again, content=png()).json()["id"] == job["id"]
        first = place.worker(hasty=True, poison="kill")
        until(lambda: "poison" in "".join(place.log()))
        first.end()
        place.worker(hasty=True)
        place.wait(job["id"], lambda job: job.state == "succeeded")
        result = client.get(f"{path}/result")
        assert result.content == expected_result(picture(png()), 2.5, 1, autoencoder="kl")
        assert result.headers["x-rankpress-rate"] == "2.5"
        other = client.post("/adapt?rate=2&effort=1", content=png()).json()
        values = [other[name] for name in ("method", "rate", "quality", "autoencoder")]
        assert values == ["model", 2, None, None]
        listed = client.get("/models").json()["autoencoders"]
        assert [one["name"] for one in listed] == ["kl", "own"]


def test_what_belongs_to_another_method_is_refused(place: Place) -> None:
    bad, unavailable = "bad-parameter", "model-unavailable"
    cases = {
        "method=latent": (bad, "method latent needs quality, 1 to 8"),
        "method=latent&quality=2&rate=3": (bad, "rate would have no effect"),
        "method=latent&quality=9": (bad, ""),
        "quality=2": (bad, "quality would have no effect with method model"),
        "autoencoder=kl": (bad, "autoencoder would have no effect"),
        "method=latent&quality=2&autoencoder=x": (unavailable, "expected one of kl, own"),
    }
    with served(place) as client:
        for query, (kind, detail) in cases.items():
            refused = client.post(f"/adapt?{query}", content=png())
            assert (refused.status_code, problem(refused)) == (422, kind), query
            assert detail in refused.json()["detail"]


def test_a_frame_is_a_job_of_its_own_and_larger_streams_are_told(place: Place) -> None:
    gif = io.BytesIO()
    frames = [Image.new("RGB", (20, 12), colour) for colour in ("red", "blue")]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    with served(place) as client:
        refused = client.post("/adapt", content=gif.getvalue())
        assert (refused.status_code, problem(refused)) == (415, "bad-image")
        late = client.post("/adapt?frame=2", content=gif.getvalue())
        assert (late.status_code, problem(late)) == (422, "bad-parameter")
        jobs = [client.post(f"/adapt?effort=1&frame={n}", content=gif.getvalue()) for n in (0, 1)]
        assert jobs[0].json()["id"] != jobs[1].json()["id"] and jobs[1].json()["frame"] == 1
        place.worker()
        done = place.wait(jobs[1].json()["id"], lambda job: job.state == "succeeded")
        blue = Picture(np.asarray(frames[1]))
        assert place.jobs.result(done.id)[1] == expected_result(blue, 4.0, 1)
        path = jobs[1].headers["location"]
        shown, result = client.get(path).json(), client.get(f"{path}/result")
        assert shown["source_bytes"] == len(gif.getvalue()) < shown["bytes"]
        assert "larger than its source" in shown["notes"][0]
        assert result.headers["x-rankpress-source-bytes"] == str(len(gif.getvalue()))
        assert "larger than its source" in result.headers["x-rankpress-notes"]


def test_a_client_that_reconnects_gets_the_job_as_it_is_now(place: Place) -> None:
    with served(place) as client:
        path = client.post("/adapt?effort=2", content=png()).headers["location"]
        place.worker()
        all_events = events(client, f"{path}/events")
        last = all_events[-1]
        for old in ("0.queued", "4.running", "x", "99999999.running", "4", "-1.running"):
            assert events(client, f"{path}/events", old) == [last]
        done = client.get(f"{path}/events", headers={"Last-Event-ID": last["id"]})
        assert (done.status_code, done.content) == (204, b"")


def test_a_job_is_cancelled_and_posted_again(place: Place) -> None:
    with served(place) as client:
        path = client.post("/adapt?effort=4&priority=1", content=png()).headers["location"]
        place.worker()
        place.wait(path[6:], lambda job: job.steps >= 2)
        best = client.get(f"{path}/stream")
        assert best.status_code == 200 and int(best.headers["x-rankpress-step"]) > 0
        cancelled = client.delete(path)
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert client.delete(path).json()["status"] == "cancelled"
        assert client.get(f"{path}/stream").status_code == 200
        refused = client.get(f"{path}/result")
        assert (refused.status_code, problem(refused)) == (409, "job-ended")
        assert events(client, f"{path}/events")[-1]["data"]["status"] == "cancelled"
        again = client.post("/adapt?effort=4", content=png())
        assert again.json()["status"] in ("queued", "running")
        assert (again.headers["location"], again.json()["priority"]) == (path, 1)


def test_the_same_post_is_the_same_job_and_runs_once(place: Place) -> None:
    with served(place) as client, ThreadPoolExecutor(6) as pool:
        posts = list(pool.map(lambda _: client.post("/adapt", content=png()), range(6)))
        assert {post.status_code for post in posts} == {202}
        (path,) = {post.headers["location"] for post in posts}
        others = [
            client.post("/adapt", content=png(1)),
            client.post("/adapt?rate=2", content=png()),
            client.post("/adapt?effort=1", content=png()),
        ]
        assert len({path, *(other.headers["location"] for other in others)}) == 4
        form = client.post("/adapt", files={"file": png()})
        assert form.headers["location"] == path
        place.worker(steps=1)
        for one in (path, *(other.headers["location"] for other in others)):
            place.wait(one[6:], lambda job: job.state == "succeeded")
        assert len([line for line in place.log() if line.endswith(" new")]) == 4
        assert client.post("/adapt", content=png()).json()["status"] == "succeeded"


def test_what_is_no_picture_is_refused_at_once(make_place: MakePlace) -> None:
    place = make_place(port=0, max_pixels=32 * 16 - 1, max_body_bytes=5000, max_waiting_bytes=5000)
    cut = png(3, 10, 10)[:-40]
    with served(place) as client:
        for body, query, status, slug in (
            (b"no image", "", 415, "bad-image"),
            (cut, "", 415, "bad-image"),
            (png(), "", 422, "too-many-pixels"),  # 20x12, sides rounded up to 16
            (bytes(5001), "", 413, "too-many-bytes"),
            (png(0, 10, 10), "?rate=3", 422, "rate-unavailable"),
            (png(0, 10, 10), "?rate=9", 422, "bad-parameter"),
            (png(0, 10, 10), "?effort=5", 422, "bad-parameter"),
            (png(0, 10, 10), "?priority=0", 422, "bad-parameter"),
            (png(0, 10, 10), "?target_bpp=1", 422, "bad-parameter"),
        ):
            answer = client.post(f"/adapt{query}", content=body)
            assert (answer.status_code, problem(answer)) == (status, slug), query
        assert place.jobs.table.recent() == []
        kept = {info.key for info in place.jobs.objects.list("jobs")}
        assert kept <= {"jobs/check/image"}, "what readiness writes, and nothing of what was posted"


def test_a_full_queue_refuses_new_jobs_only(make_place: MakePlace) -> None:
    place = make_place(port=0, max_jobs_waiting=2)
    with served(place) as client:
        first = client.post("/adapt", content=png(0))
        client.post("/adapt", content=png(1))
        full = client.post("/adapt", content=png(2))
        assert (full.status_code, problem(full)) == (503, "saturated")
        assert int(full.headers["retry-after"]) > 0
        assert client.post("/adapt", content=png(0)).json()["id"] == first.json()["id"]
        assert client.post("/compress", content=png()).status_code == 200
        client.delete(first.headers["location"])
        assert client.post("/adapt", content=png(2)).status_code == 202


@pytest.mark.parametrize("path", ["/jobs/" + "0" * 32, "/jobs/x", "/jobs/..%2fx"])
def test_an_unknown_job_is_404(place: Place, path: str) -> None:
    with served(place) as client:
        for answer in (client.get(path), client.delete(path), client.get(f"{path}/result")):
            assert answer.status_code == 404
        assert problem(client.get("/jobs/" + "0" * 32 + "/events")) == "unknown-job"
        assert problem(client.get("/jobs/" + "0" * 32 + "?x=1")) == "bad-parameter"


def test_an_expired_result_is_410(make_place: MakePlace) -> None:
    place = make_place(port=0)
    job = place.submit(effort=0)
    place.worker()
    place.wait(job.id, lambda job: job.state == "succeeded")
    place.settings = place.settings.model_copy(update={"result_ttl_s": 0.1})
    brief = place.client(result_ttl_s=0.1)
    with pytest.raises(ExpiredJob):
        place.wait(job.id, lambda _: False, jobs=brief)
    brief.close()
    path = f"/jobs/{job.id}"
    with served(place) as client:
        for part in ("", "/result", "/stream", "/events"):
            gone = client.get(path + part)
            assert (gone.status_code, problem(gone)) == (410, "expired-job")


def test_where_jobs_are_off_the_problem_says_so(make_place: MakePlace) -> None:
    place = make_place(port=0, jobs=False)
    with served(place) as client:
        for answer in (client.post("/adapt", content=png()), client.get("/jobs/" + "0" * 32)):
            assert (answer.status_code, problem(answer)) == (404, "jobs-off")
        assert client.post("/compress", content=png()).status_code == 200


def test_a_database_that_fails_leaves_compress_alone(make_place: MakePlace) -> None:
    place = make_place(port=0)
    state = place.folder / "file"
    state.write_bytes(b"")
    place.settings = place.settings.model_copy(update={"state": state / "below"})
    with served(place) as client, capture_logs() as lines:
        for answer in (client.post("/adapt", content=png()), client.get("/jobs/" + "0" * 32)):
            assert (answer.status_code, problem(answer)) == (503, "jobs-unavailable")
            assert "retry-after" in answer.headers
            assert str(state) not in answer.text, "the reason is for the log"
            number = answer.json()["instance"].rpartition(":")[2]
            errors = [(e["error"], e["id"]) for e in lines if e["event"] == "jobs-unavailable"]
            (error,) = [error for error, request in errors if request == number]
            assert str(state) in error and "RANKPRESS_STATE" in error
        assert client.post("/compress", content=png()).status_code == 200
        assert "rankpress_jobs_queued NaN" in client.get("/metrics").text


def readiness(client: httpx.Client) -> str:
    """The state of jobs in the answer of /readyz, which always says that the server is ready."""
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    return str(answer.json()["jobs"])


def metric(client: httpx.Client, name: str) -> float:
    (line,) = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")
    ]
    return float(line.partition(" ")[2])


def test_an_outage_of_what_jobs_are_stored_in_is_told_and_makes_no_server_unready(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_monitoring, "CHECK_INTERVAL_S", 0.1)
    with served(place) as client:
        until(lambda: readiness(client) == "available")
        assert metric(client, "rankpress_jobs_storage_available") == 1
        assert metric(client, "rankpress_jobs_storage_outage_seconds") == 0
        with objects_away(place):
            until(lambda: readiness(client) == "objects-unavailable")
            assert metric(client, "rankpress_jobs_storage_available") == 0
            assert metric(client, "rankpress_jobs_storage_outage_seconds") > 0
            refused = client.post("/adapt", content=png(1))
            assert (refused.status_code, problem(refused)) == (503, "objects-unavailable")
            assert client.post("/compress", content=png()).status_code == 200
        until(lambda: readiness(client) == "available")
        file = place.settings.state_folder / "jobs.sqlite"
        file.rename(file.with_suffix(".away"))
        until(lambda: readiness(client) == "database-unavailable")
        file.with_suffix(".away").rename(file)
        until(lambda: readiness(client) == "available")


def test_a_job_that_waits_for_storage_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_monitoring, "CHECK_INTERVAL_S", 0.1)
    """A worker may need more than this server checks, such as room for a large checkpoint."""
    job = place.submit(effort=4)
    worker = place.worker()
    place.wait(job.id, lambda job: job.steps >= 1)
    worker.end()  # a job's row says that it runs until another worker takes it up
    place.jobs.table.record_waiting(job.id)
    with served(place) as client:
        until(lambda: readiness(client) == "waiting")
        assert metric(client, "rankpress_jobs_waiting_for_storage") == 1
        assert metric(client, "rankpress_jobs_storage_available") == 0


def test_where_jobs_are_off_readiness_says_so(make_place: MakePlace) -> None:
    with served(make_place(port=0, jobs=False)) as client:
        assert readiness(client) == "off"
        assert math.isnan(metric(client, "rankpress_jobs_storage_available"))


def test_a_slow_database_holds_up_nobody_else(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = threading.Event(), threading.Event()

    def slow(_jobs: object, _job_id: str) -> None:
        asked.set()
        go.wait(60)

    monkeypatch.setattr(job_table.JobTable, "get", slow)
    with served(place) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, "/jobs/" + "0" * 32)
        assert asked.wait(60)
        assert client.get("/livez").status_code == 200
        assert client.post("/compress", content=png()).status_code == 200
        assert not waiting.done()
        go.set()
        wait([waiting])


def test_metrics_count_jobs_and_time_their_steps(place: Place) -> None:
    with served(place) as client:
        path = client.post("/adapt?effort=1", content=png()).headers["location"]
        client.post("/adapt?effort=1", content=png(1))
        page = client.get("/metrics").text
        assert "rankpress_jobs_queued 2.0" in page and "rankpress_jobs_running 0.0" in page
        first = place.jobs.table.get(path[6:])
        age = time.time() - first.created_s
        assert metric(client, "rankpress_jobs_oldest_seconds") >= age
        assert metric(client, 'rankpress_job_workers{state="idle"}') == 0
        client.delete(path)
        assert metric(client, "rankpress_jobs_oldest_seconds") <= time.time() - first.created_s
        place.worker()
        place.wait(path[6:], lambda job: job.state == "cancelled")
        (other,) = place.jobs.table.active()
        done = place.wait(other.id, lambda job: job.state == "succeeded")
        for _ in range(2):  # nothing is counted twice
            page = client.get("/metrics").text
            assert "rankpress_jobs_queued 0.0" in page
            assert 'rankpress_jobs_ended_total{state="succeeded"} 1.0' in page
            assert 'rankpress_jobs_ended_total{state="cancelled"} 1.0' in page
            assert f"rankpress_job_step_seconds_count {done.steps:.1f}" in page
            assert "rankpress_jobs_oldest_seconds 0.0" in page
            assert 'rankpress_job_workers{state="busy"} 0.0' in page
            assert 'rankpress_job_workers{state="idle"} 1.0' in page


@pytest.mark.parametrize(("last_id", "statuses"), [(None, ["queued"]), ("0.queued", [])])
def test_event_streams_end_when_the_server_does_and_repeat_nothing(
    place: Place, last_id: str | None, statuses: list[str]
) -> None:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with ExitStack() as running, httpx.Client(timeout=60) as watcher:
        client = running.enter_context(served(place))
        path = client.post("/adapt", content=png()).headers["location"]
        url = f"{client.base_url}{path}/events"
        with watcher.stream("GET", url, headers=headers) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            first = [next(line for line in lines if line.startswith("data: "))] if statuses else []
            running.close()
            data = first + [line for line in lines if line.startswith("data: ")]
    assert [json.loads(line.removeprefix("data: "))["status"] for line in data] == statuses


def test_every_job_endpoint_is_in_openapi(place: Place) -> None:
    with served(place) as client:
        paths = client.get("/openapi.json").json()["paths"]
    ours = [path for path in paths if path == "/adapt" or path.startswith("/jobs")]
    endpoints = {(path, method) for path in ours for method in paths[path]}
    job = "/jobs/{job_id}"
    assert endpoints == {
        ("/adapt", "post"),
        (job, "get"),
        (job, "delete"),
        (f"{job}/events", "get"),
        (f"{job}/stream", "get"),
        (f"{job}/result", "get"),
    }
    posted = paths["/adapt"]["post"]["responses"]
    assert {"202", "404", "413", "415", "422", "503"} <= posted.keys()
    assert {"404", "409", "410"} <= paths[f"{job}/result"]["get"]["responses"].keys()


def test_event_streams_are_limited_while_they_are_open(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_routes, "MAX_WATCHERS", 2)
    with served(place) as client, ExitStack() as streams:
        path = client.post("/adapt?effort=1", content=png()).headers["location"] + "/events"
        opened = [streams.enter_context(client.stream("GET", path)) for _ in range(2)]
        pieces = [answer.iter_raw() for answer in opened]  # closes its answer when it is dropped
        assert all(next(piece).startswith(b"retry:") for piece in pieces)
        refused = client.get(path, timeout=5)
        assert (refused.status_code, problem(refused)) == (503, "saturated")
        assert int(refused.headers["retry-after"]) > 0
        streams.close()
        until(lambda: client.service.job_client.watchers == 0)
        with client.stream("GET", path) as again:
            assert again.status_code == 200


def test_links_of_jobs_have_the_prefix_of_the_proxy(make_place: MakePlace) -> None:
    place = make_place(port=0, drain_s=2.0, root_path="/pictures")
    with served(place) as client:
        posted = client.post("/adapt?effort=1", content=png())
        job = posted.json()
        assert posted.headers["location"] == f"/pictures/jobs/{job['id']}" == job["links"]["self"]
        place.worker()
        place.wait(job["id"], lambda job: job.state == "succeeded")
        (*_, last) = events(client, f"/jobs/{job['id']}/events")
        assert last["data"]["links"]["result"] == f"/pictures/jobs/{job['id']}/result"


def test_files_of_jobs_that_hang_leave_looks_at_jobs_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that does not answer delays what needs it, but no status, event or metric."""
    inside, goes_on = threading.Semaphore(0), threading.Event()

    def hang(*_: object) -> bytes:
        inside.release()
        goes_on.wait(60)
        raise ObjectsUnavailable("it hangs")

    with served(place) as client, ThreadPoolExecutor(2 * job_client.THREADS) as others:
        path = client.post("/adapt?effort=1", content=png()).headers["location"]
        place.worker()
        place.wait(path.rpartition("/")[2], lambda job: job.state == "succeeded")
        for name in ("get", "put_named"):
            monkeypatch.setattr(Objects, name, hang)
        try:
            asked = [others.submit(client.post, "/adapt", content=png(1))]
            parts = ("result", "stream") * job_client.THREADS
            asked += [others.submit(client.get, f"{path}/{part}") for part in parts]
            for _ in range(job_client.THREADS):
                assert inside.acquire(timeout=30)
            assert client.get(path, timeout=20).json()["status"] == "succeeded"
            assert events(client, f"{path}/events")[-1]["event"] == "end"
            assert "rankpress_jobs_running 0.0" in client.get("/metrics").text
            assert not any(answer.done() for answer in asked)
        finally:
            goes_on.set()
        for answer in asked:
            assert (answer.result().status_code, problem(answer.result())) == (
                503, "objects-unavailable",
            )  # fmt: skip
