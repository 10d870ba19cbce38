"""What a change of rate costs: making its weights live, and a server that gets all rates mixed.

A load of mixed rates is compared with every rate alone. Pictures take longer at high rates, so the
fair reference for eight mixed rates is the throughput of a server that gets as many requests of
each rate, one rate at a time. All loads take turns on one server, several times; means are over the
turns.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import harmonic_mean, median
from time import perf_counter
from typing import Any, Final

import numpy as np

from service.bench import timing
from service.bench.memory import as_png
from service.bench.server_load import SIZE, LoadRequest, closed_loop, fetch, run_server
from service.codec.container import PSNR
from service.engine.engine import Engine
from service.eval.pictures import generate
from service.picture import Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.settings import Settings
from service.store.read import load_store

CLIENTS: Final = 8
SECONDS: Final = 3.0
TURNS: Final = 3


def bench_rate_changes(settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Return swap times, and requests per second of each rate and of all rates mixed."""

    def load() -> tuple[LoadedModel, ...]:
        return load_models(load_store(settings.store), settings.device, None, settings.threads)

    def run() -> dict[str, Any]:
        progress("swaps")
        models = load()
        swap_ms = measure_rate_changes(models, load)
        first = models[0].stored
        del models
        progress("rates mixed and alone")
        return {
            "model": {"name": first.name, "sha256": first.sha256},
            "width": SIZE[0],
            "height": SIZE[1],
            "clients": CLIENTS,
            "swap_ms": swap_ms,
            "service": measure_mixed_load(settings, sorted(r.rate for r in first.rates)),
        }

    return timing.measure("rates", settings, progress, run)


def measure_rate_changes(
    models: Sequence[LoadedModel], load: Callable[[], object]
) -> dict[str, float]:
    """Return milliseconds to change the rate: weights merged, weights cached, whole model loaded.

    They are medians over the rates of the first model except the base's own, which needs no
    merging; the result is empty if there is no other rate. Each way runs once before, uncounted.

    Args:
        models: already loaded. load: reads, checks and makes resident the whole model of a rate.
    """
    picture = Picture(np.zeros((16, 16, 3), np.uint8))
    rates = [r.rate for r in models[0].stored.ladder(PSNR) if r.update is not None]
    times_ms: dict[str, list[float]] = {"merged": [], "cached": [], "loaded": []}
    for rate in [rates[0], *rates] if rates else []:
        engine = Engine(tuple(models), check=False)
        for name in ("merged", "cached"):
            times_ms[name].append(1000 * engine.compress(picture, rate).timings.swap_s)
        start = perf_counter()
        load()
        times_ms["loaded"].append(1000 * (perf_counter() - start))
    return {name: median(times[1:]) for name, times in times_ms.items() if times}


def measure_mixed_load(settings: Settings, rates: Sequence[float]) -> dict[str, Any]:
    """Return compress requests per second over loopback: each rate alone, and all in turn.

    The mixed load runs after every run of one rate, so that both see the machine in the same state:
    the speed of a shared machine may change by a fifth within a minute.
    """
    png = as_png(generate(*SIZE).rgb)
    requests = {f"{rate:g}": LoadRequest(f"/compress?rate={rate:g}", png) for rate in rates}
    alone: dict[str, list[float]] = defaultdict(list)
    mixed: list[float] = []
    failures = 0
    with run_server(settings) as port:
        for request in requests.values():
            fetch(port, "POST", request.path, request.body)
        all_rates = itertools.cycle(requests.values())
        for name in [*requests] * TURNS:
            one_rate = itertools.repeat(requests[name])
            for load, throughputs in ((one_rate, alone[name]), (all_rates, mixed)):
                result = closed_loop(port, load, CLIENTS, SECONDS)
                throughputs.append(result["per_second"])
                failures += result["answered_503"] + result["answered_otherwise"]
    means = {name: harmonic_mean(values) for name, values in alone.items()}
    each_alone, all_mixed = harmonic_mean(means.values()), harmonic_mean(mixed)
    return {
        "alone_per_second": means,
        "each_alone_per_second": each_alone,
        "mixed_per_second": all_mixed,
        "mixed_share": all_mixed / each_alone,
        "failures": failures,
    }
