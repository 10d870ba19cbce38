"""The page at `/` and its files: a strict policy, caching by name, and what may be read by whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.web.pages import add_page

from .client import PNG, Client, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

FILES = {
    "index.html": "<!doctype html>",
    "page.js": "let a = 1;\n" * 100,
    "page.css": "body {}",
    "decoder/rankpress-decoder.js": "export {}",
    "decoder/kernels.wasm": "wasm",
}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """What the build writes, in small."""
    for name, text in FILES.items():
        (tmp_path / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "built" / name).write_text(text)
    (tmp_path / "secret").write_text("not for the web")
    return tmp_path / "built"


@pytest.fixture
async def client(built: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr("service.server.app.add_page", partial(add_page, built=built))
    async with running(FakeCodec(), check_origin=True) as client:
        yield client


async def test_the_page_may_run_and_load_what_is_of_its_own_server_alone(client: Client) -> None:
    page = await client.get("/")
    assert page.text == FILES["index.html"]
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(d.split(" ", 1) for d in page.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self' 'wasm-unsafe-eval'",
        "worker-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_files_are_asked_for_again_and_not_sent_again(client: Client) -> None:
    for path in ("/", "/web/page.css", "/web/decoder/rankpress-decoder.js"):
        answer = await client.get(path)
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-cache", path
        again = {"if-none-match": answer.headers["etag"]}
        assert (await client.get(path, headers=again)).status_code == 304
        head = await client.head(path)
        assert head.headers["content-length"] == answer.headers["content-length"]
        assert not head.content


async def test_large_scripts_are_sent_in_gzip(client: Client) -> None:
    for accepted, coded in (("gzip", True), ("identity", False)):
        script = await client.get("/web/page.js", headers={"accept-encoding": accepted})
        assert script.text == FILES["page.js"]
        assert ("content-encoding" in script.headers) is coded
    assert "content-encoding" not in (await client.get("/web/page.css")).headers


async def test_what_browsers_must_know_of_a_file_is_told(client: Client) -> None:
    for name, kind in {"decoder/kernels.wasm": "application/wasm", "page.css": "text/css"}.items():
        answer = await client.get(f"/web/{name}")
        assert answer.headers["content-type"].partition(";")[0] == kind
    script = await client.get("/web/page.js")
    assert "javascript" in script.headers["content-type"]


async def test_pages_of_other_origins_may_import_the_decoder_and_nothing_else(
    client: Client,
) -> None:
    origin = {"origin": "https://example.org"}
    for path, is_open in {
        "/web/decoder/kernels.wasm": True,
        "/web/decoder/nothing": True,
        "/web/page.css": False,
        "/": False,
    }.items():
        answer = await client.get(path, headers=origin)
        assert (answer.headers.get("access-control-allow-origin") == "*") is is_open, path


async def test_the_page_may_post_where_pages_of_other_origins_may_not(client: Client) -> None:
    for path in ("/compress", "/compare?format=jpeg&max_bytes=100000"):
        own = await client.post(path, content=PNG, headers={"origin": "http://test"})
        assert own.status_code == 200, own.text
        foreign = await client.post(path, content=PNG, headers={"origin": "https://example.org"})
        check_problem(foreign, 403, "foreign-origin")


@pytest.mark.parametrize(
    "name", ["nothing.js", "", "..%2fsecret", "%2e%2e/secret", "decoder", "%00"]
)
async def test_what_is_no_file_of_the_page_is_not_found(client: Client, name: str) -> None:
    check_problem(await client.get(f"/web/{name}"), 404, "not-found")


async def test_other_methods_are_refused(client: Client) -> None:
    for path in ("/", "/web/page.css"):
        answer = await client.post(path)
        check_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_files_of_the_page_are_logged_for_debugging_alone(client: Client) -> None:
    with capture_logs() as logs:
        await client.get("/")
        await client.get("/web/page.css")
        await client.get("/web/nothing.js")
    levels = [(line["route"], line["log_level"]) for line in logs if line["event"] == "request"]
    assert levels == [
        ("/", "info"), ("/web/{path:path}", "debug"), ("/web/{path:path}", "debug")
    ]  # fmt: skip


async def test_a_server_without_the_built_page_or_without_compression_has_none(
    tmp_path: Path,
) -> None:
    for settings in ({"page": False}, {"decode_only": True}):
        async with running(FakeCodec(), **settings) as client:
            check_problem(await client.get("/"), 404, "not-found")
            answer = await client.post("/compare?format=jpeg&max_bytes=9", content=PNG)
            check_problem(answer, 404, "not-found")
    async with running(FakeCodec(), page=False) as client:
        add_page(client.app, tmp_path / "nothing")
        check_problem(await client.get("/"), 404, "not-found")
