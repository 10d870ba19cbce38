"""Where the time of one compress and one decompress goes, stage by stage.

The engine is given stand-ins for its transforms and its coder that do the same work and note how
long it took. On a GPU their answers are numpy arrays, so every stage ends when its work has ended.
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
from service.images.read import read_image, write_image
from service.picture import U8, Picture
from service.runtime.pipeline import AnalysisTransform, LoadedModel, SynthesisTransform
from service.store.model import StoredModel

ROUNDS = 9
MIN_ROUNDS = 3


class Stopwatch:
    """Seconds spent under each name since the last reset."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time of the block."""
        start = perf_counter()
        yield
        self.seconds[name] += perf_counter() - start


class TimedTransforms:
    """g_a, h_a and g_s of a model, timed."""

    def __init__(
        self, analysis: AnalysisTransform, synthesis: SynthesisTransform, watch: Stopwatch
    ) -> None:
        self._analysis, self._synthesis, self._watch = analysis, synthesis, watch

    def analyse(self, pixels: U8) -> NDArray[np.float32]:
        """See pipeline.AnalysisTransform."""
        with self._watch.timing("g_a"):
            return self._analysis.analyse(pixels)

    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """See pipeline.AnalysisTransform."""
        with self._watch.timing("h_a"):
            return self._analysis.hyper_analyse(y)

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> U8:
        """See pipeline.SynthesisTransform."""
        with self._watch.timing("g_s"):
            return self._synthesis.synthesise(y_hat, inner)


class TimedCoder(LatentCoder):
    """A coder whose networks and coding are timed apart."""

    def __init__(self, coder: LatentCoder, watch: Stopwatch) -> None:
        super().__init__(coder.entropy, coder.tables)
        self._watch = watch

    def encode(self, y: NDArray[np.float32], z: NDArray[np.float32]) -> CodedTiles:
        """See LatentCoder."""
        with self._watch.timing("entropy networks"):
            coded = super().encode(y, z)
        self._split(coded.code_s)
        return coded

    def decode(self, data: Sequence[bytes], tile: Box) -> DecodedTiles:
        """See LatentCoder."""
        with self._watch.timing("entropy networks"):
            decoded = super().decode(data, tile)
        self._split(decoded.code_s)
        return decoded

    def _split(self, code_s: float) -> None:
        self._watch.seconds["entropy networks"] -= code_s
        self._watch.seconds["coding"] += code_s


def breakdown(
    models: Sequence[LoadedModel], png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds by stage: of compressing a PNG file, and of making one from the stream.

    Args:
        models: as loaded, with analysis. png: an image file. rate: of the ladder.
    """
    watch = Stopwatch()
    timed = tuple(_timed(m, watch) for m in models)
    plain, checking = Engine(timed, check=False), Engine(timed, check=True)
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    start = perf_counter()
    for _ in range(ROUNDS + 1):
        rounds.append(_once(plain, checking, watch, png, rate))
        if len(rounds) > MIN_ROUNDS and perf_counter() - start > 20:
            break
    warm = rounds[1:]
    return _medians([c for c, _ in warm]), _medians([d for _, d in warm])


def swap_ms(models: Sequence[LoadedModel], load: Callable[[], object]) -> dict[str, float]:
    """Milliseconds to make a rate's weights live: merged anew, cached, and a whole model loaded.

    Medians over the rates of the first model but its own, which needs no merging; empty where there
    is no other. Each is done once before, uncounted.

    Args:
        models: as loaded. load: reads, checks and makes resident the whole model of a rate.
    """
    picture = Picture(np.zeros((16, 16, 3), np.uint8))
    rates = [r.rate for r in models[0].stored.ladder(PSNR) if r.update is not None]
    found: dict[str, list[float]] = {"merged": [], "cached": [], "loaded": []}
    for rate in [rates[0], *rates] if rates else []:
        engine = Engine(tuple(models), check=False)
        for name in ("merged", "cached"):
            found[name].append(1000 * engine.compress(picture, rate).timings.swap_s)
        start = perf_counter()
        load()
        found["loaded"].append(1000 * (perf_counter() - start))
    return {name: median(times[1:]) for name, times in found.items() if times}


def _once(
    plain: Engine, checking: Engine, watch: Stopwatch, png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by stage of one compress and one decompress."""
    with _stages(watch, "other") as compressing:
        with watch.timing("file decode"):
            picture = read_image(png, max_pixels=10**9)
        data = plain.compress(picture, rate).data
    compressing["check"] = checking.compress(picture, rate).timings.check_s
    with _stages(watch, "other") as decompressing:
        decoded = plain.decompress(data).picture
        with watch.timing("file encode"):
            write_image(decoded, "png")
    return compressing, decompressing


@contextmanager
def _stages(watch: Stopwatch, rest: str) -> Iterator[dict[str, float]]:
    """What the watch gathers during the block; `rest` is what no stage accounts for."""
    watch.seconds.clear()
    found: dict[str, float] = {}
    start = perf_counter()
    yield found
    total = perf_counter() - start
    found.update(watch.seconds)
    found[rest] = max(0.0, total - sum(watch.seconds.values()))


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
    """What makes other rates of the model, those timed too."""
    build = model.build
    return None if build is None else lambda stored: _timed(build(stored), watch)


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: 1000 * median(r[name] for r in rounds) for name in rounds[0]}
