"""W' = W + B·A: a rate's low-rank update put into pristine base weights.

An update of a layer is int8 factors `b` [N, r] and `a` [r, K] with a power-of-two exponent per rank
(delta = sum over r of 2^e · b · a), and an int8 bias delta with an exponent per group of rows. A
rate also has its quantiser steps, the level offset that goes with them, and the levels of z. Two
updates can be mixed in sixteenths: a rate between two rates of the ladder.

Entropy layers are merged in integers only (Q28, then rounded once), so every machine gets the same
ones. Transforms are merged in float32, factors in units of the base weight's rows and columns, so
that 8 bits serve folded layers whose rows differ a thousandfold. Nothing is added in place, ever.

Idea: LoRA (Hu et al. 2021); for rates "Variable-Rate Deep Image Compression based on Low-Rank
Adaptation by Progressive Learning". We differ in 8-bit factors and in the integer merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import LEVELS, STEP_MAX, vector
from service.codec.sizes import Sizes
from service.errors import StoreError

Tensors = dict[str, NDArray[Any]]
I64 = NDArray[np.int64]

PARTS = 16
"""Mixing weights are sixteenths."""

Q = 28
"""Fractional bits of integer deltas before rounding."""

MAX_RANK, MAX_EXPONENT, MAX_BIAS_BITS = 16, 10, 22
"""With these no sum of two mixed updates leaves 63 bits."""

OFFSET_FRAC = 8
"""`level.offset` is in 1/256 of a level."""

OFFSET_MAX = LEVELS << OFFSET_FRAC
"""No level offset moves further than the whole ladder of levels."""

RATE_VECTORS = ("y.step", "z.step", "z.level", "level.offset")

_FLAT = ("factors", "exponents", "biases", "bias_exponents", "ranks", "groups")


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """The update of one layer.

    Attributes:
        b: [N, r] int8. a: [r, K] int8. e: [r] int8, exponents.
        bias: [N] int8. bias_e: [g] int8, exponents of g equal groups of rows.
    """

    b: NDArray[np.int8]
    a: NDArray[np.int8]
    e: NDArray[np.int8]
    bias: NDArray[np.int8]
    bias_e: NDArray[np.int8]

    def product(self) -> I64:
        """2^e · b · a in Q28, [N, K]."""
        left = self.b.astype(np.int64) << (self.e.astype(np.int64) + Q)
        out: I64 = left @ self.a.astype(np.int64)
        return out

    def bias_delta(self, shift: NDArray[Any] | int = 0) -> I64:
        """The bias delta times 2^shift in Q28, [N]."""
        e = np.repeat(self.bias_e.astype(np.int64), len(self.bias) // len(self.bias_e)) + shift
        if e.size and not -Q <= int(e.min()) <= int(e.max()) <= MAX_BIAS_BITS:
            raise StoreError(f"bias exponents reach {e.min()} to {e.max()}")
        out: I64 = self.bias.astype(np.int64) << (e + Q)
        return out


@dataclass(frozen=True, eq=False)
class Update:
    """One adapter.

    Attributes:
        layers: by layer name; layers left out are left alone.
        vectors: RATE_VECTORS, each replacing the base's.
    """

    layers: Mapping[str, LayerUpdate]
    vectors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Share:
    """An update and its part of the mix, in sixteenths; the parts of a mix sum to 16."""

    update: Update
    parts: int


def merge_entropy(base: Mapping[str, NDArray[Any]], mix: Sequence[Share]) -> Tensors:
    """Integer tensors of the entropy model with updates put in; `base` is not changed."""
    out = dict(base)
    if not mix:
        return out
    for layer in (n.removesuffix(".weight") for n in base if n.endswith(".weight")):
        weight, bias = base[f"{layer}.weight"], base[f"{layer}.bias"]
        shift = base[f"{layer}.shift"].astype(np.int64)
        updates = [(s.update.layers[layer], s.parts) for s in mix if layer in s.update.layers]
        if updates:
            delta = _total([u.product() * parts for u, parts in updates])
            out[f"{layer}.weight"] = weight.astype(np.int32) + _rounded(delta)
            bias_delta = _total([u.bias_delta(shift) * parts for u, parts in updates])
            bias = bias + _rounded(bias_delta)
        if layer.endswith(".head"):
            bias = bias.astype(np.int64)
            half = len(bias) // 2
            offset = _vector_mix("level.offset", mix)
            bias[half:] += (offset << shift[half:]) // (PARTS << OFFSET_FRAC)
        out[f"{layer}.bias"] = bias
    for name in ("y.step", "z.step", "z.level"):
        total = _vector_mix(name, mix)
        out[name] = ((total + PARTS // 2) // PARTS).astype(base[name].dtype)
    return out


def merge_transforms(base: Mapping[str, NDArray[Any]], mix: Sequence[Share]) -> Tensors:
    """Float32 weights of g_a, g_s and h_a with updates put in; `base` is not changed."""
    out = {name: tensor.astype(np.float32) for name, tensor in base.items()}
    for layer in (n.removesuffix(".weight") for n in base if n.endswith(".weight")):
        updates = [(s.update.layers[layer], s.parts) for s in mix if layer in s.update.layers]
        if not updates:
            continue
        weight, bias = out[f"{layer}.weight"], out[f"{layer}.bias"]
        rows, columns = scales(weight)
        if any(u.e.size for u, _ in updates):
            delta = _real(_total([u.product() * parts for u, parts in updates]))
            change = rows[:, None] * delta * columns
            out[f"{layer}.weight"] = weight + change.reshape(weight.shape)
        bias_delta = _total([u.bias_delta() * parts for u, parts in updates])
        out[f"{layer}.bias"] = bias + rows * _real(bias_delta)
    return out


def scales(weight: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Row scales [N] (rms) and column scales [K] (rms of what is left) of a base weight."""
    w = weight.astype(np.float64).reshape(len(weight), -1)
    rows = np.sqrt(np.square(w).mean(1)).clip(1e-8)
    columns = np.sqrt(np.square(w / rows[:, None]).mean(0)).clip(1e-4)
    return rows.astype(np.float32), columns.astype(np.float32)


