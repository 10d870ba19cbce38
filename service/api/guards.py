"""Checks of a request that FastAPI does not make: of its query, and of the admin token."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter

from fastapi import Request
from starlette.exceptions import HTTPException

from service.api.service import ServiceArg
from service.errors import BadParameter


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
    is_right = _are_equal(credentials.strip(), token.get_secret_value())
    if not (scheme.lower() == "bearer" and is_right):
        raise HTTPException(
            401, "expected Authorization: Bearer and the token", {"WWW-Authenticate": "Bearer"}
        )


def _are_equal(text: str, secret: str) -> bool:
    """Compare in a time that reveals neither the length nor the place of a difference."""
    digests = (hashlib.sha256(t.encode("utf-8", "replace")).digest() for t in (text, secret))
    return hmac.compare_digest(*digests)
