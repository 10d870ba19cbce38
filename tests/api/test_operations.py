"""Health, models, metrics, methods, request ids, the log line and the OpenAPI document."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from service.http.problems import KINDS

from .client import PNG, Client, ready, running, until
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio


def sample(text: str, name: str) -> float:
    """Value of one line of Prometheus' text format."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert match is not None, name
    return float(match[1])


async def page(client: Client) -> str:
    return (await client.get("/metrics")).text


async def test_ready_only_after_the_golden_streams_decoded_and_alive_always() -> None:
    codec = FakeCodec()
    codec.golden.clear()
    async with running(codec) as client:
        early = asyncio.ensure_future(client.post("/compress", content=PNG))
        await until(lambda: client.service.admission.waiting == 1)
        check_problem(await client.get("/readyz"), 503, "not-ready")
        assert (await client.get("/livez")).json() == {"status": "alive"}
        assert codec.calls == 0
        codec.golden.set()
        await ready(client)
        assert (await early).status_code == 200


async def test_a_machine_that_fails_the_golden_streams_answers_no_image() -> None:
    codec = FakeCodec(healthy=False)
    async with running(codec) as client:
        for path in ("/compress", "/decompress"):
            check_problem(await client.post(path, content=PNG), 503, "not-ready")
        check_problem(await client.get("/readyz"), 503, "not-ready")
        assert (await client.get("/livez")).status_code == 200
    assert codec.calls == 0


async def test_cheap_calls_do_not_wait_behind_image_work() -> None:
    codec = FakeCodec()
    async with running(codec, max_waiting=1, client_share=1) as client:
        await ready(client)
        codec.gate.clear()
        tasks = [asyncio.ensure_future(client.post("/compress", content=PNG)) for _ in "ab"]
        await until(lambda: client.service.admission.waiting == 1)
        for path in ("/livez", "/readyz", "/metrics", "/models", "/rates"):
            assert (await client.get(path)).status_code == 200
        text = await page(client)
        assert sample(text, "rankpress_queue_depth") == 1
        assert sample(text, "rankpress_running") == 1
        assert sample(text, "rankpress_in_flight") == 3
        assert sample(text, "rankpress_held_bytes") == 2 * len(PNG)
        refused = await client.post("/compress", content=PNG)
        check_problem(refused, 503, "saturated")
        assert int(refused.headers["retry-after"]) >= 1
        codec.gate.set()
        assert {r.status_code for r in await asyncio.gather(*tasks)} == {200}


async def test_work_that_takes_longer_than_the_request_timeout_is_given_up() -> None:
    codec = FakeCodec()
    async with running(codec, request_timeout_s=0.2) as client:
        await ready(client)
        codec.gate.clear()
        tasks = [client.post("/compress", content=PNG) for _ in "ab"]
        for answer in await asyncio.gather(*tasks):
            check_problem(answer, 503, "saturated")
        codec.gate.set()
        await until(lambda: client.service.admission.running == 0)
    assert codec.calls == 1  # the one that waited was never begun


async def test_draining_answers_503_for_new_work_and_readyz() -> None:
    async with running(FakeCodec()) as client:
        await ready(client)
        client.service.admission.begin_drain()
        check_problem(await client.get("/readyz"), 503, "not-ready")
        answer = await client.post("/compress", content=PNG)
        check_problem(answer, 503, "saturated")
        assert "retry-after" in answer.headers
        assert (await client.get("/livez")).status_code == 200


