"""POST /compress and POST /decompress: what goes in, what comes out."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from service.api.file_work import PIXELS_PER_SECOND
from service.engine.target import Target
from service.engine.target_search import USUAL_ENCODES
from service.engine.types import LEAST_WORK, Load, StreamPreview
from service.errors import CheckFailed, StoreError, TooManyPixels
from service.images.write import MEDIA_TYPES, Format, effort_for
from service.picture import WHOLE, View

from .client import HEIGHT, PIXELS, PNG, WIDTH, Client, pixels_of, running, until
from .fake_codec import FakeCodec

pytestmark = pytest.mark.anyio

PROBLEM = "application/problem+json"


def check_problem(response: httpx.Response, status: int, slug: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    document = response.json()
    assert document["type"] == f"urn:rankpress:problem:{slug}"
    assert document["status"] == status
    assert document["title"] and document["detail"]
    assert document["instance"].endswith(response.headers["x-request-id"])
    return dict(document)


async def stream_of(client: Client) -> bytes:
    return (await client.post("/compress", content=PNG)).content


async def test_a_picture_comes_back_pixel_for_pixel_with_the_headers_of_the_contract() -> None:
    async with running(FakeCodec()) as client:
        compressed = await client.post("/compress?rate=2", content=PNG)
        assert compressed.status_code == 200
        stream, headers = compressed.content, compressed.headers
        assert headers["content-type"] == "application/vnd.rankpress"
        assert headers["etag"] == f'"{hashlib.sha256(stream).hexdigest()}"'
        assert headers["x-rankpress-rate"] == "2"
        bpp = 8 * len(stream) / (WIDTH * HEIGHT)
        assert float(headers["x-rankpress-bpp"]) == pytest.approx(bpp, abs=5e-5)
        assert headers["x-rankpress-psnr"] == "inf"
        assert "x-rankpress-notes" not in headers
        names = re.findall(r"(\w+);dur=\d+\.\d+", headers["server-timing"])
        assert names == ["queue", "swap", "net", "code", "graphics", "check", "read"]

        decoded = await client.post("/decompress", content=stream)
        assert decoded.headers["content-type"] == "image/png"
        assert decoded.headers["vary"] == "Accept"
        assert decoded.headers["x-rankpress-rate"] == "2"
        assert decoded.headers["x-rankpress-model"] == "fake"
        assert "write;dur=" in decoded.headers["server-timing"]
        np.testing.assert_array_equal(pixels_of(decoded.content), PIXELS)


async def test_the_default_rate_is_4() -> None:
    async with running(FakeCodec()) as client:
        answer = await client.post("/compress", content=PNG)
        assert answer.headers["x-rankpress-rate"] == "4"


async def test_lossless_is_a_rate_that_has_a_name_and_no_number() -> None:
    async with running(FakeCodec()) as client:
        with capture_logs() as lines:
            answer = await client.post("/compress?rate=lossless", content=PNG)
            decoded = await client.post("/decompress", content=answer.content)
        assert answer.headers["x-rankpress-rate"] == "lossless"
        assert answer.headers["x-rankpress-psnr"] == "inf"
        assert float(answer.headers["x-rankpress-graphics"]) == 1
        assert decoded.headers["x-rankpress-rate"] == "lossless"
        np.testing.assert_array_equal(pixels_of(decoded.content), PIXELS)
        rates = [line["rate"] for line in lines if line["event"] == "request"]
        assert rates == ["lossless", "lossless"]


@pytest.mark.parametrize(
    ("rate", "reason"),
    [
        ("best", "Input should be a valid number"),
        ("0", "greater than or equal to 1"),
        ("9", "less than or equal to 8"),
        ("nan", ""),
        ("Lossless", "'lossless'"),
        ("", "'lossless'"),
    ],
)
async def test_a_wrong_rate_is_one_wrong_parameter_with_all_that_is_taken(
    rate: str, reason: str
) -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        refused = await client.post(f"/compress?rate={rate}", content=PNG)
        (wrong,) = check_problem(refused, 422, "bad-parameter")["invalid"]
        assert wrong["parameter"] == "rate"
        assert reason in wrong["reason"] and "'lossless'" in wrong["reason"]
        query = "rate=lossless&max_bytes=9000"
        both = check_problem(
            await client.post(f"/compress?{query}", content=PNG), 422, "bad-parameter"
        )
        assert "rate and max_bytes" in str(both["detail"])
    assert codec.calls == 0


async def test_a_share_that_is_stored_exactly_is_told_and_counted() -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        plain = await client.post("/compress", content=PNG)
        assert "x-rankpress-graphics" not in plain.headers
        codec.graphics_share = 0.58
        part = await client.post("/compress", content=PNG)
        assert part.headers["x-rankpress-graphics"] == "0.580"
        await client.post("/compress?rate=lossless", content=PNG)
        await client.post("/decompress", content=part.content)
        text = (await client.get("/metrics")).text
    below = {
        edge: float(count)
        for edge, count in re.findall(r'graphics_share_bucket\{le="([0-9.]+)"\} (\S+)', text)
    }
    edges = ("0.0", "0.5", "0.75", "0.999", "1.0")
    assert [below[edge] for edge in edges] == [1, 1, 2, 2, 3]
    assert "rankpress_graphics_seconds_count 4.0" in text
    assert "graphics;dur=5.00" in part.headers["server-timing"]


async def test_tune_is_asked_for_by_name_with_a_rate_or_a_target() -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        for parameter in ("rate=2", "max_bytes=99999", ""):
            answer = await client.post(f"/compress?tune=ms-ssim&{parameter}", content=PNG)
            assert answer.headers["x-rankpress-tune"] == "ms-ssim"
        assert codec.tunes == ["ms-ssim"] * 3
        answer = await client.post("/compress", content=PNG)
        assert (answer.headers["x-rankpress-tune"], codec.tunes[-1]) == ("psnr", "psnr")
        refused = await client.post("/compress?tune=vmaf", content=PNG)
        (wrong,) = check_problem(refused, 422, "bad-parameter")["invalid"]
        assert wrong["parameter"] == "tune"


async def test_curls_default_content_type_and_chunks_make_no_difference() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(PNG), 100):
            yield PNG[start : start + 100]

    async with running(FakeCodec()) as client:
        plain = await client.post("/compress", content=PNG)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        curl = await client.post("/compress", content=PNG, headers=form)
        chunked = await client.post("/compress", content=chunks())
        multipart = await client.post("/compress", files={"file": ("a.png", PNG)})
        bodies = {r.content for r in (plain, curl, chunked, multipart)}
        assert bodies == {plain.content}


async def test_what_reading_changed_is_said_in_a_header() -> None:
    deep = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(deep, "PNG")
    async with running(FakeCodec()) as client:
        answer = await client.post("/compress", content=deep.getvalue())
        assert "8 bits" in answer.headers["x-rankpress-notes"]


async def test_a_stream_that_is_larger_than_its_source_says_so() -> None:
    async with running(FakeCodec()) as client:
        small, large = io.BytesIO(), io.BytesIO()
        noise = Image.effect_noise((40, 40), 90).convert("RGB")
        noise.save(small, "JPEG", quality=5)
        noise.save(large, "BMP")
        for file, larger in ((small, True), (large, False)):
            source = file.getvalue()
            answer = await client.post("/compress?rate=2", content=source)
            assert answer.headers["x-rankpress-source-bytes"] == str(len(source))
            assert (len(answer.content) > len(source)) == larger
            note = answer.headers.get("x-rankpress-notes", "")
            assert (note == f"the stream of {len(answer.content)} bytes is larger than its "
                            f"source of {len(source)}") == larger  # fmt: skip


async def test_a_frame_of_an_animation_is_chosen() -> None:
    gif = io.BytesIO()
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    async with running(FakeCodec()) as client:
        check_problem(await client.post("/compress", content=gif.getvalue()), 415, "bad-image")
        late = await client.post("/compress?frame=2", content=gif.getvalue())
        check_problem(late, 422, "bad-parameter")
        negative = await client.post("/compress?frame=-1", content=gif.getvalue())
        check_problem(negative, 422, "bad-parameter")
        compressed = await client.post("/compress?rate=2&frame=1", content=gif.getvalue())
        shown = await client.post("/decompress?format=png", content=compressed.content)
        assert pixels_of(shown.content)[3, 4].tolist() == [0, 0, 255]


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_format_is_chosen_that_holds_the_picture_before_it_is_decoded(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long screenshot, of 17 rows more than WebP holds."""
    codec = FakeCodec(max_pixels=1 << 20)
    monkeypatch.setattr(type(codec), "max_batch", batch)
    tall = io.BytesIO()
    Image.new("RGB", (3, 16400), "white").save(tall, "PNG")
    async with running(codec) as client:
        stream = (await client.post("/compress?rate=2", content=tall.getvalue())).content
        calls = codec.calls
        for query, accept in (("", "image/webp"), ("?format=webp", "*/*")):
            answer = await client.post(
                f"/decompress{query}", content=stream, headers={"Accept": accept}
            )
            problem = check_problem(answer, 406, "not-acceptable")
            assert "3x16400" in str(problem["detail"])
        assert codec.calls == calls, "nothing was decoded"
        fallback = {"Accept": "image/webp,*/*;q=.8"}
        answer = await client.post("/decompress", content=stream, headers=fallback)
        assert answer.headers["content-type"] == "image/png"
        for query in ("region=0,0,3,16383", "max_size=16383"):
            path = f"/decompress?{query}"
            answer = await client.post(path, content=stream, headers=fallback)
            assert answer.headers["content-type"] == "image/webp", query


