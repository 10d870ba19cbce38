"""The spans of requests, as OpenTelemetry's own exporter in memory has them."""

from __future__ import annotations

import pytest
from api.client import PNG, ready, running
from api.fake_codec import TIMINGS, FakeCodec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from service.tracing.spans import Tracing

pytestmark = pytest.mark.anyio

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_request_is_one_server_span_with_its_queue_and_its_work_below(
    exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    async with running(FakeCodec(), tracing) as client:
        await ready(client)
        answer = await client.post("/compress?rate=2", content=PNG)
    spans = by_name(exporter)
    assert set(spans) == {"POST /compress", "queue", "work"}
    server, queue, work = spans["POST /compress"], spans["queue"], spans["work"]
    assert server.kind is SpanKind.SERVER and server.parent is None
    expected = {
        "http.request.method": "POST",
        "http.route": "/compress",
        "http.response.status_code": 200,
        "http.request.body.size": len(PNG),
        "http.response.body.size": len(answer.content),
        "url.scheme": "http",
        "rankpress.rate": "2",
        "rankpress.request_id": answer.headers["x-request-id"],
    }
    assert expected.items() <= dict(server.attributes or {}).items()
    assert not any("path" in name or "query" in name for name in server.attributes or {})
    assert server.status.status_code is StatusCode.UNSET
    assert queue.parent == work.parent == server.context
    times = (server.start_time, queue.start_time, queue.end_time, work.end_time, server.end_time)
    assert list(times) == sorted(times) and queue.end_time == work.start_time
    seconds = {f"rankpress.{name}": value for name, value in vars(TIMINGS).items()}
    assert dict(work.attributes or {}) == seconds


async def test_a_trace_of_the_client_is_continued_with_its_state(
    exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1,other=2"}
    async with running(FakeCodec(), tracing) as client:
        await client.get("/rates", headers=headers)
    (span,) = exporter.get_finished_spans()
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
    assert format_trace_id(span.context.trace_id) == TRACE
    assert dict(span.context.trace_state) == {"vendor": "1", "other": "2"}


@pytest.mark.parametrize(
    "values",
    [["nonsense"], [f"00-{'0' * 32}-{PARENT}-01"], [""]],
)
async def test_a_header_that_is_no_trace_begins_a_new_one(
    exporter: InMemorySpanExporter, tracing: Tracing, values: list[str]
) -> None:
    async with running(FakeCodec(), tracing) as client:
        answer = await client.get("/rates", headers=[("traceparent", v) for v in values])
    assert answer.status_code == 200
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


async def test_only_failures_of_the_server_are_errors(
    exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    codec = FakeCodec()
    async with running(codec, tracing) as client:
        await ready(client)
        await client.post("/compress", content=b"no picture")
        await client.get("/nothing")
        codec.fault = RuntimeError("a bug with a secret")
        await client.post("/compress", content=PNG)
    bad, missing, failed = exporter.get_finished_spans()
    assert bad.name == "POST /compress" and bad.status.status_code is StatusCode.UNSET
    assert (bad.attributes or {})["rankpress.problem"] == "bad-image"
    assert missing.name == "GET" and "http.route" not in (missing.attributes or {})
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "internal"
    assert "secret" not in failed.to_json()


async def test_health_checks_and_metrics_are_not_traced(
    exporter: InMemorySpanExporter, tracing: Tracing
) -> None:
    async with running(FakeCodec(), tracing) as client:
        for path in ("/livez", "/readyz", "/metrics"):
            await client.get(path)
    assert not exporter.get_finished_spans()


async def test_log_lines_of_a_request_have_the_id_of_its_trace(tracing: Tracing) -> None:
    codec = FakeCodec()
    codec.fault = RuntimeError("a bug")
    async with running(codec, tracing) as client:
        await ready(client)
        with capture_logs(processors=[merge_contextvars]) as lines:
            await client.post("/compress", content=PNG, headers={"traceparent": SAMPLED})
            await client.get("/livez")
    failure, request, health = lines
    assert failure["event"] == "unexpected error" and request["event"] == "request"
    assert failure["trace_id"] == request["trace_id"] == TRACE
    assert "trace_id" not in health


async def test_a_trace_that_its_client_does_not_sample_is_named_and_not_sent(
    exporter: InMemorySpanExporter,
) -> None:
    provider = TracerProvider(ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with running(FakeCodec(), Tracing(provider)) as client:
        await ready(client)
        with capture_logs(processors=[merge_contextvars]) as lines:
            headers = {"traceparent": SAMPLED.removesuffix("1") + "0"}
            await client.post("/compress", content=PNG, headers=headers)
    assert not exporter.get_finished_spans()
    assert [line["trace_id"] for line in lines] == [TRACE]
