"""The training of one rate: recipe, steps, checkpoints.

Draws depend on (seed, rate, step) alone and a checkpoint holds all that a step depends on, so a
resumed run equals an uninterrupted one. Which rates there are, and what becomes of them, is
rates.py.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from service.datasets.crops import Crops
from service.errors import BadParameter
from service.files import write_whole
from service.nets.compiling import choose_compile, compile_blocks
from service.nets.lora import AdapterLearningRates, RateAdapter
from service.nets.model import Backbone, add_noise
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.train.adapters import domains
from service.train.tunes import BASE, EVERY, MS_SSIM, PSNR, SETTLED, TUNES, Aim, Tune


@dataclass(frozen=True)
class Recipe:
    """How a rate is trained.

    Attributes:
        tune: name of the loss, see tunes.py.
        steps: optimiser steps. batch: crops a step. crop: side in pixels.
        lr: peak learning rates, cosine to a twentieth after `warmup` steps.
        ranks: of the updates, by part of the model; "kernels" are the depthwise of g_a and g_s.
        seed: of draws and initial factors. checkpoint_s: seconds between checkpoints.
        start: sha256 of the model whose rate of the same number this starts from; empty where it
            starts from its neighbour.
    """

    tune: str = PSNR.name
    steps: int = 600
    batch: int = 8
    crop: int = 192
    lr: AdapterLearningRates = AdapterLearningRates(b=1e-3, a=1e-3, steps=5e-3)
    warmup: int = 20
    ranks: dict[str, int] = field(
        default_factory=lambda: {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1}
    )
    seed: int = 0
    checkpoint_s: float = 60.0
    start: str = ""

    @property
    def loss(self) -> Tune:
        """What is trained for."""
        return TUNES[self.tune]

    def steps_of(self, rate: int) -> int:
        """Steps of a rate; what starts from a rate of its own number needs no head start."""
        return self.steps if self.start else self.loss.steps(rate, self.steps)


RECIPES: Mapping[str, Recipe] = {
    PSNR.name: Recipe(),
    MS_SSIM.name: Recipe(
        tune=MS_SSIM.name,
        batch=4,
        crop=256,
        lr=AdapterLearningRates(b=6e-3, a=18e-3, steps=5e-3),
        ranks={"g_a": 5, "g_s": 5, "h_a": 1, "entropy": 2, "kernels": 9},
    ),
}
"""How the shipped ladders were trained. MS-SSIM needs room for its coarsest windows, and a loss
that the base was not trained for needs more than the next lmbda does."""


@dataclass(frozen=True)
class Progress:
    """One line of progress; loss, bpp and error (E of tunes.py) are running means."""

    rate: int
    step: int
    steps: int
    lmbda: float
    loss: float
    bpp: float
    error: float
    pixels_per_s: float


CPU = torch.device("cpu")

Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished rate: its number, its adapter, the lmbda it ended with, and processor minutes."""

    rate: int
    adapter: RateAdapter
    lmbda: float
    cpu_minutes: float


def train_rate(
    stored: StoredModel,
    crops: Crops,
    rate: int,
    start: Trained | None,
    recipe: Recipe,
    checkpoint: Path,
    report: Report,
    aim: Aim | None = None,
    kind: type[RateAdapter] = RateAdapter,
    device: torch.device = CPU,
) -> Trained:
    """Train one rate, or take it up from its checkpoint.

    Args:
        stored: the base. crops: training pictures.
        start: the neighbour, or the same rate of another base; None starts from the base itself.
        checkpoint: file to save to and resume from.
        report: called about every ten seconds.
        aim: what the rate is to cost; None leaves lmbda alone.
        kind: RateAdapter, or FullRank for the control that it is compared with.
        device: where to train; what is returned lies on the CPU.
    """
    base = float_twin(stored).to(device)
    if choose_compile("auto", device)[0] != "off":
        compile_blocks(base)
    run = _Run(stored, base, rate, start, recipe, kind)
    run.resume(checkpoint)
    steps = recipe.steps_of(rate)
    if run.step == steps:
        return run.trained()
    meter = _Meter(rate, recipe)
    saved = time.monotonic()
    while run.step < steps:
        if aim and 0 < run.step < SETTLED * steps and run.step % EVERY == 0:
            run.log_lmbda += aim.correction(run.adapter)
        loss, bpp, error = run.advance(crops, steps)
        meter.see(run.step, steps, run.lmbda, (loss, bpp, error), report)
        if time.monotonic() - saved > recipe.checkpoint_s:
            run.save(checkpoint)
            saved = time.monotonic()
    run.save(checkpoint)
    return run.trained()


def trained(stored: StoredModel, rate: int, recipe: Recipe, checkpoint: Path) -> Trained:
    """A rate as its finished checkpoint holds it.

    Raises:
        BadParameter: there is no such checkpoint.
    """
    run = _Run(stored, float_twin(stored), rate, None, recipe)
    run.resume(checkpoint)
    if run.step < recipe.steps_of(rate):
        words = f"rate {rate} must be trained first: {checkpoint} is missing or not finished"
        raise BadParameter(words)
    return run.trained()


