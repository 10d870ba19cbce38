"""The trainable model: transforms, entropy networks, quantisers and the rate that they predict.

Training optimises this model, and the integer networks (codec/entropy_model.py) are exported from
it. In training the rate is predicted on a relaxation of rounding, otherwise on the codec's real
symbols; reconstructions and contexts use straight-through rounding (Minnen & Singh 2020). Names of
weights are those of checkpoints: g_a g_s h_a h_s head0 ctx z_mean z_idx.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from service.codec.entropy_model import GROUP_AT, LEVELS, STEPS
from service.codec.sizes import ConvSizes, Sizes
from service.nets.backbone import (
    Block,
    LinearType,
    ScaledLinear,
    hyper_analysis,
    hyper_synthesis,
    linear,
    per_item,
)
from service.nets.families import new_prompts, transforms
from service.nets.steps import (
    by_step,
    cells,
    context,
    from_cells,
    from_steps,
    head,
    weight_and_bias,
)

SIGMA_MIN, SIGMA_MAX = 0.11, 128.0
LOG_STEP = math.log(SIGMA_MAX / SIGMA_MIN) / (LEVELS - 1)
"""Scale levels are sigma_k = SIGMA_MIN · exp(k · LOG_STEP)."""

P_MIN = 1e-9
"""Probabilities are clamped here, so one symbol never costs more than 30 bits in training."""


Choose = Callable[[int, Tensor, Tensor], Tensor]
"""(step, means, level/8), each [4, n, M/4] -> y_hat [4, n, M/4], the input of later steps."""

Relax = Callable[[Tensor], Tensor]
"""Stands for rounding where the rate is predicted: `add_noise` or `ste_round`."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """The result of a forward pass.

    Attributes:
        x_hat: [B, H, W, 3] float32, 0 black and 1 white, not clipped.
        bits_y: [B] predicted bits of y.
        bits_z: [B] predicted bits of z.
        y_hat: [B, H/16, W/16, M] float32.
    """

    x_hat: Tensor
    bits_y: Tensor
    bits_z: Tensor
    y_hat: Tensor


class Backbone(nn.Module):
    """g_a, g_s, h_a, h_s and the step networks of one backbone.

    `y_step` [M] and `z_step` [Cz] are the quantiser steps, which the adapter of a rate replaces
    (functional_call). `unit_step` [M] are the steps for which the heads predict levels, those of
    the base's own rate: 1 in training; the export makes them smaller where latents are large.
    """

    y_step: Tensor
    z_step: Tensor
    unit_step: Tensor

    def __init__(self, sizes: Sizes | None = None, linear: LinearType = ScaledLinear) -> None:
        super().__init__()
        s = self.sizes = sizes or ConvSizes()
        self.g_a, self.g_s = transforms(s, linear)
        self.h_a, self.h_s = hyper_analysis(s, linear), hyper_synthesis(s, linear)
        self.head0 = linear(s.cp, 2 * s.M)
        self.ctx = nn.ModuleList(
            nn.Sequential(linear(s.cp + s.M, s.cc), Block(s.cc), linear(s.cc, 2 * s.M))
            for _ in range(STEPS - 1)
        )
        self.register_buffer("y_step", torch.ones(s.M), persistent=False)
        self.register_buffer("unit_step", torch.ones(s.M), persistent=False)
        self.register_buffer("z_step", torch.ones(s.Cz), persistent=False)
        self.z_mean = nn.Parameter(torch.zeros(s.Cz))
        self.z_idx = nn.Parameter(torch.full((s.Cz,), math.log(1.5 / SIGMA_MIN) / LOG_STEP / 8))

    def forward(self, x: Tensor, *, relax: Relax | None) -> Estimate:
        """Predict rate and reconstruction of x [B, H, W, 3] in [0, 1], H and W multiples of 64.

        `relax` stands for rounding in training; without it, the codec's real rate is predicted.
        """
        items = len(x)
        y = self.g_a(x - 0.5).float()
        z_step, z_sigma = (per_item(v, items) for v in (self.z_step, sigma(self.z_idx)))
        z = (self.h_a(y).float() - self.z_mean) / z_step
        bits_z = gaussian_bits(z.round() if relax is None else relax(z), z_sigma)
        y_hat, means, idx = self.predict(ste_round(z) * z_step + self.z_mean, y)
        v = (y - means) / per_item(self.y_step, items)
        if relax is not None:
            bits_y = gaussian_bits(relax(v), sigma(idx))
        else:
            level = (idx * 8).clamp(0, LEVELS - 1).round()
            y_hat = torch.where(level == 0, means, y_hat)
            bits = gaussian_bits(v.round(), sigma(level / 8))
            bits_y = torch.where(level == 0, torch.zeros_like(bits), bits)
        x_hat = self.g_s(y_hat).float() + 0.5
        return Estimate(x_hat, bits_y.sum((1, 2, 3)), bits_z.sum((1, 2, 3)), y_hat)

    def attach_prompts(self) -> None:
        """Give a Swin backbone prompt generators with random weights; see `new_prompts`."""
        prompts = new_prompts(self.sizes)
        self.g_a.prompts, self.g_s.prompts = prompts["g_a"], prompts["g_s"]

    def step(self, t: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """First layer, block and head of step t (1–3)."""
        net = self.ctx[t - 1]
        assert isinstance(net, nn.Sequential)
        return net[0], net[1], net[2]

    def predict(self, z_hat: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the four steps with straight-through rounding: y_hat, means and level/8.

        z_hat is [B, h/4, w/4, Cz], the others [B, h, w, M] with even h and w. Levels are scales in
        units of quantiser steps, so a step of 2 lowers the level as much as half the scale does.
        """
        y_steps = self.y_step.reshape(-1, y.shape[-1])
        if len(y_steps) > 1:
            y_steps = per_item(y_steps, y.shape[:3].numel() // 4).reshape(-1, y.shape[-1])
        steps = by_step(y_steps.expand(4, -1, -1))
        finer = by_step(((y_steps / self.unit_step).log() / (8 * LOG_STEP)).expand(4, -1, -1))
        targets, means, idx = by_step(cells(y)), [], []

        def straight_through(t: int, mu: Tensor, ix: Tensor) -> Tensor:
            means.append(mu)
            idx.append(ix - finer[t])
            return ste_round((targets[t] - mu) / steps[t]) * steps[t] + mu

        y_hat = self.run(z_hat, straight_through)
        mean, level = (from_cells(from_steps(x), *y.shape[:3]) for x in (means, idx))
        return y_hat, mean, level

    def run(self, z_hat: Tensor, choose: Choose) -> Tensor:
        """Run the four steps: z_hat [B, h/4, w/4, Cz] -> the chosen y_hat [B, h, w, M]."""
        features = self.h_s(z_hat)
        b, h, w, cp = features.shape
        firsts = [weight_and_bias(self.step(t)[0]) for t in range(1, STEPS)]
        reads_p = torch.cat([weight[..., :cp] for weight, _ in firsts], -2)
        shared = linear(features, reads_p, torch.cat([bias for _, bias in firsts], -1))
        known: list[Tensor] = []
        for t in range(STEPS):
            if t == 0:
                mu, ix = head(self.head0, t, cells(features))
            else:
                _, block, last = self.step(t)
                coded = [k.to(shared.dtype) for k in known]
                reads_y = from_cells(context(firsts[t - 1][0][..., cp:], t, coded), b, h, w)
                hidden = block(shared.chunk(STEPS - 1, -1)[t - 1] + reads_y)
                mu, ix = head(last, t, cells(hidden))
            known.append(choose(t, mu, ix))
        return from_cells(from_steps(known), b, h, w)


def step_masks(h: int, w: int, M: int, device: torch.device) -> Tensor:
    """[4, h, w, M] float32: 1 where step t codes a channel at a position, else 0."""
    rows, cols = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)[None]
    position = rows % 2 * 2 + cols % 2
    group = torch.arange(M, device=device) % 4
    at = torch.as_tensor(GROUP_AT, device=device)[:, position]
    return (at[..., None] == group).float()


