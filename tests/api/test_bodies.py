"""Bodies: multipart in every shape, and limits that hold while bytes arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from starlette.types import Message

from service.http.exchange import DROPPED_BODIES, PIECE_BYTES

from .client import PNG, pixels_of, png_of, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

BOUNDARY = b"xyz"
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


def part(name: str, content: bytes, extra: bytes = b"") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n'.encode()
    return head + extra + b"\r\n" + content + b"\r\n"


END = b"--xyz--\r\n"


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"", 400, "bad-request"),
        (END, 422, "bad-parameter"),
        (b"no boundary at all", 400, "bad-request"),
        (part("file", PNG), 400, "bad-request"),
        (part("file", PNG)[:-9], 400, "bad-request"),
        (part("image", PNG) + END, 422, "bad-parameter"),
        (part("file", PNG) + part("rate", b"2") + END, 422, "bad-parameter"),
        (part("file", PNG) + part("file", PNG) + END, 422, "bad-parameter"),
        (b"--xyz\r\n\r\n" + PNG + b"\r\n" + END, 422, "bad-parameter"),
        (part("file", PNG, b"X-Long: " + b"a" * 9000 + b"\r\n") + END, 400, "bad-request"),
        (part("file", PNG, b"X-A: b\r\n" * 2000) + END, 400, "bad-request"),
        (part("x" * 3000, PNG) + END, 422, "bad-parameter"),
    ],
)
async def test_a_multipart_body_that_is_not_one_file_is_refused(
    body: bytes, status: int, slug: str
) -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        for size in (1, 7, 1 << 16):
            answer = await client.post("/compress", content=pieces(body, size), headers=FORM)
            check_problem(answer, status, slug)
    assert codec.calls == 0


@pytest.mark.parametrize("size", [1, 2, 3, 50, 1 << 16])
async def test_a_multipart_file_is_the_same_however_it_is_cut(size: int) -> None:
    tricky = PNG + b"\r\n--xy\r\n--xyy"  # bytes after the end of a PNG are not read
    async with running(FakeCodec()) as client:
        plain = await client.post("/compress", content=PNG)
        body = part("file", tricky, b"Content-Type: image/png\r\n") + END
        cut = await client.post("/compress", content=pieces(body, size), headers=FORM)
        assert cut.content == plain.content


@pytest.mark.parametrize("options", ["", "; boundary=", "; boundary=" + "b" * 999])
async def test_a_multipart_type_without_a_usable_boundary_is_refused(options: str) -> None:
    async with running(FakeCodec()) as client:
        headers = {"Content-Type": f"multipart/form-data{options}"}
        answer = await client.post("/compress", content=b"x", headers=headers)
        check_problem(answer, 400, "bad-request")


async def test_a_stream_may_come_as_multipart_too() -> None:
    async with running(FakeCodec()) as client:
        stream = (await client.post("/compress", content=PNG)).content
        answer = await client.post("/decompress", files={"file": ("a.rkp", stream)})
        assert answer.status_code == 200


async def test_a_content_coding_is_refused() -> None:
    async with running(FakeCodec()) as client:
        coded = {"Content-Encoding": "gzip"}
        answer = await client.post("/compress", content=PNG, headers=coded)
        check_problem(answer, 415, "unsupported-encoding")
        assert answer.headers["accept-encoding"] == "identity"


async def test_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    for limit, status in ((len(PNG), 200), (len(PNG) - 1, 413)):
        async with running(FakeCodec(), max_body_bytes=limit) as client:
            declared = await client.post("/compress", content=PNG)
            chunked = await client.post("/compress", content=pieces(PNG, 64))
            assert (declared.status_code, chunked.status_code) == (status, status)
            if status == 413:
                check_problem(declared, 413, "too-many-bytes")
                check_problem(chunked, 413, "too-many-bytes")


@pytest.mark.parametrize("form", [False, True])
async def test_no_more_than_the_limit_is_ever_held_of_an_endless_body_and_little_more_taken(
    form: bool,
) -> None:
    taken = most = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken, most
        yield part("file", b"")[:-2] if form else b""
        while True:
            taken += 1000
            most = max(most, client.service.admission.held_bytes)
            yield bytes(1000)

    async with running(FakeCodec(), max_body_bytes=50_000) as client:
        headers = FORM if form else {}
        answer = await client.post("/compress", content=endless(), headers=headers)
        check_problem(answer, 413, "too-many-bytes")
        assert taken <= 52_000 + DROPPED_BODIES * 50_000
        assert most <= 50_000
        assert client.service.admission.held_bytes == 0


async def test_a_declared_body_that_does_not_fit_is_refused_unread() -> None:
    async with running(FakeCodec(), max_body_bytes=1000, max_waiting_bytes=1500) as client:
        other = client.service.admission.hold()
        other.grow(1000)
        answer = await client.post("/compress", content=PNG)
        check_problem(answer, 503, "saturated")
        assert int(answer.headers["retry-after"]) >= 1
        chunked = await client.post("/compress", content=pieces(PNG, 100))
        check_problem(chunked, 503, "saturated")
        other.release()
        assert (await client.post("/compress", content=PNG)).status_code == 200
        assert client.service.admission.held_bytes == 0


async def test_a_body_that_stalls_or_drips_is_waited_for_no_longer_than_the_limits_say() -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield PNG[:100]
        await asyncio.Event().wait()

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.02)

    limits = {"stall_timeout_s": 0.1, "body_timeout_s": 0.3}
    async with running(FakeCodec(), **limits) as client:
        for body in (stalling(), dripping()):
            answer = await client.post("/compress", content=body)
            check_problem(answer, 408, "body-timeout")
            assert answer.headers["connection"] == "close"
        for body in (stalling(), dripping()):
            answer = await client.post("/nothing", content=body)
            check_problem(answer, 404, "not-found")
            assert answer.headers["connection"] == "close"
        assert client.service.admission.held_bytes == 0


async def test_bytes_that_came_fast_give_a_body_no_time_for_the_last() -> None:
    async def sprinting() -> AsyncIterator[bytes]:
        yield bytes(60_000)
        while True:
            await asyncio.sleep(0.02)
            yield b"x"

    async def steady() -> AsyncIterator[bytes]:
        for start in range(0, len(PNG), 80):
            yield PNG[start : start + 80]
            await asyncio.sleep(0.05)

    limits = {"stall_timeout_s": 0.3, "min_bytes_per_s": 1000}
    async with running(FakeCodec(), **limits) as client, asyncio.timeout(20):
        check_problem(await client.post("/compress", content=sprinting()), 408, "body-timeout")
        assert (await client.post("/compress", content=steady())).status_code == 200


async def test_a_large_answer_arrives_whole() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (300, 400, 3), np.uint8)
    async with running(FakeCodec(max_pixels=200_000)) as client:
        stream = (await client.post("/compress", content=png_of(pixels))).content
        answer = await client.post("/decompress", content=stream)
        assert len(answer.content) > PIECE_BYTES
        np.testing.assert_array_equal(pixels_of(answer.content), pixels)


async def test_a_client_that_stops_reading_its_answer_is_given_up() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async with running(FakeCodec(), stall_timeout_s=0.1) as client:
        scope = {"type": "http", "method": "GET", "path": "/models", "headers": []}
        await client.app({**scope, "query_string": b""}, receive, send)
        assert client.service.admission.held_bytes == 0
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
