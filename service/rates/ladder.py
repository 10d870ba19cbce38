"""Training the ladder of rates of a frozen backbone: low-rank adapters, from the middle outwards.

    rankpress train rates DATA --model light --steps 600 --tune psnr

Each rate starts from its neighbour (4→5→…→8 and 4→3→…→1). If the backbone was trained on from an
earlier one, a rate can start from the earlier model's rate of the same number instead. Each rate is
published in the store as soon as it is trained; a run that is interrupted resumes from the last
checkpoint (rate_training.py). Losses are in train/tunes.py, the method in codec/lowrank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from service.datasets.crops import Crops
from service.engine.engine import Engine
from service.errors import BadParameter
from service.nets.adapters import load_update, quantise_adapter
from service.rates.figures import measure_rate
from service.rates.rate_training import (
    CPU,
    RateProgress,
    RateRecipe,
    TrainedRate,
    new_adapter,
    read_trained,
    train_rate,
    trainable_base,
)
from service.runtime.loading import load_models
from service.store.model import StoredModel, StoredRate
from service.store.read import load_model
from service.store.write import candidate, publish_rate
from service.train.evaluate import as_tensor, pictures_in
from service.train.tunes import PSNR, BppTarget


def train_ladder(
    folder: Path,
    crops: Crops,
    measure: Path,
    recipe: RateRecipe,
    scratch: Path,
    rates: tuple[int, ...],
    record: dict[str, object],
    report: Callable[[RateProgress], None],
    device: torch.device = CPU,
    earlier: StoredModel | None = None,
) -> None:
    """Train rates from the base outwards, and publish each in the folder of its model.

    A rate whose checkpoint is finished is published again without training. A rate's neighbour must
    be trained before it, have a finished checkpoint, or be the base.

    Args:
        measure: folder of pictures for the figures in the manifest.
        scratch: folder for checkpoints.
        record: entries of the manifest besides the recipe, about data and device.
        report: called about every ten seconds.
        earlier: model whose rates to start from, instead of from neighbours.

    Raises:
        BadParameter: a rate's neighbour was not trained, or `earlier` has no such rate.
    """
    stored, tune = load_model(folder), recipe.loss
    if earlier is not None:
        recipe = replace(recipe, start=earlier.sha256)
    done: dict[int, TrainedRate] = {}
    for rate in (r for r in tune.order if r in rates):
        near, start = tune.neighbour(rate), None
        if earlier is not None:
            start = _earlier_rate(earlier, stored, rate, recipe)
        elif near is not None:
            finished = scratch / f"{near}.safetensors"
            start = done.get(near) or read_trained(stored, near, recipe, finished)
        target = _bpp_target(stored, rate, measure, recipe, device) if tune.adjusts_lmbda else None
        checkpoint = scratch / f"{rate}.safetensors"
        done[rate] = train_rate(
            stored, crops, rate, start, recipe, checkpoint, report, target, device
        )
        effort = {
            "steps": recipe.steps_of(rate),
            "cpu_minutes": round(done[rate].cpu_minutes, 1),
        }
        training = asdict(recipe) | record | effort
        publish(folder, stored, done[rate], measure, training, device.type)


def _earlier_rate(
    earlier: StoredModel, stored: StoredModel, rate: int, recipe: RateRecipe
) -> TrainedRate:
    """Load a rate of an earlier model for a base that was trained on from that model's base."""
    entry = next((r for r in earlier.ladder(recipe.tune) if r.rate == rate), None)
    if entry is None or entry.update is None or entry.lmbda is None:
        raise BadParameter(f"{earlier.name} has no {recipe.tune} rate {rate} to start from")
    adapter = new_adapter(stored, recipe, recipe.seed)
    load_update(adapter, earlier, entry.update)
    return TrainedRate(rate, adapter, entry.lmbda, 0.0)


def _bpp_target(
    stored: StoredModel, rate: int, measure: Path, recipe: RateRecipe, device: torch.device
) -> BppTarget:
    """The bits of the PSNR ladder's rate of the same number.

    Raises:
        BadParameter: that rate is not in the store, or was not measured.
    """
    bpp = next((r.kodak_bpp for r in stored.ladder(PSNR.name) if r.rate == rate), None)
    if bpp is None:
        raise BadParameter(f"rate {rate} of the PSNR ladder must be in the store and measured")
    pictures = [as_tensor(picture).to(device) for picture in pictures_in(measure)]
    base = trainable_base(stored, recipe)
    return BppTarget(bpp, pictures, base.to(device))


def publish(
    folder: Path,
    stored: StoredModel,
    trained: TrainedRate,
    measure: Path,
    training: dict[str, object],
    device: str,
) -> StoredRate:
    """Quantise a rate's adapter, measure it on pictures, and publish it in its model's folder.

    Args:
        stored: the model as it was when training started.
        training: record of the training for the manifest; "tune" names the ladder.
        device: that compresses these pictures, "cpu" or "cuda".
    """
    tune, lmbda = str(training["tune"]), round(trained.lmbda, 4)
    entry = StoredRate(trained.rate, lmbda, None, None, tune=tune, training=training)
    update = quantise_adapter(stored, trained.adapter)
    model = candidate(load_model(folder), update, entry)
    engine = Engine(load_models((model,), device, None))
    measured = measure_rate(engine, trained.rate, tune, measure).entered_in(entry)
    publish_rate(folder, update, measured)
    return measured
