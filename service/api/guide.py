"""`/guide`: the documentation as a site, on servers that are installed with its built pages."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

SITE: Final = Path(__file__).parents[1] / "docs" / "site"
"""Where `python -m service.bench.site` puts the pages."""


def add_guide(app: FastAPI, site: Path = SITE) -> None:
    """Serve a built site at `/guide`; nothing is added where it was not built."""
    if (site / "index.html").is_file():
        app.add_api_route("/guide", _redirect, include_in_schema=False)
        app.mount("/guide", StaticFiles(directory=site, html=True), name="guide")


async def _redirect(request: Request) -> RedirectResponse:
    """Links of the pages are relative to a path that ends with a slash."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/guide/")
