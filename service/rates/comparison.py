"""Ways to vary the rate of one frozen backbone, compared: steps, prompts, low rank, all weights.

    rankpress bench variable-rate PICTURES --model model_store/swin --measure KODAK --scratch DIR

Every way starts from the same backbone, sees the same crops in the same number of steps, and has
quantiser steps of its own for each rate. The figures are those of the float model with real
rounding, which codecs made of it meet within half a per cent (export/agreement.py).

A base at an end of the ladder is the backbone with all weights trained for that rate; prompts then
lead from there to the other rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch
from torch import Tensor

from service.datasets.crops import Crops
from service.nets.counting import kmac
from service.nets.lora import AdapterLearningRates
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.rates.rate_training import (
    PROMPT_PEAK,
    By,
    OtherBase,
    RateProgress,
    RateRecipe,
    TrainedRate,
    train_rate,
    trainable_base,
)
from service.store.model import StoredModel
from service.train.evaluate import as_tensor, pictures_in, psnr_db, rate_and_mse
from service.train.tunes import BASE, LADDER

PEAKS: Final[Mapping[By, float]] = {
    "steps": 1e-3,
    "prompts": PROMPT_PEAK,
    "lowrank": 2e-2,
    "full": 3e-4,
}
"""Peak learning rates of the weights: the best of several in 60 steps at rate 7 (of 1e-3 to 3e-2
for prompts, 1e-3 to 2e-2 for low rank, 1e-4 to 1e-3 for all weights)."""


@dataclass(frozen=True)
class WayFigures:
    """Means over pictures of one way at one rate.

    Attributes:
        way: what the rate changes. own_rate: that the base was trained for. rate: 1 to 8.
        parameters: numbers that are trained for the rate.
        bpp, psnr_db: of real rounding. loss: R + lmbda · 255² · MSE.
        kmac_per_pixel: thousand multiply-adds of the whole float model.
        milliseconds: of the whole float model in bfloat16, median of the pictures.
        cpu_minutes: of training.
    """

    way: str
    own_rate: int
    rate: int
    parameters: int
    bpp: float
    psnr_db: float
    loss: float
    kmac_per_pixel: float
    milliseconds: float
    cpu_minutes: float


def compare_ways(
    stored: StoredModel,
    crops: Crops,
    measure: Path,
    recipe: RateRecipe,
    scratch: Path,
    rates: Sequence[int],
    end: int | None,
    report: Callable[[RateProgress], None],
) -> list[WayFigures]:
    """Train every way at every rate, resuming from checkpoints in `scratch`, and measure them.

    Args:
        stored: a Swin model. crops: of the training pictures. measure: folder of pictures.
        recipe: of all ways; each has its own of PEAKS. rates: without the base's own.
        end: one of the rates, to be the base of a second series of prompts; None for none.
    """
    pictures = [as_tensor(picture) for picture in pictures_in(measure)]
    out = [_measure(float_twin(stored), {}, "base", BASE, BASE, 0, 0.0, pictures)]
    series = partial(_series, stored, crops, recipe, scratch, report)
    ways = {way: series(way, rates, None) for way in PEAKS}
    for way, trained in ways.items():
        own = replace(recipe, by=way)
        out += [_measured(stored, own, one, None, pictures) for one in trained.values()]
    if end is not None:
        full = ways["full"][end].adapter.merged()
        other = OtherBase(_changed(float_twin(stored), full), end)
        prompts = series("prompts", [r for r in (*rates, BASE) if r != end], other)
        own = replace(recipe, by="prompts")
        out += [_measured(stored, own, one, other, pictures) for one in prompts.values()]
    return out


def _series(
    stored: StoredModel,
    crops: Crops,
    recipe: RateRecipe,
    scratch: Path,
    report: Callable[[RateProgress], None],
    way: By,
    rates: Sequence[int],
    other: OtherBase | None,
) -> dict[int, TrainedRate]:
    """Train one way at every rate, from its base outwards; returns them in that order."""
    own = replace(recipe, by=way, lr=_learning_rates(way))
    middle, name = (BASE, way) if other is None else (other.rate, f"end-{other.rate}")
    out: dict[int, TrainedRate] = {}
    for rate in _outwards(rates, middle):
        near = out.get(_neighbour(rate, rates, middle))
        path = scratch / f"{name}-{rate}.safetensors"
        out[rate] = train_rate(stored, crops, rate, near, own, path, report, other=other)
    return out


def _learning_rates(way: By) -> AdapterLearningRates:
    return AdapterLearningRates(b=PEAKS[way], a=PEAKS[way], steps=5e-3)


def _outwards(rates: Sequence[int], middle: int) -> list[int]:
    """Rates in the order of their training: up from the middle, then down from it."""
    up, down = (sorted(r for r in rates if r > middle), sorted(r for r in rates if r < middle))
    return [*up, *down[::-1]]


def _neighbour(rate: int, rates: Sequence[int], middle: int) -> int:
    """The rate that is trained before a rate, on the same side of the middle; else the middle."""
    between = [r for r in rates if middle < r < rate or rate < r < middle]
    return min(between, key=lambda r: abs(r - rate), default=middle)


def _changed(base: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
    """A backbone with other weights and steps, whose levels are in units of those steps."""
    state = {n: t.detach() for n, t in tensors.items()}
    base.y_step, base.z_step = state.pop("y_step"), state.pop("z_step")
    base.load_state_dict(state, strict=False)
    return base.eval().requires_grad_(False)


def _measured(
    stored: StoredModel,
    recipe: RateRecipe,
    trained: TrainedRate,
    other: OtherBase | None,
    pictures: Sequence[Tensor],
) -> WayFigures:
    network, own_rate = (None, BASE) if other is None else (other.network, other.rate)
    base = trainable_base(stored, recipe, network)
    adapter = trained.adapter
    merged = {name: tensor.detach() for name, tensor in adapter.merged().items()}
    parameters = sum(p.numel() for p in adapter.parameters())
    return _measure(
        base, merged, recipe.by, own_rate, trained.rate, parameters, trained.cpu_minutes, pictures
    )


@torch.inference_mode()
def _measure(
    base: Backbone,
    merged: Mapping[str, Tensor],
    way: str,
    own_rate: int,
    rate: int,
    parameters: int,
    cpu_minutes: float,
    pictures: Sequence[Tensor],
) -> WayFigures:
    """Figures of a backbone with some of its tensors replaced."""
    rows, times = [], []
    for x in pictures:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            e = torch.func.functional_call(base, dict(merged), (x,), {"relax": None})
        times.append(time.perf_counter() - start)
        bpp, mse = rate_and_mse(e, x)
        rows.append((bpp, psnr_db(mse), bpp + LADDER[rate] * 255**2 * mse))
    bpp, psnr, loss = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    x = torch.zeros(1, 256, 256, 3)
    counted = kmac(lambda: torch.func.functional_call(base, dict(merged), (x,), {"relax": None}))
    return WayFigures(
        way,
        own_rate,
        rate,
        parameters,
        bpp,
        psnr,
        loss,
        counted / 256**2,
        1000 * median(times),
        round(cpu_minutes, 1),
    )