def pack(update: Update, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """An update as a few flat tensors (a name per layer would cost more than its factors).

    Args:
        update: to store.
        shapes: weight shape of every layer of the base; layers are stored in order of name.
    """
    layers = [update.layers.get(name) for name in sorted(shapes)]
    present = [layer for layer in layers if layer is not None]
    flat: dict[str, list[NDArray[Any]]] = {
        "factors": [x.ravel() for layer in present for x in (layer.b, layer.a)],
        "exponents": [layer.e for layer in present],
        "biases": [layer.bias for layer in present],
        "bias_exponents": [layer.bias_e for layer in present],
    }
    none = np.zeros(0, np.int8)
    out = {n: np.concatenate([none, *parts]).astype(np.int8) for n, parts in flat.items()}
    out["ranks"] = np.array([-1 if x is None else len(x.e) for x in layers], np.int8)
    out["groups"] = np.array([len(x.bias_e) for x in present], np.int8)
    return out | dict(update.vectors)


def unpack(
    tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], sizes: Sizes
) -> Update:
    """What `pack` stored, checked against the base's layers.

    Args:
        tensors: from `pack`. shapes: weight shape of every layer of the base.
        sizes: of the base.

    Raises:
        StoreError: tensors are missing, unknown, of the wrong kind, or do not fit the base.
    """
    unknown = sorted(set(tensors) - {*_FLAT, *RATE_VECTORS})
    if unknown:
        raise StoreError(f"adapter has tensors of unknown names: {', '.join(unknown)[:200]}")
    for name in _FLAT:
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != np.int8 or tensor.ndim != 1:
            raise StoreError(f"adapter tensor {name} is missing or no int8 vector")
    factors, exponents, biases, bias_exponents = (_Cursor(tensors[n], n) for n in _FLAT[:4])
    ranks = tensors["ranks"].tolist()
    groups = iter(tensors["groups"].tolist())
    if len(ranks) != len(shapes):
        raise StoreError(f"adapter has {len(ranks)} layers, the base {len(shapes)}")
    layers = {}
    for name, rank in zip(sorted(shapes), ranks, strict=True):
        if rank < 0:
            continue
        n, k = shapes[name][0], int(np.prod(shapes[name][1:]))
        group = next(groups, 0)
        if rank > MAX_RANK or group < 1 or n % group:
            raise StoreError(f"adapter layer {name} has rank {rank} and {group} bias groups")
        b, a = factors.take(n * rank).reshape(n, rank), factors.take(rank * k).reshape(rank, k)
        e = exponents.take(rank)
        if e.size and not -Q <= int(e.min()) <= int(e.max()) <= MAX_EXPONENT:
            raise StoreError(f"adapter layer {name} has exponents outside {-Q}..{MAX_EXPONENT}")
        layers[name] = LayerUpdate(b, a, e, biases.take(n), bias_exponents.take(group))
    if next(groups, None) is not None:
        raise StoreError("adapter tensor groups has more values than layers with an update")
    for cursor in (factors, exponents, biases, bias_exponents):
        cursor.end()
    return Update(layers, _rate_vectors(tensors, sizes))


class _Cursor:
    """Takes pieces off a flat tensor."""

    def __init__(self, values: NDArray[np.int8], name: str) -> None:
        self.values, self.name, self.at = values, name, 0

    def take(self, count: int) -> NDArray[np.int8]:
        self.at += count
        if self.at > len(self.values):
            raise StoreError(f"adapter tensor {self.name} has {len(self.values)} values, too few")
        return self.values[self.at - count : self.at]

    def end(self) -> None:
        if self.at != len(self.values):
            raise StoreError(f"adapter tensor {self.name} has {len(self.values)}, not {self.at}")


def _rate_vectors(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> Tensors:
    """RATE_VECTORS in the ranges that EntropyModel takes, so that no cast below can wrap."""
    return {
        "y.step": vector(tensors, "y.step", sizes.M, 1, STEP_MAX),
        "z.step": vector(tensors, "z.step", sizes.Cz, 1, STEP_MAX),
        "z.level": vector(tensors, "z.level", sizes.Cz, 1, LEVELS - 1),
        "level.offset": vector(tensors, "level.offset", sizes.M, -OFFSET_MAX, OFFSET_MAX),
    }


def _vector_mix(name: str, mix: Sequence[Share]) -> I64:
    """The weighted sum of a vector of each update, in sixteenths."""
    return _total([s.update.vectors[name].astype(np.int64) * s.parts for s in mix])


def _total(parts: list[I64]) -> I64:
    out: I64 = np.add.reduce(parts)
    return out


def _rounded(delta: I64) -> I64:
    """Q28 sixteenths to whole numbers."""
    return (delta + (PARTS << (Q - 1))) // (PARTS << Q)


def _real(delta: I64) -> NDArray[np.float32]:
    """Q28 sixteenths to float32."""
    return (delta / float(PARTS << Q)).astype(np.float32)
