"""The ladder of rates on one frozen backbone: low-rank adapters, learned outwards from the middle.

    rankpress train rates DATA --model light --steps 600

Each rate starts from its neighbour (4→5→…→8 and 4→3→…→1) and is written to the store as soon as it
is done; a run that is cut off goes on from the last checkpoint of the rate it was at. Draws depend
on (seed, rate, step) alone, so a resumed run equals an uninterrupted one.

Loss: R + lmbda · 255² · MSE, as for the base. See codec/lowrank.py for the method.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.engine.engine import Engine, load_models
from service.errors import BadParameter
from service.images import read_image
from service.nets.backbone import Block
from service.nets.lora import RateAdapter
from service.nets.model import Backbone
from service.store import StoredModel, StoredRate, load_model
from service.train.adapters import domains, float_twin, quantised
from service.train.data import Crops
from service.train.publish import publish_rate

LADDER = {
    1: 0.0018,
    2: 0.0035,
    3: 0.0067,
    4: 0.013,
    5: 0.025,
    6: 0.0483,
    7: 0.0932,
    8: 0.18,
}
"""lmbda of each rate; the base is rate 4."""

BASE = 4
ORDER = (5, 6, 7, 8, 3, 2, 1)


@dataclass(frozen=True)
class Recipe:
    """How a rate is trained.

    Attributes:
        steps: optimiser steps. batch: crops a step. crop: side in pixels.
        lr: peak learning rate of the factors, cosine to a twentieth after `warmup` steps.
        ranks: of the updates, by part of the model.
        seed: of draws and initial factors. checkpoint_s: seconds between checkpoints.
    """

    steps: int = 600
    batch: int = 8
    crop: int = 192
    lr: float = 1e-3
    warmup: int = 20
    ranks: dict[str, int] = field(
        default_factory=lambda: {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1}
    )
    seed: int = 0
    checkpoint_s: float = 60.0


@dataclass(frozen=True)
class Progress:
    """One line of progress; loss, bpp and psnr_db are running means."""

    rate: int
    step: int
    steps: int
    loss: float
    bpp: float
    psnr_db: float
    pixels_per_s: float


Report = Callable[[Progress], None]


def neighbour(rate: int) -> int:
    """The rate that this one starts from."""
    return rate - 1 if rate > BASE else rate + 1


def train_rate(
    stored: StoredModel,
    crops: Crops,
    rate: int,
    start: RateAdapter | None,
    recipe: Recipe,
    checkpoint: Path,
    report: Report,
    kind: type[RateAdapter] = RateAdapter,
) -> RateAdapter:
    """Train one rate, or take it up from its checkpoint.

    Args:
        stored: the base. crops: training pictures.
        start: the neighbour's adapter; None starts from the base itself.
        checkpoint: file to save to and resume from.
        report: called about every ten seconds.
        kind: RateAdapter, or FullRank for the control that it is compared with.
    """
    base = float_twin(stored)
    for module in base.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
    adapter = kind(base, domains(stored, recipe.ranks), recipe.seed + rate)
    neighbours = LADDER[BASE] if start is None else LADDER[neighbour(rate)]
    adapter.start_from(start or adapter, LADDER[rate] / neighbours)
    optimiser = torch.optim.AdamW(adapter.groups(recipe.lr), betas=(0.9, 0.98), weight_decay=0.0)
    run = _run_key(stored, rate, recipe)
    first = _resume(adapter, optimiser, checkpoint, run)
    peaks = [float(g["lr"]) for g in optimiser.param_groups]
    meter = _Meter(rate, recipe)
    saved = time.monotonic()
    for step in range(first, recipe.steps):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, recipe)
        torch.manual_seed((recipe.seed * 8 + rate) * 10**6 + step)
        loss, bpp, mse = _loss(base, adapter, crops.batch(step, recipe.batch), LADDER[rate])
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad()
        meter.see(step, float(loss.detach()), bpp, mse, report)
        if time.monotonic() - saved > recipe.checkpoint_s:
            _save(adapter, optimiser, step + 1, checkpoint, run)
            saved = time.monotonic()
    _save(adapter, optimiser, recipe.steps, checkpoint, run)
    return adapter


def _loss(
    base: Backbone, adapter: RateAdapter, x: Tensor, lmbda: float
) -> tuple[Tensor, float, float]:
    """Loss, bits per pixel and MSE of one batch."""
    with torch.autocast(x.device.type, torch.bfloat16):
        e = torch.func.functional_call(base, adapter.merged(), (x,), {"noise": True})
    bpp = (e.bits_y + e.bits_z).sum() / x[..., 0].numel()
    mse = (e.x_hat - x).square().mean()
    return bpp + lmbda * 255**2 * mse, float(bpp.detach()), float(mse.detach())


def _schedule(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup)
    done = step / recipe.steps
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


class _Meter:
    """Running means and when to report them."""

    def __init__(self, rate: int, recipe: Recipe) -> None:
        self.rate, self.recipe = rate, recipe
        self.means: list[float] | None = None
        self.last, self.seen = time.monotonic(), 0

    def see(self, step: int, loss: float, bpp: float, mse: float, report: Report) -> None:
        now = [loss, bpp, mse]
        if self.means is None:
            self.means = now
        self.means = [0.98 * m + 0.02 * v for m, v in zip(self.means, now, strict=True)]
        self.seen += self.recipe.batch * self.recipe.crop**2
        elapsed = time.monotonic() - self.last
        if elapsed > 10 or step + 1 == self.recipe.steps:
            psnr = -10 * math.log10(max(self.means[2], 1e-10))
            loss, bpp, _ = self.means
            speed = self.seen / elapsed
            report(Progress(self.rate, step + 1, self.recipe.steps, loss, bpp, psnr, speed))
            self.last, self.seen = time.monotonic(), 0


def _run_key(stored: StoredModel, rate: int, recipe: Recipe) -> str:
    """Names what a checkpoint may be resumed for: the base, the rate and the recipe."""
    how = {k: v for k, v in asdict(recipe).items() if k != "checkpoint_s"}
    return json.dumps({"base": stored.sha256, "rate": rate, "recipe": how}, sort_keys=True)


def _save(
    adapter: RateAdapter, optimiser: torch.optim.Optimizer, step: int, path: Path, run: str
) -> None:
    """Adapter, Adam moments and step in one safetensors file, written whole or not at all."""
    tensors = {f"adapter.{n}": t.detach().clone() for n, t in adapter.state_dict().items()}
    state = optimiser.state_dict()["state"]
    for index, moments in state.items():
        tensors |= {f"adam.{index}.{n}": t.detach().clone() for n, t in moments.items()}
    tensors["step"] = torch.tensor(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"run": run})
    temporary.replace(path)


def _resume(adapter: RateAdapter, optimiser: torch.optim.Optimizer, path: Path, run: str) -> int:
    """Load a checkpoint where there is one; returns the step to go on with.

    Raises:
        BadParameter: it is of another base, rate or recipe.
    """
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        made_for = (file.metadata() or {}).get("run")
    if made_for != run:
        raise BadParameter(f"{path} is the checkpoint of {made_for}, this run is {run}")
    tensors = load_file(path)
    prefix = "adapter."
    adapter.load_state_dict(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    )
    state = optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, part = name.split(".")
            moments.setdefault(int(index), {})[part] = tensor
    state["state"] = moments
    optimiser.load_state_dict(state)
    return int(tensors["step"])


def train_ladder(
    folder: Path,
    crops: Crops,
    measure: Path,
    recipe: Recipe,
    scratch: Path,
    rates: tuple[int, ...],
    record: dict[str, object],
    report: Report,
) -> None:
    """Train rates outwards from the base and publish each as it is done.

    A rate that this run's scratch folder holds whole is published again without training; a rate's
    neighbour must be in `rates` before it, in the scratch folder, or be the base.

    Args:
        folder: of the model in the store. crops: training pictures.
        measure: folder of pictures for the bpp and PSNR in the manifest.
        scratch: folder for checkpoints. rates: which to train, others are left alone.
        record: what the manifest says of the data and device besides the recipe.

    Raises:
        BadParameter: a rate's neighbour was not trained.
    """
    stored = load_model(folder)
    done: dict[int, RateAdapter] = {}
    for rate in (r for r in ORDER if r in rates):
        start = None
        if neighbour(rate) != BASE:
            start = done.get(neighbour(rate)) or trained(stored, neighbour(rate), recipe, scratch)
        began = time.monotonic()
        checkpoint = scratch / f"{rate}.safetensors"
        done[rate] = train_rate(stored, crops, rate, start, recipe, checkpoint, report)
        about = record | {"minutes": round((time.monotonic() - began) / 60, 1)}
        publish(folder, stored, rate, done[rate], measure, asdict(recipe) | about)


def publish(
    folder: Path,
    stored: StoredModel,
    rate: int,
    adapter: RateAdapter,
    measure: Path,
    training: dict[str, object],
) -> StoredRate:
    """Quantise an adapter, put it in the store, and record what it measures there."""
    entry = StoredRate(rate, LADDER[rate], None, None, training=training)
    update = quantised(stored, adapter)
    now = publish_rate(folder, update, entry)
    bpp, psnr_db = averages(Engine(load_models((now,), "auto", None)), rate, measure)
    measured = replace(entry, kodak_bpp=round(bpp, 4), kodak_psnr_db=round(psnr_db, 3))
    publish_rate(folder, update, measured)
    return measured


def averages(engine: Engine, rate: float, folder: Path) -> tuple[float, float]:
    """Mean bits per pixel and PSNR in dB of a rate over a folder of pictures, real streams.

    Raises:
        BadParameter: no picture in the folder.
    """
    results = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        picture = read_image(path.read_bytes(), max_pixels=10**8, metadata="none")
        result = engine.compress(picture, rate)
        assert result.psnr_db is not None
        results.append((result.bpp, result.psnr_db))
    if not results:
        raise BadParameter(f"{folder} has no pictures to measure on")
    bpp, psnr_db = (sum(column) / len(results) for column in zip(*results, strict=True))
    return bpp, psnr_db


def trained(stored: StoredModel, rate: int, recipe: Recipe, scratch: Path) -> RateAdapter:
    """A rate's adapter as its finished checkpoint holds it."""
    base = float_twin(stored)
    adapter = RateAdapter(base, domains(stored, recipe.ranks), recipe.seed + rate)
    optimiser = torch.optim.AdamW(adapter.groups(recipe.lr))
    path = scratch / f"{rate}.safetensors"
    if _resume(adapter, optimiser, path, _run_key(stored, rate, recipe)) < recipe.steps:
        raise BadParameter(f"rate {rate} must be trained first: {path} is missing or not finished")
    return adapter
