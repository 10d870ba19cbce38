"""Parts of the benchmarks: turns, stages, memory, server load, and tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice, repeat
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from service.bench import memory, rate_changes, report, server_load, stage_times, timing
from service.bench.server_load import LoadRequest
from service.codec.lowrank import RATE_VECTORS, Update
from service.eval.evaluation import to_json
from service.eval.machine import Machine
from service.eval.pictures import generate
from service.runtime.loading import load_models
from service.settings import MIB, Settings
from service.store.model import StoredModel
from service.store.read import load_store

from .stand_in import FakeClock, answering


def test_actions_take_turns_and_the_first_round_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    calls: list[tuple[str, int]] = []

    def slow_at_first(number: int) -> None:
        calls.append(("a", number))
        clock.advance(0.001 * number if number else 50)

    latencies, rounds = timing.time_in_turns(
        {"a": slow_at_first, "b": lambda n: calls.append(("b", n))}, most=5, budget_s=100
    )
    assert rounds == 5
    assert calls == [(name, number) for number in range(6) for name in "ab"]
    assert (latencies["a"].median, latencies["a"].p95) == pytest.approx((3.0, 4.8))


def test_no_round_begins_after_the_budget_once_the_least_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    for budget_s, expected in ((0.0, timing.MIN_ROUNDS), (6.5, 6)):
        _, rounds = timing.time_in_turns(
            {"a": lambda _: clock.advance(1)}, most=50, budget_s=budget_s
        )
        assert rounds == expected


def test_a_busy_machine_is_reported_and_kept_with_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = iter((1.5, 0.25))
    monkeypatch.setattr(timing, "this_machine", lambda _: Machine("a cpu", 2, "cpu", next(loads)))
    lines: list[str] = []
    settings = Settings(device="cpu", threads=3)
    result = timing.measure("sums", settings, lines.append, lambda: {"sum": 4})
    assert lines == ["the load of this machine is 1.5: the timings mean little"]
    assert result == {
        "what": "sums", "schema": 1, "threads": 3, "sum": 4, "load_at_end": 0.25,
        "machine": {"cpu": "a cpu", "cores": 2, "device": "cpu", "load": 1.5},
    }  # fmt: skip


def test_generated_pictures_are_the_same_every_time_and_no_flat_ones() -> None:
    first, again, other = generate(90, 61), generate(90, 61), generate(90, 61, seed=1)
    assert first.rgb.shape == (61, 90, 3)
    assert np.array_equal(first.rgb, again.rgb)
    assert not np.array_equal(first.rgb, other.rgb)
    assert 10 < first.rgb.std() < 70
    assert generate(1, 7).rgb.shape == (7, 1, 3)


def test_stages_add_up_to_the_time_that_passed(
    monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.setattr(stage_times, "ROUNDS", 1)
    models = load_models(load_store(store), "cpu", None, 1)
    png = memory.as_png(generate(128, 96).rgb)
    begin = perf_counter()
    compress, decompress = stage_times.measure_stages(models, png, 4.0)
    passed_ms = 1000 * (perf_counter() - begin)
    assert set(compress) == {"file decode", "g_a", "h_a", "entropy networks", "coding", "check",
                             "other"}  # fmt: skip
    assert set(decompress) == {"entropy networks", "coding", "g_s", "file encode", "other"}
    assert all(ms >= 0 for ms in (*compress.values(), *decompress.values()))
    assert 0 < sum(compress.values()) + sum(decompress.values()) < passed_ms


def test_changing_rate_is_timed_on_every_rate_but_the_models_own(
    small_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(rate_changes, "perf_counter", clock)
    loads: list[int] = []

    def whole() -> None:
        loads.append(1)
        clock.advance(0.02)

    models = load_models((small_model,), "cpu", None, 1)
    assert rate_changes.measure_rate_changes(models, whole) == {}
    assert not loads
    own = small_model.rates[0]
    vectors = {name: small_model.entropy[name] for name in RATE_VECTORS[:-1]}
    vectors[RATE_VECTORS[-1]] = np.zeros(small_model.sizes.M, np.int16)
    other = replace(own, rate=5.0, update=Update({}, vectors), digest=b"other")
    ladder = replace(small_model, rates=(own, other))
    found = rate_changes.measure_rate_changes(load_models((ladder,), "cpu", None, 1), whole)
    assert 0 < found["cached"] < found["merged"]
    assert found["loaded"] == pytest.approx(20) and len(loads) == 2


def test_peak_memory_counts_what_was_held_and_let_go() -> None:
    before = memory.peak_mib()
    block = np.ones(200 * MIB // 8)
    del block
    assert memory.peak_mib() >= before
    held = np.ones(400 * MIB // 8)
    assert memory.peak_mib() > 400
    del held


def test_memory_is_that_of_a_fresh_process_not_of_this_one(store: Path) -> None:
    ballast = np.ones(1600 * MIB // 8)
    (found,) = memory.measure([(64, 64)], 4.0, Settings(device="cpu", store=store))
    assert 50 < found["compress_mib"] < 1500
    assert found["loaded_mib"] <= found["compress_mib"]
    assert found["decompress_mib"] <= found["decompress_to_png_mib"]
    del ballast


def test_clients_of_a_closed_loop_send_at_the_same_time_and_every_answer_counts() -> None:
    both_sent = threading.Barrier(2)
    first_requests = iter((both_sent, both_sent))

    def answer(_: str, __: str) -> tuple[int, bytes]:
        if barrier := next(first_requests, None):
            barrier.wait(60)
        return 200, b""

    with answering(answer) as port:
        found = server_load.closed_loop(
            port, repeat(LoadRequest("/x", b"body")), clients=2, seconds=1.0
        )
    assert found["answered_200"] >= 2
    assert found["per_second"] == found["answered_200"] / found["seconds"]
    assert found["answered_503"] == found["answered_otherwise"] == 0


def test_a_mixed_load_is_compared_with_each_rate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes 10, 20 and 40 ms answers 100, 50 and 25 a second alone, 42.9 mixed."""
    delays = {"/compress?rate=1": 0.01, "/compress?rate=4": 0.02, "/compress?rate=8": 0.04}
    sent: list[str] = []

    def closed_loop(_: int, requests: Iterator[LoadRequest], *__: float) -> dict[str, object]:
        loads = list(islice(requests, 6))
        sent.extend(r.path for r in loads)
        mean_s = sum(delays[r.path] for r in loads) / len(loads)
        return {"per_second": 1 / mean_s, "answered_503": 0, "answered_otherwise": 1}

    @contextmanager
    def no_server(*_: object) -> Iterator[int]:
        yield 1

    for name, stand_in in (("closed_loop", closed_loop), ("run_server", no_server),
                           ("fetch", lambda *_: b"")):  # fmt: skip
        monkeypatch.setattr(rate_changes, name, stand_in)
    found = rate_changes.measure_mixed_load(Settings(), [1.0, 4.0, 8.0])
    assert found["alone_per_second"] == pytest.approx({"1": 100, "4": 50, "8": 25})
    assert found["each_alone_per_second"] == pytest.approx(3 / 0.07)
    assert found["mixed_share"] == pytest.approx(1.0)
    assert found["failures"] == 6 * rate_changes.TURNS
    counts = [sent.count(path) for path in delays]
    assert counts == [12 * rate_changes.TURNS] * 3


