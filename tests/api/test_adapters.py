"""/adapters: for admins only, off by default, in their turn and within limits."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
import torch
from safetensors.numpy import save
from small_ladder import small_update, with_rates
from small_model import photo_like
from structlog.testing import capture_logs

from service.codec.lowrank import pack
from service.engine.engine import Engine
from service.runtime.loading import load_models
from service.settings import Settings
from service.store.model import StoredModel, layer_shapes

from .client import PNG, png_of, running, until
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

TOKEN = "a token of some length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
BASE = "ab" * 32
ADD = f"/adapters?base={BASE}&rate=5"


async def test_without_a_token_in_the_settings_nobody_may() -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        for headers in ({}, AUTH, {"Authorization": "Bearer "}):
            calls = (
                client.post(ADD, content=b"good", headers=headers),
                client.get("/adapters", headers=headers),
                client.delete(f"/adapters/{'0' * 64}", headers=headers),
            )
            for answer in await asyncio.gather(*calls):
                check_problem(answer, 403, "forbidden")
    assert codec.calls == 0 and not codec.loaded


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}",
     TOKEN, "Bearer é", f"Bearer {TOKEN.upper()}"],
)  # fmt: skip
async def test_another_token_than_the_one_that_is_set_is_refused(given: str | None) -> None:
    codec = FakeCodec()
    async with running(codec, admin_token=TOKEN) as client:
        headers = [] if given is None else [(b"Authorization", given.encode())]
        for method, path in (("POST", ADD), ("GET", "/adapters"), ("DELETE", "/adapters/x")):
            answer = await client.request(method, path, headers=headers)
            check_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert codec.calls == 0


def test_the_token_is_not_told_and_not_too_short() -> None:
    settings = Settings(admin_token=TOKEN)  # type: ignore[arg-type]
    assert TOKEN not in repr(settings) and TOKEN not in str(settings.model_dump())
    with pytest.raises(ValueError, match="admin_token"):
        Settings(admin_token="short")  # type: ignore[arg-type]


async def test_an_adapter_is_added_listed_and_removed_by_its_hash() -> None:
    async with running(FakeCodec(), admin_token=TOKEN) as client:
        with capture_logs() as lines:
            added = await client.post(ADD, content=b"good one", headers=AUTH)
        assert added.status_code == 201, added.text
        sha256 = hashlib.sha256(b"good one").hexdigest()
        assert added.headers["location"] == f"/adapters/{sha256}"
        assert added.json() == {
            "sha256": sha256, "base": BASE, "model": "fake", "rate": 5, "tune": "psnr",
            "file_bytes": 8, "served": True, "stored": False,
        }  # fmt: skip
        assert TOKEN not in str(lines) and "adapter loaded" in str(lines)
        listed = await client.get("/adapters", headers=AUTH)
        assert listed.json() == {"adapters": [added.json()]}
        gone = await client.delete(f"/adapters/{sha256}", headers=AUTH)
        assert gone.status_code == 204 and gone.content == b""
        check_problem(
            await client.delete(f"/adapters/{sha256}", headers=AUTH), 404, "unknown-adapter"
        )
        form = await client.post(ADD, files={"file": b"good two"}, headers=AUTH)
        assert form.status_code == 201


async def test_what_is_wrong_is_told_as_elsewhere() -> None:
    async with running(FakeCodec(), admin_token=TOKEN) as client:
        good = f"?base={BASE}&rate=5"
        for query in ("", f"?base={BASE}", "?rate=5", f"?base={BASE}&rate=9",
                      f"?base={BASE}&rate=4.5", "?base=xyz&rate=5", f"{good}&more=1",
                      f"{good}&rate=5"):  # fmt: skip
            answer = await client.post(f"/adapters{query}", content=b"good", headers=AUTH)
            check_problem(answer, 422, "bad-parameter")
        bad = await client.post(ADD, content=b"bad", headers=AUTH)
        check_problem(bad, 422, "bad-adapter")
        assert (await client.get("/adapters", headers=AUTH)).json() == {"adapters": []}
        assert client.service.admission.held_bytes == 0


async def test_a_full_line_refuses_admins_too() -> None:
    codec = FakeCodec()
    async with running(codec, admin_token=TOKEN, max_waiting=1, client_share=1) as client:
        codec.gate.clear()
        first = asyncio.ensure_future(client.post("/compress", content=PNG))
        second = asyncio.ensure_future(client.post("/compress", content=PNG))
        await until(lambda: client.service.admission.waiting == 1)
        check_problem(await client.post(ADD, content=b"good", headers=AUTH), 503, "saturated")
        codec.gate.set()
        await asyncio.gather(first, second)


async def test_a_posted_adapter_serves_its_rate_and_shows_in_what_is_loaded(
    small_model: StoredModel,
) -> None:
    """With the real engine: its rate is 422 before, 200 while it is loaded, and 422 after."""
    engine = Engine(load_models((with_rates(small_model, (5,)),), "cpu", torch.float32))
    update = small_update(small_model, 7, 3)
    file = save(pack(update, layer_shapes(small_model.transforms, small_model.entropy)))
    body = png_of(photo_like(30, 40))
    async with running(engine, admin_token=TOKEN) as client:
        check_problem(await client.post("/compress?rate=7", content=body), 422, "rate-unavailable")
        add = f"/adapters?base={small_model.sha256}&rate=7"
        check_problem(await client.post(add, content=file[:-1], headers=AUTH), 422, "bad-adapter")
        added = await client.post(add, content=file, headers=AUTH)
        assert added.status_code == 201, added.text
        stream = await client.post("/compress?rate=7", content=body)
        assert stream.status_code == 200
        assert (await client.post("/decompress", content=stream.content)).status_code == 200
        listed = (await client.get("/rates")).json()["rates"]
        assert [(r["rate"], r["lmbda"] is None) for r in listed] == [
            (4, False), (5, False), (7, True)]  # fmt: skip
        shown = (await client.get("/models")).json()["models"][0]["rates"]
        assert added.json()["sha256"] in {r["sha256"] for r in shown}
        await client.delete(added.headers["location"], headers=AUTH)
        check_problem(await client.post("/compress?rate=7", content=body), 422, "rate-unavailable")
        check_problem(
            await client.post("/decompress", content=stream.content), 422, "unknown-model"
        )
