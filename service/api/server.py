"""Runs the app under uvicorn: limits on connections, and a shutdown that loses no work.

On SIGTERM or SIGINT: /readyz and new work answer 503 while what was admitted is finished, with the
port still open so that load balancers see it; then connections are closed and `serve` returns.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import math
import os
import signal
import socket
import time
from asyncio import BaseTransport
from types import FrameType
from typing import cast

import h11
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.app import create_app
from service.api.errors import BAD_REQUEST, MEDIA_TYPE
from service.api.logs import configure_logs
from service.engine.batching import Admission
from service.engine.types import Codec
from service.jobs.supervisor import WorkerProcess
from service.settings import Settings

BACKLOG = 512
"""Connections the kernel queues before they are accepted."""

MAX_HEADER_BYTES = 32 * 1024
"""Request line and headers together."""

KEEP_ALIVE_S = 5
"""Seconds an idle connection stays open."""

POLL_S = 0.05

NOT_HTTP = json.dumps(
    {
        "type": BAD_REQUEST.type,
        "title": "The request is malformed",
        "status": BAD_REQUEST.status,
        "detail": "This is not HTTP/1.1, or its request line and headers are too long.",
    }
).encode()
"""Answer to what never becomes a request and so never reaches the app."""

log = structlog.get_logger("rankpress.server")


def serve(codec: Codec, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun and return.

    Work that `drain_s` does not suffice for cannot be interrupted: the process then exits with 1.
    A worker process for jobs runs beside it, if the settings want one.
    """
    configure_logs(settings)
    settings = without_idle_jobs(settings)
    server = Server(codec, settings)
    worker = WorkerProcess(settings) if settings.jobs and settings.jobs_worker else None
    try:
        server.run()
    finally:
        if worker is not None:
            worker.stop()
    if server.admission.running:
        log.error("work cut off", running=server.admission.running, drain_s=settings.drain_s)
        logging.shutdown()
        os._exit(1)


def without_idle_jobs(settings: Settings) -> Settings:
    """The settings, without jobs where none can be posted or the worker could not do them."""
    if settings.decode_only:
        return settings.model_copy(update={"jobs": False})
    if settings.jobs and settings.jobs_worker and importlib.util.find_spec("torch") is None:
        log.warning("no jobs: the worker needs torch (pip install 'rankpress[server]')")
        return settings.model_copy(update={"jobs": False})
    return settings


class Server(uvicorn.Server):
    """Uvicorn that drains before it closes the port, and returns normally after a signal."""

    def __init__(self, codec: Codec, settings: Settings) -> None:
        app = create_app(codec, settings)
        self.admission: Admission = app.state.service.admission
        self._drain_s = settings.drain_s
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=_protocol(settings.header_timeout_s),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask the main loop to end. A second Ctrl-C does not wait for anything."""
        # Uvicorn's own would raise the signal again at the end and so not exit with 0.
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new work, wait for the admitted, then close connections; `drain_s` in all."""
        deadline_s = time.monotonic() + self._drain_s
        self.admission.begin_drain()
        log.info("draining", waiting=self.admission.waiting, running=self.admission.running)
        while self._is_busy() and time.monotonic() < deadline_s and not self.force_exit:
            await asyncio.sleep(POLL_S)
        left_s = deadline_s - time.monotonic()
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left_s))
        await super().shutdown(sockets)

    def _is_busy(self) -> bool:
        return self.admission.waiting + self.admission.running > 0


def _protocol(header_timeout_s: float) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1 protocol with a time limit on the headers, which it does not have.

    A connection on which no new request has begun `header_timeout_s` after it was opened, or after
    the last answer, is closed, however many bytes trickle in. What is not HTTP is answered by a
    problem document too.
    """

    class Protocol(H11Protocol):
        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            self._expect_request()

        def on_response_complete(self) -> None:
            self._expect_request()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            del msg
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                headers = [
                    ("Content-Type", MEDIA_TYPE),
                    ("Content-Length", str(len(NOT_HTTP))),
                    ("Connection", "close"),
                ]
                answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (answer, h11.Data(data=NOT_HTTP), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _expect_request(self) -> None:
            self.loop.call_later(header_timeout_s, self._close_unless_begun, self.cycle)

        def _close_unless_begun(self, last: object) -> None:
            if self.cycle is last and not self.transport.is_closing():
                self.transport.close()

    return Protocol
