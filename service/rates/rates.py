"""The ladder of rates on one frozen backbone: low-rank adapters, learned outwards from the middle.

    rankpress train rates DATA --model light --steps 600 --tune psnr

Each rate starts from its neighbour (4→5→…→8 and 4→3→…→1), or where the backbone was trained on from
another one, from that one's rate of the same number. It is written to the store as soon as it is
done; a run that is cut off goes on from the last checkpoint of the rate it was at (one_rate.py).
Losses are in tunes.py. See codec/lowrank.py for the method.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from service.datasets.crops import Crops
from service.engine.engine import Engine
from service.errors import BadParameter
from service.eval.metrics import ms_ssim
from service.eval.pictures import decode_on_white
from service.images.folder import read_folder
from service.nets.lora import RateAdapter
from service.nets.twin import float_twin
from service.rates.one_rate import CPU, Recipe, Report, Trained, train_rate, trained
from service.runtime.loading import load_models
from service.store.model import StoredModel, StoredRate
from service.store.read import load_model
from service.store.write import candidate, publish_rate, record_figures
from service.train.adapters import domains, quantised, take_over
from service.train.evaluate import as_tensor, pictures_in
from service.train.tunes import PSNR, Aim


def train_ladder(
    folder: Path,
    crops: Crops,
    measure: Path,
    recipe: Recipe,
    scratch: Path,
    rates: tuple[int, ...],
    record: dict[str, object],
    report: Report,
    device: torch.device = CPU,
    earlier: StoredModel | None = None,
) -> None:
    """Train rates outwards from the base and publish each as it is done.

    A rate that this run's scratch folder holds whole is published again without training; a rate's
    neighbour must be in `rates` before it, in the scratch folder, or be the base.

    Args:
        folder: of the model in the store. crops: training pictures.
        measure: folder of pictures for the bpp and PSNR in the manifest.
        scratch: folder for checkpoints. rates: which to train, others are left alone.
        record: what the manifest says of the data and device besides the recipe.
        device: where to train.
        earlier: start from this model's rates, not from neighbours.

    Raises:
        BadParameter: a rate's neighbour was not trained, or `earlier` has no such rate.
    """
    stored, tune = load_model(folder), recipe.loss
    if earlier is not None:
        recipe = replace(recipe, start=earlier.sha256)
    done: dict[int, Trained] = {}
    for rate in (r for r in tune.order if r in rates):
        near, start = tune.neighbour(rate), None
        if earlier is not None:
            start = _taken_over(earlier, stored, rate, recipe)
        elif near is not None:
            finished = scratch / f"{near}.safetensors"
            start = done.get(near) or trained(stored, near, recipe, finished)
        aim = _aim(stored, rate, measure, device) if tune.found else None
        checkpoint = scratch / f"{rate}.safetensors"
        done[rate] = train_rate(
            stored, crops, rate, start, recipe, checkpoint, report, aim, device=device
        )
        took = {
            "steps": recipe.steps_of(rate),
            "cpu_minutes": round(done[rate].cpu_minutes, 1),
        }
        publish(
            folder, stored, rate, done[rate], measure, asdict(recipe) | record | took, device.type
        )


def _taken_over(earlier: StoredModel, stored: StoredModel, rate: int, recipe: Recipe) -> Trained:
    """A rate of an earlier model on a base that was trained on from its base."""
    found = [r for r in earlier.ladder(recipe.tune) if r.rate == rate and r.update is not None]
    if not found or found[0].lmbda is None or found[0].update is None:
        raise BadParameter(f"{earlier.name} has no {recipe.tune} rate {rate} to start from")
    adapter = RateAdapter(float_twin(stored), domains(stored, recipe.ranks), recipe.seed)
    take_over(adapter, earlier, found[0].update)
    return Trained(rate, adapter, found[0].lmbda, 0.0)


def _aim(stored: StoredModel, rate: int, measure: Path, device: torch.device) -> Aim:
    """What the PSNR ladder's rate of the same number costs.

    Raises:
        BadParameter: that rate is not in the store, or was not measured.
    """
    found = [r.kodak_bpp for r in stored.ladder(PSNR.name) if r.rate == rate]
    if not found or found[0] is None:
        raise BadParameter(f"rate {rate} of the first ladder must be in the store and measured")
    pictures = [as_tensor(p).to(device) for _, p in pictures_in(measure)]
    return Aim(found[0], pictures, float_twin(stored).to(device))


def publish(
    folder: Path,
    stored: StoredModel,
    rate: int,
    finished: Trained,
    measure: Path,
    training: dict[str, object],
    device: str,
) -> StoredRate:
    """Quantise an adapter, measure it on a device ("cpu", "cuda"), and put it in the store."""
    tune = str(training["tune"])
    entry = StoredRate(rate, round(finished.lmbda, 4), None, None, tune=tune, training=training)
    update = quantised(stored, finished.adapter)
    fresh = candidate(load_model(folder), update, entry)
    measured = measured_rate(Engine(load_models((fresh,), device, None)), entry, measure)
    publish_rate(folder, update, measured)
    return measured


def measure_again(folder: Path, pictures: Path, device: str) -> tuple[StoredRate, ...]:
    """Measure every rate of a model as it is stored and replace the figures in its manifest."""
    stored = load_model(folder)
    engine = Engine(load_models((stored,), device, None))
    measured = tuple(measured_rate(engine, rate, pictures) for rate in stored.rates)
    record_figures(folder, measured)
    return measured


def measured_rate(engine: Engine, rate: StoredRate, pictures: Path) -> StoredRate:
    """A rate with the figures that it gives on a folder of pictures."""
    found = averages(engine, rate.rate, rate.tune, pictures)
    return replace(
        rate,
        kodak_bpp=round(found.bpp, 4),
        kodak_psnr_db=round(found.psnr_db, 3),
        kodak_ms_ssim=None if found.ms_ssim is None else round(found.ms_ssim, 5),
    )


@dataclass(frozen=True)
class Averages:
    """Means over pictures: bits per pixel of real streams, PSNR in dB, and MS-SSIM.

    `ms_ssim` is None where a picture is too small for it.
    """

    bpp: float
    psnr_db: float
    ms_ssim: float | None


def averages(engine: Engine, rate: float, tune: str, folder: Path) -> Averages:
    """What a rate measures on a folder of pictures.

    Raises:
        BadParameter: no picture in the folder.
    """
    bpps, psnrs_db, likenesses = [], [], []
    for _, picture in read_folder(folder):
        result = engine.compress(picture, rate, tune)
        assert result.psnr_db is not None
        bpps.append(result.bpp)
        psnrs_db.append(result.psnr_db)
        decoded = decode_on_white(engine, result.data)
        likenesses.append(ms_ssim(picture.on_white().rgb, decoded))
    if not bpps:
        raise BadParameter(f"{folder} has no pictures to measure on")
    known = [v for v in likenesses if v is not None]
    whole = len(known) == len(likenesses)
    return Averages(_mean(bpps), _mean(psnrs_db), _mean(known) if whole else None)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
