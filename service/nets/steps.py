"""The four coding steps of the float model, each computed only for the latents that it codes.

Latents are split into the four classes of positions in a 2×2 cell, [4, n, C], and the channels of
each class into groups by the step that codes them. So the layers of a step compute a quarter of the
channels at each position, as the integer networks do (codec/entropy_model.py). The results equal
those of masks over the whole grid, and the entropy part of a training step takes half the time.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from service.codec.entropy_model import GROUP_AT, STEPS
from service.nets.backbone import ScaledLinear

XOR: Final = tuple(int(g) for g in GROUP_AT[:, 0])
"""Step t codes channel group p xor XOR[t] at the positions of class p."""


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a Linear with its scale vectors folded in.

    Returns:
        [N, K] and [N], or [G, N, K] and [G, N] if the layer has weights for G groups.
    """
    assert isinstance(layer, nn.Linear)
    if isinstance(layer, ScaledLinear):
        return layer.effective_weight(), layer.bias * layer.so
    return layer.weight, layer.bias


def cells(x: Tensor) -> Tensor:
    """Split positions by class: [B, h, w, C] with even h and w -> [4, B·h·w/4, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).permute(2, 4, 0, 1, 3, 5).reshape(4, -1, c)


def from_cells(x: Tensor, b: int, h: int, w: int) -> Tensor:
    """The inverse of `cells`: [4, n, C] -> [b, h, w, C]."""
    c = x.shape[-1]
    grid = x.reshape(2, 2, b, h // 2, w // 2, c).permute(2, 3, 0, 4, 1, 5)
    return grid.reshape(b, h, w, c)


def by_step(x: Tensor) -> tuple[Tensor, ...]:
    """Split channels by the step that codes them: [4, n, M] -> four of [4, n, M/4]."""
    parts = [at.reshape(x.shape[1], -1, STEPS).unbind(-1) for at in x.unbind()]
    return tuple(torch.stack([parts[p][p ^ XOR[t]] for p in range(4)]) for t in range(STEPS))


def from_steps(parts: list[Tensor]) -> Tensor:
    """The inverse of `by_step`: four of [4, n, M/4] -> [4, n, M]."""
    apart = [part.unbind() for part in parts]
    at = [[apart[XOR.index(p ^ g)][p] for g in range(STEPS)] for p in range(4)]
    return torch.stack([torch.stack(groups, -1).flatten(1) for groups in at])


def groups_of(weight: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Split M entries along a negative axis by channel group: four of M/4 entries."""
    return torch.unflatten(weight, axis, (-1, STEPS)).unbind(axis)


def head(layer: nn.Module, t: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Run the head of step t: hidden [4, n, K] -> mu and level/8, [4, n, M/4] float32 each."""
    weight, bias = weight_and_bias(layer)
    parts = zip(weight.chunk(2, -2), bias.chunk(2, -1), strict=True)
    halves = [(groups_of(w, -2), groups_of(b, -1)) for w, b in parts]
    at = [p ^ XOR[t] for p in range(4)]
    weights = torch.stack([torch.cat([w[g] for w, _ in halves], -2) for g in at])
    biases = torch.stack([torch.cat([b[g] for _, b in halves], -1) for g in at])
    mu, idx = _products(hidden, weights, biases).float().chunk(2, -1)
    return mu, idx


def context(weight: Tensor, t: int, known: list[Tensor]) -> Tensor:
    """The part of the first layer of step t (1–3) that reads coded latents: [4, n, cc].

    `weight` [cc, M] are its columns for y_hat, `known` the y_hat [4, n, M/4] of each step before.
    """
    groups = groups_of(weight, -1)
    reads = [torch.cat([groups[p ^ XOR[u]] for u in range(t)], -1) for p in range(4)]
    return _products(torch.cat(known, -1), torch.stack(reads), None)


def _products(x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
    """Multiply x [4, n, K] of each class of positions by its weights [4, N, K]: [4, n, N].

    If the n positions belong to G groups of items, weights are [4, G, N, K], biases [4, G, N].
    """
    flat = weights.reshape(-1, *weights.shape[-2:]).mT.to(x.dtype)
    grouped = x.reshape(len(flat), -1, x.shape[-1])
    if biases is None:
        out = torch.bmm(grouped, flat)
    else:
        out = torch.baddbmm(biases.reshape(len(flat), 1, -1).to(x.dtype), grouped, flat)
    return out.reshape(4, x.shape[1], -1)
