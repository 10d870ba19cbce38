"""A backbone and the changes of its weights at each rate, trained together.

The base is shared. A rate has low-rank factors and bias deltas of every layer, quantiser steps and
levels of z, in the form in which the store keeps adapters (codec/lowrank.py), so that one training
run gives both a base and its ladder; export/backbone.py publishes them. The rate in the middle,
BASE, has no factors. Its biases and steps are its own during training, because the base's are
trained by all rates; `rebase` moves them into the base at the end.

A batch consists of G groups of one rate each: the layers then hold G sets of merged weights, and
one call computes the products of all groups (nets/backbone.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from service.codec.entropy_model import STEPS
from service.nets.backbone import Depthwise, ScaledLinear
from service.nets.families import latent_layers
from service.nets.lora import RateAdapter
from service.nets.model import LOG_STEP, Backbone, Estimate, Relax
from service.train.tunes import BASE, LADDER

RANKS: Final[Mapping[str, int]] = {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1}
"""Rank of the updates of each part; a rate then takes under 1 % of the backbone's bytes."""


class RateLadder(nn.Module):
    """The trainable tensors of a backbone at several rates.

    The changes are two matrices with a row for each rate, so that a step selects the rows of its
    rates in a few operations for all layers together.

    Attributes:
        base: the backbone, which is the rate BASE.
        rates: numbers of the rates, ascending.
        factors: [R, P], factors and bias deltas of all layers, see `Layout`.
        vectors: [R, M + 2·Cz], logarithms of the steps of y and of z, and offsets of `z_idx`.
    """

    def __init__(self, base: Backbone, rates: Sequence[int]) -> None:
        """Start every rate as the base with quantiser steps that fit its lmbda at high rate.

        The base has scale vectors (ScaledLinear), and BASE is among the rates.
        """
        super().__init__()
        self.base, self.rates = base, tuple(sorted(rates))
        count, self.base_at = len(self.rates), self.rates.index(BASE)
        self.layout = Layout.of(base)
        generator = torch.Generator().manual_seed(0)
        factors = torch.zeros(count, sum(self.layout.sizes))
        for a in self.layout.changes(factors).a.values():
            a.copy_(torch.randn(a.shape, generator=generator))
            a[self.base_at] = 0
        shifts = [-0.5 * math.log(LADDER[r] / LADDER[BASE]) for r in self.rates]
        shift = torch.tensor(shifts).reshape(-1, 1)
        M, Cz = base.sizes.M, base.sizes.Cz
        vectors = [shift.repeat(1, M), (shift / 4).repeat(1, Cz), torch.zeros(count, Cz)]
        self.factors = nn.Parameter(factors)
        self.vectors = nn.Parameter(torch.cat(vectors, 1))

    def forward(self, x: Tensor, index: Tensor, relax: Relax | None) -> Estimate:
        """Predict rate and reconstruction, each group of the batch at its rate.

        Args:
            x: [G·n, H, W, 3] in [0, 1]. relax: see Backbone.forward.
            index: [G] int64, the place of each group's rate in `rates`.
        """
        if len(self.rates) == 1:
            return self.base.forward(x, relax=relax)
        changes = self.merged(index)
        out: Estimate = torch.func.functional_call(self.base, changes, (x,), {"relax": relax})
        return out

    def merged(self, index: Tensor) -> dict[str, Tensor]:
        """Parameters and buffers of the base at the rates of G groups, [G, ...] each."""
        M, Cz = self.base.sizes.M, self.base.sizes.Cz
        y_step, z_step, z_idx = self.vectors.index_select(0, index).split([M, Cz, Cz], 1)
        out = {
            "y_step": self.base.unit_step * y_step.exp(),
            "z_step": z_step.exp(),
            "z_idx": self.base.z_idx + z_idx,
        }
        changes = self.layout.changes(self.factors.index_select(0, index))
        layers = layers_of(self.base)
        biases = torch.cat([module.bias for _, module in layers if module.bias is not None])
        merged = self.layout.by_layer(biases + changes.biases)
        out |= {f"{name}.bias": bias for name, bias in merged.items()}
        with torch.autocast(index.device.type, enabled=False):
            for name, module in layers:
                if name in changes.b:
                    weight = module.weight.expand(len(index), -1, -1)
                    b, a, scale = changes.b[name], changes.a[name], weight.shape[2] ** -0.5
                    out[f"{name}.weight"] = torch.baddbmm(weight, b, a, alpha=scale)
        return {n: t[0] for n, t in out.items()} if len(index) == 1 else out

    def groups(self, frozen: bool) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Return the trained parameters, with their factor of the learning rate.

        If `frozen`, the encoder's parameters (g_a, h_a) are left out.
        """
        base = {f"base.{n}": p for n, p in self.base.named_parameters()}
        if frozen:
            base = {n: p for n, p in base.items() if not n.startswith(("base.g_a", "base.h_a"))}
        if len(self.rates) == 1:
            return [(1.0, base)]
        return [(1.0, base), (2.5, {"factors": self.factors}), (5.0, {"vectors": self.vectors})]

    def masks(self, frozen: bool) -> dict[str, Tensor]:
        """Return masks of partly trained parameters: 1 where they are trained, 0 elsewhere.

        If `frozen`, the encoder's parameters (g_a, h_a) are left out.
        """
        if len(self.rates) == 1:
            return {}
        M, Cz = self.base.sizes.M, self.base.sizes.Cz
        factors, vectors = torch.ones_like(self.factors.data), torch.ones_like(self.vectors.data)
        changes = self.layout.changes(factors)
        vectors[self.base_at, M : M + Cz] = 0
        for part in (*changes.a.values(), *changes.b.values()):
            part[self.base_at] = 0
        if frozen:
            vectors[:, : M + Cz] = 0
            for parts in (changes.b, changes.a, changes.d):
                for name, part in parts.items():
                    if name.startswith(("g_a", "h_a")):
                        part.zero_()
        return {"factors": factors, "vectors": vectors}

    @torch.no_grad()
    def rebase(self) -> None:
        """Move the changes of BASE into the base; every rate computes what it did.

        Steps of y are moved into the scales of the layers that write and read latents.
        """
        changes, at = self.layout.changes(self.factors.data), self.base_at
        for name, module in layers_of(self.base):
            assert module.bias is not None
            module.bias.add_(changes.d[name][at])
            changes.d[name].sub_(changes.d[name][at].clone())
        M, Cz = self.base.sizes.M, self.base.sizes.Cz
        self.base.z_idx.add_(self.vectors[at, -Cz:])
        log_step = self.vectors[at, :M].clone()
        self.vectors.sub_(self.vectors[at].clone())
        divide_latents(self.base, log_step.exp())
        for t in range(STEPS):
            head = self.base.head0 if t == 0 else self.base.step(t)[2]
            assert isinstance(head, ScaledLinear)
            head.bias[M:] -= log_step / (8 * LOG_STEP) / head.so[M:]


@torch.no_grad()
def divide_latents(model: Backbone, step: Tensor) -> None:
    """Divide y by `step` [M], and multiply by it in the layers that read y; levels stay the same.

    The model has scale vectors.
    """
    s = model.sizes
    scaled = {n: m for n, m in model.named_modules() if isinstance(m, ScaledLinear)}
    names = latent_layers(s)
    scaled[names.deep_out].so.div_(step[: s.c16])
    scaled[names.straight_out].so[s.c16 :] /= step[s.c16 :]
    scaled[names.deep_in].si.mul_(step[: s.c16])
    scaled[names.straight_in].si[s.c16 :] *= step[s.c16 :]
    scaled["h_a.0"].si.mul_(step)
    for t in range(STEPS):
        scaled["head0" if t == 0 else f"ctx.{t - 1}.2"].so[: s.M] /= step
        if t:
            scaled[f"ctx.{t - 1}.0"].si[s.cp :] *= step


@dataclass(frozen=True)
class Changes:
    """The changes of each layer by name, as views of rows of `RateLadder.factors`.

    Attributes:
        b, a: [R, N, r] and [R, r, K], of the layers that have factors.
        d: [R, N], bias deltas of each layer.
        biases: bias deltas of all layers in one tensor.
    """

    b: Mapping[str, Tensor]
    a: Mapping[str, Tensor]
    d: Mapping[str, Tensor]
    biases: Tensor


@dataclass(frozen=True)
class Layout:
    """The places of each layer's changes in a row of `RateLadder.factors`.

    First the factors of each layer with a rank, B [N, r] and then A [r, K], in units where a row of
    the weight has an rms of 1; then the bias deltas of all layers, in units of the biases.
    """

    ranks: Mapping[str, int]
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, base: Backbone) -> Layout:
        """The layout for a backbone."""
        ranks, shapes = {}, {}
        for name, module in layers_of(base):
            shapes[name] = len(module.weight), module.weight[0].numel()
            if not isinstance(module, Depthwise):
                ranks[name] = RANKS.get(name[:3], RANKS["entropy"])
        return cls(ranks, shapes)

    @property
    def sizes(self) -> list[int]:
        """Number of elements of B and of A of each layer in turn, and of all bias deltas."""
        factors = [self.ranks[n] * side for n in self.ranks for side in self.shapes[n]]
        return [*factors, sum(rows for rows, _ in self.shapes.values())]

    def changes(self, factors: Tensor) -> Changes:
        """Return views of rows [R, P]. They come from one split, whose gradient is one `cat`."""
        *parts, biases = factors.split(self.sizes, 1)
        b = zip(self.ranks.items(), parts[::2], strict=True)
        a = zip(self.ranks.items(), parts[1::2], strict=True)
        return Changes(
            {name: part.unflatten(1, (-1, rank)) for (name, rank), part in b},
            {name: part.unflatten(1, (rank, -1)) for (name, rank), part in a},
            self.by_layer(biases),
            biases,
        )

    def by_layer(self, biases: Tensor) -> dict[str, Tensor]:
        """Return views of the biases of all layers, [R, ...], by the layers' names."""
        parts = biases.split([rows for rows, _ in self.shapes.values()], 1)
        return dict(zip(self.shapes, parts, strict=True))