@pytest.mark.parametrize("name", ["png", "webp", "jpeg", "avif"])
async def test_format_and_accept_choose_the_same_file_and_format_wins(name: str) -> None:
    async with running(FakeCodec()) as client:
        stream = await stream_of(client)
        media_type = MEDIA_TYPES[name]  # type: ignore[index]
        asked = await client.post(
            f"/decompress?format={name}", content=stream, headers={"Accept": "text/html"}
        )
        accepted = await client.post("/decompress", content=stream, headers={"Accept": media_type})
        assert asked.headers["content-type"] == accepted.headers["content-type"] == media_type
        assert asked.content == accepted.content
        assert Image.open(io.BytesIO(asked.content)).format == name.upper()


async def test_png_and_webp_are_lossless_and_quality_shrinks_lossy_files() -> None:
    async with running(FakeCodec()) as client:
        stream = await stream_of(client)
        webp = await client.post("/decompress?format=webp", content=stream)
        np.testing.assert_array_equal(pixels_of(webp.content), PIXELS)
        sizes = [
            len((await client.post(f"/decompress?{query}", content=stream)).content)
            for query in ("format=jpeg&quality=10", "format=jpeg&quality=95")
        ]
        assert sizes[0] < sizes[1]
        lossless = await client.post("/decompress?quality=10", content=stream)
        check_problem(lossless, 422, "bad-parameter")


