"""`/weights`: decode-only files for pages of any origin, cached under their hash."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import threading

import pytest

from service.engine.types import DecoderFiles

from .client import ready, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

DATA = b"weights" * 300_000
NAME = f"{hashlib.sha256(DATA).hexdigest()}.safetensors"
PATH = f"/weights/{NAME}"


class Weights(FakeCodec):
    """A codec with one large file, whose deriving waits for `derive`."""

    def __init__(self) -> None:
        super().__init__()
        self.derive = threading.Event()
        self.derive.set()

    def decoder_files(self) -> DecoderFiles:
        assert self.derive.wait(30)
        index = json.dumps({"schema": 1, "models": [{"decoder": {"file": NAME}}]}).encode()
        return DecoderFiles(index, {NAME: DATA}, {NAME: gzip.compress(DATA)})


async def test_the_index_is_asked_for_again_and_files_are_kept_for_ever() -> None:
    async with running(Weights()) as client:
        index = await client.get("/weights/index.json")
        assert index.headers["content-type"] == "application/json"
        assert index.headers["cache-control"] == "no-cache"
        assert index.json()["models"][0]["decoder"]["file"] == NAME
        again = {"if-none-match": index.headers["etag"]}
        assert (await client.get("/weights/index.json", headers=again)).status_code == 304
        file = await client.get(PATH)
        assert file.content == DATA
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert file.headers["content-type"] == "application/octet-stream"


async def test_gzip_is_sent_to_those_who_take_it_under_another_tag() -> None:
    async with running(Weights()) as client:
        tags = set()
        for accepted, coded in {
            "gzip, deflate, br": True,
            "br;q=1.0, gzip;q=0.8": True,
            "identity": False,
            "gzip;q=0": False,
            "gzip;q=0.000, br": False,
            "xgzip": False,
        }.items():
            answer = await client.get(PATH, headers={"accept-encoding": accepted})
            assert answer.content == DATA
            assert (answer.headers.get("content-encoding") == "gzip") is coded, accepted
            assert answer.headers["vary"] == "Accept-Encoding"
            tags.add(answer.headers["etag"])
            known = await client.get(PATH, headers={"if-none-match": answer.headers["etag"]})
            assert known.status_code == 304 and not known.content
        assert len(tags) == 2


async def test_head_tells_the_length_alone() -> None:
    async with running(Weights()) as client:
        head = await client.head(PATH, headers={"accept-encoding": "identity"})
        assert head.status_code == 200 and not head.content
        assert int(head.headers["content-length"]) == len(DATA)


async def test_pages_of_every_origin_may_read_them_and_errors_too() -> None:
    async with running(Weights(), decode_only=True) as client:
        for path in ("/weights/index.json", PATH, "/weights/nothing"):
            answer = await client.get(path, headers={"origin": "https://example.org"})
            assert answer.headers["access-control-allow-origin"] == "*"
        check_problem(await client.get("/weights/nothing"), 404, "not-found")
        check_problem(await client.get(f"{PATH}?a=1"), 422, "bad-parameter")
        check_problem(await client.post(PATH), 405, "method-not-allowed")
        assert "access-control-allow-origin" not in (await client.get("/metrics")).headers


async def test_files_are_no_memory_of_requests() -> None:
    """They are there for all: a client that reads slowly holds a piece of them at most."""
    async with running(Weights(), max_waiting_bytes=1 << 20, max_body_bytes=1 << 20) as client:
        answers = await asyncio.gather(*(client.get(PATH) for _ in range(8)))
        assert {answer.content for answer in answers} == {DATA}
        assert client.service.admission.held_bytes == 0


async def test_deriving_them_holds_up_nobody() -> None:
    codec = Weights()
    codec.derive.clear()
    async with running(codec) as client:
        await ready(client)
        waiting = asyncio.ensure_future(client.get("/weights/index.json"))
        assert (await client.get("/rates")).status_code == 200
        assert not waiting.done()
        codec.derive.set()
        assert (await waiting).status_code == 200


async def test_they_can_be_turned_off() -> None:
    async with running(Weights(), weights=False) as client:
        check_problem(await client.get("/weights/index.json"), 404, "not-found")
