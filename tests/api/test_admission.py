"""Admission: order, bounds, cancellation, draining."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from starlette.responses import StreamingResponse
from starlette.types import Message

from service.engine.admission import LONGEST_RETRY_S, Admission, Batching, Phase, WorkResult
from service.engine.admission_queue import RequestGroup
from service.engine.worker_pool import NICENESS, PATIENCE
from service.errors import Saturated, SelfTestFailed
from service.http.metrics import Metrics
from service.http.middleware import RequestMiddleware
from service.http.spool import Spool
from service.runtime.interruption import WorkAbandoned, allow_interruption
from service.settings import Settings

from .client import until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(
    *,
    workers: int = 1,
    max_waiting: int = 8,
    max_waiting_bytes: int = 100,
    max_wait_s: float = math.inf,
) -> AsyncIterator[Admission]:
    admission = Admission(
        workers=workers,
        max_waiting=max_waiting,
        max_waiting_bytes=max_waiting_bytes,
        max_wait_s=max_wait_s,
    )
    admission.start()
    await admission.open_after(lambda: None)
    try:
        yield admission
    finally:
        admission.close()


def submit(admission: Admission, work: Callable[[], object]) -> asyncio.Task[WorkResult[object]]:
    return asyncio.ensure_future(admission.run(work))


class Gate:
    """Work that waits in its thread until it is let through, and the order it began in."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.begun: list[int] = []

    def work(self, number: int) -> Callable[[], int]:
        def wait() -> int:
            self.begun.append(number)
            assert self.event.wait(10)
            return number

        return wait


async def test_work_runs_in_order_and_returns_its_value_and_its_wait() -> None:
    gate = Gate()
    async with opened() as admission:
        tasks = [submit(admission, gate.work(n)) for n in range(4)]
        await until(lambda: gate.begun == [0])
        assert (admission.running, admission.waiting) == (1, 3)
        gate.event.set()
        done = await asyncio.gather(*tasks)
    assert [d.value for d in done] == gate.begun == [0, 1, 2, 3]
    assert all(d.queue_s > 0 for d in done[1:])


async def test_as_many_run_at_once_as_there_are_workers() -> None:
    gate = Gate()
    async with opened(workers=2) as admission:
        tasks = [submit(admission, gate.work(n)) for n in range(3)]
        await until(lambda: len(gate.begun) == 2)
        assert (admission.running, admission.waiting) == (2, 1)
        gate.event.set()
        await asyncio.gather(*tasks)


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    gate = Gate()
    async with opened(max_waiting=2) as admission:
        tasks = [submit(admission, gate.work(n)) for n in range(3)]
        await until(lambda: admission.waiting == 2)
        with pytest.raises(Saturated, match="2 requests wait"):
            await admission.run(gate.work(9))
        gate.event.set()
        await asyncio.gather(*tasks)
        assert (await admission.run(lambda: 5)).value == 5
    assert 9 not in gate.begun


@pytest.mark.parametrize(
    ("max_wait_s", "seconds", "waiting"),
    [(0.3, 10.0, 4), (30.0, 5.0, 6), (1000.0, 0.01, 20)],
    ids=["however long they wait", "5 s each", "as many as may wait"],
)
async def test_what_would_wait_too_long_is_refused_at_once_but_a_few_may_always_wait(
    max_wait_s: float, seconds: float, waiting: int
) -> None:
    gate = Gate()
    async with opened(max_waiting=20, max_wait_s=max_wait_s) as admission:
        admission.speed.add(seconds, 1.0)
        tasks = [submit(admission, gate.work(0))]
        await until(lambda: admission.running == 1)
        with pytest.raises(Saturated, match="requests wait already") as refused:
            while True:
                admission.check()
                tasks.append(submit(admission, gate.work(len(tasks))))
                await asyncio.sleep(0)
        assert refused.value.retry_after_s >= min(max_wait_s, 1)
        assert admission.waiting == waiting
        gate.event.set()
        await asyncio.gather(*tasks)


