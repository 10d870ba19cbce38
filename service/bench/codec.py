"""Times and memory of compressing and decompressing, with AVIF and WebP on the same pictures.

All codecs take turns, so that other work of the machine disturbs them alike. The first turn warms
up and is not counted; medians and 95th percentiles are over the other turns. Times go from pixels
in memory to a stream and back: reading and writing image files are stages of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from service.bench import memory
from service.bench.stage_times import measure_stages
from service.engine.engine import Engine
from service.eval.machine import machine_for_timing, this_machine
from service.eval.peer_codecs import decompress, library_versions, peer_named
from service.eval.pictures import NamedPicture, generate, read_folder
from service.runtime.loading import load_models, transforms_of
from service.runtime.pipeline import LoadedModel
from service.store.read import load_store

SCHEMA: Final = 1
SIZES: Final = ((768, 512), (1920, 1080), (4000, 3000))
LARGE: Final = (8660, 5774)
PEERS: Final = (("avif", "avif-s6-420", 50), ("webp", "webp-m4", 40))
"""Key in the results, peer codec, and a quality that gives about our bytes at rate 4 on Kodak."""

ROUNDS: Final = 21
MIN_ROUNDS: Final = 3
BUDGET_S: Final = 60.0
"""Seconds for each size; no round begins later, once MIN_ROUNDS are done."""


@dataclass(frozen=True)
class CodecBenchOptions:
    """What to measure: the options of `rankpress bench codec`."""

    rate: float
    device: str
    threads: int
    store: Path | None
    large: bool
    memory: bool


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: median and 95th percentile over some rounds."""

    median: float
    p95: float


def bench_codec(
    options: CodecBenchOptions, folder: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return latencies, stages and memory as JSON values.

    Args:
        options: what to measure. folder: of pictures; None generates them.
        progress: is called with a line of text before each step.
    """
    machine = machine_for_timing(options.device, progress)
    models = load_models(load_store(options.store), options.device, None, options.threads)
    latency, stages = [], []
    for (width, height), pictures in _pictures_by_size(options, folder).items():
        progress(f"latency at {width}x{height}")
        group = pictures() if callable(pictures) else pictures
        size = {"width": width, "height": height}
        latency.append({**size, **_measure_latency(models, group, options.rate)})
        png = memory.as_png(group[0].on_white)
        compress_ms, decompress_ms = measure_stages(models, png, options.rate)
        stages.append({**size, "compress_ms": compress_ms, "decompress_ms": decompress_ms})
    result: dict[str, Any] = {
        "what": "bench",
        "schema": SCHEMA,
        "model": {"name": models[0].stored.name, "sha256": models[0].stored.sha256},
        "transforms": transforms_of(models[0]),
        "rate": options.rate,
        "pictures": str(folder.name) if folder else "generated",
        "machine": asdict(machine),
        "threads": options.threads,
        "libraries": library_versions(),
        "latency": latency,
        "stages": stages,
    }
    del models
    if options.memory:
        progress("memory")
        sizes = [(64, 64), *_generated_sizes(options)]
        result["memory"] = memory.measure(sizes, options.rate, options.device, options.store)
    result["load_at_end"] = this_machine(options.device).load
    return result


def time_in_turns(
    actions: Mapping[str, Callable[[int], object]], *, rounds: int, budget_s: float
) -> tuple[dict[str, Latency], int]:
    """Time every action once a round, in turn; the first round warms up and is not counted.

    Args:
        actions: by name; each is given the number of the round.
        rounds: at most. budget_s: no further round begins after it, once MIN_ROUNDS are done.

    Returns:
        The latencies by name, and over how many rounds they are.
    """
    times_ms: dict[str, list[float]] = defaultdict(list)
    start = perf_counter()
    counted = 0
    for number in range(rounds + 1):
        for name, action in actions.items():
            begin = perf_counter()
            action(number)
            times_ms[name].append(1000 * (perf_counter() - begin))
        counted = number
        if number >= MIN_ROUNDS and perf_counter() - start > budget_s:
            break
    return {
        name: Latency(float(np.median(ms[1:])), float(np.percentile(ms[1:], 95)))
        for name, ms in times_ms.items()
    }, counted


def _measure_latency(
    models: tuple[LoadedModel, ...], pictures: Sequence[NamedPicture], rate: float
) -> dict[str, Any]:
    """Return our latencies and the peers', in turns, over pictures of one size."""
    checking, plain = Engine(models, check=True), Engine(models, check=False)
    streams = [plain.compress(p.picture, rate).data for p in pictures]
    count = len(pictures)
    actions: dict[str, Callable[[int], object]] = {
        "compress": lambda i: checking.compress(pictures[i % count].picture, rate),
        "compress_unchecked": lambda i: plain.compress(pictures[i % count].picture, rate),
        "decompress": lambda i: plain.decompress(streams[i % count]),
    }
    mean_bytes = {"bytes": sum(map(len, streams)) / count}
    for key, name, quality in PEERS:
        files = [peer_named(name).compress(p.picture, quality) for p in pictures]
        mean_bytes[f"{key}_bytes"] = sum(map(len, files)) / count
        actions[f"{key}_encode"] = _encode_action(name, quality, pictures)
        actions[f"{key}_decode"] = _decode_action(files)
    latencies, rounds = time_in_turns(actions, rounds=ROUNDS, budget_s=BUDGET_S)
    return {
        "rounds": rounds,
        **mean_bytes,
        **{f"{name}_ms": asdict(latency) for name, latency in latencies.items()},
    }


def _encode_action(
    name: str, quality: int, pictures: Sequence[NamedPicture]
) -> Callable[[int], object]:
    peer = peer_named(name)
    return lambda i: peer.compress(pictures[i % len(pictures)].picture, quality)


def _decode_action(files: Sequence[bytes]) -> Callable[[int], object]:
    return lambda i: decompress(files[i % len(files)])


def _generated_sizes(options: CodecBenchOptions) -> list[tuple[int, int]]:
    return [*SIZES, *([LARGE] if options.large else [])]


def _pictures_by_size(
    options: CodecBenchOptions, folder: Path | None
) -> dict[tuple[int, int], Sequence[NamedPicture] | Callable[[], Sequence[NamedPicture]]]:
    """Return pictures by size, longer side first; generated ones are made when they are needed."""
    if folder is None:
        return {
            size: lambda size=size: (generate(*size),)  # type: ignore[misc]
            for size in _generated_sizes(options)
        }
    groups: dict[tuple[int, int], list[NamedPicture]] = defaultdict(list)
    for picture in read_folder(folder):
        height, width, _ = picture.rgb.shape
        groups[max(height, width), min(height, width)].append(picture)
    return {size: tuple(pictures) for size, pictures in groups.items()}