def ste_round(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


def add_noise(v: Tensor) -> Tensor:
    """Add uniform noise between -1/2 and 1/2, a differentiable stand-in for rounding."""
    return v + torch.rand_like(v) - 0.5


class _Clamp(torch.autograd.Function):
    """A clamp whose gradient is 0 only where it would lead further out of the range."""

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        # gradient descent steps against the gradient
        kept = ((x >= ctx.low) | (grad < 0)) & ((x <= ctx.high) | (grad > 0))
        return torch.where(kept, grad, torch.zeros_like(grad)), None, None


def clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp x so that training can move it back inside (Ballé's lower bound, on both sides)."""
    apply: Callable[..., Tensor] = _Clamp.apply
    return apply(x, low, high)


def sigma(idx: Tensor) -> Tensor:
    """Scale of levels given as level/8, the unit of the networks; levels are clamped."""
    return SIGMA_MIN * torch.exp(LOG_STEP * clamp(idx.float() * 8, 0.0, LEVELS - 1.0))


def gaussian_bits(v: Tensor, scale: Tensor) -> Tensor:
    """Bits of integers v under N(0, scale²): -log2 of the mass of the unit bin, elementwise."""
    v, r = v.abs(), math.sqrt(0.5) / scale
    mass = 0.5 * (torch.erfc((v - 0.5) * r) - torch.erfc((v + 0.5) * r))
    return -torch.log2(clamp(mass, P_MIN, math.inf))
