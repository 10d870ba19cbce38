"""/adapters: what rates are made of can change while the server runs. Admins only, off by default.

An adapter's address is the hash of its file. Loading is atomic: it is checked and merged in a
worker, in its turn, then serves new requests; those that run keep what they began with.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from service.api import openapi
from service.api.routes import ServiceArg, refuse_query, refuse_repeats, run_work
from service.api.schemas import Adapter, AdapterQuery, Adapters
from service.engine.registry import MAX_ADAPTER_BYTES
from service.http.bodies import read_body
from service.http.record import record_of

log = structlog.get_logger("rankpress.api")


def admin_only(request: Request, service: ServiceArg) -> None:
    """Raise 403 where no token is set, 401 for another than the one that is."""
    token = service.settings.admin_token
    if token is None:
        raise HTTPException(403, "adapters cannot be changed here: no admin_token is set")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if not (scheme.lower() == "bearer" and _same(given.strip(), token.get_secret_value())):
        raise HTTPException(
            401, "expected Authorization: Bearer and the token", {"WWW-Authenticate": "Bearer"}
        )


def _same(given: str, expected: str) -> bool:
    """Compare in a time that tells neither the length nor the place of a difference."""
    texts = (given, expected)
    found, wanted = (hashlib.sha256(t.encode("utf-8", "replace")).digest() for t in texts)
    return hmac.compare_digest(found, wanted)


router = APIRouter(prefix="/adapters", tags=["adapters"], dependencies=[Depends(admin_only)])


@router.get(
    "",
    summary="Rate adapters that are loaded",
    dependencies=[Depends(refuse_query)],
    responses=openapi.problems(401, 403, 422),
)
async def adapters(service: ServiceArg) -> Adapters:
    """Those of the store and those loaded since, with which of them new requests get."""
    found = service.codec.adapters()
    return Adapters(adapters=tuple(Adapter.model_validate(adapter) for adapter in found))


@router.post("", dependencies=[Depends(refuse_repeats)], **openapi.ADD_ADAPTER)
async def add(
    request: Request,
    response: Response,
    service: ServiceArg,
    query: Annotated[AdapterQuery, Query()],
) -> Adapter:
    """Load an adapter: new requests of its rate get it, streams of the old one still decode."""
    limit = min(service.settings.max_body_bytes, MAX_ADAPTER_BYTES)
    settings = service.settings.model_copy(update={"max_body_bytes": limit})
    body = await read_body(request, service.admission, record_of(request.scope).hold, settings)
    work = partial(service.codec.add_adapter, body, query.base, query.rate, query.tune)
    adapter = Adapter.model_validate((await run_work(request, service, work)).value)
    response.headers["Location"] = f"/adapters/{adapter.sha256}"
    log.info("adapter loaded", sha256=adapter.sha256, rate=adapter.rate, model=adapter.model)
    return adapter


@router.delete(
    "/{sha256}",
    summary="Unload a rate adapter",
    status_code=204,
    dependencies=[Depends(refuse_query)],
    responses=openapi.problems(401, 403, 404, 422),
)
async def remove(
    request: Request,
    service: ServiceArg,
    sha256: Annotated[str, Path(description="Hash of the adapter's file, in hex.")],
) -> None:
    """Unload an adapter: what was there before it serves its rate; its streams decode no more."""
    await run_work(request, service, partial(service.codec.remove_adapter, sha256))
    log.info("adapter unloaded", sha256=sha256)
