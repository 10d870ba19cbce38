"""The training of one rate's adapter: recipe, steps, checkpoints.

Random draws are functions of (seed, rate, step), and a checkpoint contains everything else that a
step depends on, so a resumed run gives the same result as an uninterrupted one. The order of rates
and their publication are in ladder.py.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from service.datasets.crops import Crops
from service.errors import BadParameter
from service.files import write_whole
from service.nets.adapters import domains
from service.nets.compiling import choose_compile, compile_blocks
from service.nets.lora import AdapterLearningRates, FullAdapter, PromptAdapter, RateAdapter
from service.nets.model import Backbone, add_noise
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.train.progress import Meter
from service.train.tunes import BASE, MS_SSIM, PSNR, TUNES, BppTarget, Tune

By = Literal["steps", "lowrank", "prompts", "full"]
"""What a rate changes besides its quantiser steps: nothing, low-rank updates of all layers, prompts
of a Swin backbone, or all weights. Rates in the store are by low rank or prompts."""


@dataclass(frozen=True)
class RateRecipe:
    """How a rate is trained."""

    tune: str = PSNR.name  # name of the loss, see train/tunes.py
    by: By = "lowrank"  # what the rate changes
    steps: int = 600  # optimiser steps
    batch: int = 8  # crops per step
    crop: int = 192  # side of the crops in pixels
    # peak learning rates; after `warmup` steps they fall to a twentieth, along a cosine
    lr: AdapterLearningRates = AdapterLearningRates(b=1e-3, a=1e-3, steps=5e-3)
    warmup: int = 20  # steps over which the learning rates rise
    # of the updates, by part of the model; "kernels" are depthwise layers of g_a and g_s
    ranks: dict[str, int] = field(
        default_factory=lambda: {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1}
    )
    seed: int = 0  # of random draws and initial factors
    checkpoint_s: float = 60.0  # seconds between checkpoints
    # sha256 of the model whose rate of the same number this one starts from; "" for its neighbour
    start: str = ""

    @property
    def loss(self) -> Tune:
        """The ladder's loss."""
        return TUNES[self.tune]

    def steps_of(self, rate: int) -> int:
        """Return the steps of a rate; one that starts from the same rate needs no head start."""
        near = self.start or self.loss.neighbour(rate)
        return self.steps if near else self.steps * self.loss.head_start


RECIPES: Mapping[str, RateRecipe] = {
    PSNR.name: RateRecipe(),
    MS_SSIM.name: RateRecipe(
        tune=MS_SSIM.name,
        batch=4,
        crop=256,
        lr=AdapterLearningRates(b=6e-3, a=18e-3, steps=5e-3),
        ranks={"g_a": 5, "g_s": 5, "h_a": 1, "entropy": 2, "kernels": 9},
    ),
}
"""How the shipped ladders were trained.

MS-SSIM needs larger crops for its coarsest windows, and higher ranks and learning rates, because
the base was trained for another loss.
"""


@dataclass(frozen=True)
class RateProgress:
    """One progress report; loss, bpp and error (E of train/tunes.py) are running means."""

    rate: int
    step: int
    steps: int
    lmbda: float
    loss: float
    bpp: float
    error: float
    pixels_per_s: float


PROMPT_PEAK: Final = 1e-2
"""Peak learning rate of prompts."""


def recipe_by(by: By, tune: str = PSNR.name) -> RateRecipe:
    """Return the recipe of a way to vary the rate; the crops for prompts have whole windows."""
    recipe = replace(RECIPES[tune], by=by)
    if by != "prompts":
        return recipe
    lr = AdapterLearningRates(b=PROMPT_PEAK, a=PROMPT_PEAK, steps=5e-3)
    return replace(recipe, batch=4, crop=256, lr=lr)


CORRECTION_STEPS = 50
"""Steps between two corrections of lmbda."""

CORRECTED_PART = 0.8
"""Part of the steps after which lmbda is not corrected any more."""

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class TrainedRate:
    """A trained rate: its number, its adapter, its final lmbda, and the minutes of CPU time."""

    rate: int
    adapter: RateAdapter
    lmbda: float
    cpu_minutes: float


