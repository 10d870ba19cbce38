"""What Prometheus sees. One registry per app, so that two apps in a process do not mix."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from service.engine.admission import Admission
from service.engine.types import Timings
from service.http.holds import Spool
from service.http.record import Record

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGES = ("queue", "swap", "net", "code", "check", "file")


class Metrics:
    """Counters and histograms of one app.

    Args:
        admission, spool: read when Prometheus asks, for the gauges.
    """

    def __init__(self, admission: Admission, spool: Spool) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._count_requests()
        self._gauge(admission, spool)
        self._stages = {stage: self._histogram(stage) for stage in STAGES}

    def _count_requests(self) -> None:
        self._requests = Counter(
            "rankpress_requests",
            "Requests answered (499: the client left first).",
            ("route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "rankpress_request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._bytes_in = Counter(
            "rankpress_bytes_in", "Bytes of request bodies.", ("route",), registry=self.registry
        )
        self._bytes_out = Counter(
            "rankpress_bytes_out", "Bytes of answers' bodies.", ("route",), registry=self.registry
        )
        self._rejected = Counter(
            "rankpress_rejected",
            "Requests answered with a problem, by the end of its type.",
            ("problem",),
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "rankpress_in_flight", "Requests being answered.", registry=self.registry
        )

    def _gauge(self, admission: Admission, spool: Spool) -> None:
        gauges = (
            ("queue_depth", "Requests waiting for a worker.", lambda: admission.waiting),
            ("running", "Requests in a worker thread.", lambda: admission.running),
            ("held_bytes", "Bytes of bodies and answers held.", lambda: admission.held_bytes),
            ("spooled_bytes", "Bytes of incomplete bodies on disk.", lambda: spool.limit.total),
        )
        for name, text, read in gauges:
            Gauge(f"rankpress_{name}", text, registry=self.registry).set_function(read)

    def _histogram(self, stage: str) -> Histogram:
        meanings = {
            "queue": "waiting for a worker",
            "swap": "making a rate's weights live",
            "net": "in the networks",
            "code": "turning symbols to bits and back",
            "check": "decoding fresh streams again",
            "file": "reading and writing image files",
        }
        return Histogram(
            f"rankpress_{stage}_seconds",
            f"Seconds of a request spent {meanings[stage]}.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )

    def begin_request(self) -> None:
        """Count a request that begins."""
        self._in_flight.inc()

    def end_request(
        self, route: str, status: int, seconds: float, bytes_in: int, bytes_out: int, record: Record
    ) -> None:
        """Count a request that has been answered or abandoned."""
        self._in_flight.dec()
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes_in.labels(route).inc(bytes_in)
        self._bytes_out.labels(route).inc(bytes_out)
        if record.problem is not None:
            self._rejected.labels(record.problem).inc()

    def observe_work(self, queue_s: float, timings: Timings, file_s: float) -> None:
        """Record where one finished piece of work spent its time."""
        seconds = {
            "queue": queue_s,
            "swap": timings.swap_s,
            "net": timings.net_s,
            "code": timings.code_s,
            "check": timings.check_s,
            "file": file_s,
        }
        for stage, value in seconds.items():
            self._stages[stage].observe(value)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