def test_clients_that_alternate_send_every_request_as_often() -> None:
    paths: list[str] = []

    def answer(_: str, path: str) -> tuple[int, bytes]:
        paths.append(path)
        return 200, b""

    with answering(answer) as port:
        requests = cycle(LoadRequest(f"/{i}", b"body") for i in range(3))
        found = server_load.closed_loop(port, requests, clients=2, seconds=0.3)
    counts = [paths.count(f"/{i}") for i in range(3)]
    assert max(counts) - min(counts) <= 1 and sum(counts) == found["answered_200"] > 0


def test_open_loop_offers_what_it_says_and_counts_the_refused() -> None:
    statuses = cycle((200, 503, 503, 500))
    with answering(lambda *_: (next(statuses), b"")) as port:
        found = server_load.open_loop(port, LoadRequest("/x", b"body"), per_second=100, seconds=0.2)
    assert found["answered_200"] == found["answered_otherwise"] == 5
    assert found["answered_503"] == 10


def test_requests_that_nobody_answers_are_failures() -> None:
    with answering(lambda *_: (200, b"")) as port:
        pass
    found = server_load.open_loop(port, LoadRequest("/x", b"body"), per_second=50, seconds=0.1)
    assert found["answered_otherwise"] == 5 and found["median_ms"] is None


def test_every_table_renders_from_a_benchmark_that_went_through_json() -> None:
    numbers = {"median": 12.3, "p95": 45.6}
    names = ["compress", "compress_unchecked", "decompress", "avif_encode", "avif_decode",
             "webp_encode", "webp_decode"]  # fmt: skip
    looped = {"clients": 1, "per_second": 9.5, "median_ms": 100.0, "p95_ms": None,
              "answered_503": 3, "answered_otherwise": 0}  # fmt: skip
    over = {**looped, "clients": None, "offered_per_second": 19.0}
    result = {
        "rate": 4.0, "pictures": "generated",
        "machine": {"cpu": "a cpu", "cores": 2, "device": "cpu", "load": 0.1},
        "latency": [{"width": 768, "height": 512, **{f"{n}_ms": numbers for n in names}}],
        "stages": [{"width": 768, "height": 512, "compress_ms": {"g_a": 8.0, "check": 20.0},
                    "decompress_ms": {"g_s": 9.25}}],
        "memory": [{"width": 768, "height": 512, "compress_mib": 1234.5, "decompress_mib": 1.0,
                    "decompress_to_png_mib": 2.0, "loaded_mib": 0.5}],
        "service": {w: {"closed_loop": [looped], "overload": over}
                    for w in ("compress", "decompress")},
    }  # fmt: skip
    tables = report.bench_tables(json.loads(to_json(result)))
    assert "| 768×512" in tables["latency"] and "12 (46)" in tables["latency"]
    assert "at 1/8" not in tables["latency"], "an earlier benchmark did not measure it"
    result["latency"][0]["decompress_eighth_ms"] = numbers
    assert "at 1/8" in report.latency_table(result)
    assert tables["stages"].index("compress: check") < tables["stages"].index("compress: g_a")
    assert "1,234" in tables["memory"]
    assert "19.0/s offered" in tables["service"]
    changes = {
        "what": "rates", "width": 768, "height": 512, "clients": 8,
        "machine": {"cpu": "a cpu", "cores": 2, "device": "cpu", "load": 0.1},
        "swap_ms": {"merged": 31.0, "cached": 0.0125, "loaded": 99.0},
        "service": {"alone_per_second": {"4": 8.0, "6": 6.0}, "each_alone_per_second": 6.857,
                    "mixed_per_second": 6.5, "mixed_share": 0.948, "failures": 0},
    }  # fmt: skip
    tables["swap"] = report.swap_table(json.loads(to_json(changes)))
    assert "94.8%" in tables["swap"] and "0.013 ms" in tables["swap"]
    assert "99 ms" in tables["swap"] and "rate 6" in tables["swap"]
    for text in tables.values():
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
