"""Both clients against the real app on a real port, with a fast codec and a worker process."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from api.fake_codec import FakeCodec
from jobs.fake_adapter import expected_result
from jobs.machines import Place, picture, png
from jobs.test_http import served
from PIL import Image
from rankpress_client import (
    AsyncRankpress,
    JobState,
    ProblemError,
    Rankpress,
    RetryPolicy,
    calls,
    problems,
)
from rankpress_client.errors import JobCancelledError, JobFailedError, WaitTimeoutError

import service.files
from service.api import job_routes

FAILING = png(3)
"""A picture whose job fails."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """For one server, whose events come ten times a second."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RANKPRESS_")]:
            patch.delenv(name)
        patch.setattr(job_routes, "POLL_S", 0.1)
        patch.setattr(job_routes, "RECONNECT_MS", 1)
        objects = {"objects_url": str(folder / "objects"), "objects_write": True}
        place = Place(folder, None, "jobs", port=0, job_attempts=1, **objects)
        yield place
        place.close()


@pytest.fixture(scope="module")
def codec() -> FakeCodec:
    return FakeCodec()


@pytest.fixture(scope="module")
def url(place: Place, codec: FakeCodec) -> Iterator[str]:
    with served(place, codec) as client:
        yield str(client.base_url)


def begin_work(place: Place) -> None:
    """Start the one worker, if that was not done before."""
    if not place.workers:
        failing = hashlib.sha256(picture(FAILING).rgb.tobytes()).hexdigest()[:8]
        place.worker(step_s=0.005, poison="raise", poisoned=failing)


def test_a_job_is_posted_watched_and_fetched(place: Place, url: str, tmp_path: Path) -> None:
    """The first test here: nothing has been done for this job before."""
    with Rankpress(url) as client:
        job, states = client.adapt(png(), rate=4, effort=2, priority=1), list[JobState]()
        assert (job.state.status, job.state.rate, job.state.effort) == ("queued", 4, 2)
        assert client.adapt(png(), rate=4, effort=2).id == job.id
        latent = client.adapt(png(), method="latent", quality=3, autoencoder="own").state
        assert (latent.method, latent.quality, latent.autoencoder) == ("latent", 3, "own")
        assert (latent.rate, job.state.rate, job.state.quality) == (None, 4, None)
        for early in (job.result, job.best):
            with pytest.raises(problems.JobUnfinishedError) as unfinished:
                early()
            assert unfinished.value.retry_after_s == 1
        with pytest.raises(WaitTimeoutError) as late:
            job.wait(timeout=0.05)
        assert late.value.state is not None and late.value.state.status == "queued"

        async def wait() -> None:
            async with AsyncRankpress(url) as client:
                await (await client.job(job.id)).wait(timeout=0.05)

        with pytest.raises(WaitTimeoutError):
            asyncio.run(wait())
        begin_work(place)
        state = job.wait(states.append)
        assert state == job.state == states[-1] and state.status == "succeeded" and state.ended_at
        steps = [state.step or 0 for state in states]
        assert steps == sorted(steps) and steps[-1] == 40
        stream = job.result(tmp_path / "result")
        data = (tmp_path / "result").read_bytes()
        assert data == expected_result(picture(png()), 4.0, 2)
        assert stream.sha256 == hashlib.sha256(data).hexdigest() and stream.step
        again = client.job(job.id)
        assert list(again.events()) == [state] and again.best().data == data
        with pytest.raises(problems.JobEndedError):
            again.cancel()


def test_a_picture_goes_there_and_back(url: str, tmp_path: Path) -> None:
    with Rankpress(url + "/") as client:
        stream = client.compress(png(), rate=2, tune="psnr", metadata="all")
        assert (stream.rate, stream.tune, stream.psnr_db) == (2, "psnr", float("inf"))
        assert stream.bpp == round(8 * len(stream.data) / 240, 4)
        assert stream.source_bytes == len(png()) and stream.encodes == 1
        assert stream.etag == f'"{stream.sha256}"' and stream.timings_ms["net"] == 2
        assert stream.media_type == "application/vnd.rankpress" and stream.request_id
        assert stream.notes == ()
        cmyk = io.BytesIO()
        Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
        assert "CMYK" in client.compress(cmyk.getvalue(), rate=2).notes[0]
        assert client.compress(png(), rate="lossless").rate == "lossless"
        assert client.compress(png(), model="fake", rate=2).model == "fake" == stream.model
        assert client.compress(png(), max_bytes=10**6).encodes == 5
        back = client.decompress(stream.data)
        assert (back.media_type, back.rate, back.model, back.complete) == (
            "image/png", 2, "fake", 1,
        )  # fmt: skip
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(back.data))), picture(png()).rgb)
        (tmp_path / "stream").write_bytes(stream.data)
        part = client.decompress(
            tmp_path / "stream", tmp_path / "part", format="webp", region=(1, 2, 8, 4), max_size=4
        )
        assert part.media_type == "image/webp"
        with Image.open(tmp_path / "part") as image:
            assert image.size == (4, 2)
        assert client.decompress(stream.data[:-5], partial=True).complete < 1
        accepted = client.decompress(stream.data, accept="image/jpeg")
        assert accepted.media_type == "image/jpeg"
        peer = client.compare(png(), "webp", max_bytes=2000)
        assert peer.quality and peer.bpp and peer.psnr_db and peer.size_bytes <= 2000
        figure = client.maps(png(), rates="2,4", model="fake")
        assert figure.media_type == "image/png" and figure.timings_ms["draw"] > 0
        with pytest.raises(problems.BadParameterError, match="at rate 2"):
            client.maps(png(), attention=True, at=(3, 4))


