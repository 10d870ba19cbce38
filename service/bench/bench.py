"""How long compressing and decompressing takes, beside AVIF and WebP on the same pictures.

All codecs take turns, so that whatever else the machine does hits them alike; the first turn is not
counted; medians and 95th percentiles are over the others. Times are pixels in memory to stream and
back; reading and writing image files are stages of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from service.bench import load, memory
from service.bench.rates import changing_rates
from service.bench.stages import breakdown
from service.engine.engine import Engine
from service.eval.machine import this_machine
from service.eval.peers import decompress, library_versions, named
from service.eval.pictures import Named, generate, read_folder
from service.runtime.loading import load_models, transforms_of
from service.runtime.pipeline import LoadedModel
from service.store.read import load_store

SCHEMA: Final = 1
SIZES: Final = ((768, 512), (1920, 1080), (4000, 3000))
LARGE: Final = (8660, 5774)
PEERS: Final = (("avif", "avif-s6-420", 50), ("webp", "webp-m4", 40))
"""Key in results, peer, and a quality that gives about our bytes at rate 4 on Kodak."""

ROUNDS: Final = 21
MIN_ROUNDS: Final = 3
BUDGET_S: Final = 60.0
"""Seconds for each size, when MIN_ROUNDS are done."""


@dataclass(frozen=True)
class Wanted:
    """What to measure: see the command's options."""

    rate: float
    device: str
    threads: int
    store: Path | None
    large: bool
    service: bool
    memory: bool
    rates: bool = False


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: median and 95th percentile over some runs."""

    median: float
    p95: float


def bench(wanted: Wanted, folder: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that was wanted, as JSON values.

    Args:
        wanted: what to measure. folder: of pictures, None makes them. say: is told the next step.
    """
    if wanted.rates:
        return changing_rates(wanted.device, wanted.threads, wanted.store, say)
    before = this_machine(wanted.device)
    if before.busy:
        say(f"load is {before.load}: the timings below say little")
    models = load_models(load_store(wanted.store), wanted.device, None, wanted.threads)
    latency, stages = [], []
    for size, pictures in _inputs(wanted, folder).items():
        say(f"latency at {size[0]}x{size[1]}")
        made = pictures() if callable(pictures) else pictures
        latency.append({"width": size[0], "height": size[1], **_latency(models, made, wanted.rate)})
        compress, back = breakdown(models, memory.as_png(made[0].on_white), wanted.rate)
        stages.append({"width": size[0], "height": size[1], "compress_ms": compress,
                       "decompress_ms": back})  # fmt: skip
    result: dict[str, Any] = {
        "what": "bench",
        "schema": SCHEMA,
        "model": {"name": models[0].stored.name, "sha256": models[0].stored.sha256},
        "transforms": transforms_of(models[0]),
        "rate": wanted.rate,
        "pictures": str(folder.name) if folder else "generated",
        "machine": asdict(before),
        "threads": wanted.threads,
        "libraries": library_versions(),
        "latency": latency,
        "stages": stages,
    }
    del models
    if wanted.memory:
        say("memory")
        sizes = [(64, 64), *SIZES, *([LARGE] if wanted.large else [])]
        result["memory"] = memory.measure(sizes, wanted.rate, wanted.device, wanted.store)
    if wanted.service:
        say("service under load")
        result["service"] = load.throughput(
            wanted.rate, wanted.device, wanted.threads, wanted.store
        )
    result["load_at_end"] = this_machine(wanted.device).load
    return result


def measure(
    actions: Mapping[str, Callable[[int], object]], *, rounds: int, budget_s: float
) -> tuple[dict[str, Latency], int]:
    """Time every action once a round, in turn; the first round warms up and is not counted.

    Args:
        actions: by name; each is given the number of the round.
        rounds: at most. budget_s: no further round begins after it, once MIN_ROUNDS are done.

    Returns:
        The latencies by name, and how many rounds they are over.
    """
    times: dict[str, list[float]] = defaultdict(list)
    start = perf_counter()
    done = 0
    for number in range(rounds + 1):
        for name, action in actions.items():
            begun = perf_counter()
            action(number)
            times[name].append(1000 * (perf_counter() - begun))
        done = number
        if number >= MIN_ROUNDS and perf_counter() - start > budget_s:
            break
    return {
        name: Latency(float(np.median(ms[1:])), float(np.percentile(ms[1:], 95)))
        for name, ms in times.items()
    }, done


def _latency(
    models: tuple[LoadedModel, ...], pictures: Sequence[Named], rate: float
) -> dict[str, Any]:
    """Ours and the peers' over pictures of one size, in turns."""
    checking, plain = Engine(models, check=True), Engine(models, check=False)
    streams = [plain.compress(p.picture, rate).data for p in pictures]
    count = len(pictures)
    actions: dict[str, Callable[[int], object]] = {
        "compress": lambda i: checking.compress(pictures[i % count].picture, rate),
        "compress_unchecked": lambda i: plain.compress(pictures[i % count].picture, rate),
        "decompress": lambda i: plain.decompress(streams[i % count]),
    }
    sizes = {"bytes": sum(map(len, streams)) / count}
    for key, name, quality in PEERS:
        files = [named(name).compress(p.picture, quality) for p in pictures]
        sizes[f"{key}_bytes"] = sum(map(len, files)) / count
        actions[f"{key}_encode"] = _encode(name, quality, pictures)
        actions[f"{key}_decode"] = _decode(files)
    found, rounds = measure(actions, rounds=ROUNDS, budget_s=BUDGET_S)
    return {"rounds": rounds, **sizes, **{f"{n}_ms": asdict(v) for n, v in found.items()}}


def _encode(name: str, quality: int, pictures: Sequence[Named]) -> Callable[[int], object]:
    peer = named(name)
    return lambda i: peer.compress(pictures[i % len(pictures)].picture, quality)


def _decode(files: Sequence[bytes]) -> Callable[[int], object]:
    return lambda i: decompress(files[i % len(files)])


def _inputs(
    wanted: Wanted, folder: Path | None
) -> dict[tuple[int, int], Sequence[Named] | Callable[[], Sequence[Named]]]:
    """Pictures by size, longer side first; generated ones are made when their turn comes."""
    if folder is None:
        sizes = [*SIZES, *([LARGE] if wanted.large else [])]
        return {size: lambda size=size: (generate(*size),) for size in sizes}  # type: ignore[misc]
    groups: dict[tuple[int, int], list[Named]] = defaultdict(list)
    for picture in read_folder(folder):
        height, width, _ = picture.rgb.shape
        groups[max(height, width), min(height, width)].append(picture)
    return {size: tuple(pictures) for size, pictures in groups.items()}
