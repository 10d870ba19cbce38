"""`/adapters`: rate adapters that are loaded and unloaded while the server runs, by admins only.

The endpoints are off by default. The address of an adapter is the hash of its file. Loading is
atomic: the adapter is checked and merged in a worker thread, in its turn, and then serves new
requests; requests that run go on with the weights they began with.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from service.api import openapi
from service.api.schemas import AdapterQuery, Adapters
from service.api.service import ServiceArg, admin_only, refuse_query, refuse_repeats
from service.engine.types import AdapterInfo

log = structlog.get_logger("rankpress.api")

router = APIRouter(prefix="/adapters", tags=["adapters"], dependencies=[Depends(admin_only)])


@router.get("", dependencies=[Depends(refuse_query)], responses=openapi.problems(401, 403, 422))
async def adapters(service: ServiceArg) -> Adapters:
    """Adapters of the store and those loaded since; `served` marks those that new requests use."""
    return Adapters(adapters=service.codec.adapters())


@router.post("", status_code=201, dependencies=[Depends(refuse_repeats)], **openapi.ADD_ADAPTER)
async def add_adapter(
    request: Request,
    response: Response,
    service: ServiceArg,
    query: Annotated[AdapterQuery, Query()],
) -> AdapterInfo:
    """Load an adapter: new requests of its rate use it, streams of the old one still decode."""
    body = await service.read_body(request)
    work = partial(service.codec.add_adapter, body, query.base, query.rate, query.tune)
    adapter = (await service.run(request, work)).value
    response.headers["Location"] = f"/adapters/{adapter.sha256}"
    log.info("adapter loaded", sha256=adapter.sha256, rate=adapter.rate, model=adapter.model)
    return adapter


@router.delete(
    "/{sha256}",
    status_code=204,
    dependencies=[Depends(refuse_query)],
    responses=openapi.problems(401, 403, 404, 422),
)
async def remove_adapter(
    request: Request,
    service: ServiceArg,
    sha256: Annotated[str, Path(description="Hash of the adapter's file, in hex.")],
) -> None:
    """Unload an adapter: its rate is as it was before, and its streams no longer decode."""
    await service.run(request, partial(service.codec.remove_adapter, sha256))
    log.info("adapter unloaded", sha256=sha256)
