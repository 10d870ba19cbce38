"""The parts of a running server that its endpoints use: codec, queue, metrics, jobs, objects.

And checks of a request that FastAPI does not make: of its query, and of the admin token.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.job_client import JobClient
from service.api.job_monitoring import JobMetrics, JobStorageMonitor
from service.blobs import Objects
from service.engine.admission import Admission, WorkResult
from service.engine.requests import model_index
from service.engine.types import Codec, Load, ModelInfo, Timings
from service.errors import BadParameter, Saturated
from service.http.bodies import read_body
from service.http.call_pool import CallPool
from service.http.clients import SharedLimit
from service.http.context import context_of
from service.http.metrics import Metrics
from service.http.spool import Spool
from service.images.write import WriteLimits
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
        weight_calls: the thread that derives the decode-only files of the models.
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
    weight_calls: CallPool
    spool: Spool

    @property
    def pending_calls(self) -> int:
        """Number of blocking calls that wait or run, without the work of the codec."""
        pools = self.object_calls, self.header_calls, self.weight_calls, self.spool.calls
        return self.job_client.pending + sum(pool.pending for pool in pools)

    @property
    def write_limits(self) -> WriteLimits:
        """Limits on the time and memory of writing one image file."""
        return WriteLimits(self.settings.max_output_s, self.settings.max_output_memory_bytes)

    async def close(self) -> None:
        """Make no more blocking calls."""
        calls = self.object_calls, self.header_calls, self.weight_calls, self.spool.calls
        parts = self.job_storage, self.job_client, *calls
        await asyncio.gather(*(part.close() for part in parts))

    def model_named(self, name: str | None) -> ModelInfo:
        """The model that compresses a request that names it, or none.

        Raises:
            ModelUnavailable: no model of that name is loaded.
        """
        models = self.codec.models()
        return models[model_index(name, [model.name for model in models])]

    async def read_body(self, request: Request) -> bytes:
        """Read the body of a request, see `bodies.read_body`."""
        return await read_body(request, self.admission, self.settings)

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
        client, queued_ns = context.bytes.client, time.time_ns()
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
                if context.trace is not None:
                    context.trace.add_work(queued_ns, done.queue_s, _stages_of(done.value))
                return done
            if leaving.done():
                raise ClientDisconnect
            raise Saturated(f"not finished within {timeout_s:g} s", self.admission.retry_after_s)
        finally:
            self.places.take(client, -1)
            running.cancel()
            leaving.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)


def _stages_of(value: object) -> dict[str, float]:
    """Seconds of each stage of the work that has this result, by name; of a batch, of all of it."""
    timings = getattr(value, "timings", None)
    if not isinstance(timings, Timings):
        return {}
    return {f"rankpress.{name}": seconds for name, seconds in vars(timings).items()}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _service_of(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)  # create_app sets it
    return service


ServiceArg = Annotated[Service, Depends(_service_of)]
"""Type of an endpoint's parameter that receives the service."""


def refuse_repeats(request: Request) -> None:
    """Raise BadParameter for a parameter that is given twice: one of the two would be ignored."""
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = [name[:100] for name, count in counts.items() if count > 1]
    if repeated:
        raise BadParameter(f"given more than once: {', '.join(repeated[:10])}")


def refuse_query(request: Request) -> None:
    """Raise BadParameter for any parameter, on paths that take none."""
    names = [name[:100] for name in request.query_params]
    if names:
        raise BadParameter(f"this path takes no parameters, found {', '.join(names[:10])}")


def admin_only(request: Request, service: ServiceArg) -> None:
    """Raise HTTPException: 403 if the settings have no token, 401 for a wrong or missing one."""
    token = service.settings.admin_token
    if token is None:
        raise HTTPException(403, "adapters cannot be changed here: no admin_token is set")
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    secret = token.get_secret_value().encode()
    is_right = hmac.compare_digest(credentials.strip().encode(), secret)
    if not (scheme.lower() == "bearer" and is_right):
        raise HTTPException(
            401, "expected Authorization: Bearer and the token", {"WWW-Authenticate": "Bearer"}
        )
