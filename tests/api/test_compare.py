"""`POST /compare`: the same picture as JPEG, WebP or AVIF, limited as every other work."""

from __future__ import annotations

import asyncio
import io

import pytest
from image_files import photo
from PIL import Image

from service.api.file_work import CompareFile
from service.engine.target import Target
from service.engine.types import LEAST_WORK
from service.images.write import WriteLimits

from .client import pixels_of, png_of, ready, running
from .fake_codec import FakeCodec
from .test_images_routes import check_problem

pytestmark = pytest.mark.anyio

RGB = photo()
BODY = png_of(RGB)
PIXELS = RGB.shape[0] * RGB.shape[1]


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
async def test_the_answer_is_the_file_with_its_quality_size_and_psnr(format: str) -> None:
    async with running(FakeCodec()) as client:
        for target in ("max_bytes=900", "target_psnr=25"):
            answer = await client.post(f"/compare?format={format}&{target}", content=BODY)
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == f"image/{format}"
            assert pixels_of(answer.content).shape == RGB.shape
            bpp = 8 * len(answer.content) / PIXELS
            assert float(answer.headers["x-rankpress-bpp"]) == pytest.approx(bpp, abs=5e-5)
            assert 1 <= int(answer.headers["x-rankpress-quality"]) <= 100
            assert int(answer.headers["x-rankpress-source-bytes"]) == len(BODY)
            assert "search" in answer.headers["server-timing"]
            if "psnr" in target:
                assert float(answer.headers["x-rankpress-psnr"]) >= 25
            else:
                assert len(answer.content) <= 900


async def test_a_form_is_read_too_and_no_metadata_are_written() -> None:
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "JPEG", exif=b"Exif\0\0", icc_profile=b"", comment=b"mine")
    async with running(FakeCodec()) as client:
        answer = await client.post(
            "/compare?format=jpeg&target_psnr=20", files={"file": out.getvalue()}
        )
        assert answer.status_code == 200
        image = Image.open(io.BytesIO(answer.content))
        assert not {"exif", "icc_profile", "comment"} & image.info.keys()


@pytest.mark.parametrize(
    "parameters",
    [
        "format=jpeg",
        "max_bytes=900",
        "format=png&max_bytes=900",
        "format=jpeg&max_bytes=900&target_psnr=30",
        "format=jpeg&max_bytes=0",
        "format=jpeg&target_psnr=inf",
        "format=jpeg&target_psnr=30&rate=4",
        "format=jpeg&format=webp&max_bytes=900",
        "format=jpeg&max_bytes=900&frame=-1",
    ],
)
async def test_wrong_parameters_are_told(parameters: str) -> None:
    async with running(FakeCodec()) as client:
        answer = await client.post(f"/compare?{parameters}", content=BODY)
        check_problem(answer, 422, "bad-parameter")


async def test_what_cannot_be_met_read_or_written_is_told_as_elsewhere() -> None:
    async with running(FakeCodec(), max_pixels=PIXELS, max_body_bytes=100_000) as client:
        small = await client.post("/compare?format=jpeg&max_bytes=9", content=BODY)
        found = check_problem(small, 422, "target-unreachable")
        assert found["asked"] == 9 and isinstance(found["found"], float) and found["found"] > 9
        jpeg = "/compare?format=jpeg&max_bytes=999"
        check_problem(await client.post(jpeg, content=b"junk"), 415, "bad-image")
        check_problem(await client.post(jpeg, content=BODY[:-40]), 415, "bad-image")
        check_problem(await client.post(jpeg), 415, "bad-image")
        check_problem(await client.post(jpeg, content=bytes(100_001)), 413, "too-many-bytes")
        large = png_of(RGB.repeat(2, 0))
        check_problem(await client.post(jpeg, content=large), 422, "too-many-pixels")
        out = io.BytesIO()
        Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(out, "PNG")
        check_problem(await client.post(jpeg, content=out.getvalue()), 406, "not-acceptable")
        assert (await client.get("/compare")).status_code == 405
    async with running(FakeCodec(), max_output_s=0.001) as client:
        slow = await client.post("/compare?format=avif&max_bytes=999", content=BODY)
        check_problem(slow, 406, "not-acceptable")


async def test_it_waits_its_turn_like_any_work() -> None:
    codec = FakeCodec()
    async with running(codec, max_waiting=1, client_share=1) as client:
        await ready(client)
        codec.gate.clear()
        tasks = [asyncio.ensure_future(client.post("/compress", content=BODY)) for _ in "ab"]
        while client.service.admission.waiting < 1:
            await asyncio.sleep(0.005)
        refused = await client.post("/compare?format=jpeg&max_bytes=999", content=BODY)
        check_problem(refused, 503, "saturated")
        codec.gate.set()
        await asyncio.gather(*tasks)


def test_its_price_grows_with_the_picture_and_with_the_format() -> None:
    def price(format: str, data: bytes) -> int:
        limits = WriteLimits(30, 1 << 30)
        work = CompareFile(data, format, Target(max_bytes=9), None, 10**8, limits)  # type: ignore[arg-type]
        return work.load().pixels

    large = png_of(RGB.repeat(8, 0).repeat(8, 1))
    assert LEAST_WORK <= price("jpeg", BODY) < price("webp", BODY) < price("avif", BODY)
    assert price("avif", large) > price("avif", BODY)
    assert price("jpeg", b"junk") == LEAST_WORK  # reading it will tell