async def test_a_region_is_cut_out_and_max_size_bounds_the_longest_side() -> None:
    async with running(FakeCodec()) as client:
        stream = await stream_of(client)
        cut = await client.post("/decompress?region=3,2,8,5", content=stream)
        np.testing.assert_array_equal(pixels_of(cut.content), PIXELS[2:7, 3:11])
        small = await client.post("/decompress?max_size=10", content=stream)
        assert pixels_of(small.content).shape == (6, 10, 3)
        both = await client.post("/decompress?region=3,2,8,5&max_size=4", content=stream)
        assert max(pixels_of(both.content).shape) == 4


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/compress?rates=2", "rates"),
        ("/compress?rate=9", "rate"),
        ("/compress?rate=0.5", "rate"),
        ("/compress?rate=nan", "rate"),
        ("/compress?rate=", "rate"),
        ("/compress?rate=2&rate=4", "rate"),
        ("/compress?metadata=some", "metadata"),
        ("/compress?max_bytes=0", "max_bytes"),
        ("/compress?max_bytes=1.5", "max_bytes"),
        ("/compress?target_bpp=-1", "target_bpp"),
        ("/compress?target_bpp=inf", "target_bpp"),
        ("/compress?target_psnr=nan", "target_psnr"),
        ("/decompress?format=gif", "format"),
        ("/decompress?Format=png", "Format"),
        ("/decompress?region=1,2,3", "region"),
        ("/decompress?region=0,0,0,4", "region"),
        ("/decompress?region=15,0,10,4", "region"),
        ("/decompress?max_size=0", "max_size"),
        ("/decompress?format=jpeg&quality=101", "quality"),
        ("/decompress?size=3", "size"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(path: str, named: str) -> None:
    async with running(FakeCodec()) as client:
        body = PNG if path.startswith("/compress") else await stream_of(client)
        document = check_problem(await client.post(path, content=body), 422, "bad-parameter")
        assert named in str(document["detail"])


@pytest.mark.parametrize("target", ["target_bpp=90", "max_bytes=9000", "target_psnr=30"])
async def test_a_target_is_met_and_says_how_many_encodes_it_took(target: str) -> None:
    async with running(FakeCodec()) as client:
        answer = await client.post(f"/compress?{target}", content=PNG)
        assert answer.status_code == 200
        assert answer.headers["x-rankpress-rate"] == "2", "what the codec chose"
        assert 'search;desc="5 encodes"' in answer.headers["server-timing"]
        plain = await client.post("/compress?rate=2", content=PNG)
        assert "search" not in plain.headers["server-timing"]


async def test_a_target_out_of_reach_says_by_how_much() -> None:
    async with running(FakeCodec()) as client:
        answer = await client.post("/compress?max_bytes=7", content=PNG)
        document = check_problem(answer, 422, "target-unreachable")
        assert document["asked"] == 7
        assert float(str(document["found"])) > 7


@pytest.mark.parametrize(
    "query",
    ["rate=4&target_bpp=1", "max_bytes=9&target_psnr=30", "target_bpp=1&max_bytes=9&rate=2"],
)
async def test_more_than_one_of_rate_and_targets_is_refused(query: str) -> None:
    codec = FakeCodec()
    async with running(codec) as client:
        answer = await client.post(f"/compress?{query}", content=PNG)
        document = check_problem(answer, 422, "bad-parameter")
        for name in re.findall(r"\w+(?==)", query):
            assert name in str(document["detail"])
        assert codec.calls == 0


async def test_a_missing_rate_lists_the_rates_there_are() -> None:
    async with running(FakeCodec()) as client:
        answer = await client.post("/compress?rate=4.5", content=PNG)
        assert check_problem(answer, 422, "rate-unavailable")["available"] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("path", "body", "status", "slug"),
    [
        ("/compress", b"not an image", 415, "bad-image"),
        ("/compress", b"", 415, "bad-image"),
        ("/decompress", b"not a stream", 400, "bad-stream"),
        ("/decompress", b"", 400, "bad-stream"),
        ("/decompress", PNG, 400, "bad-stream"),
        ("/decompress", b"newr", 422, "unsupported-stream"),
        ("/decompress", b"othr", 422, "unknown-model"),
        ("/decompress", b"fake\x40\xff\xff\x00\x00\xff\xff\x00\x00", 422, "too-many-pixels"),
    ],
)
async def test_a_bad_body_has_its_own_problem(
    path: str, body: bytes, status: int, slug: str
) -> None:
    async with running(FakeCodec()) as client:
        check_problem(await client.post(path, content=body), status, slug)


