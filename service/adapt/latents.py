"""Latents of one tile as variables, and the bits they would cost, differentiable.

Stochastic Gumbel annealing (Yang, Bamler & Mandt 2020, "Improving Inference for Neural Image
Compression"): every latent is a mixture of the two whole numbers of quantiser steps around it,
drawn with the Gumbel-softmax trick at a temperature that falls during the run. What differs here:
means come from the step networks, so a choice made in one step moves the means of the next and
gradients flow through that; and latents whose scale is level 0 are not coded, as in the codec.

The exact coder has the last word: it rounds what comes out of here (codec/latents.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from service.codec.entropy_model import GROUP_AT, LEVELS, STEPS
from service.codec.tiles import Z_CELL
from service.nets.model import Backbone, gaussian_bits, sigma
from service.nets.twin import Weights, float_twin, quantiser_steps

ODDS_MIN = 1e-5
"""How close to a whole number a latent counts as; keeps atanh finite."""

Relax = Callable[[Tensor], Tensor]
"""Values in quantiser steps -> what to code in their place."""


@dataclass(frozen=True, eq=False)
class Coded:
    """What a tile's variables stand for.

    Attributes:
        y_hat: [h, w, M]. bits: of y and z, a scalar.
    """

    y_hat: Tensor
    bits: Tensor


class RateModel:
    """The entropy model of a merged rate, in floats, to differentiate."""

    def __init__(self, stored: Weights, device: torch.device, dtype: torch.dtype) -> None:
        """Build the float twin.

        Args:
            stored: merged for the rate. device: where to run.
            dtype: working type of the networks' products (autocast); float32 turns that off.
        """
        self.net: Backbone = float_twin(stored).to(device)
        y_step, z_step = quantiser_steps(stored)
        self.y_step, self.z_step = y_step.to(device), z_step.to(device)
        self._steps_by_cell = _cells(self.y_step.expand(2, 2, -1))
        self.device, self.dtype = device, dtype

    def autocast(self) -> torch.autocast:
        """The context that networks run in."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def code(self, y: Tensor, z: Tensor, relax: Relax) -> Coded:
        """Walk through the steps of a tile.

        Args:
            y: [h, w, M] latents. z: [ceil(h/4), ceil(w/4), Cz] hyper-latents.
            relax: how values are brought near whole steps.
        """
        z_symbols = relax((z - self.net.z_mean) / self.z_step)
        bits = gaussian_bits(z_symbols, sigma(self.net.z_idx)).sum()
        with self.autocast():
            features = self.net.h_s((z_symbols * self.z_step + self.net.z_mean)[None])
        height, width, _ = y.shape
        pad = (0, 0, 0, -width % Z_CELL, 0, -height % Z_CELL)
        targets = _cells(torch.nn.functional.pad(y, pad))
        inside = _cells(torch.nn.functional.pad(torch.ones_like(y[..., :4]), pad))
        cells = torch.zeros_like(targets)
        y_hat = _spread(cells)
        for t in range(STEPS):
            at = torch.tensor(_coded_at(t), device=self.device)
            with self.autocast():
                out = self._heads(t, features, y_hat)
            mean, level8 = (_cells(part)[at] for part in out.float().chunk(2, -1))
            step = self._steps_by_cell[at]
            symbols, cost = _code_step((targets[at] - mean) / step, level8, relax)
            bits = bits + (cost * inside[at]).sum()
            cells = cells.index_copy(0, at, mean + symbols * step)
            y_hat = _spread(cells)
        return Coded(y_hat[:height, :width], bits)

    def _heads(self, t: int, features: Tensor, y_hat: Tensor) -> Tensor:
        """Means and level/8 of every latent at step t, [H, W, 2M]."""
        if t == 0:
            out: Tensor = self.net.head0(features)
        else:
            out = self.net.ctx[t - 1](torch.cat([features, y_hat[None].to(features.dtype)], -1))
        return out[0]


def _code_step(v: Tensor, level8: Tensor, relax: Relax) -> tuple[Tensor, Tensor]:
    """Symbols of one step and the bits of each."""
    coded = (level8.detach() * 8).clamp(0, LEVELS - 1).round() > 0
    symbols = torch.where(coded, relax(v), torch.zeros_like(v))
    bits = gaussian_bits(symbols, sigma(level8))
    return symbols, torch.where(coded, bits, torch.zeros_like(bits))


def annealed(tau: float, generator: torch.Generator) -> Relax:
    """Draw between the two neighbours of every value, softly at temperature tau."""

    def relax(v: Tensor) -> Tensor:
        low = v.detach().floor()
        up = (v - low).clamp(ODDS_MIN, 1 - ODDS_MIN)
        odds = (torch.atanh(up) - torch.atanh(1 - up)) / tau
        u = torch.rand(v.shape, generator=generator, device=v.device).clamp_(1e-6, 1 - 1e-6)
        # the difference of two Gumbel variables is logistic
        return low + torch.sigmoid((odds + torch.log(u) - torch.log1p(-u)) / tau)

    return relax


def nearest(v: Tensor) -> Tensor:
    """The nearest whole step, with no gradient."""
    return v.round()


def _cells(values: Tensor) -> Tensor:
    """[H, W, C] by place in a 2×2 cell and channel group, [4 · 4, H/2, W/2, C/4]."""
    height, width, channels = values.shape
    split = values.reshape(height // 2, 2, width // 2, 2, channels // 4, 4)
    return split.permute(1, 3, 5, 0, 2, 4).reshape(16, height // 2, width // 2, channels // 4)


def _spread(cells: Tensor) -> Tensor:
    """The inverse of `_cells`."""
    _, rows, columns, channels = cells.shape
    split = cells.reshape(2, 2, 4, rows, columns, channels).permute(3, 0, 4, 1, 5, 2)
    return split.reshape(2 * rows, 2 * columns, 4 * channels)


def _coded_at(t: int) -> list[int]:
    """Which of `_cells` step t codes: one group at each place."""
    return [4 * place + int(group) for place, group in enumerate(GROUP_AT[t])]
