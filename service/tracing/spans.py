"""Spans of requests and jobs for OpenTelemetry.

A request is one span, by the semantic conventions for HTTP, with two below it: its time in the
queue and its work. The paths of requests are in no span, since they name pictures; routes are. The
spans that FastAPI can make by itself have paths, and end before all is known of a request.

The context of the request that posted a job goes with the job's row. The spans of the job are below
that request's, in whatever process and whenever they are made.

Spans are sent in the background. Those that cannot be sent are dropped, and nothing waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CLOSE_S: Final = 5.0
"""Seconds that the last spans may take to be sent when the process ends."""

METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)
MAX_STATE_CHARS: Final = 512
"""Longest `tracestate` that is kept with a job; W3C asks that at least so many are passed on."""

Attributes = Mapping[str, str | int | float]


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, provider: TracerProvider) -> None:
        """Make spans with a provider that says where they go. `close` closes it too."""
        self._provider = provider
        self._tracer = provider.get_tracer("rankpress", version("rankpress"))

    def begin_request(self, scope: Mapping[str, Any]) -> RequestTrace:
        """The span of a request that begins, in the trace that its headers continue, if any.

        Args:
            scope: of ASGI.
        """
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        span = self._tracer.start_span(
            _name_of(method),
            propagate.extract(_carrier_of(scope["headers"])),
            SpanKind.SERVER,
            {"http.request.method": method, "url.scheme": scope["scheme"]},
        )
        return RequestTrace(self._tracer, span, method)

    def continue_job(self, job_id: str, carrier: Mapping[str, str] | None) -> JobTrace | None:
        """The trace of a job, below the request whose `RequestTrace.carrier` came with it.

        None without a carrier that is valid.
        """
        context = TraceContextTextMapPropagator().extract(carrier or {})
        if carrier is None or not get_current_span(context).get_span_context().is_valid:
            return None
        return JobTrace(self._tracer, context, job_id, carrier)

    def close(self) -> None:
        """Send what has not been sent yet, for at most `CLOSE_S` seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class RequestTrace:
    """The span of one request.

    Attributes:
        id: of the trace, 32 hex digits, for the log.
    """

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer, self._span, self._method = tracer, span, method
        self.id = format_trace_id(span.get_span_context().trace_id)

    @property
    def carrier(self) -> dict[str, str]:
        """The context of the request as W3C's headers, for a job that it posts."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        if len(carrier.get("tracestate", "")) > MAX_STATE_CHARS:
            del carrier["tracestate"]
        return carrier

    @property
    def _context(self) -> Context:
        return set_span_in_context(self._span)

    def add_work(self, queued_ns: int, queue_s: float, attributes: Attributes) -> None:
        """Add the spans of work that has just ended: its time in the queue, and in a worker.

        Args:
            queued_ns: Unix time in nanoseconds when it was queued. queue_s: seconds that it waited.
            attributes: of the work.
        """
        if not self._span.is_recording():
            return
        begun_ns = queued_ns + round(queue_s * 1e9)
        queue = self._tracer.start_span("queue", self._context, start_time=queued_ns)
        queue.end(begun_ns)
        work = self._tracer.start_span(
            "work", self._context, attributes=attributes, start_time=begun_ns
        )
        work.end(max(begun_ns, time.time_ns()))

    def end(self, route: str | None, status: int | None, problem: str, more: Attributes) -> None:
        """End the span.

        Args:
            route: the path as declared, None if it is not declared.
            status: of the answer, None if none was sent.
            problem: what went wrong, "" for nothing. more: further attributes.
        """
        span = self._span
        if span.is_recording():
            if route is not None:
                span.update_name(f"{_name_of(self._method)} {route}")
                span.set_attribute("http.route", route)
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            if status is None or status >= 500:
                _mark_failed(span, problem or str(status))
            span.set_attributes(more)
        span.end()


class JobTrace:
    """The trace of a job.

    Attributes:
        id: of the trace, 32 hex digits, for the log.
        carrier: the context of the request that posted the job, see `RequestTrace.carrier`.
    """

    def __init__(
        self, tracer: Tracer, context: Context, job_id: str, carrier: Mapping[str, str]
    ) -> None:
        self._tracer, self._context, self._job_id = tracer, context, job_id
        self.carrier = carrier
        self.id = format_trace_id(get_current_span(context).get_span_context().trace_id)

    def add(self, name: str, begun_ns: int, attributes: Attributes, error_type: str = "") -> None:
        """Add the span of a part of the job that has just ended.

        Args:
            begun_ns: Unix time in nanoseconds. error_type: what it failed with, "" for nothing.
        """
        values = {"rankpress.job": self._job_id, **attributes}
        span = self._tracer.start_span(
            name, self._context, SpanKind.CONSUMER, values, start_time=begun_ns
        )
        if error_type:
            _mark_failed(span, error_type)
        span.end()


def _name_of(method: str) -> str:
    """How the name of a span begins: the method, where it is one of HTTP."""
    return "HTTP" if method == "_OTHER" else method


def _carrier_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Those of ASGI's headers that may carry a trace."""
    names = propagate.get_global_textmap().fields
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        text = name.decode("latin-1").lower()
        if text in names:
            carrier.setdefault(text, []).append(value.decode("latin-1"))
    return carrier


def _mark_failed(span: Span, error_type: str) -> None:
    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", error_type)
