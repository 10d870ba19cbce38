"""Targets: a search over the ladder ends in few encodes with a stream that meets the goal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_ladder import with_rates

from engine.builds import Builds
from service.codec.lowrank import Update
from service.engine.engine import Engine
from service.engine.target import Target
from service.engine.target_search import goal_of, search
from service.engine.types import Compressed, Timings
from service.errors import BadParameter, TargetUnreachable
from service.picture import Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel, StoredRate

PIXELS = 768 * 512
KODAK_BPP = (0.12, 0.19, 0.31, 0.48, 0.74, 1.09, 1.58, 2.2)
KODAK_PSNR = (27.6, 29.2, 31.0, 32.9, 35.0, 37.0, 39.1, 41.0)

Curve = Callable[[float], float]


def ladder(model: StoredModel, rates: tuple[int, ...], *, measured: bool = True) -> StoredModel:
    """A description of rates; nothing is merged, so empty updates serve."""
    entries = [
        StoredRate(
            r,
            0.01,
            KODAK_BPP[r - 1] if measured else None,
            KODAK_PSNR[r - 1] if measured else None,
            None if r == 4 else Update({}, {}),
        )
        for r in rates
    ]
    return replace(model, rates=tuple(entries))


class Codec:
    """Streams of given sizes and PSNRs; counts what it is asked for."""

    def __init__(self, size: Curve, psnr_db: Curve) -> None:
        self.size, self.psnr_db = size, psnr_db
        self.asked: list[int] = []

    def attempt(self, rate16: int) -> Compressed:
        assert rate16 not in self.asked, "no rate is tried twice"
        self.asked.append(rate16)
        return self.made(rate16)

    def made(self, rate16: int) -> Compressed:
        data = bytes(round(self.size(rate16 / 16)))
        rate = rate16 / 16
        bpp = 8 * len(data) / PIXELS
        return Compressed(data, 768, 512, rate, bpp, self.psnr_db(rate), Timings(net_s=1.0))


def offered(model: StoredModel) -> list[int]:
    return [r for r in range(256) if model.offers(r)]


RATES = st.sampled_from([(1, 2, 3, 4, 5, 6, 7, 8), (4,), (4, 5), (1, 4, 5, 8), (3, 4, 6)])
curves = st.tuples(
    st.floats(7, 12),  # log of bytes at rate 0
    st.floats(0.1, 0.7),  # growth a rate
    st.floats(-0.02, 0.02),  # bend
    st.floats(20, 40),  # dB at rate 0
    st.floats(0.5, 3),
)


def codec_of(curve: tuple[float, float, float, float, float], noise: float = 0) -> Codec:
    a, b, c, d, e = curve
    ripple = {r: math.sin(7.3 * r * r) * noise for r in range(256)}
    return Codec(
        lambda r: math.exp(a + b * r + c * r * r / 2 + ripple[round(16 * r)]),
        lambda r: d + e * r - 0.02 * r * r + 4 * ripple[round(16 * r)],
    )


@settings(max_examples=150)
@given(RATES, curves, st.floats(0.3, 9), st.booleans(), st.booleans())
def test_the_best_stream_of_a_rising_ladder_is_found(
    small_model: StoredModel,
    rates: tuple[int, ...],
    curve: tuple[float, float, float, float, float],
    at: float,
    measured: bool,
    in_bytes: bool,
) -> None:
    model, codec = ladder(small_model, rates, measured=measured), codec_of(curve)
    limit = round(codec.size(at))
    target = Target(max_bytes=limit) if in_bytes else Target(bpp=8 * limit / PIXELS)
    every = [codec.made(r) for r in offered(model)]
    fitting = [m for m in every if len(m.data) <= limit]
    goal = goal_of(target, PIXELS)
    if not fitting:
        with pytest.raises(TargetUnreachable) as error:
            search(goal, model, codec.attempt)
        smallest = min(len(m.data) for m in every)
        assert error.value.nearest == (smallest if in_bytes else 8 * smallest / PIXELS)
        assert error.value.requested == (limit if in_bytes else target.bpp)
        return
    best = search(goal, model, codec.attempt)
    assert len(best.data) == max(len(m.data) for m in fitting) <= limit
    assert best.encodes == len(codec.asked) == best.timings.net_s
    assert best.encodes <= min(len(every), 13)


@settings(max_examples=100)
@given(RATES, curves, st.floats(0.3, 9), st.booleans())
def test_the_smallest_stream_that_is_good_enough_is_found(
    small_model: StoredModel,
    rates: tuple[int, ...],
    curve: tuple[float, float, float, float, float],
    at: float,
    measured: bool,
) -> None:
    model, codec = ladder(small_model, rates, measured=measured), codec_of(curve)
    asked = codec.psnr_db(at)
    every = [codec.made(r) for r in offered(model)]
    enough = [m for m in every if (m.psnr_db or 0) >= asked]
    if not enough:
        with pytest.raises(TargetUnreachable) as error:
            search(goal_of(Target(psnr_db=asked), PIXELS), model, codec.attempt)
        assert error.value.nearest == max(m.psnr_db or 0 for m in every)
        return
    best = search(goal_of(Target(psnr_db=asked), PIXELS), model, codec.attempt)
    assert best.psnr_db == min(m.psnr_db or 0 for m in enough) >= asked


@settings(max_examples=100)
@given(curves, st.floats(0.3, 9), st.sampled_from(["bytes", "bpp", "psnr"]))
def test_on_a_ladder_that_does_not_quite_rise_the_answer_still_meets_the_goal(
    small_model: StoredModel,
    curve: tuple[float, float, float, float, float],
    at: float,
    kind: str,
) -> None:
    model, codec = ladder(small_model, tuple(range(1, 9))), codec_of(curve, noise=0.05)
    limit, asked = round(codec.size(at)), codec.psnr_db(at)
    target = {"bytes": Target(max_bytes=limit), "bpp": Target(bpp=8 * limit / PIXELS),
              "psnr": Target(psnr_db=asked)}[kind]  # fmt: skip
    try:
        best = search(goal_of(target, PIXELS), model, codec.attempt)
    except TargetUnreachable:
        tried = [codec.made(r) for r in codec.asked]
        assert all((m.psnr_db or 0) < asked if kind == "psnr" else len(m.data) > limit
                   for m in tried)  # fmt: skip
        return
    assert (best.psnr_db or 0) >= asked if kind == "psnr" else len(best.data) <= limit
    assert len(codec.asked) <= 13


def test_a_picture_that_follows_the_measured_curve_takes_few_encodes(
    small_model: StoredModel,
) -> None:
    """Pictures between a quarter and four times Kodak's mean size, somewhat steeper or flatter."""
    model = ladder(small_model, tuple(range(1, 9)))
    counts = []
    for scale in (0.25, 0.7, 1.0, 1.6, 4.0):
        for slope in (0.85, 1.0, 1.15):
            for at in np.linspace(1.1, 7.9, 35):

                def size(r: float, scale: float = scale, slope: float = slope) -> float:
                    log_bpp = np.interp(r, range(1, 9), np.log(KODAK_BPP))
                    return float(scale * PIXELS / 8 * math.exp(slope * log_bpp))

                codec = Codec(size, lambda r: 30 + r)
                target = Target(max_bytes=round(size(at)))
                search(goal_of(target, PIXELS), model, codec.attempt)
                counts.append(len(codec.asked))
                whole = [r for r in codec.asked if r % 16 == 0]
                assert codec.asked[: len(whole)] == whole, "whole rates come first"
    assert np.mean(counts) < 5 and max(counts) <= 7, (np.mean(counts), max(counts))


