"""The line: who is next, who may go together, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from service.engine.admission_queue import OVERTAKES, AdmissionQueue, QueuedWork, RequestGroup


def with_loop(law: Callable[[], None]) -> None:
    """Futures need a loop, even those that nobody waits for."""

    async def run() -> None:
        law()

    asyncio.run(run())


def entry(rate: object, size: object = None, since_s: float = 0.0) -> QueuedWork:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    group = None if rate is None else RequestGroup(rate, size)
    return QueuedWork(lambda: None, done, since_s, group)


def filled(line: AdmissionQueue, *rates: object) -> list[QueuedWork]:
    entries = [entry(rate) for rate in rates]
    for one in entries:
        line.append(one)
    return entries


def drained(line: AdmissionQueue, now_s: float = 1e9) -> list[list[QueuedWork]]:
    taken = []
    while batch := line.take(now_s):
        taken.append(batch)
    assert len(line) == 0
    return taken


def test_without_groups_the_oldest_is_next() -> None:
    def law() -> None:
        line = AdmissionQueue(4, 1.0)
        entries = filled(line, *[None] * 5)
        assert drained(line) == [[e] for e in entries]

    with_loop(law)


def test_requests_for_the_live_weights_go_before_older_ones_for_others() -> None:
    def law() -> None:
        line = AdmissionQueue()
        entries = filled(line, 4, 6, 4, 8, 6, 4)
        order = [entries.index(e) for (e,) in drained(line)]
        assert order == [0, 2, 5, 1, 4, 3]

    with_loop(law)


def test_a_flood_of_one_rate_keeps_another_waiting_for_a_bounded_number_of_requests() -> None:
    """However fast the flood comes: two arrive for each that is taken."""

    def law() -> None:
        line = AdmissionQueue()
        filled(line, *[4] * 10)
        assert line.take(0.0)
        (rare,) = filled(line, 6)
        older = len(line) - 1
        taken = 0
        while rare in list(line):
            filled(line, 4, 4)
            assert line.take(0.0)
            taken += 1
        assert taken <= older + OVERTAKES + 1

    with_loop(law)


@pytest.mark.parametrize("max_batch", [1, 2, 5, 16])
@pytest.mark.parametrize("seed", range(8))
def test_nobody_is_overtaken_more_often_than_the_cap_and_batches_never_mix(
    max_batch: int, seed: int
) -> None:
    """Any arrivals, any window; counted here, not read from the line's own counts."""

    def law() -> None:
        draw = random.Random(seed)
        line = AdmissionQueue(max_batch, 1.0)
        arrived: list[QueuedWork] = []
        waiting: list[QueuedWork] = []
        passed: dict[int, int] = {}
        now_s, batches = 0.0, []
        while len(arrived) < 400 or waiting:
            now_s += draw.random() * 0.5
            for _ in range(draw.choice((0, 1, 4)) if len(arrived) < 400 else 0):
                rate = draw.choice((None, 4, 4, 4, 4, 6, 8))
                size = draw.choice((None, "small", "small", "large"))
                arrived.append(entry(rate, size, now_s))
                waiting.append(arrived[-1])
                line.append(arrived[-1])
            if draw.random() < 0.05 and waiting:
                gone = waiting.pop(draw.randrange(len(waiting)))
                gone.result.cancel()
            taken = line.take(now_s)
            if not taken:
                continue
            batches.append(taken)
            assert all(e in waiting for e in taken), "a client that left costs no work"
            for e in waiting:
                if e not in taken:
                    later = sum(arrived.index(t) > arrived.index(e) for t in taken)
                    passed[id(e)] = passed.get(id(e), 0) + later
            waiting = [e for e in waiting if e not in taken]
        assert max(passed.values()) <= OVERTAKES
        assert all(len(b) <= max_batch and len({e.group for e in b}) == 1 for b in batches)
        assert all(len(b) == 1 or b[0].batches for b in batches)
        assert max(map(len, batches)) > 1 or max_batch == 1

    with_loop(law)


def test_a_batch_that_could_grow_waits_for_the_window_and_no_longer() -> None:
    def law() -> None:
        line = AdmissionQueue(3, 0.5)
        first = entry(4, "small", 10.0)
        line.append(first)
        assert line.take(10.4) == [] and line.due_s() == 10.5
        second = entry(4, "small", 10.4)
        line.append(second)
        assert line.take(10.5) == [first, second], "the second does not wait for its own window"

    with_loop(law)


def test_a_full_batch_and_one_that_cannot_grow_do_not_wait() -> None:
    def law() -> None:
        line = AdmissionQueue(2, 0.5)
        other, pair = entry(6, "small", 0.0), [entry(4, "small", 0.1) for _ in range(2)]
        alone, nothing = entry(4, None, 0.2), entry(None, None, 0.2)
        for e in (other, *pair, alone, nothing):
            line.append(e)
        assert [line.take(0.2) for _ in range(4)] == [pair, [alone], [nothing], []]
        assert line.take(0.5) == [other]

    with_loop(law)


def test_sizes_and_rates_make_batches_of_their_own() -> None:
    def law() -> None:
        line = AdmissionQueue(8, 0.0)
        kinds = [(4, "a"), (4, "b"), (6, "a")] * 3
        for rate, size in kinds:
            line.append(entry(rate, size))
        groups = [[(e.group.weights, e.group.batch) for e in b if e.group] for b in drained(line)]
        assert sorted(groups) == sorted([kind] * 3 for kind in set(kinds))

    with_loop(law)


def test_without_batches_the_line_never_waits() -> None:
    def law() -> None:
        line = AdmissionQueue(1, 10.0)
        one = entry(4, "small", 5.0)
        line.append(one)
        assert line.take(5.0) == [one]

    with_loop(law)
