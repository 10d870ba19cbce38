"""Around every request: its id, who may send it, its limits, its log line, its metrics, and 500s.

This is a plain ASGI middleware outside all exception handlers, so that it counts what was sent.
The Host and Origin of a request are checked because browsers, and only browsers, can be made to
send requests that their users did not intend. `Settings.allowed_hosts` and `Settings.check_origin`
say which attacks are stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.engine.admission import Admission, Phase
from service.engine.target import LOSSLESS, LOSSLESS_NAME, rate_text
from service.errors import ForeignOrigin, RankpressError, Saturated, UnknownHost
from service.http.clients import RETRY_S, SharedLimit, client_of
from service.http.context import RequestBytes, RequestContext, request_id
from service.http.exchange import CLIENT_LEFT, SILENCE_S, UNDECLARED, Exchange
from service.http.metrics import Metrics
from service.http.problems import on_rankpress_error
from service.http.spool import Spool
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing.spans import RequestTrace, Tracing

HEALTH_SHARE = 16
"""One of so many connections is kept for health checks when the others have requests."""

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})

FILE_ROUTES = frozenset({"/web/{path:path}", "/weights/{file}"})
"""Files that a page loads by the dozen; they are logged as health checks are."""

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that make the server do work or change something."""

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
"""Load balancers request these paths by address; the answers are no secret."""

log = structlog.get_logger("rankpress.api")