def test_an_exact_reconstruction_is_good_enough_for_anything(small_model: StoredModel) -> None:
    model, codec = ladder(small_model, (4, 5)), Codec(lambda r: 100 * r, lambda _: math.inf)
    assert search(goal_of(Target(psnr_db=99), PIXELS), model, codec.attempt).rate == 4


@pytest.mark.parametrize(
    "given", [{}, {"bpp": 1.0, "max_bytes": 3}, {"bpp": 0.0}, {"max_bytes": -1},
              {"psnr_db": math.nan}, {"psnr_db": math.inf}],
)  # fmt: skip
def test_a_target_is_one_positive_number(given: dict[str, float]) -> None:
    with pytest.raises(BadParameter, match="one positive number"):
        Target(**given)  # type: ignore[arg-type]


# --- with real streams -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(small_model: StoredModel) -> LoadedModel:
    return load_models((with_rates(small_model, range(1, 9)),), "cpu", torch.float32)[0]


@pytest.mark.parametrize("rate", [1, 1.5, 3 + 1 / 16, 4, 6.75, 8])
def test_a_stream_made_for_the_size_of_a_rate_is_the_stream_of_that_size(
    base: LoadedModel, photo: Picture, rate: float
) -> None:
    engine = Engine((base,))
    made = engine.compress(photo, rate)
    for target in (Target(max_bytes=len(made.data)), Target(bpp=made.bpp)):
        found = engine.compress(photo, target)
        assert len(found.data) <= len(made.data)
        assert found.data == engine.compress(photo, found.rate).data
        assert found.psnr_db is not None, "the answer was checked"
        assert engine.decompress(found.data).rate == found.rate
        assert found.encodes <= 13