async def test_a_picture_over_the_pixel_limit_is_refused_before_the_codec_sees_it() -> None:
    codec = FakeCodec()
    async with running(codec, max_pixels=WIDTH * HEIGHT - 1) as client:
        check_problem(await client.post("/compress", content=PNG), 422, "too-many-pixels")
    assert codec.calls == 0


async def test_a_picture_that_is_too_much_work_is_refused_before_it_waits() -> None:
    class Strict(FakeCodec):
        def picture_load(
            self,
            size: tuple[int, int] | None,
            rate: float | Target,
            tune: str = "psnr",
            model: str | None = None,
        ) -> Load:
            raise TooManyPixels(f"{size} for {rate}, {tune}, {model}, sides rounded up to 16")

        def preview_stream(self, data: bytes, view: View = WHOLE) -> StreamPreview:
            raise TooManyPixels(f"{len(data)} bytes, {view}, with sides rounded up to 16")

    codec = Strict()
    async with running(codec) as client:
        codec.gate.clear()
        for path in ("/compress", "/compress?target_bpp=1", "/decompress"):
            refused = await client.post(path, content=PNG)
            assert "sides rounded up" in str(check_problem(refused, 422, "too-many-pixels"))
        codec.gate.set()
    assert codec.calls == 0


async def test_what_waits_is_counted_by_the_work_that_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[float] = []

    def written(pixels: int, format: Format) -> int:
        return round(effort_for(format, None, pixels).seconds(pixels) * PIXELS_PER_SECOND)

    async with running(FakeCodec()) as client:
        run = client.service.admission.run

        def noting(work: Callable[[], Any], group: Any = None, size: float = 1.0) -> Any:
            sizes.append(size)
            return run(work, group, size)

        monkeypatch.setattr(client.service.admission, "run", noting)
        stream = await stream_of(client)
        await client.post("/compress?target_bpp=9", content=PNG)
        await client.post("/compress", content=b"no image")
        await client.post("/decompress", content=stream)
        await client.post("/decompress?region=0,0,5,4&format=avif", content=stream)
        assert sizes == [
            WIDTH * HEIGHT,
            USUAL_ENCODES * WIDTH * HEIGHT,
            LEAST_WORK,
            len(stream) + written(WIDTH * HEIGHT, "png"),  # what the codec says, and the file
            20 + written(20, "avif"),
        ]


