"""The adapter of a rate in training: low-rank factors, bias deltas and quantiser steps.

The base stays frozen. `RateAdapter.merged` returns parameters for torch.func.functional_call, which
replace those of the base, so one code path trains any rate. Factors are in units of the rows and
columns of the base weight, as in codec.lowrank, so that 8 bits can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.nets.families import new_prompts
from service.nets.model import Backbone


@dataclass(frozen=True, eq=False)
class Domain:
    """Units of the update of a layer: delta W = rows · (B A) · columns.

    Attributes:
        rows: [N] float32.
        columns: [K] float32.
        bias: [N] float32, units of the bias deltas.
        rank: rank of the update, 0 for a bias delta alone.
    """

    rows: Tensor
    columns: Tensor
    bias: Tensor
    rank: int

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Domain:
        """The domain with a function applied to its tensors."""
        return Domain(change(self.rows), change(self.columns), change(self.bias), self.rank)


@dataclass(frozen=True)
class AdapterLearningRates:
    """Learning rates of B factors and biases, of A factors, and of quantiser steps and z_idx."""

    b: float
    a: float
    steps: float


class RateAdapter(nn.Module):
    """The trainable tensors of one rate on top of a frozen backbone."""

    def __init__(self, base: Backbone, domains: Mapping[str, Domain], seed: int) -> None:
        """Start with an update that is zero: A is Gaussian and B zero.

        The base has plain Linear layers and is not changed; `domains` are those of the layers to
        update, by name.
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
        self.log_y_step = nn.Parameter((base.y_step / base.unit_step).log().detach())
        self.log_z_step = nn.Parameter(base.z_step.log().detach())
        self.z_idx = nn.Parameter(base.z_idx.detach().clone())

    def merged(self) -> dict[str, Tensor]:
        """Parameters and buffers of Backbone that this rate replaces, by name."""
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
        """Apply a function, such as a move to a device, to frozen tensors too."""
        nn.Module._apply(self, fn, recurse)
        self.weights = {n: fn(t) for n, t in self.weights.items()}
        self.biases = {n: fn(t) for n, t in self.biases.items()}
        self.unit_step = fn(self.unit_step)
        self.domains = {n: d.mapped(fn) for n, d in self.domains.items()}
        return self

    def delta(self, name: str) -> Tensor | None:
        """Update of a layer's weight in its domain, [N, K]; None if only the bias is updated."""
        if not self.domains[name].rank:
            return None
        product: Tensor = self.b[_key(name)] @ self.a[_key(name)]
        return product

    @torch.no_grad()
    def start_from(self, other: RateAdapter, lmbda_ratio: float) -> None:
        """Start from the adapter of a rate whose lmbda is this rate's divided by `lmbda_ratio`.

        At high rates the best quantiser step is proportional to lmbda^(-1/2), so steps start there.
        """
        self.load_state_dict(other.state_dict(), strict=False)
        shift = -0.5 * math.log(lmbda_ratio)
        self.log_y_step.add_(shift)
        self.log_z_step.add_(shift / 4)

    def groups(self, lr: AdapterLearningRates) -> list[dict[str, object]]:
        """Parameter groups for a torch optimiser, with their learning rates."""
        factors = [*self.b.parameters(), *self.d.parameters()]
        return [
            {"params": factors, "lr": lr.b},
            {"params": [*self.a.parameters()], "lr": lr.a},
            {"params": [self.log_y_step, self.log_z_step, self.z_idx], "lr": lr.steps},
        ]


class PromptAdapter(RateAdapter):
    """The trainable prompts and quantiser steps of one rate on top of a frozen Swin backbone.

    The merged parameters are for a backbone that has prompts attached (`Backbone.attach_prompts`).
    """

    def __init__(self, base: Backbone, seed: int) -> None:
        """Start with random prompts.

        Raises:
            BadParameter: the base is of another family.
        """
        super().__init__(base, {}, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generators = new_prompts(base.sizes)

    def merged(self) -> dict[str, Tensor]:
        """Parameters and buffers of Backbone that this rate replaces, by name."""
        return super().merged() | self.prompts()

    def prompts(self) -> dict[str, Tensor]:
        """Weights of the generators, by the names that they have in a backbone."""
        named = self.generators.named_parameters()
        return {name.replace(".", ".prompts.", 1): tensor for name, tensor in named}

    def groups(self, lr: AdapterLearningRates) -> list[dict[str, object]]:
        """Parameter groups for a torch optimiser, with their learning rates."""
        _, _, vectors = super().groups(lr)
        return [{"params": [*self.generators.parameters()], "lr": lr.b}, vectors]


class FullAdapter(RateAdapter):
    """All weights of a backbone and the quantiser steps of one rate: what adapters are compared to.

    It is as large as the backbone, so it has no place in the store.
    """

    def __init__(self, base: Backbone, seed: int) -> None:
        """Start as the base."""
        super().__init__(base, {}, seed)
        named = [(n, p) for n, p in base.named_parameters() if n != "z_idx"]
        self.all = nn.ParameterDict({_key(n): nn.Parameter(p.detach().clone()) for n, p in named})

    def merged(self) -> dict[str, Tensor]:
        """Parameters and buffers of Backbone that this rate replaces: all of them."""
        return super().merged() | {key.replace("/", "."): p for key, p in self.all.items()}

    def groups(self, lr: AdapterLearningRates) -> list[dict[str, object]]:
        """Parameter groups for a torch optimiser, with their learning rates."""
        _, _, vectors = super().groups(lr)
        return [{"params": [*self.all.parameters()], "lr": lr.b}, vectors]


def _key(name: str) -> str:
    """A layer name as a key of ParameterDict, which forbids dots."""
    return name.replace(".", "/")
