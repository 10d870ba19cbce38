"""Answers of many bytes: sent from a file, whole or not at all, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from starlette.types import Message

from service.http import responses

from .client import Client, pixels_of, png_of, ready, running, until
from .fake_codec import FakeCodec

pytestmark = pytest.mark.anyio

MANY = 10_000
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
"""More bytes as PNG than `MANY`."""


@pytest.fixture(autouse=True)
def _few_bytes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of thousands of bytes go to disk, and bodies of that size do not."""
    monkeypatch.setattr(responses, "SPOOLED_BYTES", MANY)
    monkeypatch.setattr(responses, "PIECE_BYTES", MANY // 4)


def codec() -> FakeCodec:
    return FakeCodec()


async def stream_of(client: Client) -> bytes:
    await ready(client)
    answer = await client.post("/compress", content=png_of(PIXELS))
    assert answer.status_code == 200, answer.text
    return answer.content


class SlowReader:
    """A client that reads the beginning of its answer, and the rest after `goes_on` is set."""

    def __init__(self, client: Client, stream: bytes, host: str = "192.0.2.1") -> None:
        self.goes_on = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.status = 0
        self.body = b""
        self.is_complete = False
        self.stream = stream
        self._app, self._host = client.app, host

    async def request(self) -> None:
        """Request the picture of the stream."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/decompress",
            "raw_path": b"/decompress",
            "query_string": b"format=png",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"x"), (b"content-length", str(len(self.stream)).encode())],
            "client": (self._host, 1),
            "server": ("x", 80),
        }
        bodies = [{"type": "http.request", "body": self.stream, "more_body": False}]

        async def receive() -> Message:
            if bodies:
                return bodies.pop()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                return
            self.has_begun.set()
            await self.goes_on.wait()
            self.body += message.get("body", b"")
            self.is_complete = not message.get("more_body", False)

        await self._app(scope, receive, send)


def on_disk(client: Client) -> int:
    return client.service.spool.limit.total


async def test_what_is_read_slowly_is_on_disk_and_not_in_memory() -> None:
    async with running(codec()) as client:
        reader = SlowReader(client, await stream_of(client))
        task = asyncio.create_task(reader.request())
        await reader.has_begun.wait()
        assert on_disk(client) > PIXELS.size > 2 * MANY
        held = client.service.admission.held_bytes - len(reader.stream)
        assert held <= MANY // 4, "one piece, besides the body"
        reader.goes_on.set()
        await task
        assert reader.status == 200 and reader.is_complete
        assert np.array_equal(pixels_of(reader.body), PIXELS)
        assert on_disk(client) == 0
        whole = await client.post("/decompress?format=png", content=reader.stream)
        assert whole.content == reader.body
        assert int(whole.headers["content-length"]) == len(reader.body)


async def test_an_answer_that_is_not_read_in_time_ends_incomplete() -> None:
    async with running(codec(), body_timeout_s=0.2) as client:
        reader = SlowReader(client, await stream_of(client))
        await asyncio.wait_for(reader.request(), 10)
        assert reader.status == 200 and not reader.is_complete
        assert on_disk(client) == 0


async def test_one_client_leaves_disk_to_the_answers_of_others() -> None:
    few = 4 * PIXELS.size
    room = {"max_spool_bytes": few, "max_body_bytes": few, "max_waiting_bytes": few}
    async with running(codec(), **room) as client:
        stream = await stream_of(client)
        readers = [SlowReader(client, stream) for _ in range(2)]
        tasks = [asyncio.create_task(reader.request()) for reader in readers]
        await until(lambda: all(reader.has_begun.is_set() for reader in readers))
        refused = SlowReader(client, stream)
        refused.goes_on.set()
        await refused.request()
        assert refused.status == 429
        other = SlowReader(client, stream, "192.0.2.2")
        other.goes_on.set()
        await other.request()
        assert other.status == 200 and other.is_complete
        for reader in readers:
            reader.goes_on.set()
        await asyncio.gather(*tasks)
        assert on_disk(client) == 0


@pytest.mark.parametrize("settings", [{"max_spool_bytes": 0}, {"max_spool_bytes": MANY}, {}])
async def test_where_the_disk_has_no_room_memory_is_taken_while_that_has(
    settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    async with running(codec(), **settings) as client:
        if not settings:
            monkeypatch.setattr(client.service.spool, "open", full)
        reader = SlowReader(client, await stream_of(client))
        task = asyncio.create_task(reader.request())
        await reader.has_begun.wait()
        assert client.service.admission.held_bytes > PIXELS.size
        assert on_disk(client) == 0
        reader.goes_on.set()
        await task
        assert reader.status == 200 and reader.is_complete
        assert np.array_equal(pixels_of(reader.body), PIXELS)
        assert client.service.admission.held_bytes == 0


async def test_without_room_anywhere_the_answer_is_503() -> None:
    async with running(codec()) as client:
        stream = await stream_of(client)
    room = {"max_spool_bytes": 0, "max_body_bytes": 40_000, "max_waiting_bytes": 40_000}
    async with running(codec(), **room) as client:
        await ready(client)
        answer = await client.post("/decompress?format=png", content=stream)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        small = await client.post("/decompress?format=png&max_size=20", content=stream)
        assert small.status_code == 200
