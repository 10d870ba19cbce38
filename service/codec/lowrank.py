"""Low-rank updates: W' = W + B·A, merged into the pristine weights of a base.

The update of a layer has int8 factors `b` [N, r] and `a` [r, K] with a power-of-two exponent for
each rank-1 piece (delta W = sum over r of 2^e · b · a), and an int8 bias delta with an exponent for
each group of rows. The update of a rate also has quantiser steps, the level offset that goes with
them, and the levels of z. A rate between two rates mixes their updates in sixteenths.

Entropy layers merge in integers (Q28, rounded once), so every machine gets the same weights.
Transforms merge in float32, with factors in units of the rows and columns of the base weight, so
that 8 bits are enough for layers whose rows differ a thousandfold. Nothing is added in place.

Idea: LoRA (Hu et al. 2021), for rates as in "Variable-Rate Deep Image Compression based on Low-Rank
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
"""Weights of a mix are sixteenths and sum to this."""

Q = 28
"""Fractional bits of integer deltas before they are rounded."""

MAX_RANK, MAX_EXPONENT, MAX_BIAS_BITS = 16, 10, 22
"""Largest rank, exponent and shifted bias exponent: a mix of two updates stays within 63 bits."""

OFFSET_FRAC = 8
"""Fractional bits of `level.offset`, which is in 1/256 of a level."""

OFFSET_MAX = LEVELS << OFFSET_FRAC
"""Largest absolute level offset: all levels."""

RATE_VECTORS = ("y.step", "z.step", "z.level", "level.offset")
"""Vectors that belong to a rate: [M] Q14, [Cz] Q11, [Cz] and [M] Q8 (OFFSET_FRAC)."""

_FLAT = ("factors", "exponents", "biases", "bias_exponents", "ranks", "groups")


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """The update of a layer with K inputs and N outputs.

    Attributes:
        b: [N, r] int8, factors.
        a: [r, K] int8, factors.
        e: [r] int8, exponent of each rank-1 piece.
        bias: [N] int8, bias delta.
        bias_e: [g] int8, exponents of bias deltas for g groups of N/g rows.
    """

    b: NDArray[np.int8]
    a: NDArray[np.int8]
    e: NDArray[np.int8]
    bias: NDArray[np.int8]
    bias_e: NDArray[np.int8]

    def product(self) -> I64:
        """delta W = 2^e · b · a, [N, K] in Q28."""
        left = self.b.astype(np.int64) << (self.e.astype(np.int64) + Q)
        out: I64 = left @ self.a.astype(np.int64)
        return out

    def bias_delta(self, shift: NDArray[Any] | int = 0) -> I64:
        """The bias delta times 2^shift, [N] in Q28.

        Raises:
            StoreError: an exponent and its shift together leave the range of Q28.
        """
        e = np.repeat(self.bias_e.astype(np.int64), len(self.bias) // len(self.bias_e)) + shift
        if e.size and not -Q <= int(e.min()) <= int(e.max()) <= MAX_BIAS_BITS:
            raise StoreError(
                f"bias exponents plus shifts are {e.min()} to {e.max()}, "
                f"expected {-Q} to {MAX_BIAS_BITS}"
            )
        out: I64 = self.bias.astype(np.int64) << (e + Q)
        return out


@dataclass(frozen=True, eq=False)
class Update:
    """An update of a base.

    Attributes:
        layers: updates by layer name; other layers do not change.
        vectors: RATE_VECTORS by name, which replace those of the base; empty for updates of g_s.
    """

    layers: Mapping[str, LayerUpdate]
    vectors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Share:
    """An update and its weight in a mix.

    Attributes:
        update: the update.
        parts: weight in sixteenths. The weights of a mix of rates sum to PARTS; updates of g_s that
            are added up have PARTS each.
    """

    update: Update
    parts: int


def merge_entropy(base: Mapping[str, NDArray[Any]], mix: Sequence[Share]) -> Tensors:
    """Merge updates into the integer tensors of the entropy model, exactly.

    Args:
        base: stored tensors by name; not changed.
        mix: updates with weights that sum to PARTS; an empty mix changes nothing.

    Raises:
        StoreError: an update does not fit the exponents of the base.
    """
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
    """Merge updates into weights of g_a, g_s and h_a.

    Args:
        base: float tensors by name; not changed. Factors are in units of its rows and columns.
        mix: updates with their weights; deltas are added up.

    Returns:
        float32 tensors by name.
    """
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
    """Units of the factors of a layer: the scales of its base weight.

    Args:
        weight: [N, K] or [N, ...] with K values in each row.

    Returns:
        Row scales [N], the root mean squares of rows, and column scales [K], those of the columns
        after division by the row scales; float32.
    """
    w = weight.astype(np.float64).reshape(len(weight), -1)
    rows = np.sqrt(np.square(w).mean(1)).clip(1e-8)
    columns = np.sqrt(np.square(w / rows[:, None]).mean(0)).clip(1e-4)
    return rows.astype(np.float32), columns.astype(np.float32)


def pack(update: Update, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Pack an update into a few flat tensors, because a name per layer outweighs its factors.

    Args:
        update: to store.
        shapes: weight shape of every layer of the base; layers are stored in order of name.

    Returns:
        Tensors by name, as service/docs/format.md specifies them for adapters.
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
    """Unpack what `pack` returned, and check it against the layers of the base.

    Args:
        tensors: from `pack`.
        shapes: weight shape of every layer of the base.
        sizes: of the base.

    Raises:
        StoreError: a tensor is missing, unknown or of another dtype, or does not fit the base.
    """
    unknown = sorted(set(tensors) - {*_FLAT, *RATE_VECTORS})
    if unknown:
        raise StoreError(f"adapter has tensors of unknown names: {', '.join(unknown)[:200]}")
    for name in _FLAT:
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != np.int8 or tensor.ndim != 1:
            raise StoreError(f"adapter tensor {name} is missing or is no int8 vector")
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
    """A cursor over a flat tensor."""

    def __init__(self, values: NDArray[np.int8], name: str) -> None:
        self.values, self.name, self.at = values, name, 0

    def take(self, count: int) -> NDArray[np.int8]:
        self.at += count
        if self.at > len(self.values):
            raise StoreError(
                f"adapter tensor {self.name} has {len(self.values)} values, expected more"
            )
        return self.values[self.at - count : self.at]

    def end(self) -> None:
        if self.at != len(self.values):
            raise StoreError(
                f"adapter tensor {self.name} has {len(self.values)} values, expected {self.at}"
            )


def _rate_vectors(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> Tensors:
    """RATE_VECTORS, checked for the ranges of EntropyModel, so that no later cast can wrap."""
    return {
        "y.step": vector(tensors, "y.step", sizes.M, 1, STEP_MAX),
        "z.step": vector(tensors, "z.step", sizes.Cz, 1, STEP_MAX),
        "z.level": vector(tensors, "z.level", sizes.Cz, 1, LEVELS - 1),
        "level.offset": vector(tensors, "level.offset", sizes.M, -OFFSET_MAX, OFFSET_MAX),
    }


def _vector_mix(name: str, mix: Sequence[Share]) -> I64:
    """Weighted sum of a vector over a mix, in sixteenths."""
    return _total([s.update.vectors[name].astype(np.int64) * s.parts for s in mix])


def _total(parts: list[I64]) -> I64:
    out: I64 = np.add.reduce(parts)
    return out


def _rounded(delta: I64) -> I64:
    """Round sums of Q28 sixteenths to integers."""
    return (delta + (PARTS << (Q - 1))) // (PARTS << Q)


def _real(delta: I64) -> NDArray[np.float32]:
    """Convert sums of Q28 sixteenths to float32."""
    return (delta / float(PARTS << Q)).astype(np.float32)
