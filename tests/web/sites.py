"""Static sites for the tests: folders served over HTTP as a plain web server does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from urllib.parse import unquote, urlsplit

TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".rkp": "application/vnd.rankpress",
    ".wasm": "application/wasm",
}

ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers of a page that may share memory between its threads."""


@contextmanager
def static_site(
    folders: Mapping[str, Path],
    headers: Mapping[str, str] | None = None,
    pages: Mapping[str, str | bytes] | None = None,
) -> Iterator[str]:
    """Serve files until the end of the block; yields the URL, without a slash at its end.

    Args:
        folders: from the first part of a path ("decoder" for /decoder/...) to its folder; "" is
            the folder of all other paths.
        headers: sent with every file.
        pages: from a path ("/", "/a.html") to what is there in place of a file. It may change
            while the site is served.
    """
    extra, written = dict(headers or {}), {} if pages is None else pages
    no_icon = {"/favicon.ico": b""}  # which browsers ask for on their own

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            parts = [p for p in PurePosixPath(unquote(urlsplit(path).path)).parts[1:] if p != ".."]
            first = parts[0] if parts and parts[0] in folders else ""
            rest = parts[1:] if first else parts
            return str(folders.get(first, Path("/nonexistent")).joinpath(*rest))

        def guess_type(self, path: object) -> str:
            return TYPES.get(Path(str(path)).suffix, "application/octet-stream")

        def end_headers(self) -> None:
            for name, value in extra.items():
                self.send_header(name, value)
            super().end_headers()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            content = written.get(path, no_icon.get(path))
            if content is None:
                return super().do_GET()
            body = content.encode() if isinstance(content, str) else content
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", self.guess_type(path if "." in path else "x.html"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