async def test_models_and_rates_say_what_is_loaded() -> None:
    async with running(FakeCodec()) as client:
        (model,) = (await client.get("/models")).json()["models"]
        assert model["name"] == "fake" and model["sha256"] == "ab" * 32
        assert model["training"] == {"steps": 3}
        rates = (await client.get("/rates")).json()
        assert rates["default"] == 4
        listed = rates["rates"]
        assert [(r["tune"], r["rate"]) for r in listed] == [
            ("psnr", 2), ("psnr", 4), ("ms-ssim", 2),
        ]  # fmt: skip
        assert listed[1]["kodak_psnr_db"] == 32.5 and listed[2]["kodak_ms_ssim"] == 0.97
        adapters = [(r["sha256"], r["file_bytes"]) for r in listed]
        assert adapters == [("cd" * 32, 99), (None, 0), ("ef" * 32, 98)], "the base has none"
        assert sorted(r["file_bytes"] for r in model["rates"]) == [0, 98, 99]
        check_problem(await client.get("/rates?model=x"), 422, "bad-parameter")


async def test_head_and_options_follow_the_routes() -> None:
    async with running(FakeCodec()) as client:
        head = await client.head("/models")
        assert head.status_code == 200 and head.content == b""
        assert (
            head.headers["content-length"]
            == (await client.get("/models")).headers["content-length"]
        )
        options = await client.options("/compress")
        assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, POST")
        options = await client.options("/models")
        assert options.headers["allow"] == "GET, HEAD, OPTIONS"
        for answer in (await client.head("/compress"), await client.delete("/compress")):
            assert answer.status_code == 405
            assert answer.headers["allow"] == "OPTIONS, POST"
        check_problem(await client.delete("/models"), 405, "method-not-allowed")
        check_problem(await client.get("/nothing"), 404, "not-found")
        check_problem(await client.options("/nothing"), 404, "not-found")


async def test_allow_names_the_methods_of_all_routes_of_a_path(tmp_path: Path) -> None:
    everything = {"objects_url": str(tmp_path), "objects_write": True, "admin_token": "x" * 16}
    digest = "ab" * 32
    allowed = {
        "/adapters": "GET, HEAD, OPTIONS, POST",
        f"/adapters/{digest}": "DELETE, OPTIONS",
        f"/objects/{digest}": "GET, HEAD, OPTIONS, PUT",
        f"/objects/{digest}/stream": "GET, HEAD, OPTIONS",
        f"/iiif/{digest}/info.json": "GET, HEAD, OPTIONS",
        "/objects": "OPTIONS, PUT",
        "/jobs/x": "DELETE, GET, HEAD, OPTIONS",
        "/jobs/x/stream": "GET, HEAD, OPTIONS",
        "/docs": "GET, HEAD, OPTIONS",
        "/docs/static/swagger-ui.css": "GET, HEAD, OPTIONS",
        "/openapi.json": "GET, HEAD, OPTIONS",
    }
    async with running(FakeCodec(), **everything) as client:
        for path, methods in allowed.items():
            patch = await client.patch(path)
            check_problem(patch, 405, "method-not-allowed")
            assert patch.headers["allow"] == methods, path
            if not path.startswith("/docs/"):
                options = await client.options(path)
                assert (options.status_code, options.headers["allow"]) == (204, methods), path


OUR_HOSTS = {"allowed_hosts": "test, *.example.org, [::1]"}


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("test", "/models", 200),
        ("TEST:8000", "/models", 200),
        ("a.example.org:80", "/models", 200),
        ("[::1]:8000", "/models", 200),
        ("example.org", "/models", 421),
        ("a.b.example.org", "/models", 421),
        ("evil.example", "/models", 421),
        ("test.evil.example", "/nothing", 421),
        ("", "/metrics", 421),
        ("10.0.0.7:8000", "/readyz", 200),
        ("10.0.0.7:8000", "/livez", 200),
    ],
)
async def test_a_host_that_is_not_ours_is_refused_where_hosts_are_named(
    host: str, path: str, status: int
) -> None:
    async with running(FakeCodec(), **OUR_HOSTS) as client:
        await ready(client)
        answer = await client.get(path, headers={"Host": host})
        assert answer.status_code == status
        if status == 421:
            check_problem(answer, 421, "unknown-host")
    async with running(FakeCodec()) as client:
        assert (await client.get("/models", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        (None, {}, 200),
        ("http://test", {}, 200),
        ("https://test", {}, 200),
        ("http://test:81", {}, 403),
        ("https://evil.example", {}, 403),
        ("null", {}, 403),
        ("https://shop.example", {"cors_origins": "https://shop.example"}, 200),
        ("https://evil.example", {"cors_origins": "https://shop.example"}, 403),
        ("https://evil.example", {"cors_origins": "*"}, 200),
        ("https://evil.example", {"check_origin": False}, 200),
    ],
)
async def test_a_page_of_another_origin_may_not_make_the_server_work(
    origin: str | None, settings: dict[str, object], status: int
) -> None:
    codec = FakeCodec()
    async with running(codec, **{"check_origin": True} | settings) as client:
        await ready(client)
        headers = {} if origin is None else {"Origin": origin}
        answer = await client.post("/compress", content=PNG, headers=headers)
        assert answer.status_code == status
        if status == 403:
            check_problem(answer, 403, "foreign-origin")
        assert codec.calls == (status == 200)
        assert (await client.get("/models", headers=headers)).status_code == 200


