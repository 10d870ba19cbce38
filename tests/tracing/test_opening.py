"""Which variables ask for traces, and what is said where they cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from service.tracing.opening import open_tracing

from .receiver import receiving

TRACES = "OTEL_TRACES_EXPORTER"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def no_variables_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {TRACES: "none", ENDPOINT: "http://localhost:1"},
        {TRACES: "otlp", "OTEL_SDK_DISABLED": "True"},
        {TRACES: "", ENDPOINT: " "},
    ],
)
def test_without_a_variable_that_asks_there_are_no_traces_and_no_words(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        assert open_tracing("rankpress") is None
    assert lines == []


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "rankpress"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,zone=a"}, "theirs"),
    ],
)
@pytest.mark.parametrize("asks", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_what_was_not_sent_yet_is_sent_when_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str, asks: str
) -> None:
    with receiving() as receiver:
        address = receiver.url if asks == ENDPOINT else f"{receiver.url}/v1/traces"
        for key, value in (variables | {asks: address}).items():
            monkeypatch.setenv(key, value)
        tracing = open_tracing("rankpress")
        assert tracing is not None
        scope = {"method": "BREW", "scheme": "http", "headers": []}
        tracing.begin_request(scope).end("/pot", 200, "", {})
        tracing.close()
    (span,) = receiver.spans
    assert (span.name, span.service, span.failed) == ("HTTP /pot", name, False)
    assert span.attributes["http.request.method"] == "_OTHER"


def test_a_receiver_that_is_away_loses_spans_and_writes_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as receiver:
        url = receiver.url
    monkeypatch.setenv(ENDPOINT, url)
    monkeypatch.setattr("service.tracing.spans.CLOSE_S", 0.5)
    tracing = open_tracing("rankpress")
    assert tracing is not None
    scope = {"method": "GET", "scheme": "http", "headers": []}
    for _ in range(600):  # more than one batch
        tracing.begin_request(scope).end("/pot", 200, "", {})
    tracing.close()
    (line,) = (record for record in caplog.records if record.name.startswith("opentelemetry.exp"))
    assert "Connection refused" in line.getMessage()


@pytest.mark.parametrize(
    ("variables", "missing", "words"),
    [
        ({TRACES: "zipkin"}, None, "names 'zipkin', expected otlp, console or none"),
        ({TRACES: "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, None, "expected http/proto"),
        (
            {TRACES: "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            None,
            "opentelemetry-exporter-otlp-proto-grpc is not installed",
        ),
        (
            {ENDPOINT: "http://localhost:1"},
            "opentelemetry.sdk.resources",
            "opentelemetry.sdk.resources is not installed (pip install 'rankpress[telemetry]')",
        ),
    ],
)
def test_traces_that_cannot_be_had_are_one_warning_and_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], missing: str | None, words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with capture_logs() as lines:
        assert open_tracing("rankpress") is None
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("no traces", "warning")
    assert line["asked_by"] == next(iter(variables))
    assert words in line["reason"]


def test_a_server_without_traces_imports_neither_sdk_nor_exporter() -> None:
    """FastAPI imports the API by itself."""
    code = (
        "import sys, service.server.run, service.jobs.worker\n"
        "from service.tracing.opening import open_tracing\n"
        "assert open_tracing('rankpress') is None\n"
        "print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.ex'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