class RequestMiddleware:
    """Wraps the app; websockets and lifespan pass through."""

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        metrics: Metrics,
        settings: Settings,
        spool: Spool,
        tracing: Tracing | None = None,
    ) -> None:
        self._app, self._admission, self._metrics = app, admission, metrics
        self._settings, self._spool, self._tracing = settings, spool, tracing
        self._origins = Origins(settings)
        share, limit = settings.client_share, settings.connection_limit
        self._requests = SharedLimit("requests at a time", limit - limit // HEALTH_SHARE, share)
        self._memory = SharedLimit("memory", settings.max_waiting_bytes, share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = client_of((scope.get("client") or (None,))[0])
        request_bytes = RequestBytes(self._admission, self._memory, self._spool, client)
        client_id = Headers(scope=scope).get("x-request-id")
        context = RequestContext(request_id(client_id), request_bytes)
        exchange = Exchange(scope, receive, send, context, self._settings)
        if self._tracing is not None and exchange.path not in QUIET_ROUTES:
            context.trace = self._tracing.begin_request(scope)
        app, is_full = self._app, False
        try:
            self._check(exchange, client)
        except RankpressError as error:
            app, is_full = partial(_refuse, error), isinstance(error, Saturated)
        self._requests.take(client, 1)
        self._metrics.begin_request()
        try:
            await self._answer(exchange, app)
            await exchange.finish(partial(self._drop_limit_s, is_full))
        finally:
            self._requests.take(client, -1)

    def _check(self, exchange: Exchange, client: str) -> None:
        """Raise UnknownHost, ForeignOrigin or Saturated for a request that is not answered."""
        self._origins.check(exchange.method, exchange.path, exchange.headers)
        if exchange.path not in QUIET_ROUTES:
            self._requests.check(client, 1)
            if self._requests.available < 1:
                raise Saturated("too many requests are open", RETRY_S)

    async def _answer(self, exchange: Exchange, app: ASGIApp) -> None:
        """Answer a request, then count and log it, and end its trace."""
        trace = exchange.context.trace
        with nullcontext() if trace is None else bound_contextvars(trace_id=trace.id):
            try:
                await exchange.run(app)
            finally:
                exchange.context.bytes.release()
                seconds = time.perf_counter() - exchange.started_s
                self._metrics.end_request(exchange, seconds)
                _log_request(exchange, seconds)
                if trace is not None:
                    _end_trace(exchange, trace)

    def _drop_limit_s(self, is_full: bool) -> float:
        """Seconds in which an unwanted body is read; none if too many requests are open."""
        if is_full or self._requests.available < 0:  # only health checks are answered
            return 0.0
        draining = self._admission.phase is Phase.DRAINING
        return SILENCE_S if draining else self._settings.body_timeout_s


async def _refuse(error: RankpressError, scope: Scope, receive: Receive, send: Send) -> None:
    response = await on_rankpress_error(Request(scope), error)
    await response(scope, receive, send)


def _log_request(exchange: Exchange, seconds: float) -> None:
    context = exchange.context
    optional = {
        "client": exchange.client,
        "rate": LOSSLESS_NAME if context.rate == LOSSLESS else context.rate,
        "bpp": None if context.bpp is None else round(context.bpp, 4),
        "pixels": context.pixels,
        "model": context.model,
        "problem": context.problem,
        "queue_ms": None if context.queue_s is None else round(context.queue_s * 1000, 2),
    }
    is_quiet = exchange.route in QUIET_ROUTES | FILE_ROUTES and exchange.status < 500
    write = log.debug if is_quiet else log.info
    write(
        "request",
        id=context.id,
        method=exchange.method,
        route=exchange.route,
        status=exchange.status,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        ms=round(seconds * 1000, 2),
        **{name: value for name, value in optional.items() if value is not None},
    )


def _end_trace(exchange: Exchange, trace: RequestTrace) -> None:
    context, route = exchange.context, exchange.route
    facts = {
        "client.address": exchange.client,
        "rankpress.request_id": context.id,
        "rankpress.rate": None if context.rate is None else rate_text(context.rate),
        "rankpress.bpp": context.bpp,
        "rankpress.pixels": context.pixels,
        "rankpress.model": context.model,
        "rankpress.problem": context.problem,
        "http.request.body.size": exchange.bytes_in,
        "http.response.body.size": exchange.bytes_out,
    }
    trace.end(
        None if route == UNDECLARED else route,
        None if exchange.status == CLIENT_LEFT else exchange.status,
        context.problem or "",
        {name: value for name, value in facts.items() if value is not None},
    )


class OpenToPages:
    """Lets pages of all origins read answers below some paths, and nothing else.

    It is for servers whose settings name no origins. Answers there do not depend on who asks, so a
    page learns nothing that its server could not. The headers are in every answer, because caches
    keep the answers to requests without an Origin too.
    """

    def __init__(self, app: ASGIApp, paths: Sequence[str], exposed: Sequence[str]) -> None:
        """Wrap an app.

        Args:
            paths: beginnings of paths, without the root path. exposed: headers to be read.
        """
        self._app, self._paths, self._exposed = app, tuple(paths), ", ".join(exposed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.start":
                values = MutableHeaders(scope=message)
                values["Access-Control-Allow-Origin"] = "*"
                values["Access-Control-Expose-Headers"] = self._exposed
                if scope["method"] == "OPTIONS":
                    values["Access-Control-Allow-Headers"] = "*"
            await send(message)

        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        is_open = scope["type"] == "http" and path.startswith(self._paths)
        await self._app(scope, receive, send_open if is_open else send)


class Origins:
    """The hosts and pages that the settings allow."""

    def __init__(self, settings: Settings) -> None:
        self._hosts = _names(settings.allowed_hosts)
        self._checks_origin = settings.check_origin
        self._pages = _names(settings.cors_origins)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise UnknownHost or ForeignOrigin for a request that must not be answered."""
        host = headers.get("host", "").lower()
        if self._hosts and path not in HEALTH_PATHS and not self._is_allowed(_without_port(host)):
            raise UnknownHost(f"the Host is {host[:100]!r}, expected one of allowed_hosts")
        origin = headers.get("origin", "").lower()
        is_checked = self._checks_origin and method in CHANGING and origin
        if is_checked and not self._may_change(origin, host):
            raise ForeignOrigin(f"the Origin is {origin[:100]!r}, expected {host[:100]!r}")

    def _is_allowed(self, name: str) -> bool:
        """Whether a host is allowed; `*.` at the beginning of an entry is any one label."""
        parent = "*." + name.partition(".")[2]
        return name in self._hosts or parent in self._hosts

    def _may_change(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2] == host or not self._pages.isdisjoint((origin, "*"))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def _without_port(host: str) -> str:
    """The name of a Host header, the brackets of an IPv6 address included."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
