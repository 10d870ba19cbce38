"""The parts of a running server that its endpoints use: codec, queue, metrics, jobs, objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Request, Response
from starlette.requests import ClientDisconnect

from service.api.job_client import JobClient
from service.api.job_monitoring import JobMetrics, JobStorageMonitor
from service.blobs import Objects
from service.engine.admission import Admission, WorkResult
from service.engine.types import Codec, Load
from service.errors import Saturated
from service.http.bodies import read_body
from service.http.call_pool import CallPool
from service.http.clients import SharedLimit
from service.http.context import context_of
from service.http.metrics import Metrics
from service.http.responses import bytes_response
from service.http.spool import Spool
from service.images.cost import WriteLimits
from service.settings import Settings

T = TypeVar("T")

SMALLEST_WORK: Final = Load()


@dataclass(frozen=True)
class Service:
    """What every endpoint may use.

    Attributes:
        places: limits the requests of one client that wait for the codec or are in it.
        objects: the object store of `/objects`, None if it is not served.
        object_calls: threads for calls of that store.
        header_calls: the thread that reads headers of image files.
    """

    codec: Codec
    settings: Settings
    admission: Admission
    places: SharedLimit
    metrics: Metrics
    job_client: JobClient
    job_metrics: JobMetrics
    job_storage: JobStorageMonitor
    objects: Objects | None
    object_calls: CallPool
    header_calls: CallPool
    spool: Spool

    @property
    def pending_calls(self) -> int:
        """Number of blocking calls that wait or run, without the work of the codec."""
        pools = self.object_calls, self.header_calls, self.spool.calls
        return self.job_client.pending + sum(pool.pending for pool in pools)

    @property
    def write_limits(self) -> WriteLimits:
        """Limits on the time and memory of writing one image file."""
        return WriteLimits(self.settings.max_output_s, self.settings.max_output_memory_bytes)

    async def close(self) -> None:
        """Make no more blocking calls."""
        parts = self.job_storage, self.job_client, self.object_calls, self.header_calls
        await asyncio.gather(*(part.close() for part in (*parts, self.spool.calls)))

    async def read_body(self, request: Request, max_bytes: int | None = None) -> bytes:
        """Read the body of a request, see `bodies.read_body`.

        Args:
            max_bytes: a limit on its size below that of the settings, None for that one.
        """
        settings = self.settings
        if max_bytes is not None:
            limit = min(settings.max_body_bytes, max_bytes)
            settings = settings.model_copy(update={"max_body_bytes": limit})
        return await read_body(request, self.admission, context_of(request.scope).bytes, settings)

    async def respond(
        self,
        request: Request,
        data: bytes,
        headers: Mapping[str, str],
        media_type: str,
        status: int = 200,
    ) -> Response:
        """A response with these bytes, see `responses.bytes_response`."""
        timeout_s = self.settings.body_timeout_s
        return await bytes_response(
            request, data, headers, media_type, timeout_s=timeout_s, status=status
        )

    async def run(
        self, request: Request, work: Callable[[], T], load: Load = SMALLEST_WORK
    ) -> WorkResult[T]:
        """Do work in a worker thread and wait for it, but not longer than the client does.

        Args:
            load: how much work it is, and what it may be batched with.

        Raises:
            ClientDisconnect: the client left; work that had not begun is not done.
            Saturated: the work was not finished within the request timeout.
            QuotaReached: this client has used up its share of the places for requests that wait.
        """
        context = context_of(request.scope)
        client = context.bytes.client
        self.places.check(client, 1)
        self.places.take(client, 1)
        running = asyncio.ensure_future(self.admission.run(work, load.group, load.pixels))
        leaving = asyncio.ensure_future(_disconnected(request))
        timeout_s = self.settings.request_timeout_s
        try:
            await asyncio.wait(
                {running, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if running.done():
                done = running.result()
                context.queue_s = done.queue_s
                return done
            if leaving.done():
                raise ClientDisconnect
            raise Saturated(f"not finished within {timeout_s:g} s", self.admission.retry_after_s)
        finally:
            self.places.take(client, -1)
            running.cancel()
            leaving.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def service_of(request: Request) -> Service:
    """The service of the app that received the request."""
    service = request.app.state.service
    assert isinstance(service, Service)  # create_app sets it
    return service


ServiceArg = Annotated[Service, Depends(service_of)]
"""Type of an endpoint's parameter that receives the service."""
