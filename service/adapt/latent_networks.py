"""The networks of latent streams in torch, with gradients; codec/overfit.py has the exact ones.

Grids are float tensors [B, n, rows, columns] for each pyramid level, the finest first. In training
they are rounded softly, with noise (`relax`), as in C3: "High-performance and low-complexity neural
compression from a single image or video" (Kim et al.), section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.coder import LAPLACE_LEVELS
from service.codec.fixed_point import LEAK
from service.codec.overfit import (
    CONTEXT,
    MARGIN,
    TENSORS,
    VALUE_MAX,
    WEIGHT_FRAC,
    WEIGHT_MAX,
    LatentNetworks,
)

LEAST_MASS = 2.0**-24
"""Smallest probability of a value."""


TEMPERATURES: Final = (0.2, 0.05)
"""Temperature of soft rounding at the start and before the last steps."""
HARD: Final = 0.1
"""Share of the steps, at the end, with really rounded grids."""


@dataclass(frozen=True)
class UsedGrids:
    """Which grids of all are used.

    Attributes:
        levels: for each pyramid level, places of its used grids among all.
    """

    levels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, levels: Sequence[int], used: Sequence[bool]) -> UsedGrids:
        """The used grids of each of `levels`, which say how many grids there are."""
        starts = np.cumsum([0, *levels]).tolist()
        return cls(
            tuple(
                tuple(i for i in range(a, b) if used[i])
                for a, b in zip(starts[:-1], starts[1:], strict=True)
            )
        )

    @property
    def places(self) -> list[int]:
        """Places of all used grids."""
        return [place for level in self.levels for place in level]


class LatentNetworksTorch(nn.Module):
    """The networks as parameters, in their own units: w = integer / 2^10."""

    gain: Tensor

    def __init__(self, networks: LatentNetworks) -> None:
        """Parameters with the values of `networks`; the gain stays fixed."""
        super().__init__()
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "_"): nn.Parameter(
                    torch.from_numpy(networks.tensors[name].astype(np.float32)) * 2.0**-WEIGHT_FRAC
                )
                for name in TENSORS
                if name != "gain"
            }
        )
        self.register_buffer(
            "gain", torch.from_numpy(networks.tensors["gain"].astype(np.float32)) / 4
        )

    def weight(self, name: str) -> Tensor:
        """A tensor by its name in TENSORS."""
        out: Tensor = self.weights[name.replace(".", "_")]
        return out

    def bits(self, grids: Sequence[Tensor], used: UsedGrids) -> Tensor:
        """Bits of all values of the used grids, by the autoregressive network."""
        total = self.gain.new_zeros(())
        coarser: Tensor | None = None
        for values, places in reversed(list(zip(grids, used.levels, strict=True))):
            if not places:
                coarser = None
                continue
            total = total + self._level_bits(values, list(places), coarser)
            coarser = values
        return total

    def _level_bits(self, values: Tensor, places: list[int], coarser: Tensor | None) -> Tensor:
        inputs = contexts(values, coarser)
        a = inputs.abs() @ self.weight("ar.w1").T + self.weight("ar.b1")[places][:, None, None]
        a = F.relu(a)
        a = F.relu(F.linear(a, self.weight("ar.w2"), self.weight("ar.b2")))
        out = F.linear(a, self.weight("ar.w3")) + self.weight("ar.b3")[places][:, None, None]
        mean = (out[..., 0] + inputs @ self.weight("ar.skip")).clamp(-VALUE_MAX, VALUE_MAX)
        log_scale = out[..., 1] - self.gain[places][:, None, None]
        scale = torch.exp2(log_scale.clamp(-4, (LAPLACE_LEVELS - 1) / 4 - 4))
        return laplace_bits(values - mean, scale).sum()

    def latents(self, grids: Sequence[Tensor], used: UsedGrids) -> Tensor:
        """Latents [B, rows, columns, C] of the used grids."""
        places = used.places
        features = []
        for level, (values, own) in enumerate(zip(grids, used.levels, strict=True)):
            if own:
                grid = values * torch.exp2(self.gain[list(own)])[:, None, None]
                for finer in reversed(range(level)):
                    grid = upsample(grid, self.weight("up"), grids[finer].shape[-2:])
                features.append(grid)
        u = torch.cat(features, 1).permute(0, 2, 3, 1)
        hidden = F.linear(u, self.weight("syn.w1")[:, places], self.weight("syn.b1"))
        hidden = F.leaky_relu(hidden, LEAK)
        for name in ("syn.dw1", "syn.dw2"):
            padded = F.pad(hidden.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
            filtered = F.conv2d(padded, self.weight(name)[:, None], groups=hidden.shape[-1])
            hidden = hidden + F.leaky_relu(filtered.permute(0, 2, 3, 1), LEAK)
        straight = F.linear(u, self.weight("syn.skip")[:, places])
        return straight + F.linear(hidden, self.weight("syn.w2"), self.weight("syn.b2"))

    def integers(self) -> dict[str, np.ndarray]:
        """The tensors in units of 2^-10, float64, not rounded; without the gain."""
        return {
            name: self.weight(name).detach().double().cpu().numpy() * 2.0**WEIGHT_FRAC
            for name in TENSORS
            if name != "gain"
        }

    def set_integers(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Give parameters the values of integer tensors, by name."""
        with torch.no_grad():
            for name, value in tensors.items():
                if name != "gain":
                    exact = torch.from_numpy(np.asarray(value, np.float32)) * 2.0**-WEIGHT_FRAC
                    self.weight(name).copy_(exact)

    def rounded(self, levels: tuple[int, ...]) -> LatentNetworks:
        """The networks with whole integers."""
        tensors = {
            name: np.clip(np.rint(value), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int32)
            for name, value in self.integers().items()
        }
        tensors["gain"] = np.rint(4 * self.gain.cpu().numpy()).astype(np.int32)
        return LatentNetworks(levels, tensors)


