"""A gated low-rank update of g_s as variables, and the bits it would cost, differentiable.

Rank-1 pieces of every linear layer and a bias for every layer, in steps of powers of two in units
of the layer's rows and columns (codec/lowrank.py), rounded straight-through. The rate term is that
of the coder: a Gaussian per vector, as wide as the vector is, so that a vector that does not pay
shrinks to zeros that cost almost nothing. `prune` then closes every gate whose piece costs more
than the distortion it saves. "Dynamic Low-Rank Instance Adaptation for Universal Neural Image
Compression" has the idea; we differ in the fitted scales, and in gates that are decided by what is
measured instead of being trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.codec.coder import Tables
from service.codec.lowrank import LayerUpdate, Update
from service.codec.lowrank import scales as layer_scales
from service.codec.model_stream import SYMBOL_MAX, best_level
from service.nets.model import gaussian_bits, ste_round

NET = "g_s."

A_EXPONENT, B_EXPONENT = 0, -6
"""Steps of the factors: 1 and 1/64.

A starts at about one, so most of its symbols are -1, 0 and 1: where a piece points need not be said
more exactly. At rate 4, rank 4, 300 steps of fitting take 21.7 % off the loss of pixel art and 10.8
off a screenshot's, in steps of 1/8 20.3 and 8.4 %."""

BIAS_STEPS = 32
"""Steps of a bias in what its layer's inputs add up to when each is one."""

A_SPREAD = 1.0
"""Standard deviation of a factor A at the start; B starts at zero."""

SCALE_MIN, SCALE_MAX = 0.15, 100.0
"""Standard deviations, in steps, that the rate term takes a vector to have."""

GATE_BITS = 12.0
"""What opening a gate costs: itself, an exponent and the scale levels."""


