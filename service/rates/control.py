"""What low rank costs: a rate's adapter against a full fine-tune from the same start.

The control starts where the adapter started (its neighbour's adapter), sees the same crops for as
many steps at the same learning rate, and may change every weight. Both are compared as float models
with real rounding, by R + lmbda · 255² · MSE over a folder of pictures. Nothing is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from service.datasets.crops import Crops
from service.nets.lora import FullRank, RateAdapter
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.rates.one_rate import Recipe, Report, train_rate, trained
from service.store.model import StoredModel
from service.train.evaluate import as_tensor, pictures_in
from service.train.tunes import LADDER


@dataclass(frozen=True)
class Point:
    """Averages over pictures: bits per pixel, MSE of 8-bit pixels, and the loss of both."""

    bpp: float
    mse: float
    loss: float


def compare(
    stored: StoredModel,
    crops: Crops,
    measure: Path,
    rate: int,
    recipe: Recipe,
    scratch: Path,
    report: Report,
) -> tuple[Point, Point]:
    """The adapter's point and the control's; trains the control.

    Args:
        stored: the base. crops: training pictures. measure: folder of pictures.
        rate: whose adapter, and whose neighbour's, `scratch` holds finished.
        recipe: that the adapters were trained with.

    Raises:
        BadParameter: an adapter is missing from `scratch`.
    """
    adapter = trained(stored, rate, recipe, scratch / f"{rate}.safetensors").adapter
    start, near = None, recipe.loss.neighbour(rate)
    if near is not None:
        start = trained(stored, near, recipe, scratch / f"{near}.safetensors")
    checkpoint = scratch / f"control-{rate}.safetensors"
    full = train_rate(stored, crops, rate, start, recipe, checkpoint, report, kind=FullRank)
    base = float_twin(stored)
    return point(base, adapter, rate, measure), point(base, full.adapter, rate, measure)


@torch.inference_mode()
def point(base: Backbone, adapter: RateAdapter, rate: int, measure: Path) -> Point:
    """Where an adapter's float model lies, with real rounding, over a folder of pictures."""
    merged = adapter.merged()
    rows = []
    for _, picture in pictures_in(measure):
        x = as_tensor(picture)
        e = torch.func.functional_call(base, merged, (x,), {"relax": None})
        error = (e.x_hat.clamp(0, 1) * 255).round() - x * 255
        bits = float(e.bits_y + e.bits_z)
        rows.append((bits / (picture.width * picture.height), float(error.square().mean())))
    bpp, mse = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Point(bpp, mse, bpp + LADDER[rate] * mse)
