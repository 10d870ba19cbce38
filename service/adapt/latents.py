"""The bits that the latents of one tile cost, differentiable by the latents.

Stochastic Gumbel annealing (Yang, Bamler & Mandt 2020, "Improving Inference for Neural Image
Compression"): every latent is a mixture of the two whole numbers of quantiser steps around it,
drawn with the Gumbel-softmax trick at a temperature that falls as the adaptation goes on. We differ
in two points. Means come from the step networks, so the values of one step move the means of the
next, and gradients flow through that. And latents whose scale is level 0 are not coded, as in the
codec.

The stream does not depend on these floats: the exact coder rounds the latents (codec/latents.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.codec.entropy_model import LEVELS
from service.codec.tiles import Z_CELL
from service.nets.model import Backbone, gaussian_bits, sigma
from service.nets.steps import by_step, cells
from service.nets.twin import float_twin, quantiser_steps
from service.store.model import StoredModel

ODDS_MIN = 1e-5
"""Smallest distance to a whole number that a latent counts as; keeps atanh finite."""

Relax = Callable[[Tensor], Tensor]
"""Values in quantiser steps -> the values to code in their place."""


@dataclass(frozen=True, eq=False)
class RelaxedLatents:
    """A tile's relaxed latents, [h, w, M], and the bits of y and z together, a scalar."""

    y_hat: Tensor
    bits: Tensor


class RateModel:
    """The entropy model of a merged rate in differentiable floats."""

    def __init__(self, stored: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Build the float twin of a model that is merged for the rate.

        `dtype` is the working type of the networks' products (autocast); float32 turns that off.
        """
        self.net: Backbone = float_twin(stored).to(device)
        y_step, z_step = quantiser_steps(stored)
        self.y_step, self.z_step = y_step.to(device), z_step.to(device)
        self._steps = by_step(self.y_step.expand(4, 1, -1))
        self.device, self.dtype = device, dtype

    def autocast(self) -> torch.autocast:
        """The context that networks run in."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def code(
        self, y: Tensor, z: Tensor, relax: Relax, skipped: Tensor | None = None
    ) -> RelaxedLatents:
        """The latents of a tile as `relax` brings them near whole steps, and their bits.

        Args:
            y: [h, w, M] latents. z: [ceil(h/4), ceil(w/4), Cz] hyper-latents.
            skipped: [h, w] bool, positions that are not coded; None where all are.
        """
        height, width, _ = y.shape
        pad = (0, 0, 0, -width % Z_CELL, 0, -height % Z_CELL)
        kept = torch.ones(height, width, 1, device=y.device)
        if skipped is not None:
            kept = kept * ~skipped[..., None]
        targets, coded = (by_step(cells(F.pad(v, pad)[None])) for v in (y, kept.expand_as(y)))
        z_coded = F.max_pool2d(F.pad(kept, pad)[None, ..., 0], Z_CELL)[0, ..., None]
        z_symbols = relax((z - self.net.z_mean) / self.z_step) * z_coded
        bits = (gaussian_bits(z_symbols, sigma(self.net.z_idx)) * z_coded).sum()
        costs = []

        def choose(t: int, mean: Tensor, level8: Tensor) -> Tensor:
            step = self._steps[t]
            symbols, cost = _code_step((targets[t] - mean) / step, level8, relax)
            costs.append((cost * coded[t]).sum())
            return mean + symbols * coded[t] * step

        z_hat = z_symbols * self.z_step + self.net.z_mean
        with self.autocast():
            y_hat = self.net.run(z_hat[None], choose)
        return RelaxedLatents(y_hat[0, :height, :width], bits + torch.stack(costs).sum())


def _code_step(v: Tensor, level8: Tensor, relax: Relax) -> tuple[Tensor, Tensor]:
    """Relaxed symbols of one step, and the bits of each."""
    coded = (level8.detach() * 8).clamp(0, LEVELS - 1).round() > 0
    symbols = torch.where(coded, relax(v), torch.zeros_like(v))
    bits = gaussian_bits(symbols, sigma(level8))
    return symbols, torch.where(coded, bits, torch.zeros_like(bits))


def annealed(tau: float, generator: torch.Generator) -> Relax:
    """Draw between the two whole neighbours of every value, as softly as the temperature says."""

    def relax(v: Tensor) -> Tensor:
        low = v.detach().floor()
        up = (v - low).clamp(ODDS_MIN, 1 - ODDS_MIN)
        odds = (torch.atanh(up) - torch.atanh(1 - up)) / tau
        u = torch.rand(v.shape, generator=generator, device=v.device).clamp_(1e-6, 1 - 1e-6)
        # the difference of two Gumbel variables is logistic
        return low + torch.sigmoid((odds + torch.log(u) - torch.log1p(-u)) / tau)

    return relax