@dataclass(frozen=True)
class LearningRates:
    """Of the factors and the biases, in their own units."""

    a: float = 0.05
    b: float = 1e-3
    bias: float = 2e-3


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of g_s: its weight and bias, their scales, and the exponent of bias steps."""

    weight: Tensor
    bias: Tensor
    rows: Tensor
    columns: Tensor
    bias_exponent: int


class DecoderUpdate:
    """The variables, named "<layer>/a", "<layer>/b" and "<layer>/bias" in `tensors`."""

    def __init__(
        self,
        transforms: Mapping[str, NDArray[Any]],
        rank: int,
        generator: torch.Generator,
        device: torch.device,
        added_to: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Start as no update at all.

        Args:
            transforms: of the model, merged for the rate. rank: rank-1 pieces of a layer.
            generator: of the factors A, on the CPU. device: where to optimise.
            added_to: weights of g_s with a ready update in, that this one is added to; units are
                those of `transforms` all the same.
        """
        self.layers: dict[str, _Layer] = {}
        self.tensors: dict[str, Tensor] = {}
        names = sorted(n for n in transforms if n.startswith(NET) and n.endswith(".weight"))
        for name in (n.removesuffix(".weight") for n in names):
            self.layers[name] = layer = _layer(transforms, name, device, added_to)
            start = {"bias": torch.zeros(len(layer.rows))}
            if layer.weight.ndim == 2:
                a = torch.randn(rank, len(layer.columns), generator=generator) * A_SPREAD
                start |= {"a": a, "b": torch.zeros(len(layer.rows), rank)}
            for part, value in start.items():
                self.tensors[f"{name}/{part}"] = value.to(device).requires_grad_()

    def on(self, transforms: Mapping[str, NDArray[Any]]) -> DecoderUpdate:
        """The same variables as an update of other weights of the same shapes: another rate's."""
        other = copy(self)
        device = next(iter(self.tensors.values())).device
        other.layers = {name: _layer(transforms, name, device) for name in self.layers}
        return other

    def groups(self, lr: LearningRates) -> list[dict[str, Any]]:
        """Optimiser groups."""
        by_part: dict[str, list[Tensor]] = {"a": [], "b": [], "bias": []}
        for name, tensor in self.tensors.items():
            by_part[name.rpartition("/")[2]].append(tensor)
        rates = {"a": lr.a, "b": lr.b, "bias": lr.bias}
        return [{"params": by_part[part], "lr": rates[part]} for part in by_part]

    def parameters(self) -> dict[str, Tensor]:
        """Weights and biases of g_s with the update in, by their names inside g_s.

        Weights have no gradients; the factors beside them do, see synthesis.UpdatedLinear.
        """
        out = {}
        for name, layer in self.layers.items():
            inner = name.removeprefix(NET)
            bias = _rounded(self.tensors[f"{name}/bias"], layer.bias_exponent)
            out[f"{inner}.bias"] = layer.bias + layer.rows * bias
            if f"{name}/a" in self.tensors:
                a = _rounded(self.tensors[f"{name}/a"], A_EXPONENT) * layer.columns
                b = _rounded(self.tensors[f"{name}/b"], B_EXPONENT) * layer.rows[:, None]
                out[f"{inner}.weight"] = torch.addmm(layer.weight, b.detach(), a.detach())
                out |= {f"{inner}.a": a, f"{inner}.b": b}
        return out

    def bits(self, generator: torch.Generator) -> Tensor:
        """Predicted bits of all symbols, on uniform noise in place of rounding."""
        vectors, exponents = zip(*self._vectors(), strict=True)
        lengths = torch.tensor([len(v) for v in vectors], device=vectors[0].device)
        units = torch.tensor([2.0**-e for e in exponents], device=lengths.device)
        steps = torch.cat(vectors) * units.repeat_interleave(lengths)
        with torch.no_grad():
            squares = torch.segment_reduce(steps.square(), "mean", lengths=lengths)
            scales = squares.sqrt().clamp(SCALE_MIN, SCALE_MAX)
            scale = scales.repeat_interleave(lengths)
        noise = torch.rand(steps.shape, generator=generator, device=steps.device) - 0.5
        return gaussian_bits(steps + noise, scale).sum()

    def update(self) -> Update:
        """What would be sent: whole steps, pieces that are zero left out."""
        layers = {}
        for name, layer in self.layers.items():
            bias = self._symbols(f"{name}/bias", layer.bias_exponent)
            b, a = np.zeros((len(bias), 0), np.int8), np.zeros((0, len(layer.columns)), np.int8)
            if f"{name}/a" in self.tensors:
                b = self._symbols(f"{name}/b", B_EXPONENT)
                a = self._symbols(f"{name}/a", A_EXPONENT)
                sent = b.any(0) & a.any(1)
                b, a = b[:, sent], a[sent]
            if bias.any() or len(a):
                e = np.full(len(a), A_EXPONENT + B_EXPONENT, np.int8)
                bias_e = np.array([layer.bias_exponent], np.int8)
                layers[name] = LayerUpdate(np.ascontiguousarray(b), a, e, bias, bias_e)
        return Update(layers, {})

    @torch.no_grad()
    def prune(self, distortion: Callable[[], float], tables: Tables) -> None:
        """Close every gate whose piece costs more than it saves, one after the other.

        Args:
            distortion: lmbda · D of the present update, in bits of the whole picture.
            tables: that symbols will be coded with.
        """
        now = distortion()
        for pieces in self._gates():
            bits = GATE_BITS + sum(best_level(s, tables)[1] for _, s in pieces)
            if not all(s.any() for _, s in pieces):
                for view, _ in pieces:
                    view.zero_()
                continue
            kept = [view.clone() for view, _ in pieces]
            for view, _ in pieces:
                view.zero_()
            without = distortion()
            if without - now < bits:
                now = without
                continue
            for (view, _), value in zip(pieces, kept, strict=True):
                view.copy_(value)

    def _gates(self) -> Iterator[list[tuple[Tensor, NDArray[np.int32]]]]:
        """What each gate opens: views of the variables and their symbols."""
        for name, layer in self.layers.items():
            bias = self.tensors[f"{name}/bias"]
            yield [(bias, _whole(bias, layer.bias_exponent))]
            for piece in range(len(self.tensors.get(f"{name}/a", ()))):
                a, b = self.tensors[f"{name}/a"][piece], self.tensors[f"{name}/b"][:, piece]
                yield [(a, _whole(a, A_EXPONENT)), (b, _whole(b, B_EXPONENT))]

    def _vectors(self) -> Iterator[tuple[Tensor, int]]:
        """Every vector that has a scale level of its own, with its exponent."""
        for name, layer in self.layers.items():
            yield self.tensors[f"{name}/bias"], layer.bias_exponent
            if f"{name}/a" in self.tensors:
                yield from ((a, A_EXPONENT) for a in self.tensors[f"{name}/a"])
                yield from ((b, B_EXPONENT) for b in self.tensors[f"{name}/b"].T)

    def _symbols(self, name: str, exponent: int) -> NDArray[np.int8]:
        return _whole(self.tensors[name], exponent).astype(np.int8)


def _layer(
    transforms: Mapping[str, NDArray[Any]],
    name: str,
    device: torch.device,
    added_to: Mapping[str, NDArray[Any]] | None = None,
) -> _Layer:
    units = transforms[f"{name}.weight"].astype(np.float32)
    start = transforms if added_to is None else added_to
    weight, bias = (start[f"{name}.{part}"].astype(np.float32) for part in ("weight", "bias"))
    rows, columns = layer_scales(units)
    exponent = round(float(np.log2(np.sqrt(units[0].size) / BIAS_STEPS)))
    weight_t, bias_t, rows_t, columns_t = (
        torch.from_numpy(x).to(device) for x in (weight, bias, rows, columns)
    )
    return _Layer(weight_t, bias_t, rows_t, columns_t, exponent)


def _rounded(values: Tensor, exponent: int) -> Tensor:
    """To whole steps within the symbols' range, straight-through."""
    step = 2.0**exponent
    return ste_round((values / step).clamp(-SYMBOL_MAX, SYMBOL_MAX)) * step


def _whole(values: Tensor, exponent: int) -> NDArray[np.int32]:
    """Symbols of values."""
    steps = (values.detach() / 2.0**exponent).round().clamp(-SYMBOL_MAX, SYMBOL_MAX)
    out: NDArray[np.int32] = steps.cpu().numpy().astype(np.int32)
    return out
