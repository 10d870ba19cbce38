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
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.bench.timing import rounds
from service.codec.graphics import Mask
from service.codec.latents import CodedTiles, DecodedTiles, LatentCoder
from service.codec.tiles import Box, Pieces
from service.engine.engine import Engine
from service.images.read import read_image
from service.images.write import write_image
from service.runtime.pipeline import LoadedModel
from service.transforms.interfaces import AnalysisTransform, SynthesisTransform

ROUNDS = 9
BUDGET_S = 20.0

TilesT = TypeVar("TilesT", CodedTiles, DecodedTiles)

Seconds = defaultdict[str, float]
"""Seconds by stage since they were last cleared."""


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the time of the block, or of a decorated function, to the seconds of a stage."""
    start = perf_counter()
    yield
    seconds[stage] += perf_counter() - start


class TimedTransforms:
    """The transforms g_a, h_a and g_s of a model, timed."""

    def __init__(
        self, analysis: AnalysisTransform, synthesis: SynthesisTransform, seconds: Seconds
    ) -> None:
        self.analyse = timed(seconds, "g_a")(analysis.analyse)
        self.hyper_analyse = timed(seconds, "h_a")(analysis.hyper_analyse)
        self.synthesise = timed(seconds, "g_s")(synthesis.synthesise)


class TimedCoder(LatentCoder):
    """A coder whose entropy networks and entropy coding are timed separately."""

    def __init__(self, coder: LatentCoder, seconds: Seconds) -> None:
        super().__init__(coder.entropy, coder.tables)
        self._seconds = seconds

    def encode(
        self, y: NDArray[np.float32], z: NDArray[np.float32], skipped: Mask | None = None
    ) -> CodedTiles:
        """Do as LatentCoder does."""
        return self._time(super().encode, y, z, skipped)

    def decode(
        self, data: Sequence[Pieces], tile: Box, skipped: Mask | None = None
    ) -> DecodedTiles:
        """Do as LatentCoder does."""
        return self._time(super().decode, data, tile, skipped)

    def _time(self, call: Callable[..., TilesT], *arguments: object) -> TilesT:
        with timed(self._seconds, "entropy networks"):
            tiles = call(*arguments)
        self._seconds["entropy networks"] -= tiles.code_s
        self._seconds["coding"] += tiles.code_s
        return tiles


def measure_stages(
    models: Sequence[LoadedModel], png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return median milliseconds by stage of compressing a PNG file, and of decompressing to one.

    Args:
        models: loaded with their analysis. png: an image file. rate: 1 to 8.
    """
    seconds = Seconds(float)
    timed_models = tuple(_timed_model(m, seconds) for m in models)
    plain, checking = Engine(timed_models, check=False), Engine(timed_models, check=True)
    times = [_time_once(plain, checking, seconds, png, rate) for _ in rounds(ROUNDS, BUDGET_S)]
    compressing, decompressing = zip(*times[1:], strict=True)
    return _medians(compressing), _medians(decompressing)


def _time_once(
    plain: Engine, checking: Engine, seconds: Seconds, png: bytes, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds by stage of one compress and one decompress."""
    with _time_stages(seconds) as compressing:
        with timed(seconds, "file decode"):
            picture = read_image(png, max_pixels=10**9)
        data = plain.compress(picture, rate).data
    compressing["check"] = checking.compress(picture, rate).timings.check_s
    with _time_stages(seconds) as decompressing:
        picture = plain.decompress(data).picture
        with timed(seconds, "file encode"):
            write_image(picture, "png")
    return compressing, decompressing


@contextmanager
def _time_stages(seconds: Seconds) -> Iterator[dict[str, float]]:
    """Yield a dictionary that gets seconds by stage after the block; "other" is the rest of it."""
    seconds.clear()
    stages: dict[str, float] = {}
    start = perf_counter()
    yield stages
    total = perf_counter() - start
    stages.update(seconds)
    stages["other"] = max(0.0, total - sum(seconds.values()))


def _timed_model(model: LoadedModel, seconds: Seconds) -> LoadedModel:
    """Return a model that is timed, and so are its other rates."""
    assert model.analysis is not None
    transforms, build = TimedTransforms(model.analysis, model.synthesis, seconds), model.build
    return replace(
        model,
        coder=TimedCoder(model.coder, seconds),
        synthesis=transforms,
        analysis=transforms,
        build=None if build is None else lambda stored: _timed_model(build(stored), seconds),
    )


def _medians(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return medians in milliseconds, by stage."""
    return {name: 1000 * median(each[name] for each in times) for name in times[0]}
