"""Metrics for Prometheus, in a registry per app, so that two apps in a process do not mix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.engine.admission import Admission
from service.engine.target import LOSSLESS, rate_text
from service.engine.types import Compressed, Timings
from service.http.exchange import Exchange
from service.http.problems import KINDS
from service.http.spool import Spool

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

SHARE_BUCKETS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1)

STAGES: Final = {
    "queue": "waiting for a worker",
    "swap": "making a rate's weights live",
    "net": "in the networks",
    "code": "turning symbols to bits and back",
    "graphics": "searching for graphics layers",
    "check": "decoding fresh streams again",
    "file": "reading and writing image files",
}
"""Where a request spends its time, by the name of the metric."""


class Metrics:
    """Counters and histograms of one app.

    Args:
        admission: read for the gauges when Prometheus asks.
        spool: read for the gauges when Prometheus asks.
    """

    def __init__(self, admission: Admission, spool: Spool) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(
            "requests", "Requests answered (499: the client left first).", "route", "status"
        )
        self._bytes_in = self._counter("bytes_in", "Bytes of request bodies.", "route")
        self._bytes_out = self._counter("bytes_out", "Bytes of answers' bodies.", "route")
        self._rejected = self._counter(
            "rejected", "Requests answered with a problem, by the end of its type.", "problem"
        )
        for kind in KINDS:  # from 0 on, so that the first one is an increase
            self._rejected.labels(kind.slug)
        self._streams = self._counter("streams", "New streams, by the nearest rate.", "rate")
        self._source_bytes = self._counter(
            "source_bytes", "Bytes of the image files of new streams.", "rate"
        )
        self._stream_bytes = self._counter("stream_bytes", "Bytes of new streams.", "rate")
        self._graphics_share = Histogram(
            "rankpress_graphics_share",
            "Share of a new stream's blocks that the graphics layer holds.",
            buckets=SHARE_BUCKETS,
            registry=self.registry,
        )
        self._seconds = self._histogram(
            "request", "Seconds from the headers of a request to the end of its answer.", "route"
        )
        self._stages = {
            stage: self._histogram(stage, f"Seconds of a request spent {text}.")
            for stage, text in STAGES.items()
        }
        self._in_flight = self._gauge("in_flight", "Requests being answered.")
        for name, text, read in (
            ("queue_depth", "Requests waiting for a worker.", lambda: admission.waiting),
            ("running", "Requests in a worker thread.", lambda: admission.running),
            ("held_bytes", "Bytes of bodies and answers held.", lambda: admission.held_bytes),
            ("spooled_bytes", "Bytes of incomplete bodies on disk.", lambda: spool.limit.total),
        ):
            self._gauge(name, text).set_function(read)
        self.registry.register(_WorkerCollector(admission))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rankpress_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"rankpress_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"rankpress_{name}_seconds",
            text,
            labels,
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )

    def begin_request(self) -> None:
        """Count a request that begins."""
        self._in_flight.inc()

    def end_request(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that has been answered or abandoned after so many seconds."""
        route = exchange.route
        self._in_flight.dec()
        self._requests.labels(route, str(exchange.status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes_in.labels(route).inc(exchange.bytes_in)
        self._bytes_out.labels(route).inc(exchange.bytes_out)
        if exchange.context.problem is not None:
            self._rejected.labels(exchange.context.problem).inc()

    def observe_work(self, queue_s: float, timings: Timings, file_s: float) -> None:
        """Record where one finished piece of work spent its time."""
        stages = {"check": timings.check_s, "file": file_s}
        for stage, seconds in (stage_seconds(queue_s, timings) | stages).items():
            self._stages[stage].observe(seconds)

    def count_stream(self, compressed: Compressed, source_bytes: int) -> None:
        """Count a new stream of an image file of so many bytes."""
        exact = compressed.rate == LOSSLESS
        rate = rate_text(LOSSLESS if exact else round(compressed.rate))
        self._streams.labels(rate).inc()
        self._source_bytes.labels(rate).inc(source_bytes)
        self._stream_bytes.labels(rate).inc(len(compressed.data))
        self._graphics_share.observe(compressed.graphics_share)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _WorkerCollector(Collector):
    """What the pools of worker threads have done, read when Prometheus asks."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterable[Metric]:
        """The metrics by pool."""
        label = ("pool",)
        workers = GaugeMetricFamily("rankpress_workers", "Worker threads.", labels=label)
        busy = CounterMetricFamily(
            "rankpress_worker_busy_seconds", "Seconds that worker threads worked.", labels=label
        )
        calls = CounterMetricFamily(
            "rankpress_batches", "Units of work of worker threads.", labels=label
        )
        requests = CounterMetricFamily(
            "rankpress_batched_requests", "Requests in these units.", labels=label
        )
        for usage in self._admission.usage:
            workers.add_metric([usage.pool], usage.workers)
            busy.add_metric([usage.pool], usage.busy_s)
            calls.add_metric([usage.pool], usage.calls)
            requests.add_metric([usage.pool], usage.requests)
        return workers, busy, calls, requests


def stage_seconds(queue_s: float, timings: Timings) -> dict[str, float]:
    """Seconds of the stages that all work has, by their names in `STAGES`."""
    return {
        "queue": queue_s,
        "swap": timings.swap_s,
        "net": timings.net_s,
        "code": timings.code_s,
        "graphics": timings.graphics_s,
    }
