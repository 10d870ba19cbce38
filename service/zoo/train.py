"""Training of a rate's adapter for a frozen CompressAI model: loss R + lmbda · 255² · MSE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from service.datasets.crops import Crops
from service.zoo.adapters import ZooAdapter, layers


@dataclass(frozen=True)
class ZooRecipe:
    """How one adapter is trained.

    Attributes:
        lmbda: weight of the squared error of 8-bit samples relative to bits per pixel.
        steps: of the optimiser. rank: of every layer's factors. rate: of learning, in Adam.
        batch: crops per step. seed: of noise and initial factors.
    """

    lmbda: float
    steps: int = 400
    rank: int = 2
    rate: float = 1e-3
    batch: int = 8
    seed: int = 0


def train_adapter(
    network: nn.Module,
    crops: Crops,
    recipe: ZooRecipe,
    report: Callable[[int, float], object],
) -> bytes:
    """Train an adapter of all layers, and return its safetensors file.

    Args:
        network: a CompressAI model; its weights are not changed.
        crops: of the training pictures. recipe: how to train.
        report: called with the number and the loss of each step.
    """
    adapter = ZooAdapter(network, layers(network), recipe.rank, recipe.seed)
    optimiser = torch.optim.Adam(adapter.parameters(), recipe.rate)
    torch.manual_seed(recipe.seed)
    network.train()  # in this mode the entropy model adds noise instead of rounding
    for step in range(recipe.steps):
        # Contiguous: channels last, torch 2.13's oneDNN overruns its memory in the backward pass.
        x = crops.batch(step, recipe.batch).permute(0, 3, 1, 2).contiguous()
        loss = loss_of(adapter(x), x, recipe.lmbda)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimiser.step()
        report(step, float(loss.detach()))
    network.eval()
    return save({name: t.detach().contiguous() for name, t in adapter.factors().items()})


def loss_of(out: Any, x: Tensor, lmbda: float) -> Tensor:
    """Return R + lmbda · 255² · MSE of a CompressAI model's output for x [B, 3, H, W]."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    nats = torch.stack([-p.log().sum() for p in out["likelihoods"].values()]).sum()
    mse = (out["x_hat"] - x).square().mean()
    total: Tensor = nats / (math.log(2) * pixels) + lmbda * 255**2 * mse
    return total
