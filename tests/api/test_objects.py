"""GET and PUT /objects: pictures that may be cached for ever, streams kept under their own hash."""

from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError
from structlog.testing import capture_logs

from service.blobs import open_objects, shared_key
from service.errors import ObjectsUnavailable, RangeUnsatisfiable
from service.http.responses import entity_tags, requested_range
from service.server.app import create_app
from service.settings import Settings

from .client import HEIGHT, PIXELS, PNG, WIDTH, Client, pixels_of, ready, running, until
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

MISSING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
YEAR = "public, max-age=31536000, immutable"


@asynccontextmanager
async def stocked(folder: Path, **settings: Any) -> AsyncIterator[tuple[Client, str, FakeCodec]]:
    """A service with one stream in its store, and the path of that stream."""
    codec = FakeCodec()
    async with running(codec, objects_url=str(folder), **settings) as client:
        await ready(client)
        async with running(FakeCodec()) as other:
            stream = (await other.post("/compress", content=PNG)).content
        key = open_objects(folder).put(stream)
        yield client, f"/objects/{key.rpartition('/')[2]}", codec


async def test_a_stored_stream_is_a_picture_that_may_be_kept_for_ever(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        answer = await client.get(path, headers={"Accept": "image/png"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(pixels_of(answer.content), PIXELS)
        assert answer.headers["cache-control"] == YEAR
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-rankpress-rate"] == "4"
        assert answer.headers["server-timing"].count("fetch;dur=") == 1
        head = await client.head(path, headers={"Accept": "image/png"})
        assert head.content == b"" and head.headers["etag"] == answer.headers["etag"]
        assert head.headers["content-length"] == str(len(answer.content))


async def test_accept_chooses_the_format_unless_the_address_does(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        accepted = {"Accept": "image/avif,image/webp;q=0.9"}
        chosen = await client.get(path, headers=accepted)
        assert chosen.headers["content-type"] == "image/avif"
        assert chosen.headers["vary"] == "Accept"
        named = await client.get(f"{path}?format=jpeg", headers=accepted)
        assert named.headers["content-type"] == "image/jpeg" and "vary" not in named.headers
        check_problem(await client.get(path, headers={"Accept": "text/html"}), 406,
                      "not-acceptable")  # fmt: skip


async def test_accept_gives_small_files_and_the_address_exact_ones(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, codec):

        async def got(accept: str, query: str = "") -> Any:
            return await client.get(f"{path}{query}", headers={"Accept": accept})

        for accept, media_type in (
            ("", "image/jpeg"),
            ("*/*", "image/jpeg"),
            ("image/webp,*/*", "image/webp"),
            ("image/avif,image/webp,image/*", "image/avif"),
        ):
            answer = await got(accept)
            assert answer.headers["content-type"] == media_type, accept
            assert not np.array_equal(pixels_of(answer.content), PIXELS), accept
        for query in ("?format=png", "?format=webp"):
            assert np.array_equal(pixels_of((await got("*/*", query)).content), PIXELS)
        codec.alpha = 77
        for accept, media_type in (("", "image/webp"), ("image/png,image/jpeg", "image/png")):
            answer = await got(accept)
            assert answer.headers["content-type"] == media_type, accept
            mode = Image.open(io.BytesIO(answer.content)).convert("RGBA")
            assert mode.getchannel("A").getextrema() == (77, 77)


async def test_a_quality_is_of_the_lossy_format_that_accept_leaves(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        for accept in ("*/*", "image/webp", "image/avif", "image/png,image/jpeg;q=0.1"):
            answers = [
                await client.get(f"{path}?quality={q}", headers={"Accept": accept})
                for q in (10, 95)
            ]
            assert len(answers[0].content) < len(answers[1].content), accept
            assert answers[0].headers["etag"] != answers[1].headers["etag"]
        png = await client.get(f"{path}?quality=10", headers={"Accept": "image/png"})
        assert np.array_equal(pixels_of(png.content), PIXELS)
        both = await client.get(f"{path}?format=png&quality=10")
        check_problem(both, 422, "bad-parameter")


async def test_a_region_and_a_size_are_pictures_of_their_own(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        whole = await client.get(f"{path}?format=png")
        part = await client.get(f"{path}?format=png&region=3,2,5,4")
        assert np.array_equal(pixels_of(part.content), PIXELS[2:6, 3:8])
        small = await client.get(f"{path}?format=png&max_size=10")
        assert pixels_of(small.content).shape == (HEIGHT * 10 // WIDTH, 10, 3)
        tags = {a.headers["etag"] for a in (whole, part, small)}
        assert len(tags) == 3
        wrong = await client.get(f"{path}?region=19,0,2,2")
        check_problem(wrong, 422, "bad-parameter")
        assert wrong.headers["cache-control"] == "no-store"
        check_problem(await client.get(f"{path}?size=3"), 422, "bad-parameter")


async def test_who_has_the_picture_is_told_so_without_decoding(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, codec):
        etag = (await client.get(path)).headers["etag"]
        other = (await client.get(f"{path}?format=webp")).headers["etag"]
        calls = codec.calls
        for sent in (etag, f"W/{etag}", f'"x", {etag}', f"{other},{etag}", "*"):
            answer = await client.get(path, headers={"If-None-Match": sent})
            assert (answer.status_code, answer.content) == (304, b""), sent
            assert answer.headers["cache-control"] == YEAR
            assert answer.headers["vary"] == "Accept"
        assert answer.headers["x-request-id"]
        answer = await client.get(path, headers={"If-None-Match": etag})
        assert answer.headers["etag"] == etag
        assert codec.calls == calls
        for sent in (other, '"x"', "x", ""):
            answer = await client.get(path, headers={"If-None-Match": sent})
            assert answer.status_code == 200, sent
        gone = f"/objects/{MISSING}"
        check_problem(await client.get(gone, headers={"If-None-Match": etag}), 404,
                      "no-such-object")  # fmt: skip


async def test_damaged_exif_of_a_stream_costs_its_exif_and_not_the_picture(tmp_path: Path) -> None:
    async with stocked(tmp_path, objects_write=True) as (client, path, codec):
        stream = (await client.post("/compress?rate=4", content=PNG)).content
        turned = b"II*\0\x08\0\0\0" + b"\1\0" + b"\x12\1\1\0\1\0\0\0\6\0\0\0" + bytes(4)
        for block in (b"", b"no Exif", turned):
            codec.exif = block
            assert (await client.put("/objects", content=stream)).status_code in (200, 201)
            answer = await client.get(path, headers={"Accept": "image/avif"})
            assert answer.status_code == 200, block
            assert "the Exif block is damaged" in answer.headers["x-rankpress-notes"]
            for format in ("png", "webp", "jpeg", "avif"):
                for more in ("", "&region=1,2,6,5", "&max_size=7"):
                    query = f"/decompress?format={format}{more}"
                    answer = await client.post(query, content=stream)
                    assert answer.status_code == 200, (query, block)
        codec.exif = None
        assert "x-rankpress-notes" not in (await client.get(path)).headers


async def test_a_range_is_that_part_of_the_same_file(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        whole = await client.get(path)
        size, etag = len(whole.content), whole.headers["etag"]

        async def part_of(range_: str, **headers: str) -> Any:
            return await client.get(path, headers={"Range": range_, **headers})

        for range_, part in (
            ("bytes=0-9", slice(0, 10)),
            ("bytes=5-", slice(5, None)),
            ("bytes=-7", slice(-7, None)),
            (f"bytes=10-{size + 5}", slice(10, None)),
        ):
            answer = await part_of(range_)
            assert answer.status_code == 206 and answer.content == whole.content[part]
            first, last, _ = part.indices(size)
            assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{size}"
            assert answer.headers["etag"] == etag
            assert answer.headers["cache-control"] == YEAR
        assert (await part_of("bytes=0-9", **{"If-Range": etag})).status_code == 206
        for range_, more in (
            ("bytes=0-9", {"If-Range": '"other"'}),
            ("bytes=0-9", {"If-Range": f"W/{etag}"}),
            ("bytes=9-5", {}),
            ("bytes=0-1,4-5", {}),
            ("items=0-9", {}),
            ("bytes=-", {}),
        ):
            answer = await part_of(range_, **more)
            assert answer.status_code == 200 and answer.content == whole.content, range_
        for range_ in (f"bytes={size}-", "bytes=-0"):
            beyond = await part_of(range_)
            check_problem(beyond, 416, "range-unsatisfiable")
            assert beyond.headers["content-range"] == f"bytes */{size}"
        assert (await client.head(path, headers={"Range": "bytes=0-9"})).status_code == 200


async def test_the_bytes_of_a_stream_are_served_whole_or_in_parts(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, codec):
        digest = path.rpartition("/")[2]
        stream, etag = open_objects(tmp_path).get(shared_key(digest)), f'"{digest}"'
        size = len(stream)

        async def got(**sent: str) -> Any:
            names = {name.replace("_", "-"): value for name, value in sent.items()}
            return await client.get(f"{path}/stream", headers=names)

        def check(answer: Any, status: int, content: bytes) -> None:
            assert (answer.status_code, answer.content) == (status, content)
            assert answer.headers["etag"] == etag
            assert answer.headers["cache-control"] == YEAR
            assert answer.headers["accept-ranges"] == "bytes" and "vary" not in answer.headers

        whole = await got()
        check(whole, 200, stream)
        assert whole.headers["content-type"] == "application/vnd.rankpress"
        for range_, part in (
            ("bytes=0-9", slice(0, 10)),
            ("bytes=5-", slice(5, None)),
            ("bytes=-7", slice(-7, None)),
            (f"bytes=10-{size + 5}", slice(10, None)),
        ):
            answer = await got(range=range_, if_range=etag)
            check(answer, 206, stream[part])
            first, last, _ = part.indices(size)
            assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{size}"
        for more in ({"if_range": '"other"'}, {"if_range": f"W/{etag}"}, {"range": "bytes=0-1,4-"}):
            check(await got(**({"range": "bytes=0-9"} | more)), 200, stream)
        for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            check(await got(if_none_match=known, range="bytes=0-9"), 304, b"")
        check(await got(if_none_match='"x"'), 200, stream)
        beyond = await got(range=f"bytes={size}-")
        check_problem(beyond, 416, "range-unsatisfiable")
        assert beyond.headers["content-range"] == f"bytes */{size}"
        head = await client.head(f"{path}/stream", headers={"Range": "bytes=0-9"})
        check(head, 200, b"")
        assert head.headers["content-length"] == str(size)
        assert codec.calls == 0
        check_problem(await client.get(f"/objects/{MISSING}/stream"), 404, "no-such-object")
        check_problem(await client.get(f"{path}/stream?format=png"), 422, "bad-parameter")


async def test_a_range_reads_its_bytes_alone_and_a_head_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stocked(tmp_path) as (client, path, _):
        objects = client.service.objects
        assert objects is not None
        asked: list[tuple[str, range]] = []

        def get_range(key: str, span: range) -> bytes:
            asked.append((key, span))
            return b"abc"

        def get(key: str) -> bytes:
            raise AssertionError(key)

        monkeypatch.setattr(objects, "get_range", get_range)
        monkeypatch.setattr(objects, "get", get)
        answer = await client.get(f"{path}/stream", headers={"Range": "bytes=4-6"})
        assert (answer.status_code, answer.content) == (206, b"abc")
        assert asked == [(shared_key(path.rpartition("/")[2]), range(4, 7))]
        assert (await client.head(f"{path}/stream")).status_code == 200
        assert client.service.admission.held_bytes == 0


async def test_pages_of_named_origins_may_read_ranges_of_a_stream(tmp_path: Path) -> None:
    async with stocked(tmp_path, cors_origins="https://a.example") as (client, path, _):
        origin = {"Origin": "https://a.example"}
        asked = {
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "range, if-range",
        }
        allowed = await client.options(f"{path}/stream", headers=origin | asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-headers"] == "range, if-range"
        part = await client.get(f"{path}/stream", headers=origin | {"Range": "bytes=0-3"})
        assert part.status_code == 206
        assert part.headers["access-control-allow-origin"] == "https://a.example"
        exposed = part.headers["access-control-expose-headers"].split(", ")
        assert {"Accept-Ranges", "Content-Range", "Content-Length", "ETag"} <= set(exposed)
    async with stocked(tmp_path) as (client, path, _):
        part = await client.get(f"{path}/stream", headers=origin | {"Range": "bytes=0-3"})
        assert "access-control-allow-origin" not in part.headers


async def test_damage_and_outages_of_the_store_are_told_for_bytes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stocked(tmp_path) as (client, path, _):
        key = shared_key(path.rpartition("/")[2])
        objects = client.service.objects
        assert objects is not None
        size = (tmp_path / key).stat().st_size
        (tmp_path / key).write_bytes(bytes(size))
        check_problem(await client.get(f"{path}/stream"), 500, "damaged-object")
        real = objects.head(key)
        monkeypatch.setattr(objects, "head", lambda _: real)
        (tmp_path / key).write_bytes(bytes(size - 1))
        end = {"Range": "bytes=-5"}
        check_problem(await client.get(f"{path}/stream", headers=end), 500, "damaged-object")

        def fails(key: str) -> None:
            raise ObjectsUnavailable(f"secret bucket has no {key}")

        monkeypatch.setattr(objects, "head", fails)
        answer = await client.get(f"{path}/stream")
        assert "secret" not in str(check_problem(answer, 503, "objects-unavailable"))
    async with stocked(tmp_path / "large", max_body_bytes=100) as (client, path, _):
        check_problem(await client.get(f"{path}/stream"), 413, "too-many-bytes")


def test_ranges_and_tags_of_odd_headers() -> None:
    tag = '"k-b"'
    assert requested_range({"range": "BYTES= 0-0 "}, tag, 10) == range(1)
    assert requested_range({"range": "bytes=0-" + "9" * 40}, tag, 10) is None
    assert requested_range({"range": "bytes=-99"}, tag, 10) == range(10)
    with pytest.raises(RangeUnsatisfiable):
        requested_range({"range": "bytes=0-0"}, tag, 0)
    assert entity_tags('W/"a", "b,c" ,"d') == ["a", "b,c"]
    assert len(entity_tags('"a",' * 1000)) == 100


async def test_what_is_not_there_or_no_hash_is_said_to_be(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        check_problem(await client.get(f"/objects/{MISSING}"), 404, "no-such-object")
        for wrong in ("abc", path.rpartition("/")[2].upper() + "x", "..%2f..%2fetc"):
            answer = await client.get(f"/objects/{wrong}")
            assert answer.status_code in (404, 422), wrong
        check_problem(await client.put(path, content=b"x"), 405, "method-not-allowed")
        check_problem(await client.put("/objects", content=b"x"), 404, "not-found")


async def test_damage_in_the_store_is_logged_and_its_place_not_shown(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, _):
        objects, digest = open_objects(tmp_path), path.rpartition("/")[2]
        objects.put_named(shared_key(digest), b"other bytes")
        junk = objects.put(b"no stream at all").rpartition("/")[2]
        for broken in (digest, junk):
            with capture_logs() as lines:
                answer = await client.get(f"/objects/{broken}")
            problem = check_problem(answer, 500, "damaged-object")
            assert digest not in str(problem["detail"]) and str(tmp_path) not in str(problem)
            assert any(line["event"] == "damaged-object" for line in lines)
            assert answer.headers["cache-control"] == "no-store"


async def test_a_damaged_object_is_whole_again_once_it_is_put_again(tmp_path: Path) -> None:
    async with stocked(tmp_path, objects_write=True) as (client, path, _):
        key = shared_key(path.rpartition("/")[2])
        stream = open_objects(tmp_path).get(key)
        file = tmp_path / key
        flipped = bytearray(stream)
        flipped[len(stream) // 2] ^= 1
        for damaged in (bytes(flipped), stream[:-1], b""):
            file.write_bytes(damaged)
            check_problem(await client.get(path), 500, "damaged-object")
            again = await client.put("/objects", content=stream)
            assert again.status_code == 200 and file.read_bytes() == stream
            picture = await client.get(f"{path}?format=png")
            assert picture.status_code == 200
            assert np.array_equal(pixels_of(picture.content), PIXELS)


async def test_a_store_that_fails_or_hangs_is_503_and_not_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stocked(tmp_path, request_timeout_s=0.2) as (client, path, _):
        objects, goes_on = client.service.objects, threading.Event()
        assert objects is not None

        def fails(key: str) -> bytes:
            raise ObjectsUnavailable(f"secret bucket has no {key}")

        def hangs(key: str) -> bytes:
            goes_on.wait(60)
            return key.encode()

        for replacement in (fails, hangs):
            monkeypatch.setattr(objects, "get", replacement)
            answer = await client.get(path)
            problem = check_problem(answer, 503, "objects-unavailable")
            assert "secret" not in str(problem) and int(answer.headers["retry-after"]) > 0
        goes_on.set()
        await until(lambda: client.service.admission.held_bytes == 0)


async def test_a_store_that_hangs_stalls_no_other_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds also if compressing reads headers in a thread, for batches."""
    async with stocked(tmp_path) as (client, path, codec):
        monkeypatch.setattr(type(codec), "max_batch", 4)
        objects, goes_on = client.service.objects, threading.Event()
        assert objects is not None
        monkeypatch.setattr(objects, "get", lambda _: goes_on.wait(60) and b"")
        hanging = [asyncio.create_task(client.get(path)) for _ in range(80)]
        try:
            await until(lambda: client.service.object_calls.pending >= 80)
            answer = await client.post("/compress?rate=2", content=PNG)
            assert answer.status_code == 200
            assert not any(task.done() for task in hanging)
        finally:
            goes_on.set()
            await asyncio.gather(*hanging)


async def test_an_object_over_the_limits_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with stocked(tmp_path, max_body_bytes=100) as (client, path, codec):
        check_problem(await client.get(path), 413, "too-many-bytes")
        assert codec.calls == 0


async def test_a_stream_is_kept_once_it_was_decoded_and_under_its_hash_alone(
    tmp_path: Path,
) -> None:
    async with stocked(tmp_path / "a", objects_write=True) as (client, _, codec):
        stream = (await client.post("/compress?rate=2", content=PNG)).content
        digest = hashlib.sha256(stream).hexdigest()
        wrong = await client.put(f"/objects/{MISSING}", content=stream)
        check_problem(wrong, 422, "bad-parameter")
        assert digest in wrong.json()["detail"]
        check_problem(await client.get(f"/objects/{digest}"), 404, "no-such-object")
        calls = codec.calls
        stored = await client.put("/objects", content=stream)
        assert stored.status_code == 201 and codec.calls == calls + 1
        assert stored.headers["location"] == f"/objects/{digest}"
        assert stored.json() == {
            "sha256": digest, "bytes": len(stream), "width": WIDTH, "height": HEIGHT, "rate": 2
        }  # fmt: skip
        assert (await client.get(f"/objects/{digest}")).status_code == 200
        again = await client.put(f"/objects/{digest}", content=stream)
        assert again.status_code == 200 and again.json() == stored.json()
        check_problem(await client.put("/objects", content=stream[:-9]), 400, "bad-stream")
        check_problem(await client.put("/objects?a=1", content=stream), 422, "bad-parameter")
        stored = list(open_objects(tmp_path / "a").list("objects"))
        assert len(stored) == 2


async def test_a_lossless_stream_is_kept_and_has_no_number_as_its_rate(tmp_path: Path) -> None:
    async with stocked(tmp_path / "a", objects_write=True) as (client, _, _):
        stream = (await client.post("/compress?rate=lossless", content=PNG)).content
        stored = await client.put("/objects", content=stream)
        assert (stored.status_code, stored.json()["rate"]) == (201, None)
        picture = await client.get(stored.headers["location"], params={"format": "png"})
        assert picture.headers["x-rankpress-rate"] == "lossless"
        np.testing.assert_array_equal(pixels_of(picture.content), PIXELS)


def test_writing_is_off_unless_allowed_and_never_without_a_place() -> None:
    assert not Settings().objects_write
    for wrong in ({"objects_write": True}, {"objects_write": True, "objects_url": "x",
                                            "decode_only": True}):  # fmt: skip
        with pytest.raises(ValidationError, match="objects_write"):
            Settings(**wrong)


def paths(app: FastAPI) -> set[str]:
    return {f"{method} {p}" for p, ms in app.openapi()["paths"].items() for method in ms}


def test_a_decoding_server_offers_decoding_alone(tmp_path: Path) -> None:
    decoding = {"post /decompress", "post /maps", "get /livez", "get /readyz", "get /metrics"}
    decoding |= {"get /weights/index.json", "get /weights/{file}"}
    folder = str(tmp_path)
    assert paths(create_app(FakeCodec(), Settings(decode_only=True))) == decoding
    reading = Settings(decode_only=True, objects_url=folder)
    objects = {"get /maps", "get /objects/{sha256}", "get /objects/{sha256}/stream"} | {
        "get /iiif/{sha256}",
        "get /iiif/{sha256}/info.json",
        "get /iiif/{sha256}/{region}/{size}/{rotation}/{quality}.{format}",
        "get /pictures/{name}",
        "get /pictures/{name}/@stream",
    }
    assert paths(create_app(FakeCodec(), reading)) == decoding | objects
    whole = paths(create_app(FakeCodec(), Settings(objects_url=folder, objects_write=True)))
    assert whole >= decoding | objects | {"post /compress", "put /objects"}
    writing = {"get /pictures", "get /pictures/{name}/@history"}
    assert whole >= writing | {"put /pictures/{name}", "delete /pictures/{name}"}
    assert not objects & paths(create_app(FakeCodec(), Settings()))