def contexts(values: Tensor, coarser: Tensor | None) -> Tensor:
    """Inputs of the autoregressive network, [B, n, rows, columns, INPUTS]; see codec/overfit.py.

    Args:
        values: [B, n, rows, columns]. coarser: of the next coarser level with used grids of its
            own, None without any.
    """
    _, n, rows, columns = values.shape
    m = MARGIN
    padded = F.pad(values, (m, m, m, 0))
    parts = [padded[:, :, m + r : m + r + rows, m + c : m + c + columns] for r, c in CONTEXT]
    parts += [F.pad(values, (0, 0, 0, 0, k, 0))[:, :n] for k in (1, 2)]
    if coarser is None:
        parent = torch.zeros_like(values)
    else:
        index = [min(i, coarser.shape[1] - 1) for i in range(n)]
        parent = coarser[:, index].repeat_interleave(2, 2).repeat_interleave(2, 3)
        parent = parent[:, :, :rows, :columns]
    return torch.stack([*parts, parent], -1)


def laplace_bits(distance: Tensor, scale: Tensor) -> Tensor:
    """Bits of values at a distance from the mean, in bins of width 1."""
    distance = distance.abs()
    outer = torch.exp(-(distance + 0.5) / scale)
    inner_far = torch.exp(-(distance - 0.5).clamp_min(0) / scale)
    far = 0.5 * (inner_far - outer)
    near = 1 - 0.5 * (torch.exp(-(0.5 - distance).clamp_min(0) / scale) + outer)
    mass = torch.where(distance > 0.5, far, near)
    # Beyond the smallest mass the cost grows on, so that values find their way back.
    bits = -torch.log2(mass.clamp_min(LEAST_MASS))
    return torch.where(mass > LEAST_MASS, bits, 24 + (distance / scale - 16).clamp_min(0))


def upsample(grid: Tensor, taps: Tensor, shape: Sequence[int]) -> Tensor:
    """codec.overfit.upsample for [B, n, rows, columns]."""
    for axis in (2, 3):
        pad = (0, 0, 2, 2) if axis == 2 else (2, 2, 0, 0)
        padded = F.pad(grid, pad, mode="replicate")
        count = grid.shape[axis]
        parts = [padded.narrow(axis, k, count) for k in range(5)]
        even = sum(taps[k] * parts[k] for k in range(4))
        odd = sum(taps[k] * parts[4 - k] for k in range(4))
        assert isinstance(even, Tensor) and isinstance(odd, Tensor)
        both = torch.stack([even, odd], axis + 1).flatten(axis, axis + 1)
        grid = both.narrow(axis, 0, shape[axis - 2])
    return grid


def pyramid(
    features: Tensor, levels: Sequence[int], gain: Tensor, taps: Tensor
) -> tuple[Tensor, ...]:
    """Grids that together make features as well as they can: each level codes what is left.

    Grid i of a coarser level stands for the same feature as grid i of the finest.

    Args:
        features: [B, n, rows, columns], n the number of grids at 1:1.
        gain: of all grids, as octaves. taps: of the upsampling.

    Returns:
        Grids of each level, not rounded, in their steps.
    """
    starts = np.cumsum([0, *levels]).tolist()
    shrunk = [features]
    for count in levels[1:]:
        pad = (0, shrunk[-1].shape[3] % 2, 0, shrunk[-1].shape[2] % 2)
        padded = F.pad(shrunk[-1][:, :count], pad, mode="replicate")
        shrunk.append(F.avg_pool2d(padded, 2))
    grids: list[Tensor] = []
    below: Tensor | None = None  # what the coarser levels make
    for level in reversed(range(len(levels))):
        own, count = shrunk[level], levels[level]
        step = torch.exp2(gain[starts[level] : starts[level] + count])[:, None, None]
        left = own[:, :count]
        made = torch.zeros_like(left)
        if below is not None:
            finer = upsample(below, taps, own.shape[-2:])
            made[:, : finer.shape[1]] = finer[:, :count]
        grid = (left - made) / step
        grids.insert(0, grid)
        below = made + grid.round().clamp(-VALUE_MAX, VALUE_MAX) * step
    return tuple(grids)


def relax(values: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Values softly rounded, with noise, and softly rounded again."""
    noise = torch.rand(values.shape, generator=generator, device=values.device) - 0.5
    return soft_round(soft_round(values, temperature) + noise, temperature)


def rounded(
    grids: Sequence[Tensor], share: float, generator: torch.Generator | None
) -> list[Tensor]:
    """Grids of a step, softly rounded, and really rounded in the last steps.

    Args:
        share: of all steps that are done, 0-1.
    """
    if share >= 1 - HARD:
        return [hard_round(grid) for grid in grids]
    high, low = TEMPERATURES
    temperature = high + (low - high) * share / (1 - HARD)
    return [relax(grid, temperature, generator) for grid in grids]


def soft_round(x: Tensor, temperature: float) -> Tensor:
    """A smooth staircase: the identity for high temperatures, rounding for low ones."""
    low = x.detach().floor()
    r = x - low - 0.5
    reach = 2 * np.tanh(0.5 / temperature)
    rounded: Tensor = low + torch.tanh(r / temperature) / reach + 0.5
    return rounded


def hard_round(x: Tensor) -> Tensor:
    """Rounding whose gradient is that of the identity."""
    return x + (x.round() - x).detach()