def layers_of(base: Backbone) -> list[tuple[str, nn.Linear | Depthwise]]:
    """Return the layers that rates change, with their names in a backbone."""
    return [(n, m) for n, m in base.named_modules() if isinstance(m, (nn.Linear, Depthwise))]


@torch.no_grad()
def read_adapter(ladder: RateLadder, at: int, adapter: RateAdapter) -> None:
    """Copy an adapter of a ladder's base into row `at` of the ladder's changes."""
    for row, row_unit, factor, unit in _shared_tensors(ladder, at, adapter):
        row.copy_(factor * unit / row_unit)
    vectors = adapter.log_y_step, adapter.log_z_step, adapter.z_idx - ladder.base.z_idx
    ladder.vectors.data[at].copy_(torch.cat(vectors))


@torch.no_grad()
def write_adapter(ladder: RateLadder, at: int, adapter: RateAdapter) -> None:
    """Copy row `at` of a ladder's changes into an adapter of the ladder's base."""
    for row, row_unit, factor, unit in _shared_tensors(ladder, at, adapter):
        factor.copy_(row * row_unit / unit)
    M, Cz = ladder.base.sizes.M, ladder.base.sizes.Cz
    log_y_step, log_z_step, z_idx = ladder.vectors.data[at].split([M, Cz, Cz])
    adapter.log_y_step.copy_(log_y_step)
    adapter.log_z_step.copy_(log_z_step)
    adapter.z_idx.copy_(ladder.base.z_idx + z_idx)


def _shared_tensors(
    ladder: RateLadder, at: int, adapter: RateAdapter
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Factors and biases of a ladder's row and of an adapter, in pairs.

    Yields:
        A view of the row and its unit; the adapter's tensor of the same shape and its unit.
    """
    row = ladder.layout.changes(ladder.factors.data[at : at + 1])
    for name, domain in adapter.domains.items():
        rows, columns, bias = _row_units(ladder.base.get_submodule(name))
        key = name.replace(".", "/")
        if domain.rank:
            yield row.a[name][0], columns, adapter.a[key], domain.columns
            yield row.b[name][0], rows[:, None], adapter.b[key], domain.rows[:, None]
        yield row.d[name][0], bias, adapter.d[key], domain.bias


def _row_units(module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Units of a ladder's factors of a layer: of its rows [N], columns [K] and biases [N]."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    rows, columns = len(module.weight), module.weight[0].numel()
    scale = columns**-0.5
    if isinstance(module, ScaledLinear):
        return module.so * scale, module.si, module.so
    return torch.full((rows,), scale), torch.ones(columns), torch.ones(rows)
