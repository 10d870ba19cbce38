"""Times and memory of compressing and decompressing, with AVIF and WebP on the same pictures.

Times go from pixels in memory to a stream and back: reading and writing image files are stages of
their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final, TypeVar

from service.bench import memory, timing
from service.bench.stage_times import measure_stages
from service.engine.comparison import decode_peer
from service.engine.engine import Engine
from service.eval.peer_codecs import library_versions, peer_named
from service.eval.pictures import generate, read_folder
from service.picture import Picture, View
from service.runtime.loading import load_models, transforms_of
from service.runtime.pipeline import LoadedModel
from service.settings import Settings
from service.store.read import load_store

SIZES: Final = ((768, 512), (1920, 1080), (4000, 3000))
LARGE: Final = (8660, 5774)
PEERS: Final = (("avif", "avif-s6-420", 50), ("webp", "webp-m4", 40))
"""Key in the results, peer codec, and a quality that gives about our bytes at rate 4 on Kodak."""

ROUNDS: Final = 21
BUDGET_S: Final = 60.0
"""Seconds for the rounds of each size."""

InputT = TypeVar("InputT")


def bench_codec(
    settings: Settings,
    rate: float,
    folder: Path | None,
    progress: Callable[[str], None],
    *,
    large: bool,
    peak_memory: bool,
) -> dict[str, Any]:
    """Return latencies, stages and memory as JSON values.

    Args:
        folder: of pictures; None generates them, with `large` one of the size LARGE too.
        progress: is called with a line of text before each step.
        peak_memory: whether to measure memory too.
    """
    sizes = [*SIZES, *([LARGE] if large else [])]

    def run() -> dict[str, Any]:
        models = load_models(load_store(settings.store), settings.device, None, settings.threads)
        figures: dict[str, Any] = {
            "model": {"name": models[0].stored.name, "sha256": models[0].stored.sha256},
            "transforms": transforms_of(models[0]),
            "rate": rate,
            "pictures": folder.name if folder else "generated",
            "libraries": library_versions(),
            "latency": [],
            "stages": [],
        }
        groups = _read_by_size(folder) if folder else ([generate(*size)] for size in sizes)
        for pictures in groups:
            width, height = _size(pictures[0])
            progress(f"latency at {width}x{height}")
            size = {"width": width, "height": height}
            figures["latency"].append({**size, **_measure_latency(models, pictures, rate)})
            png = memory.as_png(pictures[0].on_white().rgb)
            compress_ms, decompress_ms = measure_stages(models, png, rate)
            stages = {"compress_ms": compress_ms, "decompress_ms": decompress_ms}
            figures["stages"].append({**size, **stages})
        del models
        if peak_memory:
            progress("memory")
            figures["memory"] = memory.measure([(64, 64), *sizes], rate, settings)
        return figures

    return timing.measure("bench", settings, progress, run)


def _measure_latency(
    models: tuple[LoadedModel, ...], pictures: Sequence[Picture], rate: float
) -> dict[str, Any]:
    """Return our latencies and the peers', in turns, over pictures of one size."""
    checking, plain = Engine(models), Engine(models, check=False)
    unmeasured = Engine(models, measure=False)
    streams = [plain.compress(picture, rate).data for picture in pictures]
    eighth = View(max_size=_size(pictures[0])[0] // 8)
    actions = {
        "compress": _in_turn(partial(checking.compress, rate=rate), pictures),
        "compress_unmeasured": _in_turn(partial(unmeasured.compress, rate=rate), pictures),
        "compress_unchecked": _in_turn(partial(plain.compress, rate=rate), pictures),
        "decompress": _in_turn(plain.decompress, streams),
        "decompress_eighth": _in_turn(partial(plain.decompress, view=eighth), streams),
    }
    mean_bytes = {"bytes": fmean(map(len, streams))}
    for key, name, quality in PEERS:
        encode = partial(peer_named(name).compress, quality=quality)
        files = [encode(picture) for picture in pictures]
        mean_bytes[f"{key}_bytes"] = fmean(map(len, files))
        actions[f"{key}_encode"] = _in_turn(encode, pictures)
        actions[f"{key}_decode"] = _in_turn(decode_peer, files)
    latencies, rounds = timing.time_in_turns(actions, most=ROUNDS, budget_s=BUDGET_S)
    return {
        "rounds": rounds,
        **mean_bytes,
        **{f"{name}_ms": asdict(latency) for name, latency in latencies.items()},
    }


def _in_turn(call: Callable[[InputT], object], inputs: Sequence[InputT]) -> Callable[[int], object]:
    """Return a function that calls with the input whose turn it is in a round."""
    return lambda number: call(inputs[number % len(inputs)])


def _size(picture: Picture) -> tuple[int, int]:
    """Return the longer and the shorter side."""
    return max(picture.width, picture.height), min(picture.width, picture.height)


def _read_by_size(folder: Path) -> Iterable[Sequence[Picture]]:
    """Return the pictures of a folder, those of one size together."""
    groups: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for named in read_folder(folder):
        groups[_size(named.picture)].append(named.picture)
    return groups.values()
