"""A gated low-rank update of g_s as variables, and the bits that it costs, differentiable.

It has rank-1 terms for every linear layer and a bias for every layer, in steps of powers of two in
units of the layer's rows and columns (codec/lowrank.py), rounded straight-through. The rate term is
that of the coder: one Gaussian for each vector, with the vector's standard deviation, so a vector
that does not pay shrinks to zeros that cost almost nothing. `prune` then closes every gate whose
term costs more than the distortion that it saves. The idea is that of "Dynamic Low-Rank Instance
Adaptation for Universal Neural Image Compression"; we differ in the fitted scales, and in that
gates are decided by measurement instead of being trained.
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
"""Exponents of the steps of the factors A and B: 1 and 1/64.

A starts at about one, so most of its symbols are -1, 0 and 1: the direction of a term needs no more
precision. At rate 4 and rank 4, 300 steps of fitting lower the loss of pixel art by 21.7 % and of a
screenshot by 10.8 %; with A in steps of 1/8, by 20.3 % and 8.4 %."""

BIAS_STEPS = 32
"""A bias of a layer with K inputs has steps of about sqrt(K) / BIAS_STEPS, in units of its rows."""

A_SPREAD = 1.0
"""Standard deviation that the factor A starts with; B starts at zero."""

SCALE_MIN, SCALE_MAX = 0.15, 100.0
"""Bounds of a vector's standard deviation in the rate term, in steps."""

GATE_BITS = 12.0
"""Bits of an open gate besides its symbols: the gate, an exponent and the scale levels."""


@dataclass(frozen=True)
class UpdateLearningRates:
    """Learning rates of the factors A and B and of the biases, in their own units."""

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
    """The layers of g_s, and the variables by "<layer>/a", "<layer>/b" and "<layer>/bias"."""

    def __init__(
        self,
        transforms: Mapping[str, NDArray[Any]],
        rank: int,
        generator: torch.Generator,
        device: torch.device,
        added_to: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Begin with an update that changes nothing.

        Args:
            transforms: of the model, merged for the rate. rank: rank-1 terms of a layer.
            generator: of the factors A, on the CPU. device: where to optimise.
            added_to: weights of g_s with the ready update that this one is added to; the units are
                still those of `transforms`.
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
        """The same variables as an update of the weights of another rate, of equal shapes."""
        other = copy(self)
        device = next(iter(self.tensors.values())).device
        other.layers = {name: _layer(transforms, name, device) for name in self.layers}
        return other

    def groups(self, lr: UpdateLearningRates) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, with their learning rates."""
        by_part: dict[str, list[Tensor]] = {"a": [], "b": [], "bias": []}
        for name, tensor in self.tensors.items():
            by_part[name.rpartition("/")[2]].append(tensor)
        rates = {"a": lr.a, "b": lr.b, "bias": lr.bias}
        return [{"params": by_part[part], "lr": rates[part]} for part in by_part]

    def parameters(self) -> dict[str, Tensor]:
        """Weights and biases of g_s with the update added, by their names inside g_s.

        Weights have no gradients, but the factors that come with them do: synthesis.UpdatedLinear.
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
        """Predicted bits of all symbols, with uniform noise in place of rounding."""
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
        """The update as it is sent: in whole steps, without terms that are zero."""
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
        """Close every gate whose term costs more than it saves, one after the other.

        `distortion` gives lmbda·D with the present variables, in bits of the whole picture.
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
        """Of each gate, views of the variables that it opens, and their symbols."""
        for name, layer in self.layers.items():
            bias = self.tensors[f"{name}/bias"]
            yield [(bias, _whole(bias, layer.bias_exponent))]
            for piece in range(len(self.tensors.get(f"{name}/a", ()))):
                a, b = self.tensors[f"{name}/a"][piece], self.tensors[f"{name}/b"][:, piece]
                yield [(a, _whole(a, A_EXPONENT)), (b, _whole(b, B_EXPONENT))]

    def _vectors(self) -> Iterator[tuple[Tensor, int]]:
        """Every vector that has a scale level of its own, and the exponent of its steps."""
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
    """Values rounded to whole steps within the symbols' range, with straight-through gradients."""
    step = 2.0**exponent
    return ste_round((values / step).clamp(-SYMBOL_MAX, SYMBOL_MAX)) * step


def _whole(values: Tensor, exponent: int) -> NDArray[np.int32]:
    """The symbols of values."""
    steps = (values.detach() / 2.0**exponent).round().clamp(-SYMBOL_MAX, SYMBOL_MAX)
    out: NDArray[np.int32] = steps.cpu().numpy().astype(np.int32)
    return out
