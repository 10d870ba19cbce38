"""`/maps`: figures of pictures and streams, limited and cached as every other work."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.blobs import open_objects
from service.engine.engine import Engine
from service.errors import BadParameter
from service.maps.drawing import DrawMaps
from service.maps.request import MapRequest
from service.picture import Picture

from .client import PNG, Client, png_of, ready, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio


def check_figure(answer: Any) -> tuple[int, int]:
    """The size of a figure, which is a whole PNG file."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert "draw;dur=" in answer.headers["server-timing"]
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        return image.size


async def test_a_picture_has_a_panel_for_each_rate() -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        one = check_figure(await client.post("/maps?rates=4", content=PNG))
        assert codec.calls == 2, "one rate is one encode, and one look at its bits"
        two = check_figure(await client.post("/maps?model=fake", content=PNG))
        assert two == check_figure(await client.post("/maps?rates=4,2", files={"file": PNG}))
        assert two[0] > one[0] and two[1] == one[1]
        missing = await client.post("/maps?rates=2,3", content=PNG)
        check_problem(missing, 422, "rate-unavailable")


@pytest.mark.parametrize(
    "parameters",
    [
        "rates=",
        "rates=0",
        "rates=9",
        "rates=1,nan",
        "rates=1,1.0",
        "rates=1,2,3,4,5,6,7,8,1.5",
        "rates=" + "1" * 101,
        "rates=2&rates=4",
        "at=1,1",
        "attention=true&at=1",
        "attention=true&at=-1,0",
        "attention=true&at=1e3,0",
        "attention=true",
        "attention=perhaps",
        "frame=1",
    ],
)
async def test_wrong_parameters_are_told_before_any_work(parameters: str) -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        check_problem(await client.post(f"/maps?{parameters}", content=PNG), 422, "bad-parameter")
        unknown = await client.post("/maps?model=other", content=PNG)
        check_problem(unknown, 422, "model-unavailable")
        assert codec.calls == 0


async def test_a_stream_is_shown_as_it_is(engine: Engine, photo: Picture) -> None:
    stream = engine.compress(photo, 4).data
    async with running(engine) as client:
        await ready(client)
        check_figure(await client.post("/maps", content=stream))
        for chosen in ("rates=4", "model=small", "attention=true"):
            answer = await client.post(f"/maps?{chosen}", content=stream)
            check_problem(answer, 422, "bad-parameter")
        attention = await client.post("/maps?attention=true", content=PNG)
        problem = check_problem(attention, 422, "bad-parameter")
        assert "family conv" in str(problem["detail"])
        check_problem(await client.post("/maps", content=stream[:-9]), 400, "bad-stream")
        check_problem(await client.post("/maps", content=b"junk"), 415, "bad-image")
    async with running(engine, max_pixels=100) as client:
        large = await client.post("/maps", content=png_of(photo.rgb))
        check_problem(large, 422, "too-many-pixels")


async def test_a_server_that_only_decodes_draws_streams_alone(
    numpy_engine: Engine, engine: Engine, photo: Picture
) -> None:
    async with running(numpy_engine, decode_only=True) as client:
        await ready(client)
        check_figure(await client.post("/maps", content=engine.compress(photo, 4).data))
        check_problem(await client.post("/maps", content=PNG), 400, "bad-stream")


@asynccontextmanager
async def stocked(folder: Path, codec: FakeCodec) -> AsyncIterator[tuple[Client, str]]:
    """A service with one stream in its store, and the address of its map."""
    async with running(codec, objects_url=str(folder)) as client:
        await ready(client)
        stream = (await client.post("/compress", content=PNG)).content
        key = open_objects(folder).put(stream)
        yield client, f"/maps?object={key.rpartition('/')[2]}"


async def test_the_map_of_a_stored_stream_may_be_kept_for_ever(tmp_path: Path) -> None:
    codec = FakeCodec()
    async with stocked(tmp_path, codec) as (client, path):
        answer = await client.get(path)
        check_figure(answer)
        assert "immutable" in answer.headers["cache-control"]
        assert "fetch;dur=" in answer.headers["server-timing"]
        etag, calls = answer.headers["etag"], codec.calls
        known = await client.get(path, headers={"If-None-Match": etag})
        assert (known.status_code, known.headers["etag"], codec.calls) == (304, etag, calls)
        missing = path[:-4] + "0000"
        check_problem(await client.get(missing), 404, "no-such-object")
        for wrong in ("/maps", "/maps?object=abc", f"{path}&rates=4", f"{path}&object=a"):
            check_problem(await client.get(wrong), 422, "bad-parameter")
        junk = open_objects(tmp_path).put(b"no stream at all").rpartition("/")[2]
        check_problem(await client.get(f"/maps?object={junk}"), 500, "damaged-object")


def test_its_price_is_that_of_the_encodes_that_it_does() -> None:
    def price(data: bytes, rates: str | None, attention: bool = False) -> int:
        request = MapRequest.parse(rates, None, attention, None)
        return DrawMaps(FakeCodec(), data, False, request, 10**8).load().pixels

    (one, two), large = (price(PNG, rates) for rates in ("4", "2,4")), bytes(2000 * 3000 * 3)
    assert one > 0 and two == 2 * one == price(PNG, None)
    out = io.BytesIO()
    Image.frombytes("RGB", (3000, 2000), large).save(out, "PNG")
    assert price(out.getvalue(), "4") == 6_000_000
    assert price(out.getvalue(), "4", True) == 640**2, "attention reads a part of the picture"
    with pytest.raises(BadParameter, match="for a picture, not a stream"):
        DrawMaps(FakeCodec(), b"", True, MapRequest(rates=(4.0,)), 10**8).load()