def test_the_limit_is_never_exceeded(base: LoadedModel, photo: Picture) -> None:
    engine = Engine((base,))
    low, high = (len(engine.compress(photo, r).data) for r in (1, 8))
    for limit in range(low, high + 20, 7):
        assert low <= len(engine.compress(photo, Target(max_bytes=limit)).data) <= limit
    with pytest.raises(TargetUnreachable, match=f"{low} bytes, 1 more than max_bytes") as error:
        engine.compress(photo, Target(max_bytes=low - 1))
    assert (error.value.nearest, error.value.requested) == (low, low - 1)


def test_alpha_and_metadata_count(base: LoadedModel, photo: Picture) -> None:
    engine = Engine((base,))
    heavy = replace(photo, alpha=photo.rgb[..., 0].copy(), icc=bytes(range(200)))
    limit = len(engine.compress(heavy, 5).data)
    assert len(engine.compress(heavy, Target(max_bytes=limit)).data) <= limit
    with pytest.raises(TargetUnreachable):
        engine.compress(heavy, Target(max_bytes=len(engine.compress(photo, 8).data)))


def test_a_psnr_is_measured_even_where_streams_are_not_checked(
    base: LoadedModel, photo: Picture
) -> None:
    engine = Engine((base,), check=False)
    reached = engine.compress(photo, Target(psnr_db=5.0))
    assert reached.psnr_db is not None and reached.psnr_db >= 5
    assert engine.compress(photo, Target(bpp=5.0)).psnr_db is None
    with pytest.raises(TargetUnreachable, match="target_psnr is 70") as error:
        engine.compress(photo, Target(psnr_db=70))
    assert error.value.requested == 70 and 5 < error.value.nearest < 70


def test_a_store_with_one_rate_answers_too(engine: Engine, photo: Picture) -> None:
    only = engine.compress(photo, 4)
    found = engine.compress(photo, Target(max_bytes=len(only.data)))
    assert (found.data, found.encodes) == (only.data, 1)
    with pytest.raises(TargetUnreachable):
        engine.compress(photo, Target(max_bytes=len(only.data) - 1))


def test_a_search_leaves_only_whole_rates_in_the_cache(base: LoadedModel, photo: Picture) -> None:
    builds = Builds(base)
    engine = Engine((builds.base,))
    limit = len(engine.compress(photo, 5.5).data)
    engine.compress(photo, Target(max_bytes=limit))
    assert len(builds.rates) > 3, "the search tried rates between 5 and 6"
    builds.rates.clear()
    for rate in (5, 5.5, 6):
        engine.compress(photo, rate)
    assert not builds.rates, "5.5 was asked for by name"
    between = [rate16 for rate16 in range(81, 96) if rate16 != 88]
    for rate16 in between:
        engine.compress(photo, rate16 / 16)
    assert len(builds.rates) == len(between)
