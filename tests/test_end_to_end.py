"""From an image file to a stream and back, with the real engine, over HTTP and by command."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from api.client import running
from conftest import Small
from make_golden import page_with_photo
from PIL import Image
from served import serving
from small_ladder import with_rates
from small_model import photo_like
from test_architecture import WITHOUT

from service.blobs import open_objects
from service.codec.container import read_stream, write_stream
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.images.read import read_image
from service.picture import U8, Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.settings import Settings
from service.store.model import StoredModel
from service.store.write import write_model

WIDTH, HEIGHT = 106, 75
PIXELS = photo_like(HEIGHT, WIDTH, 3)


def file_of(pixels: U8, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def pixels_of(data: bytes, mode: str = "RGB") -> U8:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def psnr_db(a: U8, b: U8) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.fixture(scope="module")
def store(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_model(root / "small", small.stored, small.base)
    return root


def test_http_gives_the_engine_s_stream_and_the_decoded_picture(engine: Engine) -> None:
    async def law() -> None:
        async with running(engine) as client:
            answer = await client.post("/compress?rate=4", content=file_of(PIXELS))
            assert answer.status_code == 200
            stream = answer.content
            decoded = engine.decompress(stream).picture.rgb
            assert float(answer.headers["x-rankpress-psnr"]) == pytest.approx(
                psnr_db(decoded, PIXELS), abs=1e-3
            )
            for format in ("png", "webp"):
                back = await client.post(f"/decompress?format={format}", content=stream)
                assert back.status_code == 200
                assert np.array_equal(pixels_of(back.content), decoded)
            part = await client.post("/decompress?region=30,20,40,50", content=stream)
            crop = pixels_of(part.content).astype(int)
            assert np.abs(crop - decoded[20:70, 30:70]).max() <= 1
            ready = await client.get("/readyz")
            assert ready.status_code == 200

    asyncio.run(law())


def test_http_names_a_ready_update_that_is_not_here(engine: Engine) -> None:
    stream = read_stream(engine.compress(Picture(PIXELS), 4).data)
    body = write_stream(replace(stream, ready=b"\xca\xfe\0\1"))

    async def law() -> None:
        async with running(engine) as client:
            answer = await client.post("/decompress", content=body)
            assert answer.status_code == 422
            assert answer.json()["type"].endswith("unknown-model")
            assert "ready update cafe0001" in answer.json()["detail"]

    asyncio.run(law())


def test_http_meets_targets(small_model: StoredModel) -> None:
    engine = Engine(load_models((with_rates(small_model, range(1, 9)),), "cpu", torch.float32))
    limit = len(engine.compress(Picture(PIXELS), 5.25).data)

    async def law() -> None:
        async with running(engine) as client:
            body = file_of(PIXELS)
            fits = await client.post(f"/compress?max_bytes={limit}", content=body)
            assert fits.status_code == 200 and len(fits.content) <= limit
            found = re.search(r'search;desc="(\d+) encodes"', fits.headers["server-timing"])
            assert found is not None and 2 <= int(found[1]) <= 13
            rate = fits.headers["x-rankpress-rate"]
            assert (
                fits.content == (await client.post(f"/compress?rate={rate}", content=body)).content
            )
            close = await client.post("/compress?target_bpp=0.25", content=body)
            assert 8 * len(close.content) / (WIDTH * HEIGHT) <= 0.25
            for query, asked in (("max_bytes=20", 20), ("target_bpp=0.01", 0.01),
                                 ("target_psnr=80", 80)):  # fmt: skip
                problem = (await client.post(f"/compress?{query}", content=body)).json()
                assert problem["type"] == "urn:rankpress:problem:target-unreachable"
                assert problem["status"] == 422 and problem["asked"] == asked
                assert (problem["found"] > asked) == (asked != 80)

    asyncio.run(law())


def test_http_says_which_rates_there_are(engine: Engine) -> None:
    async def law() -> None:
        async with running(engine) as client:
            answer = await client.post("/compress?rate=7", content=file_of(PIXELS))
            assert answer.status_code == 422
            problem = answer.json()
            assert problem["type"] == "urn:rankpress:problem:rate-unavailable"
            assert problem["available"] == [4]

    asyncio.run(law())


def test_http_gives_lossless_streams_that_any_server_decodes(
    engine: Engine, shipped_light: Engine
) -> None:
    """The server that decodes has numpy alone, and another model than the one that compresses."""
    alpha = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
    files = {"RGB": PIXELS, "RGBA": np.dstack([PIXELS, alpha + 1]), "L": PIXELS[..., 0]}

    async def law() -> None:
        async with running(engine) as client, running(shipped_light) as other:
            plain = (await client.post("/compress", content=file_of(PIXELS))).content
            refused = await other.post("/decompress", content=plain)
            assert refused.json()["type"].endswith("unknown-model")
            for mode, samples in files.items():
                body = file_of(samples)
                made = await client.post("/compress?rate=lossless", content=body)
                assert made.headers["x-rankpress-rate"] == "lossless"
                assert made.headers["x-rankpress-psnr"] == "inf"
                assert float(made.headers["x-rankpress-graphics"]) == 1
                back = await other.post("/decompress", content=made.content)
                assert back.headers["x-rankpress-model"] == "none"
                assert Image.open(io.BytesIO(back.content)).mode == mode
                assert np.array_equal(pixels_of(back.content, mode), samples)
                query = "region=10,20,41,33&max_size=41"
                part = await other.post(f"/decompress?{query}", content=made.content)
                assert np.array_equal(pixels_of(part.content, mode), samples[20:53, 10:51])

    asyncio.run(law())


@pytest.fixture(scope="module")
def shipped_light() -> Engine:
    """The shipped store as the base install opens it."""
    return open_engine(Settings(decode_only=True))


@pytest.fixture(scope="module")
def shipped() -> Engine:
    return open_engine(Settings(device="cpu"))


def test_http_gives_parts_and_small_copies_of_a_picture_with_a_layer(
    shipped: Engine, shipped_light: Engine
) -> None:
    pixels = page_with_photo()

    async def law() -> None:
        async with running(shipped) as client, running(shipped_light) as light:
            made = await client.post("/compress?rate=4", content=file_of(pixels))
            assert made.headers["x-rankpress-rate"] == "4"
            share = float(made.headers["x-rankpress-graphics"])
            assert 0 < share < 1
            text = (await client.get("/metrics")).text
            counted = text.partition("rankpress_graphics_share_sum ")[2].split()[0]
            assert abs(float(counted) - share) < 0.001
            stream = made.content
            layer = read_stream(stream).graphics
            assert layer is not None
            exact = layer.marked.repeat(16, 0).repeat(16, 1)
            whole = pixels_of((await client.post("/decompress", content=stream)).content)
            assert np.array_equal(whole[exact], pixels[exact])
            for server in (client, light):
                answer = await server.post("/decompress?region=30,9,90,150", content=stream)
                part, box = pixels_of(answer.content).astype(int), np.s_[9:159, 30:120]
                assert 0 < exact[box].mean() < 1
                assert np.abs(part - whole[box]).max() <= 1
                assert np.array_equal(part[exact[box]], pixels[box][exact[box]])
                answer = await server.post("/decompress?max_size=80", content=stream)
                assert pixels_of(answer.content).shape == (80, 80, 3)

    asyncio.run(law())


def test_http_meets_a_quality_that_no_rate_reaches_without_loss(shipped: Engine) -> None:
    async def law() -> None:
        async with running(shipped) as client:
            body = file_of(PIXELS)
            answer = await client.post("/compress?target_psnr=90", content=body)
            assert answer.headers["x-rankpress-rate"] == "lossless"
            assert answer.headers["x-rankpress-psnr"] == "inf"
            low = await client.post("/compress?target_psnr=28", content=body)
            assert 28 <= float(low.headers["x-rankpress-psnr"]) < 90
            assert len(low.content) < len(answer.content)

    asyncio.run(law())


def test_http_refuses_a_damaged_stream(engine: Engine) -> None:
    async def law() -> None:
        async with running(engine) as client:
            stream = (await client.post("/compress", content=file_of(PIXELS))).content
            for damaged in (stream[:-1], stream[:40] + b"\0" + stream[41:], b"", b"RKP"):
                answer = await client.post("/decompress", content=damaged)
                assert answer.status_code == 400
                assert answer.json()["type"] == "urn:rankpress:problem:bad-stream"

    asyncio.run(law())


def test_alpha_and_grey_survive_the_whole_way(engine: Engine) -> None:
    rng = np.random.default_rng(5)
    rgba = np.dstack([PIXELS, rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8)])
    grey = PIXELS[..., 0]

    async def law() -> None:
        async with running(engine) as client:
            stream = (await client.post("/compress", content=file_of(rgba))).content
            back = pixels_of((await client.post("/decompress", content=stream)).content, "RGBA")
            assert np.array_equal(back[..., 3], rgba[..., 3])
            stream = (await client.post("/compress", content=file_of(grey))).content
            picture = Image.open(
                io.BytesIO((await client.post("/decompress", content=stream)).content)
            )
            assert picture.mode == "L" and picture.size == (WIDTH, HEIGHT)

    asyncio.run(law())


def rankpress(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_there_and_back(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "false")  # so that the small model's networks are used
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(file_of(PIXELS))
    (folder / "b.jpg").write_bytes(file_of(PIXELS[:40, :33], "JPEG"))
    made = rankpress(
        "compress", str(folder), str(tmp_path / "out"), "--store", str(store), "--json"
    )
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    assert [(r["width"], r["height"]) for r in rows] == [(WIDTH, HEIGHT), (33, 40)]
    back = rankpress(
        "decompress",
        str(tmp_path / "out" / "a.rkp"),
        str(tmp_path / "a.png"),
        "--store",
        str(store),
    )
    assert back.returncode == 0, back.stderr
    decoded = pixels_of((tmp_path / "a.png").read_bytes())
    # each process picks its own working type for the networks: the pixels may differ by rounding
    assert psnr_db(decoded, PIXELS) == pytest.approx(rows[0]["psnr_db"], abs=0.05)
    told = rankpress("info", str(tmp_path / "out" / "a.rkp"), "--json")
    assert json.loads(told.stdout)["width"] == WIDTH


def test_the_served_process_answers_as_the_readme_says(store: Path, tmp_path: Path) -> None:
    """`rankpress serve` in its own process, an image posted to it, and SIGTERM."""
    with serving(tmp_path, "--store", str(store), "--threads", "1") as url:
        answer = httpx.post(f"{url}/compress?rate=4", content=file_of(PIXELS), timeout=60)
        assert answer.status_code == 200
        back = httpx.post(f"{url}/decompress", content=answer.content, timeout=60)
        assert back.headers["content-type"] == "image/png"
        assert pixels_of(back.content).shape == PIXELS.shape
        assert b"rankpress_" in httpx.get(f"{url}/metrics").content


WITHOUT_TORCH = WITHOUT + """
MISSING.clear()
MISSING.update({"torch", "compressai", "dbos"})
from service.cli.main import main
main()
"""


def test_a_server_without_torch_serves_stored_streams(
    store: Path, tmp_path: Path, engine: Engine, photo: Picture
) -> None:
    """`rankpress serve --decode-only` in its own process, in front of a folder of objects."""
    data = engine.compress(photo, 4).data
    key = open_objects(tmp_path / "objects").put(data)
    options = ("--decode-only", "--store", str(store), "--objects", str(tmp_path / "objects"))
    with serving(tmp_path, *options, command=(sys.executable, "-c", WITHOUT_TORCH)) as url:
        got = httpx.get(f"{url}/objects/{key.rpartition('/')[2]}?format=png", timeout=60)
        posted = httpx.post(f"{url}/decompress", content=data, timeout=60)
        assert httpx.post(f"{url}/compress", content=b"").status_code == 404
    assert got.status_code == posted.status_code == 200
    assert got.content == posted.content
    off = pixels_of(got.content).astype(int) - engine.decompress(data).picture.rgb
    assert np.abs(off).max() <= 1


def test_ci_runs_the_readme_s_test_command() -> None:
    root = Path(__file__).parent.parent
    readme, script = (root / "README.md").read_text(), (root / ".ci" / "run").read_text()
    (command,) = [line for line in script.splitlines() if line.startswith("python3 -m venv")]
    assert f"\n{command}\n" in readme


def test_a_burst_over_http_of_mixed_rates_and_sizes_gives_the_bytes_of_one_at_a_time(
    small_model: StoredModel,
) -> None:
    """With batches, as on a GPU, and without, as on a CPU; in both directions."""
    model = load_models((with_rates(small_model, (3, 5, 6)),), "cpu", torch.float32)
    plain = Engine(model)
    sizes = ((40, 64), (48, 60), (70, 33))
    files = [file_of(photo_like(h, w, i)) for i, (h, w) in enumerate(sizes)]
    jobs = [(body, rate) for body in files for rate in (3, 4.5, 5, 6)] * 4

    async def answers(batch: int) -> tuple[list[bytes], list[bytes]]:
        async with running(Engine(model, max_batch=batch), batch_window_s=0.01) as client:
            async def send(path: str, body: bytes) -> bytes:
                answer = await client.post(path, content=body)
                assert answer.status_code == 200, answer.text
                return answer.content

            made = await asyncio.gather(*(send(f"/compress?rate={r}", b) for b, r in jobs))
            back = await asyncio.gather(*(send("/decompress?format=png", s) for s in made))
        return made, back

    alone = [
        plain.compress(read_image(body, max_pixels=10**6), rate).data for body, rate in jobs
    ]
    pixels = [plain.decompress(data).picture.rgb for data in alone]
    for batch in (1, 4):
        made, back = asyncio.run(answers(batch))
        assert made == alone
        assert all(np.array_equal(pixels_of(f), rgb) for f, rgb in zip(back, pixels, strict=True))


def test_a_damaged_file_in_a_burst_is_refused_alone(engine: Engine, loaded: LoadedModel) -> None:
    batching = Engine((loaded,), max_batch=8)
    stream = engine.compress(Picture(PIXELS), 4).data
    bodies = [file_of(PIXELS), file_of(PIXELS)[:-40], b"no picture", file_of(PIXELS)] * 2
    streams = [stream, stream[:-1], b"", stream]

    async def law() -> None:
        async with running(batching, batch_window_s=0.02) as client:
            made = await asyncio.gather(*(client.post("/compress", content=b) for b in bodies))
            back = await asyncio.gather(*(client.post("/decompress", content=s) for s in streams))
        assert [a.status_code for a in made] == [200, 415, 415, 200] * 2
        assert {a.content for a in made if a.status_code == 200} == {stream}
        assert [a.status_code for a in back] == [200, 400, 400, 200]

    asyncio.run(law())