class _Run:
    """The training of one rate at one step: everything that its checkpoint holds."""

    def __init__(
        self,
        stored: StoredModel,
        base: Backbone,
        rate: int,
        start: Trained | None,
        recipe: Recipe,
        kind: type[RateAdapter] = RateAdapter,
    ) -> None:
        """As it is before the first step."""
        self.base, self.rate, self.recipe = base, rate, recipe
        self.step, self.cpu_s = 0, 0.0
        adapter = kind(float_twin(stored), domains(stored, recipe.ranks), recipe.seed + rate)
        self.device = base.z_idx.device
        self.adapter = adapter.to(self.device)
        lmbdas, origin = recipe.loss.lmbdas, start.rate if start else BASE
        ratio = lmbdas[rate] / lmbdas[origin]
        self.adapter.start_from(start.adapter if start else self.adapter, ratio)
        found = start.lmbda if start and recipe.loss.found else lmbdas[origin]
        self.log_lmbda = math.log(found * ratio)
        self.since_s = time.process_time()
        groups = self.adapter.groups(recipe.lr)
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.peaks = [float(g["lr"]) for g in self.optimiser.param_groups]
        # what a checkpoint may be resumed for
        how = {k: v for k, v in asdict(recipe).items() if k != "checkpoint_s"}
        self.key = json.dumps({"base": stored.sha256, "rate": rate, "recipe": how}, sort_keys=True)

    @property
    def lmbda(self) -> float:
        """Weight of the error, at present."""
        return math.exp(self.log_lmbda)

    def advance(self, crops: Crops, steps: int) -> tuple[float, float, float]:
        """One step of `steps`; returns its loss, bits per pixel and error."""
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * _schedule(self.step, steps, self.recipe.warmup)
        torch.manual_seed((self.recipe.seed * 8 + self.rate) * 10**6 + self.step)
        x = crops.batch(self.step, self.recipe.batch).to(self.device)
        loss, bpp, error = _loss(self.base, self.adapter, x, self.recipe.loss, self.lmbda)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return float(loss.detach()), bpp, error

    def trained(self) -> Trained:
        """What there is to use of it, on the CPU."""
        return Trained(self.rate, self.adapter.cpu(), self.lmbda, self.cpu_s / 60)

    def save(self, path: Path) -> None:
        """Adapter, Adam moments and counters in one file, written whole or not at all."""
        now_s = time.process_time()
        self.cpu_s, self.since_s = self.cpu_s + now_s - self.since_s, now_s
        tensors = {f"adapter.{n}": t.detach().clone() for n, t in self.adapter.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{n}": t.detach().clone() for n, t in moments.items()}
        counters = (self.step, self.cpu_s, self.log_lmbda)
        tensors["counters"] = torch.tensor(counters, dtype=torch.float64)
        write_whole(path, save(tensors, {"run": self.key}))

    def resume(self, path: Path) -> None:
        """Load a checkpoint where there is one.

        Raises:
            BadParameter: it is of another base, rate or recipe.
        """
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("run")
        if made_for != self.key:
            raise BadParameter(f"{path} is the checkpoint of {made_for}, this run is {self.key}")
        tensors = load_file(path)
        prefix = "adapter."
        self.adapter.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        state = self.optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, part = name.split(".")
                moments.setdefault(int(index), {})[part] = tensor
        state["state"] = moments
        self.optimiser.load_state_dict(state)
        step, self.cpu_s, self.log_lmbda = tensors["counters"].tolist()
        self.step = int(step)


def _loss(
    base: Backbone, adapter: RateAdapter, x: Tensor, tune: Tune, lmbda: float
) -> tuple[Tensor, float, float]:
    """Loss, bits per pixel and error of one batch."""
    with torch.autocast(x.device.type, torch.bfloat16):
        e = torch.func.functional_call(base, adapter.merged(), (x,), {"relax": add_noise})
    bpp = (e.bits_y + e.bits_z).sum() / x[..., 0].numel()
    error = tune.error(e.x_hat, x)
    return bpp + lmbda * error, float(bpp.detach()), float(error.detach())


def _schedule(step: int, steps: int, warmup: int) -> float:
    warm = min(1.0, (step + 1) / warmup)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class _Meter:
    """Running means and when to report them."""

    def __init__(self, rate: int, recipe: Recipe) -> None:
        self.rate, self.recipe = rate, recipe
        self.means: tuple[float, ...] | None = None
        self.last, self.seen = time.monotonic(), 0

    def see(
        self, step: int, steps: int, lmbda: float, now: tuple[float, ...], report: Report
    ) -> None:
        """Take note of the loss, bits per pixel and error of a step."""
        old = self.means or now
        self.means = tuple(0.98 * m + 0.02 * v for m, v in zip(old, now, strict=True))
        self.seen += self.recipe.batch * self.recipe.crop**2
        elapsed = time.monotonic() - self.last
        if elapsed > 10 or step == steps:
            loss, bpp, error = self.means
            speed = self.seen / elapsed
            report(Progress(self.rate, step, steps, lmbda, loss, bpp, error, speed))
            self.last, self.seen = time.monotonic(), 0
