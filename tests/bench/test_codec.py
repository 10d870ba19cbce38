"""Parts of the benchmarks: turns, stages, memory, server load, and tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice, repeat
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pytest

from service.bench import codec, memory, rate_changes, report, server_load, stage_times
from service.bench.server_load import LoadRequest
from service.codec.lowrank import RATE_VECTORS, Update
from service.eval.evaluation import to_json
from service.eval.pictures import generate
from service.runtime.loading import load_models
from service.store.model import StoredModel
from service.store.read import load_store


def test_actions_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []

    def slow_at_first(number: int) -> None:
        calls.append(("a", number))
        sleep(0.05 if number == 0 else 0.002)

    found, rounds = codec.time_in_turns(
        {"a": slow_at_first, "b": lambda n: calls.append(("b", n))}, rounds=5, budget_s=10
    )
    assert rounds == 5
    assert calls == [(name, number) for number in range(6) for name in "ab"]
    assert 2 <= found["a"].median <= found["a"].p95 < 50


def test_no_round_begins_after_the_budget_once_the_least_are_done() -> None:
    _, rounds = codec.time_in_turns({"a": lambda _: sleep(0.01)}, rounds=50, budget_s=0.0)
    assert rounds == codec.MIN_ROUNDS


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


def test_changing_rate_is_timed_on_every_rate_but_the_models_own(small_model: StoredModel) -> None:
    loads: list[int] = []

    def whole() -> None:
        loads.append(1)
        sleep(0.02)

    assert (
        stage_times.measure_rate_changes(load_models((small_model,), "cpu", None, 1), whole) == {}
    )
    assert not loads
    own = small_model.rates[0]
    vectors = {name: small_model.entropy[name] for name in RATE_VECTORS[:-1]}
    vectors[RATE_VECTORS[-1]] = np.zeros(small_model.sizes.M, np.int16)
    other = replace(own, rate=5.0, update=Update({}, vectors), digest=b"other")
    ladder = replace(small_model, rates=(own, other))
    found = stage_times.measure_rate_changes(load_models((ladder,), "cpu", None, 1), whole)
    assert 0 < found["cached"] < found["merged"] < 60_000
    assert found["loaded"] >= 20 and len(loads) == 2


def test_peak_memory_counts_what_was_held_and_let_go() -> None:
    before = memory.peak_mib()
    block = np.ones(200 * memory.MIB // 8)
    del block
    assert memory.peak_mib() >= before
    held = np.ones(400 * memory.MIB // 8)
    assert memory.peak_mib() > 400
    del held


def test_memory_is_that_of_a_fresh_process_not_of_this_one(store: Path) -> None:
    ballast = np.ones(1600 * memory.MIB // 8)
    (found,) = memory.measure([(64, 64)], 4.0, "cpu", store)
    assert 50 < found["compress_mib"] < 1500
    assert found["loaded_mib"] <= found["compress_mib"]
    assert found["decompress_mib"] <= found["decompress_to_png_mib"]
    del ballast


@contextmanager
def answering(delay_s: float, at_once: int, paths: list[str] | None = None) -> Iterator[int]:
    """Run a server that processes `at_once` requests and answers 503 to more; yield its port."""
    places = threading.Semaphore(at_once)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if paths is not None:
                paths.append(self.path)
            free = places.acquire(blocking=False)
            if free:
                sleep(delay_s)
                places.release()
            self.send_response(200 if free else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_closed_loop_throughput_is_clients_over_service_time() -> None:
    with answering(0.05, at_once=4) as port:
        found = server_load.closed_loop(
            port, repeat(LoadRequest("/x", b"body")), clients=2, seconds=1.0
        )
    assert found["per_second"] == pytest.approx(40, rel=0.25)
    assert found["median_ms"] == pytest.approx(50, rel=0.3)
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
    found = rate_changes.measure_mixed_load([1.0, 4.0, 8.0], "cpu", 1, None)
    assert found["alone_per_second"] == pytest.approx({"1": 100, "4": 50, "8": 25})
    assert found["each_alone_per_second"] == pytest.approx(3 / 0.07)
    assert found["mixed_share"] == pytest.approx(1.0)
    assert found["failures"] == 6 * rate_changes.TURNS
    counts = [sent.count(path) for path in delays]
    assert counts == [12 * rate_changes.TURNS] * 3


def test_clients_that_alternate_send_every_request_as_often() -> None:
    paths: list[str] = []
    with answering(0.001, at_once=9, paths=paths) as port:
        requests = cycle(LoadRequest(f"/{i}", b"body") for i in range(3))
        found = server_load.closed_loop(port, requests, clients=2, seconds=0.3)
    counts = [paths.count(f"/{i}") for i in range(3)]
    assert max(counts) - min(counts) <= 1 and sum(counts) == found["answered_200"] > 20


def test_open_loop_offers_what_it_says_and_counts_the_refused() -> None:
    with answering(0.1, at_once=1) as port:
        found = server_load.open_loop(port, LoadRequest("/x", b"body"), per_second=20, seconds=1.0)
    assert found["answered_200"] + found["answered_503"] == 20
    assert 7 <= found["answered_200"] <= 12
    assert found["answered_otherwise"] == 0


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
    tables |= report.bench_tables(json.loads(to_json(changes)))
    assert "94.8%" in tables["swap"] and "0.013 ms" in tables["swap"]
    assert "99 ms" in tables["swap"] and "rate 6" in tables["swap"]
    served = {"what": "service", **{key: result[key] for key in ("rate", "machine", "service")}}
    assert report.bench_tables(served) == {"service": tables["service"]}
    for text in tables.values():
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