async def test_cancelled_while_waiting_costs_no_work_and_frees_the_place() -> None:
    gate = Gate()
    async with opened(max_waiting=1) as admission:
        first = submit(admission, gate.work(0))
        second = submit(admission, gate.work(1))
        await until(lambda: admission.waiting == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert admission.waiting == 0
        third = submit(admission, gate.work(2))
        gate.event.set()
        await asyncio.gather(first, third)
    assert gate.begun == [0, 2]


async def test_cancelled_while_running_frees_the_worker_only_when_the_work_ends() -> None:
    gate = Gate()
    async with opened() as admission:
        first = submit(admission, gate.work(0))
        await until(lambda: gate.begun == [0])
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = submit(admission, gate.work(1))
        await until(lambda: admission.waiting == 1)
        assert (admission.running, gate.begun) == (1, [0])
        gate.event.set()
        assert (await second).value == 1


async def test_an_error_of_the_work_reaches_its_caller_and_no_other() -> None:
    async with opened() as admission:
        tasks = [submit(admission, w) for w in (lambda: 1, lambda: 1 // 0, lambda: 3)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], ZeroDivisionError)
    assert [r.value for r in (results[0], results[2]) if isinstance(r, WorkResult)] == [1, 3]


async def test_retry_after_is_the_measured_time_times_the_queue() -> None:
    gate = Gate()
    async with opened(workers=2, max_waiting=1000) as admission:
        for _ in range(50):
            admission.speed.add(3.0, 1.0)
        tasks = [submit(admission, gate.work(n)) for n in range(6)]
        await until(lambda: len(gate.begun) == 2)
        assert admission.retry_after_s == 9  # 3 s · 6 / 2
        more = [submit(admission, gate.work(n)) for n in range(6, 900)]
        await asyncio.sleep(0)
        assert admission.retry_after_s == LONGEST_RETRY_S
        gate.event.set()
        await asyncio.gather(*tasks, *more)
        assert admission.retry_after_s == 1


async def test_what_waits_is_counted_by_its_size_not_by_its_number() -> None:
    gate = Gate()
    async with opened(max_waiting=100, max_wait_s=60) as admission:
        admission.speed.add(2.0, 100.0)
        tasks = [asyncio.ensure_future(admission.run(gate.work(n), size=50)) for n in range(4)]
        await until(lambda: gate.begun == [0])
        assert admission.retry_after_s == 4  # 2 s · (50 + 3 · 50) / 100
        large = asyncio.ensure_future(admission.run(gate.work(4), size=2900))
        await until(lambda: admission.waiting == 4)
        assert admission.retry_after_s == 62
        with pytest.raises(Saturated, match="for about 62 s"):
            admission.check()
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        assert admission.retry_after_s == 4
        admission.check()
        gate.event.set()
        await asyncio.gather(*tasks)


async def test_an_answer_that_is_sent_is_held_no_longer() -> None:
    """A stream of events may last for hours; only unsent bytes are in memory."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 1000

    async with opened() as admission:
        held: list[int] = []

        async def send(_: Message) -> None:
            held.append(admission.held_bytes)

        async def receive() -> Message:
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        wrapped = RequestMiddleware(
            StreamingResponse(pieces()),
            admission=admission,
            metrics=Metrics(admission, Spool(Settings())),
            settings=Settings(),
            spool=Spool(Settings()),
        )
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await wrapped(scope, receive, send)
        assert len(held) == 52 and max(held) == 1000
        assert admission.held_bytes == 0


async def test_held_bytes_are_bounded_and_given_back() -> None:
    async with opened(max_waiting_bytes=100) as admission:
        one, two = admission.hold(), admission.hold()
        one.grow(60)
        with pytest.raises(Saturated, match="bytes"):
            two.grow(41)
        two.grow(40)
        with pytest.raises(Saturated):
            admission.check(1)
        two.add(1000)  # an answer that exists is counted, not refused
        assert admission.held_bytes == 1100
        two.release()
        two.release()
        assert admission.held_bytes == 60
        one.release()
        assert admission.held_bytes == 0


async def test_work_waits_for_the_self_test() -> None:
    gate = threading.Event()
    admission = Admission(workers=2, max_waiting=8, max_waiting_bytes=100)
    admission.start()
    test = asyncio.ensure_future(admission.open_after(lambda: assert_set(gate)))
    early = submit(admission, lambda: gate.is_set())
    await until(lambda: admission.waiting == 1)
    assert admission.phase is Phase.STARTING
    gate.set()
    await test
    assert (await early).value is True
    admission.close()


async def test_a_failed_self_test_refuses_all_work_for_good() -> None:
    admission = Admission(workers=1, max_waiting=8, max_waiting_bytes=100)
    admission.start()
    early = submit(admission, lambda: 1)
    with pytest.raises(ZeroDivisionError):
        await admission.open_after(lambda: print(1 // 0))  # noqa: T201
    for work in (early, submit(admission, lambda: 1)):
        with pytest.raises(SelfTestFailed):
            await work
    admission.begin_drain()
    assert admission.phase is Phase.FAILED
    admission.close()


async def test_draining_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    gate = Gate()
    async with opened() as admission:
        tasks = [submit(admission, gate.work(n)) for n in range(3)]
        await until(lambda: gate.begun == [0])
        admission.begin_drain()
        with pytest.raises(Saturated, match="shutting down"):
            await admission.run(gate.work(9))
        with pytest.raises(Saturated, match="shutting down"):
            admission.hold().grow(1)
        gate.event.set()
        assert [d.value for d in await asyncio.gather(*tasks)] == [0, 1, 2]
        assert admission.running == admission.waiting == 0


async def test_closing_refuses_what_still_waits() -> None:
    gate = Gate()
    async with opened() as admission:
        first, second = (submit(admission, gate.work(n)) for n in range(2))
        await until(lambda: gate.begun == [0])
        admission.close()
        with pytest.raises(Saturated):
            await second
        gate.event.set()
        assert (await first).value == 0


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


async def test_what_is_launched_together_gets_each_its_own_outcome() -> None:
    gate = Gate()
    sizes: list[int] = []

    def together(works: Sequence[Callable[[], object]]) -> list[object]:
        sizes.append(len(works))
        return [ValueError("second") if i == 1 else work() for i, work in enumerate(works)]

    batching = Batching(together, max_batch=3, window_s=0.0)
    admission = Admission(workers=1, max_waiting=8, max_waiting_bytes=100, batching=batching)
    admission.start()
    await admission.open_after(lambda: None)
    first = submit(admission, gate.work(0))
    await until(lambda: gate.begun == [0])
    group = RequestGroup(4, "small")
    tasks = [
        asyncio.ensure_future(admission.run(gate.work(n), g))
        for n, g in ((1, group), (2, RequestGroup(6, "small")), (3, group), (4, group), (5, group))
    ]
    await asyncio.sleep(0)
    tasks[2].cancel()  # number 3 leaves
    await asyncio.sleep(0)
    gate.event.set()
    await first
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sizes == [3], "1, 4 and 5; 2 is of another rate"
    assert [d.value for d in done if isinstance(d, WorkResult)] == [1, 2, 5]
    assert isinstance(done[3], ValueError) and 3 not in gate.begun
    small = admission.usage[0]
    assert (small.calls, small.requests) == (4, 6), "the self-test, 0, the batch, and 2"
    admission.close()


async def test_a_request_that_nobody_joins_runs_when_its_window_ends() -> None:
    batching = Batching(lambda works: [w() for w in works], max_batch=4, window_s=0.05)
    admission = Admission(workers=1, max_waiting=8, max_waiting_bytes=100, batching=batching)
    admission.start()
    await admission.open_after(lambda: None)
    done = await admission.run(lambda: 7, RequestGroup(4, "small"))
    assert done.value == 7 and 0.045 <= done.queue_s < 1
    left = asyncio.ensure_future(admission.run(lambda: 1 // 0, RequestGroup(4, "small")))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert (await admission.run(lambda: 8)).value == 8
    admission.close()


async def test_a_batch_that_fails_as_a_whole_fails_each_and_frees_the_worker() -> None:
    def together(works: Sequence[Callable[[], object]]) -> list[object]:
        raise OSError(f"{len(works)} works")

    batching = Batching(together, max_batch=2, window_s=10.0)
    admission = Admission(workers=1, max_waiting=8, max_waiting_bytes=100, batching=batching)
    admission.start()
    await admission.open_after(lambda: None)
    group = RequestGroup(4, "small")
    tasks = [asyncio.ensure_future(admission.run(lambda: 1, group)) for _ in range(2)]
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(f) for f in failed] == ["2 works"] * 2
    assert admission.running == 0
    assert (await admission.run(lambda: 3)).value == 3
    admission.close()


async def test_work_that_nobody_waits_for_stops_at_its_next_interruption_point() -> None:
    ended: list[str] = []
    begun = threading.Event()

    def long() -> None:
        try:
            for _ in range(10_000):
                allow_interruption()
                begun.set()
                time.sleep(0.001)
            ended.append("done")
        except WorkAbandoned:
            ended.append("abandoned")
            raise

    async with opened(max_waiting=20) as admission:
        abandoned = [submit(admission, long) for _ in range(10)]
        await until(begun.is_set)
        for task in abandoned:
            task.cancel()
        assert (await admission.run(lambda: 7)).value == 7, "it waits for none of the ten"
        assert ended == ["abandoned"], "nine were never begun"
        await until(lambda: admission.running == 0)
        assert not admission.speed.is_known or admission.retry_after_s == 1


async def test_a_batch_goes_on_while_anyone_waits_for_it() -> None:
    gate, left = threading.Event(), threading.Event()

    def together(works: Sequence[Callable[[], object]]) -> list[object]:
        gate.set()
        assert left.wait(10)
        allow_interruption()
        return [work() for work in works]

    admission = Admission(
        workers=1,
        max_waiting=8,
        max_waiting_bytes=100,
        batching=Batching(together, max_batch=2, window_s=1.0),
    )
    admission.start()
    await admission.open_after(lambda: None)
    group = RequestGroup(1, 1)
    first, second = (
        asyncio.ensure_future(admission.run(lambda n=n: n, group))
        for n in range(2)  # type: ignore[misc]
    )
    await until(gate.is_set)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    left.set()
    assert (await second).value == 1
    admission.close()


def lanes(small_size: float) -> Admission:
    """One worker in each lane, and work of more than `small_size` is large."""
    return Admission(workers=1, max_waiting=20, max_waiting_bytes=100, small_size=small_size)


async def test_small_work_never_waits_for_large_work() -> None:
    gate = Gate()
    admission = lanes(10)
    admission.start()
    await admission.open_after(lambda: None)
    large = [asyncio.ensure_future(admission.run(gate.work(n), size=11)) for n in range(3)]
    await until(lambda: gate.begun == [0])
    for n in range(5):
        assert (await admission.run(lambda n=n: n, size=10)).value == n  # type: ignore[misc]
    assert gate.begun == [0]
    gate.event.set()
    assert [done.value for done in await asyncio.gather(*large)] == [0, 1, 2]
    admission.close()


async def test_large_work_pauses_while_small_work_is_here_but_not_for_ever() -> None:
    gate, points = Gate(), [0]

    def long() -> int:
        while points[0] < 1000 and not stopped.is_set():
            points[0] += 1
            time.sleep(0.01)  # its own work between two interruption points
            allow_interruption()
        return points[0]

    stopped = threading.Event()
    admission = lanes(10)
    admission.start()
    await admission.open_after(lambda: None)
    large = asyncio.ensure_future(admission.run(long, size=1000))
    await until(lambda: points[0] > 0)
    small = asyncio.ensure_future(admission.run(gate.work(0), size=1))
    await until(lambda: gate.begun == [0])
    before, begun_s = points[0], time.monotonic()
    await until(lambda: points[0] >= before + 5)  # it goes on all the same
    with_small_s = time.monotonic() - begun_s
    gate.event.set()
    await small
    stopped.set()
    assert (await large).value == points[0] < 1000
    assert with_small_s >= 4 * 0.01 * (1 + PATIENCE), "it paused for as long as it worked"
    admission.close()


@pytest.mark.platform
@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
async def test_large_work_has_a_lower_priority_and_small_work_the_process_s() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    admission = lanes(10)
    admission.start()
    await admission.open_after(lambda: None)
    small = await admission.run(niceness, size=1)
    large = await admission.run(niceness, size=11)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert (small.value, large.value) == (own, max(own, NICENESS))
    admission.close()


async def test_a_full_lane_for_large_work_refuses_large_work_alone() -> None:
    gate = Gate()
    admission = Admission(
        workers=1, max_waiting=100, max_waiting_bytes=100, max_wait_s=10, small_size=10
    )
    admission.start()
    await admission.open_after(lambda: None)
    admission.speed.add(1.0, 10.0)
    large = [asyncio.ensure_future(admission.run(gate.work(n), size=100)) for n in range(5)]
    await until(lambda: admission.waiting == 4)
    with pytest.raises(Saturated, match="4 requests wait already, for about 50 s"):
        await admission.run(lambda: None, size=100)
    admission.check()
    assert (await admission.run(lambda: 1, size=10)).value == 1
    gate.event.set()
    await asyncio.gather(*large)
    admission.close()
