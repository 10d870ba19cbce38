"""The trace of a request goes with the job that it posts, to the worker that works on it."""

from __future__ import annotations

import json
import signal

import pytest
from api.fake_codec import FakeCodec
from jobs.conftest import MakePlace, _numbers, make_place  # noqa: F401  (fixtures)
from jobs.machines import png
from jobs.test_http import served

from service.tracing.opening import open_tracing

from .receiver import receiving

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "tracestate": "vendor=1"}


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_a_job_continues_the_trace_of_its_post_also_after_its_worker_was_killed(
    make_place: MakePlace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = make_place(port=0, drain_s=2.0)
    untraced = place.spec(png(1))
    with receiving() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        place.variables = variables
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        tracing = open_tracing("rankpress")
        assert tracing is not None
        with served(place, FakeCodec(), tracing) as client:
            posted = client.post("/adapt?effort=1", content=png(), headers=HEADERS)
        tracing.close()
        job_id = posted.json()["id"]
        assert place.jobs.table.get(job_id).trace is not None
        place.jobs.submit(png(1), untraced, 9)
        worker = place.worker(step_s=0.05)
        place.wait(job_id, lambda job: job.steps >= 2)
        worker.end()
        worker = place.worker()
        done = place.wait(job_id, lambda job: job.state == "succeeded")
        place.wait(untraced.id, lambda job: job.state == "succeeded")
        worker.end(signal.SIGTERM)
    (server,) = (span for span in receiver.spans if span.name == "POST /adapt")
    assert server.trace == TRACE and server.service == "rankpress"
    spans = [span for span in receiver.spans if span.service == "rankpress-worker"]
    assert {span.name for span in spans} == {"job begin", "job step", "job end"}
    assert {(span.trace, span.parent) for span in spans} == {(TRACE, server.id)}
    assert {span.attributes["rankpress.job"] for span in spans} == {job_id}
    assert sum(span.name == "job begin" for span in spans) == 2
    steps = [span.attributes["rankpress.step"] for span in spans if span.name == "job step"]
    assert len(steps) == len(set(steps)) and max(steps) == done.steps
    assert done.record is not None
    (end,) = (span for span in spans if span.name == "job end")
    assert end.attributes["rankpress.bytes"] == done.record.progress.bytes and not end.failed
    lines = [json.loads(line) for line in place.errors().splitlines()]
    (ended,) = (line for line in lines if line["event"] == "job done" and line["job"] == job_id)
    assert ended["trace_id"] == TRACE
