"""What a change of rate costs: making its weights live, and a server asked for all rates at once.

A load of mixed rates is compared with every rate alone: pictures take longer at high rates, so the
fair measure of eight rates mixed is the throughput of a server that gives each rate, alone, as many
requests. All loads take turns on one server, several times, and means are over the turns.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Final

from service.bench.load import SIZE, Request, closed_loop, fetch, server
from service.bench.memory import as_png
from service.bench.stages import swap_ms
from service.eval.machine import this_machine
from service.eval.pictures import generate
from service.runtime.loading import load_models
from service.store.read import load_store

SCHEMA: Final = 1
CLIENTS: Final = 8
SECONDS: Final = 3.0
TURNS: Final = 3


def changing_rates(
    device: str, threads: int, store: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Swap times, and requests a second of each rate and of all of them mixed, as JSON values."""
    before = this_machine(device)
    if before.busy:
        say(f"load is {before.load}: the timings below say little")
    models = load_models(load_store(store), device, None, threads)
    first = models[0].stored
    say("swaps")
    swaps = swap_ms(models, lambda: load_models(load_store(store), device, None, threads))
    rates = sorted(r.rate for r in first.rates)
    del models
    say("rates mixed and alone")
    return {
        "what": "rates",
        "schema": SCHEMA,
        "model": {"name": first.name, "sha256": first.sha256},
        "machine": asdict(before),
        "threads": threads,
        "width": SIZE[0],
        "height": SIZE[1],
        "clients": CLIENTS,
        "swap_ms": swaps,
        "service": mixed_load(rates, device, threads, store),
        "load_at_end": this_machine(device).load,
    }


def mixed_load(
    rates: list[float], device: str, threads: int, store: Path | None
) -> dict[str, Any]:
    """Compress requests a second over loopback: each rate alone, and all in turn.

    A spell of the mixed load follows every spell of one rate, so that both see the machine in the
    same state; a machine that others share may change by a fifth within a minute.
    """
    png = as_png(generate(*SIZE).rgb)
    requests = {f"{rate:g}": Request(f"/compress?rate={rate:g}", png) for rate in rates}
    alone: dict[str, list[float]] = defaultdict(list)
    mixed: list[float] = []
    failures = 0
    with server(device, threads, store) as port:
        for request in requests.values():
            fetch(port, request)
        turn = itertools.cycle(requests.values())
        for name in [*requests] * TURNS:
            for loads, found in ((itertools.repeat(requests[name]), alone[name]), (turn, mixed)):
                result = closed_loop(port, loads, CLIENTS, SECONDS)
                found.append(result["per_second"])
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