def test_what_a_server_offers_is_listed(url: str) -> None:
    with Rankpress(url) as client:
        (model,) = client.models()
        assert (model.name, model.family) == ("fake", "conv")
        assert {rate.rate for rate in model.rates} == {2, 4}
        assert {rate.model for rate in client.rates()} == {"fake"}
        health = client.health()
        assert health.ready and health.jobs in ("available", "unknown")


def test_objects_are_put_found_and_read(url: str, tmp_path: Path) -> None:
    with Rankpress(url) as client:
        data = client.compress(png(7), rate=2).data
        name = hashlib.sha256(data).hexdigest()
        assert client.objects.size_bytes(name) is None
        with pytest.raises(problems.NoSuchObjectError):
            client.objects.stream(name)
        stored = client.objects.put(io.BytesIO(data), name)
        assert (stored.sha256, stored.is_new, stored.width) == (name, True, 20)
        assert not client.objects.put(data).is_new
        assert client.objects.size_bytes(name) == len(data)
        assert client.objects.stream(name).data == data
        assert client.objects.stream(name, first_bytes=9).data == data[:9]
        shown = client.objects.picture(name, tmp_path / "small", max_size=5, format="png")
        assert shown.media_type == "image/png"
        with Image.open(tmp_path / "small") as image:
            assert image.size == (5, 3)
        with pytest.raises(problems.BadParameterError):
            client.objects.put(data, "0" * 64)


def test_pictures_have_names(url: str, tmp_path: Path) -> None:
    with Rankpress(url) as client:
        put = client.pictures.put("blog/cat.png", png(), rate=2, effort=1, priority=9)
        assert (put.name, put.event, put.width, put.is_new) == ("blog/cat.png", "put", 20, True)
        assert put.job is not None and client.job(put.job).state.priority == 9
        again = client.pictures.put("blog/cat.png", io.BytesIO(png()), rate=2)
        assert (again.version, again.sha256, again.is_new) == (put.version, put.sha256, False)
        assert client.pictures.stream("blog/cat.png", tmp_path / "cat.rkp").sha256 == put.sha256
        shown = client.pictures.get("blog/cat.png", format="png", max_size=5)
        assert shown.media_type == "image/png" and shown.etag
        client.pictures.put("blog/dog.png", png(2), rate=4)
        client.pictures.put("other", png(3), rate=4)
        assert [v.name for v in client.pictures.list("blog/")] == ["blog/cat.png", "blog/dog.png"]
        client.pictures.delete("blog/cat.png")
        deleted, first = client.pictures.history("blog/cat.png")
        assert (deleted.event, deleted.sha256, first.sha256) == ("deleted", None, put.sha256)
        for call in (client.pictures.get, client.pictures.stream, client.pictures.delete):
            with pytest.raises(problems.NoSuchPictureError):
                call("blog/cat.png")
        with pytest.raises(problems.BadParameterError):
            client.pictures.put("a@b", png())
        for name in ("../jobs", "a/./b", "a//b", "", ".."):
            with pytest.raises(ValueError, match="part of the name"):
                client.pictures.delete(name)


def test_a_list_of_names_is_read_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAGE_NAMES", 2)

    async def law() -> None:
        async with AsyncRankpress(url) as client:
            names = [f"n/{number}" for number in range(5)]
            for name in names:
                await client.pictures.put(name, png(), rate=2)
            assert [version.name async for version in client.pictures.list("n/")] == names
            assert (await client.pictures.get("n/3", tmp)).media_type == "image/jpeg"
            assert (await client.pictures.stream("n/3")).sha256
            await client.pictures.delete("n/3")
            assert len(await client.pictures.history("n/3")) == 2
            listed = [version async for version in client.pictures.list("n/")]
            assert [version.name for version in listed] == ["n/0", "n/1", "n/2", "n/4"]

    tmp = io.BytesIO()
    asyncio.run(law())
    assert tmp.getvalue()