@dataclass(frozen=True, eq=False)
class OtherBase:
    """A frozen backbone that no store holds, of the sizes of a stored one, and its own rate."""

    network: Backbone
    rate: int


def train_rate(
    stored: StoredModel,
    crops: Crops,
    rate: int,
    start: TrainedRate | None,
    recipe: RateRecipe,
    checkpoint: Path,
    report: Callable[[RateProgress], None],
    target: BppTarget | None = None,
    device: torch.device = CPU,
    other: OtherBase | None = None,
) -> TrainedRate:
    """Train one rate, or resume it from its checkpoint; its adapter is returned on the CPU.

    Args:
        start: the neighbour, or the same rate of another base; None starts from the base itself.
        report: called about every ten seconds.
        target: the bits that the rate should take; None does not adjust lmbda.
        other: base in the place of the stored one; not for recipes by low rank.

    Raises:
        BadParameter: the checkpoint is of another base, rate or recipe.
    """
    base = trainable_base(stored, recipe, None if other is None else other.network).to(device)
    if choose_compile("auto", device)[0] != "off":
        compile_blocks(base)
    run = _RateTraining(stored, base, rate, start, recipe, other)
    run.resume(checkpoint)
    steps = recipe.steps_of(rate)
    if run.step == steps:
        return run.trained()
    meter, saved = Meter(run.step), time.monotonic()
    means: NDArray[np.float64] | None = None
    while run.step < steps:
        corrects = 0 < run.step < CORRECTED_PART * steps and run.step % CORRECTION_STEPS == 0
        if target is not None and corrects:
            run.log_lmbda += target.correction(run.adapter)
        figures = np.array(run.advance(crops, steps))
        means = figures if means is None else 0.98 * means + 0.02 * figures
        if meter.due(10) or run.step == steps:
            count, seconds = meter.lap(run.step)
            speed = count * recipe.batch * recipe.crop**2 / seconds
            loss, bpp, error = means.tolist()
            report(RateProgress(rate, run.step, steps, run.lmbda, loss, bpp, error, speed))
        if time.monotonic() - saved > recipe.checkpoint_s:
            run.save(checkpoint)
            saved = time.monotonic()
    run.save(checkpoint)
    return run.trained()


def read_trained(
    stored: StoredModel, rate: int, recipe: RateRecipe, checkpoint: Path
) -> TrainedRate:
    """Read a trained rate from its finished checkpoint.

    Raises:
        BadParameter: the checkpoint is missing, not finished, or of another base, rate or recipe.
    """
    run = _RateTraining(stored, trainable_base(stored, recipe), rate, None, recipe)
    run.resume(checkpoint)
    if run.step < recipe.steps_of(rate):
        raise BadParameter(
            f"rate {rate} must be trained first: {checkpoint} is missing or not finished"
        )
    return run.trained()


