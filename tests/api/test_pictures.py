"""/pictures: a name has a picture at once, a better one later, and caches notice soon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.api.picture_routes import name_details
from service.api.picture_schemas import PictureQuery
from service.blobs import digest_of, open_objects, shared_key
from service.engine.target import LOSSLESS
from service.jobs.followups import read_followup
from service.names.picture_names import PictureNames
from service.names.version import NamedStream, put_version
from service.settings import Settings

from .client import HEIGHT, PIXELS, PNG, WIDTH, Client, pixels_of, png_of, ready, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

PATH = "/pictures/blog/cat.jpg"
OTHER = png_of(255 - PIXELS)


@asynccontextmanager
async def naming(folder: Path, **settings: Any) -> AsyncIterator[tuple[Client, FakeCodec]]:
    """A server that takes names, and its codec."""
    codec = FakeCodec()
    more = {"objects_url": str(folder / "objects"), "objects_write": True} | settings
    async with running(codec, **more) as client:
        await ready(client)
        yield client, codec


@asynccontextmanager
async def adapting(folder: Path, **settings: Any) -> AsyncIterator[tuple[Client, FakeCodec]]:
    """Such a server that has jobs, and no worker."""
    more = {"jobs": True, "jobs_worker": False, "state": folder} | settings
    async with naming(folder, **more) as served:
        yield served


def improve(folder: Path, version: int, name: str = "blog/cat.jpg") -> bytes:
    """Do what a worker does when a job has made a better stream; return that."""
    objects = open_objects(folder / "objects")
    names = PictureNames(objects)
    present = names.present(name)
    assert present.number == version and present.stream is not None
    data = objects.get(shared_key(present.stream.sha256))[:-1]
    assert names.improve(name, present.put, data, 0.0, "0" * 32, 0.01, 0.0) is not None
    return data


async def test_a_name_is_served_as_soon_as_it_is_put(tmp_path: Path) -> None:
    async with naming(tmp_path) as (client, _):
        check_problem(await client.get(PATH), 404, "no-such-picture")
        stored = await client.put(f"{PATH}?rate=2", content=PNG)
        assert stored.status_code == 201 and stored.headers["location"] == PATH
        document = stored.json()
        digest = document["sha256"]
        stream = open_objects(tmp_path / "objects").get(shared_key(digest))
        assert document["name"] == "blog/cat.jpg"
        assert (document["version"], document["event"], document["rate"]) == (1, "put", 2)
        assert (document["width"], document["height"]) == (WIDTH, HEIGHT)
        assert (document["bytes"], document["bpp"]) == (len(stream), 8 * len(stream) / 240)
        assert document["psnr_db"] is None and document["made_by"] is None
        assert document["job"] is None and document["notes"] == []
        assert document["links"] == {
            "picture": PATH, "object": f"/objects/{digest}", "stream": f"/objects/{digest}/stream"
        }  # fmt: skip
        got = await client.get(f"{PATH}?format=png")
        assert got.status_code == 200 and np.array_equal(pixels_of(got.content), PIXELS)
        assert got.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=600"
        assert got.headers["content-location"] == f"/objects/{digest}?format=png"
        assert got.headers["accept-ranges"] == "none" and "vary" not in got.headers
        at_hash = await client.get(got.headers["content-location"])
        assert at_hash.content == got.content and at_hash.headers["etag"] == got.headers["etag"]
        head = await client.head(f"{PATH}?format=png")
        assert head.content == b"" and head.headers["etag"] == got.headers["etag"]
        accepted = await client.get(PATH, headers={"Accept": "image/webp"})
        assert accepted.headers["content-type"] == "image/webp"
        assert accepted.headers["vary"] == "Accept"
        part = await client.get(f"{PATH}?format=png&region=0,0,4,3&max_size=2")
        assert pixels_of(part.content).shape == (2, 2, 3)
        whole = await client.get(f"{PATH}?format=png", headers={"Range": "bytes=0-3"})
        assert whole.status_code == 200 and whole.content == got.content
        bytes_ = await client.get(f"{PATH}/@stream", headers={"Range": "bytes=0-3"})
        assert (bytes_.status_code, bytes_.content) == (206, stream[:4])
        assert bytes_.headers["etag"] == f'"{digest}"'
        assert bytes_.headers["content-location"] == f"/objects/{digest}/stream"
        assert bytes_.headers["cache-control"] == got.headers["cache-control"]


async def test_a_tag_is_current_until_the_name_has_another_stream(tmp_path: Path) -> None:
    settings = {"picture_max_age_s": 5, "picture_stale_s": 0, "root_path": "/img"}
    async with naming(tmp_path, **settings) as (client, codec):
        assert (await client.put(PATH, content=PNG)).json()["links"]["picture"] == f"/img{PATH}"
        got = await client.get(f"{PATH}?format=png")
        known = {"If-None-Match": got.headers["etag"]}
        calls = codec.calls
        same = await client.get(f"{PATH}?format=png", headers=known)
        assert (same.status_code, same.content, codec.calls) == (304, b"", calls)
        assert same.headers["etag"] == got.headers["etag"]
        assert same.headers["cache-control"] == "public, max-age=5, stale-while-revalidate=0"
        assert same.headers["content-location"].startswith("/img/objects/")
        await client.put(PATH, content=OTHER)
        changed = await client.get(f"{PATH}?format=png", headers=known)
        assert changed.status_code == 200
        assert np.array_equal(pixels_of(changed.content), 255 - PIXELS)


async def test_the_same_put_again_is_no_new_version_and_no_new_work(tmp_path: Path) -> None:
    async with naming(tmp_path) as (client, codec):
        first = await client.put(f"{PATH}?rate=4", content=PNG)
        calls = codec.calls
        again = await client.put(PATH, content=PNG)  # the rate is the default one
        assert (again.status_code, codec.calls) == (200, calls)
        assert again.json() == first.json()
        for query, content in (("?rate=2", PNG), ("?tune=ms-ssim&rate=2", PNG), ("", OTHER)):
            version = (await client.put(f"{PATH}{query}", content=content)).json()["version"]
        assert version == 4
        improve(tmp_path, 4)
        kept = await client.put(PATH, content=OTHER)
        assert (kept.json()["version"], kept.json()["event"]) == (5, "improved")
        assert kept.json()["made_by"] == "0" * 32
        open_objects(tmp_path / "objects").delete(shared_key(kept.json()["sha256"]))
        lost = await client.put(PATH, content=OTHER)
        assert (lost.json()["version"], lost.json()["event"]) == (6, "put")
        assert (await client.get(PATH)).status_code == 200


async def test_names_are_listed_and_their_versions_told(tmp_path: Path) -> None:
    async with naming(tmp_path) as (client, _):
        for name in ("a", "blog/cat.jpg", "blog/dog.jpg"):
            assert (await client.put(f"/pictures/{name}", content=PNG)).status_code == 201
        improve(tmp_path, 1)
        assert (await client.delete("/pictures/blog/dog.jpg")).status_code == 204
        check_problem(await client.delete("/pictures/blog/dog.jpg"), 404, "no-such-picture")
        check_problem(await client.get("/pictures/blog/dog.jpg"), 404, "no-such-picture")
        check_problem(await client.get("/pictures/blog/dog.jpg/@stream"), 404, "no-such-picture")
        whole = (await client.get("/pictures")).json()
        assert [p["name"] for p in whole["pictures"]] == ["a", "blog/cat.jpg"]
        assert whole["next"] is None
        page = (await client.get("/pictures?limit=1")).json()
        assert ([p["name"] for p in page["pictures"]], page["next"]) == (["a"], "a")
        rest = (await client.get("/pictures?limit=1&after=a&prefix=blog/c")).json()
        assert [p["name"] for p in rest["pictures"]] == ["blog/cat.jpg"]
        assert rest["pictures"][0]["event"] == "improved"
        told = (await client.get(f"{PATH}/@history")).json()["versions"]
        assert [(v["version"], v["event"]) for v in told] == [(2, "improved"), (1, "put")]
        assert told[0] == rest["pictures"][0]
        gone = (await client.get("/pictures/blog/dog.jpg/@history")).json()["versions"]
        assert [v["event"] for v in gone] == ["deleted", "put"]
        assert gone[0]["sha256"] is None and gone[0]["links"]["object"] is None
        assert (await client.get(gone[1]["links"]["object"])).status_code == 200
        check_problem(await client.get("/pictures/x/@history"), 404, "no-such-picture")
        check_problem(await client.get("/pictures?prefix=a//b"), 422, "bad-parameter")
        check_problem(await client.get(f"{PATH}/@history?a=1"), 422, "bad-parameter")
        again = await client.put("/pictures/blog/dog.jpg", content=PNG)
        assert (again.status_code, again.json()["version"]) == (201, 3)


@pytest.mark.parametrize("name", ["a/@stream", "a/@history", "@", "a b", "a//b", "a/..%2fb", "é"])
async def test_no_name_is_taken_that_is_a_path_of_another(name: str, tmp_path: Path) -> None:
    async with naming(tmp_path) as (client, codec):
        answer = await client.put(f"/pictures/{name}", content=PNG)
        check_problem(answer, 422, "bad-parameter")
        assert codec.calls == 0 and list(open_objects(tmp_path / "objects").list("names")) == []


async def test_a_server_that_may_not_write_serves_names_and_tells_none(tmp_path: Path) -> None:
    async with naming(tmp_path) as (client, _):
        await client.put(PATH, content=PNG)
    for more in ({}, {"decode_only": True}):
        async with naming(tmp_path, objects_write=False, **more) as (client, _):
            assert (await client.get(PATH)).status_code == 200
            assert (await client.get(f"{PATH}/@stream")).status_code == 200
            check_problem(await client.put(PATH, content=PNG), 405, "method-not-allowed")
            check_problem(await client.delete(PATH), 405, "method-not-allowed")
            check_problem(await client.get("/pictures"), 404, "not-found")
            check_problem(await client.get(f"{PATH}/@history"), 422, "bad-parameter")
    async with running(FakeCodec()) as client:
        check_problem(await client.get(PATH), 404, "not-found")


async def test_effort_starts_a_job_that_is_followed_by_a_better_name(tmp_path: Path) -> None:
    async with adapting(tmp_path) as (client, _):
        stored = (await client.put(f"{PATH}?rate=4&effort=1&priority=2", content=PNG)).json()
        job = (await client.get(f"/jobs/{stored['job']}")).json()
        assert (job["status"], job["rate"], job["effort"], job["priority"]) == ("queued", 4, 1, 2)
        adapted = await client.post("/adapt?rate=4&effort=1", content=PNG)
        assert adapted.json()["id"] == stored["job"]
        objects = open_objects(tmp_path / "objects")
        (info,) = objects.list("followups")
        followup = read_followup(objects, info)
        put = PictureNames(objects).present("blog/cat.jpg").put
        assert (followup.job, followup.kind) == (stored["job"], "name")
        assert followup.details == {
            "name": "blog/cat.jpg", "put": put, "lmbda": pytest.approx(0.013)
        }  # fmt: skip
        again = (await client.put(f"{PATH}?rate=4&effort=1", content=PNG)).json()
        assert (again["version"], again["job"]) == (1, stored["job"])
        more = (await client.put(f"{PATH}?rate=4&effort=2", content=PNG)).json()
        assert more["version"] == 1 and more["job"] != stored["job"]


async def test_a_program_may_be_told_when_the_job_of_a_name_ends(tmp_path: Path) -> None:
    settings = {"webhook_secret": "whsec_" + "a" * 32, "webhook_url": "https://example.org/all"}
    async with adapting(tmp_path, **settings) as (client, codec):
        wrong = await client.put(f"{PATH}?effort=1&webhook=http://127.0.0.1/", content=PNG)
        check_problem(wrong, 422, "bad-parameter")
        assert codec.calls == 0
        await client.put(f"{PATH}?effort=1&webhook=https://example.org/one", content=PNG)
        objects = open_objects(tmp_path / "objects")
        asked = [read_followup(objects, info) for info in objects.list_sorted("followups")]
        assert [f.kind for f in asked] == ["name", "webhook", "webhook"]
        told = {str(f.details["url"]) for f in asked[1:]}
        assert told == {"https://example.org/one", "https://example.org/all"}
        assert all(f.details["name"] == "blog/cat.jpg" for f in asked)
        await client.put("/pictures/plain", content=PNG)
        assert len(list(objects.list("followups"))) == 3


async def test_a_job_that_cannot_be_is_refused_or_said_not_to_be(tmp_path: Path) -> None:
    async with adapting(tmp_path) as (client, codec):
        for query in ("rate=lossless&effort=1", "tune=ms-ssim&rate=2&effort=0",
                      "metadata=none&effort=1", "webhook=https://example.org/",
                      "effort=5", "rate=2&max_bytes=9"):  # fmt: skip
            check_problem(await client.put(f"{PATH}?{query}", content=PNG), 422, "bad-parameter")
        assert codec.calls == 0
    for more, reason in (({"jobs": False}, "offers none"), ({"job_max_pixels": 100}, "pixels")):
        async with adapting(tmp_path, **more) as (client, _):
            stored = await client.put(f"{PATH}?effort=1", content=PNG)
            assert stored.status_code in (200, 201) and stored.json()["job"] is None
            assert reason in stored.json()["notes"][0]
            assert (await client.get(PATH)).status_code == 200


async def test_a_picture_that_is_exact_at_its_rate_has_a_job_and_one_at_a_target_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with adapting(tmp_path) as (client, codec):
        real = codec.compress
        monkeypatch.setattr(codec, "compress", lambda picture, *_: real(picture, LOSSLESS))
        at_rate = (await client.put(f"{PATH}?rate=2&effort=1", content=PNG)).json()
        job = (await client.get(f"/jobs/{at_rate['job']}")).json()
        assert (at_rate["rate"], job["rate"]) == (None, 2)
        at_target = (await client.put(f"{PATH}?target_psnr=90&effort=1", content=PNG)).json()
        assert at_target["job"] is None and "lossless" in at_target["notes"][0]


async def test_a_job_that_cannot_be_queued_now_is_queued_by_the_same_put(tmp_path: Path) -> None:
    async with adapting(tmp_path, max_jobs_waiting=1) as (client, codec):
        first = (await client.post("/adapt?effort=1", content=OTHER)).json()
        full = await client.put(f"{PATH}?effort=1", content=PNG)
        check_problem(full, 503, "saturated")
        assert int(full.headers["retry-after"]) > 0
        assert (await client.get(PATH)).status_code == 200
        calls = codec.calls
        await client.delete(f"/jobs/{first['id']}")
        again = await client.put(f"{PATH}?effort=1", content=PNG)
        assert (again.status_code, again.json()["version"], codec.calls) == (200, 1, calls)
        assert (await client.get(f"/jobs/{again.json()['job']}")).json()["status"] == "queued"


def test_a_target_is_met_by_the_better_stream_too() -> None:
    stream = NamedStream(
        sha256=digest_of(PNG), size_bytes=90, width=WIDTH, height=HEIGHT, rate=4.0, tune="psnr",
        mse=65.0, visible=1.0,
    )  # fmt: skip
    version, model = put_version(1, stream, digest_of(b"source")), FakeCodec().models()[0]

    def details(**query: Any) -> dict[str, Any]:
        found = name_details("a", PictureQuery(effort=1, **query), version, 4.0, model)
        return {name: found[name] for name in found.keys() - {"name", "put", "lmbda"}}

    assert details() == details(rate=4) == {}
    assert details(max_bytes=500) == {"max_bytes": 500}
    assert details(target_bpp=2.5) == {"max_bytes": 75}
    assert details(target_psnr=31.5) == {"min_psnr_db": 31.5}


def test_ages_are_whole_seconds() -> None:
    with pytest.raises(ValidationError):
        Settings(picture_max_age_s=-1)
