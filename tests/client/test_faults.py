"""With 30 % of all requests failing, nothing is lost, and nothing is done twice that must not."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from rankpress_client import AsyncRankpress, JobState, Rankpress, RetryPolicy, TransportError
from rankpress_client.errors import ConnectionFailedError, UnexpectedAnswerError

from client.faulty_server import FaultyServer, faulty_server

PERSISTENT = RetryPolicy(max_retries=30, max_seconds=60, first_pause_s=0)
OPTIONS: dict[str, Any] = {"timeout": 0.25, "retries": PERSISTENT}
BODIES = [f"picture {number} ".encode() * (1 + number % 5) for number in range(25)]


def check_nothing_is_lost(server: FaultyServer, streams: list[bytes], names: list[str]) -> None:
    assert streams == [body[::-1] for body in BODIES]
    assert [server.objects[name] for name in names] == BODIES and len(server.objects) == 25
    assert sum(server.requests.values()) > 1.25 * len(server.requests)


def test_threads_lose_nothing(tmp_path: Path) -> None:
    with faulty_server() as (url, server), Rankpress(url, **OPTIONS) as client:
        source = tmp_path / "body"
        source.write_bytes(BODIES[0])
        client.compress(source, tmp_path / "stream", rate=3)
        assert (tmp_path / "stream").read_bytes() == BODIES[0][::-1]
        with ThreadPoolExecutor(8) as pool:
            streams = list(pool.map(lambda body: client.compress(body).data, BODIES))
            names = list(pool.map(lambda body: client.objects.put(body).sha256, BODIES))
        check_nothing_is_lost(server, streams, names)


def test_tasks_lose_nothing() -> None:
    async def law(url: str, server: FaultyServer) -> None:
        async with AsyncRankpress(url, **OPTIONS) as client:
            made = await asyncio.gather(*(client.compress(body) for body in BODIES))
            stored = await asyncio.gather(*(client.objects.put(body) for body in BODIES))
        check_nothing_is_lost(server, [m.data for m in made], [s.sha256 for s in stored])

    with faulty_server(seed=2) as (url, server):
        asyncio.run(law(url, server))


def test_a_watch_goes_on_until_the_job_has_ended() -> None:
    """Streams of events end after two events, fail or stall; every state is seen once, in order."""
    with faulty_server(seed=3) as (url, server):
        with Rankpress(url, **OPTIONS, sleep=lambda _: None) as client:
            job, states = client.adapt(b"one"), list[JobState]()
            assert job.wait(states.append).status == "succeeded"
        steps = [state.step for state in states]
        assert steps == sorted(set(steps), key=str) and steps[-1] == 9

        async def law() -> None:
            async def at_once(_: float) -> None: ...

            async with AsyncRankpress(url, **OPTIONS, sleep=at_once) as client:
                job, states = await client.adapt(b"two"), list[JobState]()
                assert (await job.wait(states.append)).status == "succeeded"
                assert [state async for state in job.events()] == states[-1:]

        asyncio.run(law())
        assert len([request for request in server.done if request.startswith("POST")]) == 2


def test_what_must_not_be_done_twice_is_done_at_most_once() -> None:
    """A deletion that succeeded was done once; one that raised may have been, and is not repeated.

    What a server refused is tried again.
    """
    with faulty_server(seed=4) as (url, server), Rankpress(url, **OPTIONS) as client:
        outcomes = dict[str, bool]()
        for number in range(25):
            name = f"blog/{number}"
            try:
                client.pictures.delete(name)
                outcomes[f"/pictures/{name}"] = True
            except (TransportError, UnexpectedAnswerError):
                outcomes[f"/pictures/{name}"] = False
        counts = {path: server.done[f"DELETE {path} {path}"] for path in outcomes}
        assert set(counts.values()) == {0, 1}
        assert all(counts[path] == 1 for path, succeeded in outcomes.items() if succeeded)
        assert 10 < sum(outcomes.values()) < 25 < sum(server.requests.values())


def test_a_server_that_is_away_is_tried_as_often_as_allowed() -> None:
    with faulty_server() as (url, _):
        pass
    pauses = list[float]()
    policy = RetryPolicy(max_retries=3, first_pause_s=1)
    with (
        Rankpress(url, retries=policy, sleep=pauses.append, jitter=lambda: 1.0) as client,
        pytest.raises(ConnectionFailedError),
    ):
        client.rates()
    assert pauses == [1, 2, 4]
    with Rankpress(url, retries=policy, sleep=pauses.append) as client:
        with pytest.raises(ConnectionFailedError):
            client.health()
        assert len(pauses) == 3  # whether a server is there is asked once


def test_a_cancelled_task_stops_at_once() -> None:
    """In a pause and in a stall, both of which would go on for an hour."""

    async def law(url: str) -> None:
        begun = asyncio.Event()

        async def pause(_: float) -> None:
            begun.set()
            await asyncio.sleep(3600)

        policy = RetryPolicy(max_seconds=7200, first_pause_s=3600, longest_pause_s=3600)
        async with AsyncRankpress(url, timeout=3600, retries=policy, sleep=pause) as client:
            tasks = [asyncio.create_task(client.compress(body)) for body in BODIES]
            await begun.wait()
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)

    with faulty_server(share=1.0) as (url, _):
        asyncio.run(law(url))


def test_answers_of_something_else_are_not_taken_for_results() -> None:
    """A page of a proxy with status 200, and documents without their fields."""

    def handle(request: httpx.Request) -> httpx.Response:
        pages = {"/rates": "<html>", "/models": "[]", "/jobs/x": '{"id": "x"}'}
        return httpx.Response(200, text=pages[request.url.path])

    http = httpx.Client(transport=httpx.MockTransport(handle))
    with http, Rankpress("http://test", http=http) as client:
        for call in (client.rates, client.models, lambda: client.job("x")):
            with pytest.raises(UnexpectedAnswerError):
                call()


def test_a_stream_that_was_damaged_on_the_way_is_fetched_again() -> None:
    answers = iter([b"damaged", b"stream"])

    def handle(_: httpx.Request) -> httpx.Response:
        tag = hashlib.sha256(b"stream").hexdigest()
        return httpx.Response(200, content=next(answers), headers={"ETag": f'"{tag}"'})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    with http, Rankpress("http://test/codec/", http=http, sleep=lambda _: None) as client:
        assert client.compress(b"picture").data == b"stream"
    assert not list(answers)
