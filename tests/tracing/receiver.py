"""A receiver of spans by OTLP over HTTP, which decodes what it is sent.

Run alone, it writes each span as a line, for trying a server by hand:

    python tests/tracing/receiver.py 4318
    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 rankpress serve
"""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span; its ids in hex, "" for no parent."""

    name: str
    trace: str
    id: str
    parent: str
    seconds: float
    failed: bool
    service: str
    attributes: dict[str, Any]


def spans_of(body: bytes) -> Iterator[ReceivedSpan]:
    """The spans of one request."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = values_of(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    service,
                    values_of(span.attributes),
                )


def values_of(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


class Receiver(ThreadingHTTPServer):
    """Attributes:
    spans: all that came. url: for OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    daemon_threads = True

    def __init__(self, port: int = 0, shows: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.spans: list[ReceivedSpan] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.shows = shows


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # noqa: N802  (the name that the library calls)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        spans = list(spans_of(body))
        self.server.spans += spans
        for span in spans if self.server.shows else ():
            print(span, flush=True)  # noqa: T201
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing for each request."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port."""
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


if __name__ == "__main__":
    Receiver(int(sys.argv[1]), shows=True).serve_forever()