async def test_the_documentation_page_may_run_its_own_script_and_no_other() -> None:
    async with running(FakeCodec()) as client:
        page = await client.get("/docs")
        anything = await client.get("/models")
    assert anything.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        directive.split(" ", 1) for directive in page.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page.text, re.DOTALL)
    inline = [text for attributes, text in scripts if "src=" not in attributes]
    assert len(scripts) == 2 and len(inline) == 1
    digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
    assert policy["script-src"].split() == ["'self'", f"'sha256-{digest}'"]
    assert not re.search(r"\son\w+=|javascript:", page.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3 and all(path.startswith("/") for path in loaded)
    assert policy["connect-src"] == "'self'" and "'/openapi.json'" in page.text


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-DEF_1.2", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False)],
)
async def test_a_sane_request_id_is_kept_and_any_other_replaced(sent: str, kept: bool) -> None:
    async with running(FakeCodec()) as client:
        headers = [(b"X-Request-Id", sent.encode())]
        answer = await client.get("/livez", headers=headers)
        used = answer.headers["x-request-id"]
        assert (used == sent) is kept
        assert re.fullmatch(r"[\w.-]{1,64}", used)


async def test_every_request_writes_one_line_with_its_facts_and_no_content() -> None:
    async with running(FakeCodec()) as client:
        await ready(client)
        with capture_logs() as lines:
            answer = await client.post("/compress?rate=2", content=PNG)
            await client.post("/compress?rate=3", content=PNG)
            await client.get("/secret/path")
    good, bad, missing = lines
    assert good["event"] == "request" and good["log_level"] == "info"
    assert good["id"] == answer.headers["x-request-id"]
    assert (good["method"], good["route"], good["status"]) == ("POST", "/compress", 200)
    assert (good["bytes_in"], good["bytes_out"]) == (len(PNG), len(answer.content))
    assert good["rate"] == 2 and good["pixels"] == 240 and good["ms"] > 0
    assert good["bpp"] == pytest.approx(8 * len(answer.content) / 240, abs=1e-4)
    assert (bad["status"], bad["problem"]) == (422, "rate-unavailable")
    assert (missing["status"], missing["route"]) == (404, "other")
    assert all(isinstance(v, str | int | float) for line in lines for v in line.values())


async def test_metrics_count_requests_bytes_seconds_and_refusals() -> None:
    async with running(FakeCodec()) as client:
        stream = (await client.post("/compress", content=PNG)).content
        image = (await client.post("/decompress", content=stream)).content
        await client.post("/compress", content=b"nonsense")
        for path in ("/a", "/b", "/c"):
            await client.get(path)
        text = await page(client)
    requests = "rankpress_requests_total"
    assert sample(text, requests + '{route="/compress",status="200"}') == 1
    assert sample(text, requests + '{route="/compress",status="415"}') == 1
    assert sample(text, requests + '{route="other",status="404"}') == 3
    assert sample(text, 'rankpress_bytes_in_total{route="/decompress"}') == len(stream)
    assert sample(text, 'rankpress_bytes_out_total{route="/decompress"}') == len(image)
    assert sample(text, 'rankpress_rejected_total{problem="bad-image"}') == 1
    for stage, seconds in (("swap", 0.002), ("net", 0.004), ("code", 0.006)):
        assert sample(text, f"rankpress_{stage}_seconds_count") == 2
        assert sample(text, f"rankpress_{stage}_seconds_sum") == pytest.approx(seconds)
    for stage in ("queue", "file", "check"):
        assert sample(text, f"rankpress_{stage}_seconds_count") == 2


