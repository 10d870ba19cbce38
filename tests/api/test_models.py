"""`?model=`: a request names the model that compresses, of those that `/models` lists."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_ladder import with_rates
from small_model import photo_like, small_stored_model

from service.engine.engine import Engine
from service.engine.types import ModelInfo
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.model import StoredModel

from .client import PNG, png_of, ready, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio


class TwoModels(FakeCodec):
    """A codec with the models `fake` and `other`, which make the same streams."""

    def models(self) -> tuple[ModelInfo, ...]:
        (fake,) = super().models()
        return fake, replace(fake, name="other", sha256="cd" * 32, family="swin")


async def test_models_say_which_of_them_is_the_default() -> None:
    async with running(TwoModels()) as client:
        await ready(client)
        listed = (await client.get("/models")).json()
        assert listed["default"] == "fake"
        assert [(m["name"], m["family"]) for m in listed["models"]] == [
            ("fake", "conv"), ("other", "swin"),
        ]  # fmt: skip
        assert {rate["model"] for rate in (await client.get("/rates")).json()["rates"]} == {
            "fake", "other",
        }  # fmt: skip
        for query, name in (("", "fake"), ("&model=fake", "fake"), ("&model=other", "other")):
            answer = await client.post(f"/compress?rate=2{query}", content=PNG)
            assert answer.headers["X-Rankpress-Model"] == name


async def test_an_unknown_model_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    codec, too_large = TwoModels(), PNG + bytes(2000)
    more = {"objects_url": str(tmp_path), "objects_write": True, "max_body_bytes": 1000}
    async with running(codec, **more) as client:
        await ready(client)
        for call in (client.post("/compress?model=x", content=too_large),
                     client.put("/pictures/a?model=x", content=too_large)):  # fmt: skip
            problem = check_problem(await call, 422, "model-unavailable")
            assert problem["detail"] == "model is 'x', expected one of fake, other"
        check_problem(await client.post("/compress?model=", content=PNG), 422, "bad-parameter")
        check_problem(
            await client.post("/compress?model=other", content=too_large), 413, "too-many-bytes"
        )
    assert codec.calls == 0


async def test_a_name_takes_any_model_for_its_stream_and_jobs_the_default_alone(
    tmp_path: Path,
) -> None:
    more = {"objects_url": str(tmp_path / "objects"), "objects_write": True, "jobs": True}
    async with running(codec := TwoModels(), jobs_worker=False, state=tmp_path, **more) as client:
        await ready(client)
        put = await client.put("/pictures/a?rate=2&model=other", content=PNG)
        again = await client.put("/pictures/a?rate=2&model=other", content=PNG)
        assert (put.status_code, again.status_code, codec.calls) == (201, 200, 1)
        assert again.json()["version"] == 1
        other = await client.put("/pictures/a?rate=2", content=PNG)
        assert (other.json()["version"], codec.calls) == (2, 2), "another model is another put"
        refused = await client.put("/pictures/a?rate=2&model=other&effort=1", content=PNG)
        problem = check_problem(refused, 422, "bad-parameter")
        assert problem["detail"] == "model is other, jobs (effort) adapt fake alone"
        adapting = await client.put("/pictures/a?rate=2&model=fake&effort=1", content=PNG)
        assert adapting.json()["job"] is not None
        check_problem(await client.post("/adapt?model=fake", content=PNG), 422, "bad-parameter")


async def test_a_mixed_burst_over_two_models_gives_the_bytes_of_one_request_at_a_time(
    small_model: StoredModel,
) -> None:
    other, _, _ = small_stored_model(seed=1)
    two = with_rates(small_model, (5,)), with_rates(replace(other, name="other"), (5,))
    models = load_models(two, "cpu", torch.float32)
    engine, alone = Engine(models, max_batch=4), [Engine((model,)) for model in models]
    pixels = [photo_like(40, 64, seed) for seed in range(3)]
    asked = [(i, rate, m) for i in range(3) for rate in (4, 5) for m in (0, 1)]
    async with running(engine, batch_window_s=0.2) as client:
        await ready(client)
        answers = await asyncio.gather(
            *(
                client.post(f"/compress?rate={rate}&model={two[m].name}", content=png_of(pixels[i]))
                for i, rate, m in asked
            )
        )
        calls = sum(usage.calls for usage in client.service.admission.usage)
    assert calls < len(asked), "the engine worked on several at a time"
    for (i, rate, m), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.content == alone[m].compress(Picture(pixels[i]), rate).data
        assert answer.headers["X-Rankpress-Model"] == two[m].name