async def test_an_unacceptable_answer_is_refused_before_the_body_is_read() -> None:
    async with running(FakeCodec()) as client:
        refused = {"Accept": "text/html"}
        answer = await client.post("/decompress", content=b"anything", headers=refused)
        check_problem(answer, 406, "not-acceptable")
        assert answer.headers["vary"] == "Accept"


async def test_a_stream_that_fails_its_own_check_is_the_servers_fault_and_logged() -> None:
    codec = FakeCodec()
    codec.fault = CheckFailed("the fresh stream does not decode: tile 3")
    async with running(codec) as client:
        with capture_logs() as lines:
            answer = await client.post("/compress", content=PNG)
        check_problem(answer, 500, "check-failed")
        assert "tile 3" not in answer.text
        (error,) = [line for line in lines if line["log_level"] == "error"]
        assert "tile 3" in error["error"]
        assert error["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "fault", [RuntimeError("secret path /etc"), StoreError("secret"), MemoryError("secret")]
)
async def test_an_unexpected_error_says_nothing_of_itself(fault: Exception) -> None:
    codec = FakeCodec()
    codec.fault = fault
    async with running(codec) as client:
        with capture_logs() as lines:
            answer = await client.post("/compress", content=PNG)
        check_problem(answer, 500, "internal")
        error, request = lines[-2:]
        assert error["log_level"] == "error" and error["exc_info"]
        assert error["id"] == request["id"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text
        assert "secret" not in str(answer.headers)
        codec.fault = None
        assert (await client.post("/compress", content=PNG)).status_code == 200


async def test_one_client_leaves_places_to_wait_to_the_others() -> None:
    codec = FakeCodec()
    async with running(codec, max_waiting=14) as client:
        assert (await client.post("/compress", content=PNG)).status_code == 200  # it is open
        codec.gate.clear()
        many = [asyncio.create_task(client.post("/compress", content=PNG)) for _ in range(20)]
        admission = client.service.admission
        await until(lambda: sum(task.done() for task in many) == 12)
        assert admission.running + admission.waiting == 8, "half of the 16 places"
        for task in many:
            if task.done():
                check_problem(await task, 429, "too-many-requests")
                assert (await task).headers["retry-after"] == "5"
        other = httpx.ASGITransport(client.app, client=("192.0.2.7", 1234))
        async with httpx.AsyncClient(transport=other, base_url="http://test") as others:
            served = asyncio.create_task(others.post("/compress", content=PNG))
            await until(lambda: admission.running + admission.waiting == 9)
            codec.gate.set()
            assert (await served).status_code == 200
        assert [(await task).status_code for task in many].count(200) == 8
        again = await client.post("/compress", content=PNG)
        assert again.status_code == 200, "places are given back"


async def test_a_cut_stream_is_decoded_where_the_request_allows_it() -> None:
    async with running(FakeCodec()) as client:
        stream = await stream_of(client)
        cut = stream[: len(stream) // 2]
        check_problem(await client.post("/decompress", content=cut), 400, "bad-stream")
        part = await client.post("/decompress?partial=true&format=png", content=cut)
        assert part.status_code == 200
        assert 0 < float(part.headers["X-Rankpress-Complete"]) < 1
        with Image.open(io.BytesIO(part.content)) as image, Image.open(io.BytesIO(PNG)) as source:
            assert image.size == source.size
        whole = await client.post("/decompress?partial=true&format=png", content=stream)
        assert "X-Rankpress-Complete" not in whole.headers
        plain = await client.post("/decompress?format=png", content=stream)
        assert whole.content == plain.content
