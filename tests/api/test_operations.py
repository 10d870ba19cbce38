"""Health, models, metrics, methods, request ids, the log line and the OpenAPI document."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from service.api.errors import KINDS

from .client import PNG, Client, ready, running, until
from .fake_codec import FakeCodec
from .test_images_routes import check_problem


def sample(text: str, name: str) -> float:
    """Value of one line of Prometheus' text format."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def page(client: Client) -> str:
    return (await client.get("/metrics")).text


def test_ready_only_after_the_golden_streams_decoded_and_alive_always() -> None:
    async def law() -> None:
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

    asyncio.run(law())


def test_a_machine_that_fails_the_golden_streams_answers_no_image() -> None:
    async def law() -> None:
        codec = FakeCodec(healthy=False)
        async with running(codec) as client:
            for path in ("/compress", "/decompress"):
                check_problem(await client.post(path, content=PNG), 503, "not-ready")
            check_problem(await client.get("/readyz"), 503, "not-ready")
            assert (await client.get("/livez")).status_code == 200
        assert codec.calls == 0

    asyncio.run(law())


def test_cheap_calls_do_not_wait_behind_image_work() -> None:
    async def law() -> None:
        codec = FakeCodec()
        async with running(codec, max_waiting=1) as client:
            await ready(client)
            codec.gate.clear()
            tasks = [asyncio.ensure_future(client.post("/compress", content=PNG)) for _ in "ab"]
            await until(lambda: client.service.admission.waiting == 1)
            async with asyncio.timeout(2):
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

    asyncio.run(law())


def test_work_that_takes_longer_than_the_request_timeout_is_given_up() -> None:
    async def law() -> None:
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

    asyncio.run(law())


def test_draining_answers_503_for_new_work_and_readyz() -> None:
    async def law() -> None:
        async with running(FakeCodec()) as client:
            await ready(client)
            client.service.admission.begin_drain()
            check_problem(await client.get("/readyz"), 503, "not-ready")
            answer = await client.post("/compress", content=PNG)
            check_problem(answer, 503, "saturated")
            assert "retry-after" in answer.headers
            assert (await client.get("/livez")).status_code == 200

    asyncio.run(law())


def test_models_and_rates_say_what_is_loaded() -> None:
    async def law() -> None:
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

    asyncio.run(law())


def test_head_and_options_follow_the_routes() -> None:
    async def law() -> None:
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

    asyncio.run(law())


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-DEF_1.2", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False)],
)
def test_a_sane_request_id_is_kept_and_any_other_replaced(sent: str, kept: bool) -> None:
    async def law() -> None:
        async with running(FakeCodec()) as client:
            headers = [(b"X-Request-Id", sent.encode())]
            answer = await client.get("/livez", headers=headers)
            used = answer.headers["x-request-id"]
            assert (used == sent) is kept
            assert re.fullmatch(r"[\w.-]{1,64}", used)

    asyncio.run(law())


def test_every_request_writes_one_line_with_its_facts_and_no_content() -> None:
    async def law() -> None:
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

    asyncio.run(law())


def test_metrics_count_requests_bytes_seconds_and_refusals() -> None:
    async def law() -> None:
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

    asyncio.run(law())


def test_the_openapi_document_is_complete(tmp_path: Path) -> None:
    async def law() -> None:
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
            "metadata",
            "frame",
            "target_bpp",
            "max_bytes",
            "target_psnr",
        }
        schemas = document["components"]["schemas"]
        assert {"Problem", "InvalidParameter", "Models", "Rates"} <= set(schemas)
        assert "HTTPValidationError" not in schemas
        references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
        assert references <= set(schemas)

    asyncio.run(law())


def test_problem_types_are_unique() -> None:
    assert len({kind.type for kind in KINDS}) == len(KINDS)


def test_a_burst_of_requests_gets_each_its_own_answer() -> None:
    async def law() -> None:
        async with running(FakeCodec(), workers=4) as client:
            rates = [2, 4] * 20

            async def one(rate: int) -> httpx.Response:
                return await client.post(f"/compress?rate={rate}", content=PNG)

            answers = await asyncio.gather(*(one(rate) for rate in rates))
        assert [float(a.headers["x-rankpress-rate"]) for a in answers] == rates
        assert len({a.content for a in answers}) == 2

    asyncio.run(law())
