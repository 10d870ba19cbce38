"""A rate's adapter while it is trained: low-rank factors, bias deltas and quantiser steps.

The base stays frozen. `RateAdapter.merged` gives the parameters that torch.func.functional_call
puts in place of the base's, so one code path trains any rate. Factors live in a domain where rows
and columns of the base weight have unit scale, the one codec.lowrank merges in, so that what is
trained is what 8-bit factors can say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.nets.model import Backbone


@dataclass(frozen=True, eq=False)
class Domain:
    """Scales of one layer: delta W = rows · (B A) · columns.

    Attributes:
        rows: [N]. columns: [K]. bias: [N], unit of the bias deltas.
        rank: of the update, 0 for biases only.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor
    rank: int

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Domain:
        """With a function's results for its tensors."""
        return Domain(change(self.rows), change(self.columns), change(self.bias), self.rank)


@dataclass(frozen=True)
class LearningRates:
    """Learning rates: of B factors and biases, of A factors, of quantiser steps and z's levels."""

    b: float
    a: float
    steps: float


class RateAdapter(nn.Module):
    """The trainable tensors of one rate on top of a frozen backbone."""

    def __init__(self, base: Backbone, domains: Mapping[str, Domain], seed: int) -> None:
        """Start as the base itself.

        Args:
            base: with plain Linear layers; not changed.
            domains: layer name -> scales and rank; layers left out are left alone.
            seed: of the Gaussian A factors; B starts at zero.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.domains = dict(domains)
        self.weights = {n: base.get_parameter(f"{n}.weight").detach() for n in domains}
        self.biases = {n: base.get_parameter(f"{n}.bias").detach() for n in domains}
        self.a, self.b, self.d = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, domain in self.domains.items():
            key = _key(name)
            if domain.rank:
                a = torch.randn(domain.rank, len(domain.columns), generator=generator)
                self.a[key] = nn.Parameter(a)
                self.b[key] = nn.Parameter(torch.zeros(len(domain.rows), domain.rank))
            self.d[key] = nn.Parameter(torch.zeros(len(domain.bias)))
        self.unit_step = base.unit_step.detach()
        self.log_y_step = nn.Parameter(torch.zeros(base.sizes.M))
        self.log_z_step = nn.Parameter(torch.zeros(base.sizes.Cz))
        self.z_idx = nn.Parameter(base.z_idx.detach().clone())

    def merged(self) -> dict[str, Tensor]:
        """Parameters and buffers of Backbone that this rate replaces."""
        out = {
            "y_step": self.unit_step * self.log_y_step.exp(),
            "z_step": self.log_z_step.exp(),
            "z_idx": self.z_idx,
        }
        for name, domain in self.domains.items():
            delta = self.delta(name)
            if delta is not None:
                scaled = domain.rows[:, None] * delta * domain.columns
                out[f"{name}.weight"] = self.weights[name] + scaled.view_as(self.weights[name])
            out[f"{name}.bias"] = self.biases[name] + domain.bias * self.d[_key(name)]
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RateAdapter:
        """Moves what is frozen too: the base's weights and the scales."""
        nn.Module._apply(self, fn, recurse)
        self.weights = {n: fn(t) for n, t in self.weights.items()}
        self.biases = {n: fn(t) for n, t in self.biases.items()}
        self.unit_step = fn(self.unit_step)
        self.domains = {n: d.mapped(fn) for n, d in self.domains.items()}
        return self

    def delta(self, name: str) -> Tensor | None:
        """Change of a layer's weight in its domain, [N, K]; None where it has none."""
        if not self.domains[name].rank:
            return None
        product: Tensor = self.b[_key(name)] @ self.a[_key(name)]
        return product

    @torch.no_grad()
    def start_from(self, other: RateAdapter, lmbda_ratio: float) -> None:
        """Continue from the neighbouring rate.

        At high rate the best step goes with lmbda^(-1/2), so steps start there.

        Args:
            other: the neighbour, of the same domains.
            lmbda_ratio: this rate's lmbda over the neighbour's.
        """
        self.load_state_dict(other.state_dict(), strict=False)
        shift = -0.5 * math.log(lmbda_ratio)
        self.log_y_step.add_(shift)
        self.log_z_step.add_(shift / 4)

    def groups(self, lr: LearningRates) -> list[dict[str, object]]:
        """Optimiser groups with their learning rates."""
        factors = [*self.b.parameters(), *self.d.parameters()]
        return [
            {"params": factors, "lr": lr.b},
            {"params": [*self.a.parameters()], "lr": lr.a},
            {"params": [self.log_y_step, self.log_z_step, self.z_idx], "lr": lr.steps},
        ]


class FullRank(RateAdapter):
    """The control: the same start and domains, with every weight free, kernels too."""

    def __init__(self, base: Backbone, domains: Mapping[str, Domain], seed: int) -> None:
        super().__init__(base, domains, seed)
        shapes = {n: (len(d.rows), len(d.columns)) for n, d in self.domains.items()}
        self.full = nn.ParameterDict(
            {_key(n): nn.Parameter(torch.zeros(shape)) for n, shape in shapes.items()}
        )

    def delta(self, name: str) -> Tensor:
        """Low-rank change and free change together, [N, K]."""
        low_rank = super().delta(name)
        full: Tensor = self.full[_key(name)]
        return full if low_rank is None else low_rank + full

    def groups(self, lr: LearningRates) -> list[dict[str, object]]:
        """As RateAdapter's, and the free weights as the B factors."""
        return [*super().groups(lr), {"params": [*self.full.parameters()], "lr": lr.b}]


def _key(name: str) -> str:
    """ParameterDict keys may not hold dots."""
    return name.replace(".", "/")
