"""What a change of rate costs: making its weights live, and a server that gets all rates mixed.

A load of mixed rates is compared with every rate alone. Pictures take longer at high rates, so the
fair reference for eight mixed rates is the throughput of a server that gets as many requests of
each rate, one rate at a time. All loads take turns on one server, several times; means are over the
turns.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Final

from service.bench.memory import as_png
from service.bench.server_load import SIZE, LoadRequest, closed_loop, fetch, run_server
from service.bench.stage_times import measure_rate_changes
from service.eval.machine import machine_for_timing, this_machine
from service.eval.pictures import generate
from service.runtime.loading import load_models
from service.store.read import load_store

SCHEMA: Final = 1
CLIENTS: Final = 8
SECONDS: Final = 3.0
TURNS: Final = 3


def bench_rate_changes(
    device: str, threads: int, store: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return swap times, and requests per second of each rate and of all rates mixed."""
    machine = machine_for_timing(device, progress)
    models = load_models(load_store(store), device, None, threads)
    first = models[0].stored
    progress("swaps")
    swap_ms = measure_rate_changes(
        models, lambda: load_models(load_store(store), device, None, threads)
    )
    rates = sorted(r.rate for r in first.rates)
    del models
    progress("rates mixed and alone")
    return {
        "what": "rates",
        "schema": SCHEMA,
        "model": {"name": first.name, "sha256": first.sha256},
        "machine": asdict(machine),
        "threads": threads,
        "width": SIZE[0],
        "height": SIZE[1],
        "clients": CLIENTS,
        "swap_ms": swap_ms,
        "service": measure_mixed_load(rates, device, threads, store),
        "load_at_end": this_machine(device).load,
    }


def measure_mixed_load(
    rates: list[float], device: str, threads: int, store: Path | None
) -> dict[str, Any]:
    """Return compress requests per second over loopback: each rate alone, and all in turn.

    The mixed load runs after every run of one rate, so that both see the machine in the same state:
    the speed of a shared machine may change by a fifth within a minute.
    """
    png = as_png(generate(*SIZE).rgb)
    requests = {f"{rate:g}": LoadRequest(f"/compress?rate={rate:g}", png) for rate in rates}
    alone: dict[str, list[float]] = defaultdict(list)
    mixed: list[float] = []
    failures = 0
    with run_server(device, threads, store) as port:
        for request in requests.values():
            fetch(port, request)
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