async def test_metrics_say_how_busy_workers_are_and_what_streams_save() -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        await ready(client)
        begun = await page(client)
        codec.work_s = 0.05
        sizes = [
            len((await client.post(f"/compress?rate={rate}", content=PNG)).content)
            for rate in ("2", "lossless", "2")
        ]
        text = await page(client)
    busy = 'rankpress_worker_busy_seconds_total{pool="small"}'
    assert sample(text, busy) - sample(begun, busy) >= 3 * codec.work_s
    assert sample(text, busy.replace("small", "large")) == 0
    assert sample(text, 'rankpress_workers{pool="small"}') == 1
    for name in ("batches", "batched_requests"):
        counter = f'rankpress_{name}_total{{pool="small"}}'
        assert sample(text, counter) - sample(begun, counter) == 3
    for name, of_2, exact in (
        ("streams", 2, 1),
        ("source_bytes", 2 * len(PNG), len(PNG)),
        ("stream_bytes", sizes[0] + sizes[2], sizes[1]),
    ):
        assert sample(text, f'rankpress_{name}_total{{rate="2"}}') == of_2
        assert sample(text, f'rankpress_{name}_total{{rate="lossless"}}') == exact


async def test_the_openapi_document_is_complete(tmp_path: Path) -> None:
    everything = {"objects_url": str(tmp_path), "objects_write": True}
    async with running(FakeCodec(), **everything) as client:
        document = (await client.get("/openapi.json")).json()
    described = {kind.status for kind in KINDS} - {405}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"] and operation["description"] and operation["tags"]
            for parameter in operation.get("parameters", []):
                assert parameter["description"], (path, parameter["name"])
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]
                    assert int(status) in described
    compress = document["paths"]["/compress"]["post"]
    assert set(compress["requestBody"]["content"]) >= {
        "application/octet-stream",
        "multipart/form-data",
    }
    assert "ETag" in compress["responses"]["200"]["headers"]
    assert {p["name"] for p in compress["parameters"]} == {
        "rate",
        "tune",
        "model",
        "metadata",
        "frame",
        "target_bpp",
        "max_bytes",
        "target_psnr",
    }
    (rate,) = (p["schema"] for p in compress["parameters"] if p["name"] == "rate")
    number, name, _ = rate["anyOf"]
    assert (number["minimum"], number["maximum"], name["const"]) == (1, 8, "lossless")
    answered = compress["responses"]["200"]["headers"]
    assert {"X-Rankpress-Graphics", "X-Rankpress-Model"} <= set(answered)
    refusals = compress["responses"]["422"]["content"]["application/problem+json"]["examples"]
    assert {"model-unavailable", "rate-unavailable"} <= set(refusals)
    schemas = document["components"]["schemas"]
    assert {"Problem", "InvalidParameter", "Models", "Rates"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= set(schemas)


def test_problem_types_are_unique() -> None:
    assert len({kind.type for kind in KINDS}) == len(KINDS)


async def test_a_burst_of_requests_gets_each_its_own_answer() -> None:
    async with running(FakeCodec(), workers=4) as client:
        rates = [2, 4] * 20

        async def one(rate: int) -> httpx.Response:
            return await client.post(f"/compress?rate={rate}", content=PNG)

        answers = await asyncio.gather(*(one(rate) for rate in rates))
    assert [float(a.headers["x-rankpress-rate"]) for a in answers] == rates
    assert len({a.content for a in answers}) == 2
