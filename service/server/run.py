"""Runs the app under uvicorn: limits on connections, and a shutdown that loses no work.

On SIGTERM or SIGINT the admitted work is finished, while /readyz and new work are answered with 503
and the port stays open, so that load balancers notice. Then connections are closed and `serve`
returns.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import signal
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING

import structlog
import uvicorn

from service.api.service import Service
from service.engine.admission import Admission
from service.engine.types import Codec
from service.http.connections import (
    ACCEPTED_AT_ONCE,
    BACKLOG,
    limited_protocol,
    report_accept_errors,
)
from service.jobs.supervisor import WorkerProcess
from service.logs import configure_logs
from service.server.app import create_app
from service.settings import Settings
from service.tracing.opening import open_tracing

if TYPE_CHECKING:
    from service.tracing.spans import Tracing

POLL_S = 0.05

log = structlog.get_logger("rankpress.server")


def serve(codec: Codec, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the work that has begun and return.

    If the settings say so, a worker process for jobs runs too. Work that takes longer than
    `drain_s`, and calls of an object store or database that does not answer, cannot be interrupted:
    the process then exits with 1.
    """
    configure_logs(settings.log_format, settings.log_level)
    settings = without_idle_jobs(settings)
    tracing = open_tracing("rankpress")
    server = Server(codec, settings, tracing)
    worker = WorkerProcess(settings) if settings.jobs and settings.jobs_worker else None
    try:
        server.run()
    finally:
        if worker is not None:
            worker.stop()
        if tracing is not None:
            tracing.close()
    running, calls = server.admission.running, server.service.pending_calls
    if running or calls:
        log.error("work cut off", running=running, calls=calls, drain_s=settings.drain_s)
        logging.shutdown()
        os._exit(1)


def without_idle_jobs(settings: Settings) -> Settings:
    """The settings, without jobs if none can be posted or if the worker could not do them."""
    if settings.decode_only:
        return settings.model_copy(update={"jobs": False})
    if settings.jobs and settings.jobs_worker and importlib.util.find_spec("torch") is None:
        log.warning("no jobs: the worker needs torch (pip install 'rankpress[server]')")
        return settings.model_copy(update={"jobs": False})
    return settings


class Server(uvicorn.Server):
    """Uvicorn that drains before it closes the port, and returns normally after a signal."""

    def __init__(self, codec: Codec, settings: Settings, tracing: Tracing | None = None) -> None:
        app = create_app(codec, settings, tracing)
        self.service: Service = app.state.service
        self.admission: Admission = self.service.admission
        self._drain_s = settings.drain_s
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            uds=None if settings.uds is None else str(settings.uds),
            fd=settings.fd,
            root_path=settings.root_path,
            http=limited_protocol(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.forwarded_allow_ips),
            forwarded_allow_ips=settings.forwarded_allow_ips,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=math.ceil(settings.keep_alive_s),
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until asked to end."""
        super().run(sockets or _all_addresses(self.config))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report connections that could not be accepted by a short warning.

        Raises:
            OSError: the server cannot listen at the address.
        """
        report_accept_errors(asyncio.get_running_loop())
        try:
            await super().startup(sockets)
        except OSError as error:  # of a UNIX or an inherited socket: it does not name the address
            await self.lifespan.shutdown()
            raise OSError(error.errno, error.strerror, address_of(self.config)) from error
        except SystemExit as error:  # how uvicorn ends if a port is in use, after its shutdown
            cause = error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, address_of(self.config)) from error
        for server in self.servers if self.started else ():
            for each in server.sockets:
                with socket.fromfd(each.fileno(), each.family, each.type) as listening:
                    listening.listen(BACKLOG)  # asyncio made the queue as short as ACCEPTED_AT_ONCE

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask the main loop to end. A second Ctrl-C does not wait for anything."""
        # Uvicorn's own handler would raise the signal again at the end and so not exit with 0.
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new work, wait for admitted work, then close connections; `drain_s` in all."""
        deadline_s = time.monotonic() + self._drain_s
        self.admission.begin_drain()
        log.info("draining", waiting=self.admission.waiting, running=self.admission.running)
        while self.admission.waiting + self.admission.running > 0:
            if time.monotonic() >= deadline_s or self.force_exit:
                break
            await asyncio.sleep(POLL_S)
        remaining_s = deadline_s - time.monotonic()
        self.config.timeout_graceful_shutdown = max(1, math.ceil(remaining_s))
        await super().shutdown(sockets)


def address_of(config: uvicorn.Config) -> str:
    """The address at which a server listens or should listen."""
    if config.uds is not None:
        return str(config.uds)
    return f"{config.host}:{config.port}" if config.fd is None else f"descriptor {config.fd}"


def _all_addresses(config: uvicorn.Config) -> list[socket.socket] | None:
    """A socket for IPv6 and IPv4 at the host `::`, which asyncio would open for IPv6 alone."""
    dual = config.host == "::" and config.uds is None and config.fd is None
    if not dual or not socket.has_dualstack_ipv6():
        return None
    address, family = (config.host, config.port), socket.AF_INET6
    return [socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=True)]
