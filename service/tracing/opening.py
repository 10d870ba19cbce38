"""Whether there are traces: OpenTelemetry's standard OTEL_* variables ask for them.

Everything is set by those variables, which the SDK reads: where spans are sent, how many are
sampled, what the service is called. Without them, and where the packages are not installed, its SDK
is not imported.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.tracing.spans import Tracing

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTERS: Final = "OTEL_TRACES_EXPORTER"
OTLP: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Names of the packages' exporters by protocol."""

QUIET_S: Final = 60.0
"""Seconds in which an exporter that cannot send spans writes at most one line."""

log = structlog.get_logger("rankpress.tracing")


def open_tracing(service_name: str) -> Tracing | None:
    """Tracing as the environment asks for it; None if it does not, or if it cannot be had.

    The variables are often set for all programs of a machine or a cluster, so traces that cannot be
    sent are a warning and stop no service.

    Args:
        service_name: of the spans, where neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES
            has one.
    """
    variable = _asking_variable(os.environ)
    if variable is None:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from service.tracing.spans import Tracing

        exporters = [_exporter(name) for name in _exporter_names(os.environ)]
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed (pip install 'rankpress[telemetry]')"
        log.warning("no traces", asked_by=variable, reason=reason)
        return None
    except Exception as error:  # whatever an exporter's own package says of its variables
        log.warning("no traces", asked_by=variable, reason=str(error))
        return None
    resource = Resource.create({SERVICE_VERSION: version("rankpress")})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service_name}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        logging.getLogger(type(exporter).__module__).addFilter(RareFilter())
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


class RareFilter(logging.Filter):
    """Lets through one line of an exporter in `QUIET_S`: it writes one for each try."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a line soon after another one."""
        is_due = record.created >= self._next_s
        if is_due:
            self._next_s = record.created + QUIET_S
        return is_due


def _asking_variable(environment: Mapping[str, str]) -> str | None:
    """The name of the variable that asks for traces, None if none does."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = environment.get(EXPORTERS, "").strip()
    if exporters:
        return None if exporters.lower() == "none" else EXPORTERS
    return next((name for name in ENDPOINTS if environment.get(name, "").strip()), None)


def _exporter_names(environment: Mapping[str, str]) -> list[str]:
    """Names of the exporters as their packages register them."""
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "")
    otlp = OTLP.get(protocol.strip() or "http/protobuf")
    if otlp is None:
        raise ValueError(f"the OTLP protocol is {protocol[:40]!r}, expected {' or '.join(OTLP)}")
    names = environment.get(EXPORTERS, "").strip() or "otlp"
    return [otlp if name.strip() == "otlp" else name.strip() for name in names.split(",")]


def _exporter(name: str) -> SpanExporter:
    """The exporter of that name, made as the environment says."""
    registered = entry_points(group="opentelemetry_traces_exporter", name=name)
    for entry in registered:
        exporter: SpanExporter = entry.load()()
        return exporter
    if name in OTLP.values():
        package = f"opentelemetry-exporter-{name.replace('_', '-')}"
        raise ModuleNotFoundError(name=package)
    raise ValueError(f"{EXPORTERS} names {name[:40]!r}, expected otlp, console or none")
