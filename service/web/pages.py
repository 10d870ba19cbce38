"""The pages that a server shows to browsers: the page to try the codec, `/docs` and `/guide`.

All of them are files that were built before, and load nothing from another host; policies
(Content-Security-Policy) say what they may run. `/` is the page of service/web/page, whose built
files are served below `/web`. `/docs` is Swagger UI: it may run the script that is written into it,
by its hash, and no other of that kind. `/guide` is the documentation as a site, on servers that are
installed with its built pages.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from service.files import SITE, smaller_gzip
from service.http.responses import SharedFile

BUILT: Final = Path(__file__).parent / "built"
"""Folder that `npm run build` fills: the page, and the decoder for web pages."""

FILES: Final = "/web/{path:path}"
"""Route of the page's files."""

STATIC: Final = "/docs/static"
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_CLOSED: Final = (
    "default-src 'none'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
"""What every page's Content-Security-Policy has."""

_PAGE_POLICY: Final = (
    *_CLOSED,
    "script-src 'self' 'wasm-unsafe-eval'",
    "worker-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
)
_PAGE_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(_PAGE_POLICY),
    "Referrer-Policy": "no-referrer",
}
_MEDIA_TYPES: Final[Mapping[str, str]] = {
    ".avif": "image/avif",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ts": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
}


def add_page(app: FastAPI, built: Path = BUILT) -> None:
    """Serve the page at `/` and its files below `/web`; nothing is added where it was not built.

    The files are read now and kept: browsers ask for them again and again, and a new version comes
    with a new start.
    """
    if not (built / "index.html").is_file():
        return
    files = {
        path.relative_to(built).as_posix(): _shared(path)
        for path in built.rglob("*")
        if path.is_file()
    }

    async def show_page(request: Request) -> Response:
        return files["index.html"].response(request, _PAGE_HEADERS)

    async def get_file(request: Request, path: str) -> Response:
        file = files.get(path)
        if file is None:
            raise HTTPException(404, "the page has no such file")
        return file.response(request, _PAGE_HEADERS)

    app.add_api_route("/", show_page, include_in_schema=False)
    app.add_api_route(FILES, get_file, include_in_schema=False)


def _shared(path: Path) -> SharedFile:
    data, media_type = path.read_bytes(), _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return SharedFile(data, hashlib.sha256(data).hexdigest(), media_type, smaller_gzip(data))


def add_docs_page(app: FastAPI) -> None:
    """Add `/docs` and the files that it loads."""
    files = Path(fastapi_offline.__file__).parent / "static"
    app.mount(STATIC, StaticFiles(directory=files), name="docs-static")
    app.add_api_route("/docs", _show_docs, include_in_schema=False)


async def _show_docs(request: Request) -> HTMLResponse:
    app: FastAPI = request.app
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=f"{app.title} - Swagger UI",
        oauth2_redirect_url=None,
        swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _docs_policy(bytes(page.body))
    return page


def add_guide(app: FastAPI, site: Path = SITE) -> None:
    """Serve a built site at `/guide`; nothing is added where it was not built."""
    if (site / "index.html").is_file():
        app.add_api_route("/guide", _redirect_to_guide, include_in_schema=False)
        app.mount("/guide", StaticFiles(directory=site, html=True), name="guide")


async def _redirect_to_guide(request: Request) -> RedirectResponse:
    """Links of the pages are relative to a path that ends with a slash."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/guide/")


def _docs_policy(page: bytes) -> str:
    """What the page may load and run. Swagger UI needs `data:` icons and styles on its elements."""
    digests = [hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(page)]
    hashes = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    directives = (
        *_CLOSED,
        f"script-src 'self' {' '.join(hashes)}",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
    )
    return "; ".join(directives)