def test_refusals_are_exceptions_with_the_fields_of_the_answer(url: str) -> None:
    with Rankpress(url, token="x", headers={"X-Request-Id": "mine"}) as client:
        with pytest.raises(problems.RateUnavailableError) as rate:
            client.compress(png(), rate=3)
        assert rate.value.available == (2, 4) and rate.value.instance.endswith(":mine")
        with pytest.raises(problems.ModelUnavailableError, match="expected one of fake"):
            client.compress(png(), model="none")
        with pytest.raises(problems.TargetUnreachableError) as target:
            client.compress(png(), max_bytes=1)
        assert target.value.asked == 1 and target.value.found
        with pytest.raises(problems.BadParameterError) as parameter:
            client.compress(png(), rate=9, frame=-1)
        assert parameter.value.invalid and len(parameter.value.invalid) == 2
        with pytest.raises(problems.BadImageError) as image:
            client.compress(b"no image")
        assert image.value.status == 415 and isinstance(image.value, ProblemError)
        with pytest.raises(TypeError, match="'speed'"):
            client.compress(png(), speed=1)  # type: ignore[call-arg]
        with pytest.raises(problems.UnknownJobError):
            client.job("0" * 32)


def test_a_job_is_cancelled_and_another_fails(place: Place, url: str) -> None:
    with Rankpress(url) as client:
        job = client.adapt(png(4), effort=4)
        assert job.cancel().status == job.cancel().status == "cancelled"
        with pytest.raises(JobCancelledError):
            job.wait()
        failing = client.adapt(FAILING, effort=1)
        begin_work(place)
        with pytest.raises(JobFailedError) as failed:
            failing.wait()
        assert failed.value.state is not None and failed.value.state.error
        with pytest.raises(problems.JobEndedError):
            failing.result()


def test_asyncio_can_do_all_of_it(place: Place, url: str, tmp_path: Path) -> None:
    async def law() -> None:
        async with AsyncRankpress(url) as client:
            assert (await client.health()).ready
            assert len(await client.models()) == 1 and len(await client.rates()) == 3
            stream = await client.compress(png(6), tmp_path / "stream", rate=2, model="fake")
            stored = await client.objects.put(tmp_path / "stream")
            assert stored.sha256 == stream.sha256
            assert await client.objects.size_bytes(stored.sha256) == stream.size_bytes
            assert (await client.objects.stream(stored.sha256)).sha256 == stream.sha256
            shown = await client.objects.picture(stored.sha256, format="png")
            assert shown.data == (await client.decompress(tmp_path / "stream")).data
            assert (await client.compare(png(), "jpeg", target_psnr=10)).quality
            assert (await client.maps(png())).data.startswith(b"\x89PNG")
            with pytest.raises(problems.BadStreamError):
                await client.decompress(b"no stream")
            job = await client.adapt(png(5), effort=2)
            begin_work(place)
            states = [state async for state in job.events()]
            assert states[-1] == job.state == await job.wait() == await job.refresh()
            assert (await job.result()).data == (await job.best()).data
            with pytest.raises(problems.JobEndedError):
                await (await client.job(job.id)).cancel()

    asyncio.run(law())


def test_the_examples_of_the_documentation_run(
    place: Place, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(service.files.__file__).parent / "docs" / "client.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(png(width=96, height=64)).rgb).save("photo.jpg")
    begin_work(place)
    names: dict[str, object] = {}
    for example in examples:
        exec(example.replace("http://localhost:8000", url), names)
    assert len(examples) == 4
    assert {"photo.rkp", "photo.avif", "best.rkp"} <= {path.name for path in tmp_path.iterdir()}


def test_a_server_that_is_busy_is_asked_again(url: str, codec: FakeCodec) -> None:
    """Its answers to one client: refused, then done."""
    codec.gate.clear()
    pauses = list[float]()

    def open_gate(seconds: float) -> None:
        pauses.append(seconds)
        codec.gate.set()

    async def law() -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            posts = (http.post("/compress?rate=2", content=png()) for _ in range(80))
            full = [asyncio.create_task(post) for post in posts]
            done, _ = await asyncio.wait(full, return_when=asyncio.FIRST_COMPLETED)
            assert done.pop().result().status_code in (429, 503)
            policy = RetryPolicy(max_retries=9)
            with Rankpress(url, sleep=open_gate, retries=policy, jitter=lambda: 0.5) as client:
                assert (await asyncio.to_thread(client.compress, png(), rate=2)).rate == 2
            await asyncio.gather(*full)

    asyncio.run(law())
    assert pauses and min(pauses) > 1
