"""Time of one compress and one decompress, stage by stage.

The engine gets transforms and a coder that do the same work and record how long it took. On a GPU
their results are numpy arrays, so a stage ends only when its work has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from service.codec.container import PSNR
from service.codec.latents import CodedTiles, DecodedTiles, LatentCoder
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.images.read import read_image
from service.images.write import write_image
from service.picture import U8, Picture
from service.runtime.pipeline import AnalysisTransform, LoadedModel, SynthesisTransform
from service.store.model import StoredModel

ROUNDS = 9
MIN_ROUNDS = 3
BUDGET_S = 20.0
"""Seconds after which no further round begins, once MIN_ROUNDS are done."""


class Stopwatch:
    """Seconds spent under each name since they were last cleared."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block to the seconds of a name."""
        start = perf_counter()
        yield
        self.seconds[name] += perf_counter() - start


class TimedTransforms:
    """The transforms g_a, h_a and g_s of a model, timed."""

    def __init__(
        self, analysis: AnalysisTransform, synthesis: SynthesisTransform, watch: Stopwatch
    ) -> None:
        self._analysis, self._synthesis, self._watch = analysis, synthesis, watch

    def analyse(self, pixels: U8) -> NDArray[np.float32]:
        """Do as pipeline.Analysis does."""
        with self._watch.timing("g_a"):
            return self._analysis.analyse(pixels)

    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Do as pipeline.Analysis does."""
        with self._watch.timing("h_a"):
            return self._analysis.hyper_analyse(y)

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> U8:
        """Do as pipeline.Synthesis does."""
        with self._watch.timing("g_s"):
            return self._synthesis.synthesise(y_hat, inner)


class TimedCoder(LatentCoder):
    """A coder whose entropy networks and entropy coding are timed separately."""

    def __init__(self, coder: LatentCoder, watch: Stopwatch) -> None:
        super().__init__(coder.entropy, coder.tables)
        self._watch = watch

    def encode(self, y: NDArray[np.float32], z: NDArray[np.float32]) -> CodedTiles:
        """Do as LatentCoder does."""
        with self._watch.timing("entropy networks"):
            coded = super().encode(y, z)
        self._add_coding_time(coded.code_s)
        return coded

    def decode(self, data: Sequence[bytes], tile: Box) -> DecodedTiles:
        """Do as LatentCoder does."""
        with self._watch.timing("entropy networks"):
            decoded = super().decode(data, tile)
        self._add_coding_time(decoded.code_s)
        return decoded

    def _add_coding_time(self, code_s: float) -> None:
        self._watch.seconds["entropy networks"] -= code_s
        self._watch.seconds["coding"] += code_s


def measure_stages(
    models: Sequence[LoadedModel], png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return median milliseconds by stage of compressing a PNG file, and of decompressing to one.

    Args:
        models: loaded with their analysis. png: an image file. rate: 1 to 8.
    """
    watch = Stopwatch()
    timed = tuple(_timed(m, watch) for m in models)
    plain, checking = Engine(timed, check=False), Engine(timed, check=True)
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    start = perf_counter()
    for _ in range(ROUNDS + 1):
        rounds.append(_time_once(plain, checking, watch, png, rate))
        if len(rounds) > MIN_ROUNDS and perf_counter() - start > BUDGET_S:
            break
    warm = rounds[1:]
    return _medians([c for c, _ in warm]), _medians([d for _, d in warm])


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


def _time_once(
    plain: Engine, checking: Engine, watch: Stopwatch, png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds by stage of one compress and one decompress."""
    with _time_stages(watch) as compressing:
        with watch.timing("file decode"):
            picture = read_image(png, max_pixels=10**9)
        data = plain.compress(picture, rate).data
    compressing["check"] = checking.compress(picture, rate).timings.check_s
    with _time_stages(watch) as decompressing:
        picture = plain.decompress(data).picture
        with watch.timing("file encode"):
            write_image(picture, "png")
    return compressing, decompressing


@contextmanager
def _time_stages(watch: Stopwatch) -> Iterator[dict[str, float]]:
    """Yield a dictionary that gets seconds by stage after the block; "other" is the rest of it."""
    watch.seconds.clear()
    stages: dict[str, float] = {}
    start = perf_counter()
    yield stages
    total = perf_counter() - start
    stages.update(watch.seconds)
    stages["other"] = max(0.0, total - sum(watch.seconds.values()))


def _timed(model: LoadedModel, watch: Stopwatch) -> LoadedModel:
    assert model.analysis is not None
    transforms = TimedTransforms(model.analysis, model.synthesis, watch)
    coder = TimedCoder(model.coder, watch)
    return replace(
        model,
        coder=coder,
        synthesis=transforms,
        analysis=transforms,
        build=_timed_build(model, watch),
    )


def _timed_build(
    model: LoadedModel, watch: Stopwatch
) -> Callable[[StoredModel], LoadedModel] | None:
    """Return a function that loads other rates of the model, timed as well."""
    build = model.build
    return None if build is None else lambda stored: _timed(build(stored), watch)


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: 1000 * median(r[name] for r in rounds) for name in rounds[0]}
