"""How a backbone is trained, as data: its sizes by name, the recipe, the learning rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from service.codec.sizes import Sizes
from service.errors import BadParameter, StoreError
from service.train.checkpoint import has_state, read_about
from service.train.tunes import BASE, LADDER

NAMED_SIZES: Final[Mapping[str, Sizes]] = {
    "light": Sizes(),
    "base": Sizes(M=320, c8=256, c16=320, ne8=6, ne16=3, nd8=8, nd16=3, cp=256, cc=192),
}
"""`light` is what ships; `base`, for GPUs, takes 65 kMAC/pixel to decode where light takes 18.

Over the first 280 steps afresh (8 crops of 192, 100 steps of warm-up) base at a rate of 2e-4 falls
as fast as light at 4e-4: Kodak loss 1.414 (288 steps) and 1.413 (272). At 4e-4 base strays to 3.3
in its warm-up, light at 2e-4 is at 1.53 after 160. Longer runs of base begin at 2e-4.
"""

LR_FLOOR: Final = 0.02
"""Share of the learning rate that a decay ends with."""

CUDA_BATCH: Final = 64
"""Crops a step of a new run on CUDA: enough to fill the device."""

START_CROPS: Final = 192
"""Crops that a fresh start takes its statistics from."""


@dataclass(frozen=True)
class Recipe:
    """How a backbone and its ladder are trained.

    Attributes:
        rates: trained together; the one in the middle, BASE, is the backbone itself.
        groups: rates in each step; where there are more rates, a step draws so many of them.
        balance: the loss of a rate is weighted by its lmbda, over BASE's, to the power of -balance.
        lr: after `warmup` steps, until the decay. Over about 5e-4 (light) training turns unstable.
        batch: crops a step. crop: side in pixels. clip: largest gradient norm.
        ema: share of the old average kept each step. seed: of every draw.
        downscaled: share of the crops that are reduced to 0.5-1 of their size.
        grain: share of the photographs' crops that grain is added to.
        procedural: share of the crops that are of generated pictures (procedural.py).
        mixed: share of the crops that are from each further folder of pictures, by its name.
        frozen: finish: g_a and h_a stay, the rest is trained on latents that are really rounded.
    """

    rates: tuple[int, ...] = tuple(LADDER)
    groups: int = 8
    balance: float = 0.4
    lr: float = 4e-4
    warmup: int = 500
    batch: int = 8
    crop: int = 192
    clip: float = 1.0
    ema: float = 0.9995
    seed: int = 0
    downscaled: float = 0.4
    grain: float = 0.3
    procedural: float = 0.15
    mixed: Mapping[str, float] = field(default_factory=dict)
    frozen: bool = False

    def __post_init__(self) -> None:
        """Raise BadParameter where the fields contradict one another."""
        if BASE not in self.rates or not set(self.rates) <= set(LADDER):
            raise BadParameter(
                f"rates are {self.rates}, expected some of {tuple(LADDER)} with {BASE} among them"
            )
        if not 1 <= self.groups <= len(self.rates) or self.batch % self.groups:
            raise BadParameter(
                f"{self.batch} crops a step of {self.groups} rates, expected a multiple and at "
                f"most the {len(self.rates)} rates that there are"
            )
        if not self.procedural + sum(self.mixed.values()) < 1:
            raise BadParameter("shares of generated and mixed pictures reach 1: none is left")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from the JSON values that a run keeps."""
        return cls(**{**values, "rates": tuple(values["rates"])})

    @property
    def pixels(self) -> int:
        """That one step sees."""
        return self.batch * self.crop**2


@dataclass(frozen=True)
class Decay:
    """The final decay: from which step, over how many."""

    start: int
    steps: int


def sizes_named(name: str) -> Sizes:
    """Sizes by their name, or from a JSON file of that path. Raises BadParameter: neither."""
    if name in NAMED_SIZES:
        return NAMED_SIZES[name]
    if not Path(name).is_file():
        raise BadParameter(f"size is {name!r}, expected {', '.join(NAMED_SIZES)} or a JSON file")
    try:
        return Sizes.from_dict(json.loads(Path(name).read_text()))
    except (ValueError, TypeError, StoreError) as error:
        raise BadParameter(f"{name} holds no sizes of a backbone: {error}") from error


def learning_rate(recipe: Recipe, step: int, decay: Decay | None) -> float:
    """Of a step: a linear rise, a plateau, and half a cosine once the decay has begun."""
    lr = recipe.lr * min(1.0, (step + 1) / recipe.warmup)
    if decay is None or step < decay.start:
        return lr
    done = min(1.0, (step - decay.start) / decay.steps)
    return lr * (LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def recipe_for(folder: Path, device: torch.device, **given: Any) -> Recipe:
    """The recipe of a folder's run, or that of a new run on a device, with what was given.

    A run goes on only with its own recipe: `Run` refuses another.
    """
    changes = {k: v for k, v in given.items() if v is not None}
    if has_state(folder):
        return replace(Recipe.from_dict(read_about(folder)["recipe"]), **changes)
    start = Recipe(batch=CUDA_BATCH) if device.type == "cuda" else Recipe()
    rates = changes.get("rates", start.rates)
    return replace(start, **{"groups": min(start.groups, len(rates)), **changes})
