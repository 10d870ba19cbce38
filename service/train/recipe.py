"""The recipe of a backbone's training: sizes by name, settings, and the learning rate."""

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
"""`light` is the shipped model; `base`, for GPUs, decodes with 65 kMAC/pixel, `light` with 18.

In the first 280 steps of new runs (8 crops of 192, 100 steps of warm-up) base with a learning rate
of 2e-4 learns as fast as light with 4e-4: the Kodak loss is 1.414 (after 288 steps) and 1.413
(272). With 4e-4 the loss of base rises to 3.3 during warm-up; with 2e-4 light has 1.53 after 160
steps. So longer runs of base should start with 2e-4.
"""

LR_FLOOR: Final = 0.02
"""Share of the learning rate that is left at the end of a decay."""

CUDA_BATCH: Final = 64
"""Crops per step of a new run on CUDA: enough to fill the device."""

START_CROPS: Final = 192
"""Crops whose statistics a new backbone starts with."""


@dataclass(frozen=True)
class BackboneRecipe:
    """How a backbone and its ladder are trained.

    Attributes:
        rates: trained together; the one in the middle, BASE, is the backbone itself.
        groups: rates in each step, drawn at random if there are more rates.
        balance: the loss of a rate is weighted by (its lmbda / BASE's lmbda) ** -balance.
        lr: learning rate after `warmup` steps and before the decay. Training of `light` becomes
            unstable above about 5e-4.
        warmup: steps over which the learning rate rises.
        batch: crops per step.
        crop: side of the crops in pixels.
        clip: largest norm of the gradient.
        ema: share of the old average that each step keeps.
        seed: of every random draw.
        downscaled: share of the crops that are reduced to 0.5-1 of their size.
        grain: share of the photographs' crops that get grain.
        procedural: share of the crops that are cut from generated pictures (procedural.py).
        mixed: share of the crops from each further folder of pictures, by the folder's name.
        frozen: keep g_a and h_a, and train the rest on rounded latents.
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
                f"a step has {self.batch} crops of {self.groups} rates, expected a multiple of the "
                f"number of rates, and at most the run's {len(self.rates)} rates"
            )
        if not self.procedural + sum(self.mixed.values()) < 1:
            raise BadParameter(
                "shares of generated and mixed pictures add up to 1 or more, expected less than 1"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneRecipe:
        """Read a recipe from the JSON values in a run's record."""
        return cls(**{**values, "rates": tuple(values["rates"])})

    @property
    def pixels(self) -> int:
        """Number of pixels in the crops of one step."""
        return self.batch * self.crop**2


@dataclass(frozen=True)
class Decay:
    """The final decay of a run: its first step and its number of steps."""

    start: int
    steps: int


def sizes_named(name: str) -> Sizes:
    """Return the sizes of that name, or those in the JSON file of that path.

    Raises:
        BadParameter: it is neither a name nor a file of sizes.
    """
    if name in NAMED_SIZES:
        return NAMED_SIZES[name]
    if not Path(name).is_file():
        raise BadParameter(f"size is {name!r}, expected {', '.join(NAMED_SIZES)} or a JSON file")
    try:
        return Sizes.from_dict(json.loads(Path(name).read_text()))
    except (ValueError, TypeError, StoreError) as error:
        raise BadParameter(f"{name} does not contain the sizes of a backbone: {error}") from error


def learning_rate(recipe: BackboneRecipe, step: int, decay: Decay | None) -> float:
    """Return a step's learning rate: a linear rise, a plateau, and half a cosine for the decay."""
    lr = recipe.lr * min(1.0, (step + 1) / recipe.warmup)
    if decay is None or step < decay.start:
        return lr
    progress = min(1.0, (step - decay.start) / decay.steps)
    return lr * (LR_FLOOR + (1 - LR_FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def recipe_for(folder: Path, device: torch.device, **fields: Any) -> BackboneRecipe:
    """Return the recipe of the run in a folder, or of a new run on a device, with changed fields.

    Fields that are None are not changed. `TrainingRun` refuses to resume a run with a recipe other
    than its own.
    """
    changes = {k: v for k, v in fields.items() if v is not None}
    if has_state(folder):
        return replace(BackboneRecipe.from_dict(read_about(folder)["recipe"]), **changes)
    default = BackboneRecipe(batch=CUDA_BATCH) if device.type == "cuda" else BackboneRecipe()
    rates = changes.get("rates", default.rates)
    return replace(default, **{"groups": min(default.groups, len(rates)), **changes})
