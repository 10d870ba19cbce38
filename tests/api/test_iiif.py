"""GET /iiif: stored streams as a viewer of the IIIF Image API 3.0 requests them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.blobs import open_objects
from service.engine.opening import open_engine
from service.images.resize import shrink
from service.picture import Picture, Region, View
from service.settings import Settings

from .client import HEIGHT, PIXELS, WIDTH, pixels_of, ready, running
from .test_images_routes import check_problem
from .test_objects import MISSING, YEAR, stocked

pytestmark = pytest.mark.anyio

LINKED = 'application/ld+json;profile="http://iiif.io/api/image/3/context.json"'
PROFILE = '<http://iiif.io/api/image/3/level2.json>;rel="profile"'


def iiif(path: str) -> str:
    return path.replace("/objects/", "/iiif/")


async def test_the_base_leads_to_a_document_for_the_address_that_was_asked(tmp_path: Path) -> None:
    async with stocked(tmp_path, root_path="/images") as (client, path, codec):
        base = await client.get(iiif(path))
        assert base.status_code == 303 and base.content == b""
        assert base.headers["location"] == f"/images{iiif(path)}/info.json"
        answer = await client.get(f"{iiif(path)}/info.json", headers={"Host": "a.example:81"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == LINKED
        assert answer.headers["link"] == PROFILE and answer.headers["vary"] == "Accept"
        document = answer.json()
        assert document["id"] == f"http://a.example:81/images{iiif(path)}"
        assert (document["width"], document["height"]) == (WIDTH, HEIGHT)
        assert document["profile"] == "level2" and "maxArea" not in document
        secure = await client.get(f"https://a.example{iiif(path)}/info.json")
        assert secure.json()["id"] == f"https://a.example/images{iiif(path)}"
        assert codec.calls == 0
        etag = answer.headers["etag"]
        again = await client.get(
            f"{iiif(path)}/info.json", headers={"Host": "a.example:81", "If-None-Match": etag}
        )
        assert (again.status_code, again.headers["etag"]) == (304, etag)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", LINKED),
        ("*/*", LINKED),
        ("application/ld+json", LINKED),
        ('application/ld+json;profile="http://iiif.io/api/image/3/context.json"', LINKED),
        ("application/json, application/ld+json", LINKED),
        ("text/html", LINKED),
        ("application/json", "application/json"),
        ("application/json, application/ld+json;q=0.9", "application/json"),
        ("application/json, */*;q=0.1", "application/json"),
    ],
)
async def test_plain_json_is_for_those_who_prefer_it(
    tmp_path: Path, accept: str, media_type: str
) -> None:
    async with stocked(tmp_path) as (client, path, _):
        answer = await client.get(f"{iiif(path)}/info.json", headers={"Accept": accept})
        assert answer.headers["content-type"] == media_type
        assert answer.json()["type"] == "ImageService3"


async def test_a_path_is_that_picture_for_ever(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, codec):

        async def got(end: str, **headers: str) -> Any:
            return await client.get(f"{iiif(path)}/{end}", headers=headers)

        whole = await got("full/max/0/default.png")
        assert whole.status_code == 200 and whole.headers["content-type"] == "image/png"
        assert np.array_equal(pixels_of(whole.content), PIXELS)
        assert whole.headers["cache-control"] == YEAR and "vary" not in whole.headers
        assert whole.headers["accept-ranges"] == "bytes"
        canonical = f"<{iiif(path)}/full/max/0/default.png>"
        assert whole.headers["link"] == f'{canonical};rel="canonical", {PROFILE}'
        assert whole.headers["x-rankpress-rate"] == "4"
        part = await got("3,2,5,4/max/0/color.png")
        assert np.array_equal(pixels_of(part.content), PIXELS[2:6, 3:8])
        turned = await got("3,2,5,4/max/!90/default.png")
        assert np.array_equal(pixels_of(turned.content), np.rot90(PIXELS[2:6, 3:8][:, ::-1], 3))
        small = await got("full/10,3/0/default.png")
        expected = shrink(Picture(PIXELS), View(size=(10, 3))).rgb
        assert np.array_equal(pixels_of(small.content), expected)
        grey = await got("full/max/0/gray.png")
        assert np.array_equal(
            pixels_of(grey.content), np.asarray(Image.fromarray(PIXELS).convert("L").convert("RGB"))
        )
        for end, media_type in (("jpg", "jpeg"), ("webp", "webp"), ("avif", "avif")):
            answer = await got(f"full/max/0/default.{end}", accept="text/html")
            assert answer.headers["content-type"] == f"image/{media_type}"
            assert not np.array_equal(pixels_of(answer.content), PIXELS)
        tags = {a.headers["etag"] for a in (whole, part, turned, small, grey)}
        assert len(tags) == 5
        calls, etag = codec.calls, whole.headers["etag"]
        known = await got("full/max/0/default.png", **{"if-none-match": etag})
        assert (known.status_code, known.headers["etag"]) == (304, etag)
        assert known.headers["cache-control"] == YEAR and codec.calls == calls
        begin = await got("full/max/0/default.png", range="bytes=0-9", **{"if-range": etag})
        assert (begin.status_code, begin.content) == (206, whole.content[:10])
        head = await client.head(f"{iiif(path)}/full/max/0/default.png")
        assert head.content == b"" and head.headers["etag"] == etag


async def test_what_cannot_be_is_said_to_be_before_any_work(tmp_path: Path) -> None:
    async with stocked(tmp_path) as (client, path, codec):
        for end in (
            "full/max/0/default.gif",
            "full/max/0/native.jpg",
            "full/max/45/default.jpg",
            "full/21,/0/default.jpg",
            "20,0,5,5/max/0/default.jpg",
            "full/0,/0/default.jpg",
            "half/max/0/default.jpg",
        ):
            answer = await client.get(f"{iiif(path)}/{end}")
            check_problem(answer, 400, "bad-image-path")
            assert answer.headers["cache-control"] == "no-store"
        larger = await client.get(f"{iiif(path)}/full/^21,/0/default.jpg")
        check_problem(larger, 501, "upscaling-unsupported")
        for name in (MISSING, "abc", path.rpartition("/")[2].upper()):
            for end in ("/info.json", "/full/max/0/default.jpg"):
                answer = await client.get(f"/iiif/{name}{end}")
                check_problem(answer, 404, "no-such-object")
        check_problem(await client.get("/iiif/abc"), 404, "no-such-object")
        check_problem(await client.get(f"{iiif(path)}/info.json?a=1"), 422, "bad-parameter")
        check_problem(await client.get(f"{iiif(path)}/full/max"), 404, "not-found")
        check_problem(await client.post(f"{iiif(path)}/info.json"), 405, "method-not-allowed")
        assert codec.calls == 0
        junk = open_objects(tmp_path).put(b"no stream at all").rpartition("/")[2]
        for end in ("info.json", "full/max/0/default.jpg"):
            answer = await client.get(f"/iiif/{junk}/{end}")
            check_problem(answer, 500, "damaged-object")


async def test_a_server_that_writes_small_files_alone_offers_no_larger_pictures(
    tmp_path: Path,
) -> None:
    limited = {"max_output_s": 0.14e-6 * WIDTH * HEIGHT / 4}
    async with stocked(tmp_path, **limited) as (client, path, _):
        document = (await client.get(f"{iiif(path)}/info.json")).json()
        assert document["maxArea"] == WIDTH * HEIGHT // 4
        largest = await client.get(f"{iiif(path)}/full/max/0/default.png")
        assert pixels_of(largest.content).shape == (HEIGHT // 2, WIDTH // 2, 3)
        for end in ("full/20,12/0/default.jpg", "full/10,6/0/default.avif"):
            check_problem(await client.get(f"{iiif(path)}/{end}"), 400, "bad-image-path")


async def test_pages_of_all_origins_may_read_unless_the_settings_name_some(tmp_path: Path) -> None:
    ends = "/info.json", "/full/max/0/default.jpg", "", "/nothing", "/full/^99,/0/default.jpg"
    async with stocked(tmp_path) as (client, path, _):
        for end in ends:
            for sent in ({}, {"Origin": "https://b.example"}):
                answer = await client.get(iiif(path) + end, headers=sent)
                assert answer.headers["access-control-allow-origin"] == "*", end
                assert "Link" in answer.headers["access-control-expose-headers"]
        asked = {"Access-Control-Request-Headers": "range", "Origin": "https://b.example"}
        preflight = await client.options(iiif(path) + ends[0], headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "*"
        assert "access-control-allow-origin" not in (await client.get(path)).headers
    async with stocked(tmp_path, cors_origins="https://a.example") as (client, path, _):
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            answer = await client.get(iiif(path) + ends[0], headers={"Origin": origin})
            assert ("access-control-allow-origin" in answer.headers) is allowed


def tile_requests(document: dict[str, Any]) -> list[tuple[int, Region, tuple[int, int]]]:
    """Scale factor, region and size of every tile of a document, as section 3 of the
    specification's implementation notes has them."""
    width, height = document["width"], document["height"]
    requests = []
    for tiles in document["tiles"]:
        side = tiles["width"]
        for factor in tiles["scaleFactors"]:
            for y in range(0, height, side * factor):
                for x in range(0, width, side * factor):
                    w, h = min(side * factor, width - x), min(side * factor, height - y)
                    size = -(-w // factor), -(-h // factor)
                    requests.append((factor, Region(x, y, w, h), size))
    return requests


@pytest.mark.parametrize(("size", "most"), [((252, 188), 0.5), ((229, 163), 4)])
async def test_tiles_of_every_scale_make_up_the_scaled_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], most: float
) -> None:
    """Exactly at full size, and else but for what resampling sees beyond a tile's edge.

    The shrunk whole of a picture of odd size has other proportions than its tiles, whose sides are
    rounded up.
    """
    monkeypatch.setattr("service.images.iiif.TILE", 64)
    noise = np.random.default_rng(2).integers(0, 256, (11, 15, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    engine = open_engine(Settings(warm=False))
    stream = engine.compress(Picture(smooth), 4).data
    digest = open_objects(tmp_path).put(stream).rpartition("/")[2]
    whole = engine.decompress(stream).picture
    async with running(engine, objects_url=str(tmp_path)) as client:
        await ready(client)
        document = (await client.get(f"/iiif/{digest}/info.json")).json()
        scales = [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 2, 1)]
        assert [(s["width"], s["height"]) for s in document["sizes"][1:]] == scales
        made = {4 >> n: np.zeros((h, w, 3), np.int16) for n, (w, h) in enumerate(scales)}
        for factor, part, (w, h) in tile_requests(document):
            region = f"{part.x},{part.y},{part.width},{part.height}"
            answer = await client.get(f"/iiif/{digest}/{region}/{w},{h}/0/default.png")
            left, top = part.x // factor, part.y // factor
            place = made[factor][top : top + h, left : left + w]
            place[...] = pixels_of(answer.content)
        assert np.abs(made[1] - whole.rgb).max() <= 1
        for factor in (2, 4):
            height, width, _ = made[factor].shape
            end = f"full/{width},{height}/0/default.png"
            expected = pixels_of((await client.get(f"/iiif/{digest}/{end}")).content)
            assert expected.shape == made[factor].shape
            assert np.abs(made[factor] - expected).mean() < most