class _RateTraining:
    """The state of one rate's training: everything that its checkpoint contains."""

    def __init__(
        self,
        stored: StoredModel,
        base: Backbone,
        rate: int,
        start: TrainedRate | None,
        recipe: RateRecipe,
        other: OtherBase | None = None,
    ) -> None:
        """Prepare the state before the first step."""
        self.base, self.rate, self.recipe = base, rate, recipe
        self.step, self.cpu_s = 0, 0.0
        network, own = (None, BASE) if other is None else (other.network, other.rate)
        adapter = new_adapter(stored, recipe, recipe.seed + rate, network)
        self.device = base.z_idx.device
        self.adapter = adapter.to(self.device)
        lmbdas, origin = recipe.loss.lmbdas, start.rate if start else own
        ratio = lmbdas[rate] / lmbdas[origin]
        self.adapter.start_from(start.adapter if start else self.adapter, ratio)
        start_lmbda = start.lmbda if start and recipe.loss.adjusts_lmbda else lmbdas[origin]
        self.log_lmbda = math.log(start_lmbda * ratio)
        self.since_s = time.process_time()
        groups = self.adapter.groups(recipe.lr)
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
        self.peaks = [float(g["lr"]) for g in self.optimiser.param_groups]
        # a checkpoint is resumed only if its key is the same
        fields = {k: v for k, v in asdict(recipe).items() if k != "checkpoint_s"}
        key = {"base": stored.sha256, "own": own, "rate": rate, "recipe": fields}
        self.key = json.dumps(key, sort_keys=True)

    @property
    def lmbda(self) -> float:
        """Present weight of the error."""
        return math.exp(self.log_lmbda)

    def advance(self, crops: Crops, steps: int) -> tuple[float, float, float]:
        """Do one of `steps` steps, and return its loss, bits per pixel and error."""
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * _schedule(self.step, steps, self.recipe.warmup)
        torch.manual_seed((self.recipe.seed * 8 + self.rate) * 10**6 + self.step)
        x = crops.batch(self.step, self.recipe.batch).to(self.device)
        loss, bpp, error = batch_loss(self.base, self.adapter, x, self.recipe.loss, self.lmbda)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return float(loss.detach()), bpp, error

    def trained(self) -> TrainedRate:
        """Return the rate with its adapter on the CPU."""
        return TrainedRate(self.rate, self.adapter.cpu(), self.lmbda, self.cpu_s / 60)

    def save(self, path: Path) -> None:
        """Write adapter, Adam moments and counters to one file, whole or not at all."""
        now_s = time.process_time()
        self.cpu_s, self.since_s = self.cpu_s + now_s - self.since_s, now_s
        tensors = {f"adapter.{n}": t.detach().clone() for n, t in self.adapter.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{n}": t.detach().clone() for n, t in moments.items()}
        counters = (self.step, self.cpu_s, self.log_lmbda)
        tensors["counters"] = torch.tensor(counters, dtype=torch.float64)
        write_whole(path, save(tensors, {"run": self.key}))

    def resume(self, path: Path) -> None:
        """Load the checkpoint if there is one; one of another base, rate or recipe is refused."""
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            key = (file.metadata() or {}).get("run")
        if key != self.key:
            raise BadParameter(f"{path} is the checkpoint of {key}, this run is {self.key}")
        tensors = load_file(path)
        step, self.cpu_s, self.log_lmbda = tensors.pop("counters").tolist()
        self.step = int(step)
        adapter: dict[str, Tensor] = {}
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "adapter":
                adapter[rest] = tensor
            else:
                index, part = rest.split(".")
                moments[int(index)][part] = tensor
        self.adapter.load_state_dict(adapter)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


def trainable_base(
    stored: StoredModel, recipe: RateRecipe, base: Backbone | None = None
) -> Backbone:
    """Return the frozen backbone that the adapters of a recipe are merged into.

    It is that of a stored model, or a copy of another base.
    """
    base = float_twin(stored) if base is None else copy.deepcopy(base)
    if recipe.by == "prompts":
        base.attach_prompts()
    return base


def new_adapter(
    stored: StoredModel, recipe: RateRecipe, seed: int, base: Backbone | None = None
) -> RateAdapter:
    """Return an adapter that training has not changed yet, of a stored model or another base.

    Raises:
        BadParameter: prompts were asked for and the model is not of the family swin.
    """
    base = float_twin(stored) if base is None else base
    if recipe.by == "prompts":
        return PromptAdapter(base, seed)
    if recipe.by == "full":
        return FullAdapter(base, seed)
    changed = domains(stored, recipe.ranks) if recipe.by == "lowrank" else {}
    return RateAdapter(base, changed, seed)


def batch_loss(
    base: Backbone, adapter: RateAdapter, x: Tensor, tune: Tune, lmbda: float
) -> tuple[Tensor, float, float]:
    """Return the loss, bits per pixel and error of one batch."""
    with torch.autocast(x.device.type, torch.bfloat16):
        e = torch.func.functional_call(base, adapter.merged(), (x,), {"relax": add_noise})
    bpp = (e.bits_y + e.bits_z).sum() / x[..., 0].numel()
    error = tune.error(e.x_hat, x)
    return bpp + lmbda * error, float(bpp.detach()), float(error.detach())


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rates: a linear rise times half a cosine that ends at 0.05."""
    rise = min(1.0, (step + 1) / warmup)
    return rise * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
