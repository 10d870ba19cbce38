"""The recipe of a backbone's training: sizes by name, settings, and the learning rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from service.codec.sizes import ConvSizes, Sizes, SwinSizes, read_sizes
from service.errors import BadParameter, StoreError
from service.train.checkpoint import has_state, read_about
from service.train.tunes import BASE, LADDER

NAMED_SIZES: Final[Mapping[str, Sizes]] = {
    "light": ConvSizes(),
    "base": ConvSizes(M=320, c8=256, c16=320, ne8=6, ne16=3, nd8=8, nd16=3, cp=256, cc=192),
    "swin": SwinSizes(),
}
"""`light` is the shipped model; `base`, for GPUs, decodes with 65 kMAC/pixel, `light` with 18.
`swin` has window attention (nets/swin.py).

Runs of `base` should start with a learning rate of 2e-4: in its first 280 steps it then learns as
fast as `light` with 4e-4, while with 4e-4 its loss rises during warm-up.
"""

LR_FLOOR: Final = 0.02
"""Share of the learning rate that is left at the end of a decay."""

CUDA_BATCH: Final = 64
"""Crops per step of a new run on CUDA: enough to fill the device."""

START_CROPS: Final = 192
"""Crops whose statistics a new backbone starts with."""


@dataclass(frozen=True)
class BackboneRecipe:
    """How a backbone and its ladder are trained."""

    # trained together; the one in the middle, BASE, is the backbone itself
    rates: tuple[int, ...] = tuple(LADDER)
    groups: int = 8  # rates in each step, drawn at random if there are more rates
    balance: float = 0.4  # the loss of a rate is weighted by (its lmbda / BASE's lmbda) ** -balance
    # after `warmup` steps and before the decay; `light` becomes unstable above about 5e-4
    lr: float = 4e-4
    warmup: int = 500  # steps over which the learning rate rises
    batch: int = 8  # crops per step
    crop: int = 192  # side of the crops in pixels
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.9995  # share of the old average that each step keeps
    seed: int = 0  # of every random draw
    downscaled: float = 0.4  # share of the crops that are reduced to 0.5-1 of their size
    grain: float = 0.3  # share of the photographs' crops that get grain
    # share of the crops that are cut from generated pictures (procedural.py)
    procedural: float = 0.15
    # share of the crops from each further folder of pictures, by the folder's name
    mixed: Mapping[str, float] = field(default_factory=dict)
    frozen: bool = False  # keep g_a and h_a, and train the rest on rounded latents

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

    @property
    def end(self) -> int:
        """Number of steps of the whole run."""
        return self.start + self.steps


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
        values = json.loads(Path(name).read_text())
        return read_sizes(values.pop("family", ConvSizes.family), values)
    except (ValueError, TypeError, AttributeError, StoreError) as error:
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
