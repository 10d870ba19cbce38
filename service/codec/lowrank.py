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

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import LEVELS, STEP_MAX
from service.codec.fixed_point import stored_integers
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

LOG_WEIGHTS = ("g_a.prompts.log_weight", "g_s.prompts.log_weight")
"""Names of the logarithms of the prompts' weight in the attention."""

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
    """An update of a base."""

    layers: Mapping[str, LayerUpdate]
    """Updates by layer name; other layers do not change."""
    vectors: Mapping[str, NDArray[Any]]
    """RATE_VECTORS by name, which replace those of the base; empty for updates of g_s."""
    prompts: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    """Weights of the prompt generators of a Swin backbone (nets/prompts.py), by name, with the
    prefix "g_a.prompts." or "g_s.prompts."; empty without prompts."""


@dataclass(frozen=True, eq=False)
class Share:
    """An update and its weight in a mix, in sixteenths.

    The weights of a mix of rates sum to PARTS; updates of g_s that are added up have PARTS each.
    """

    update: Update
    parts: int


def merge_entropy(base: Mapping[str, NDArray[Any]], mix: Sequence[Share]) -> Tensors:
    """Merge updates into the integer tensors of the entropy model, exactly.

    Args:
        base: stored tensors by name; not changed. mix: its weights sum to PARTS; an empty mix
            changes nothing.

    Raises:
        StoreError: an update does not fit the exponents of the base.
    """
    out = dict(base)
    if not mix:
        return out
    for layer, updates in _layers(base, mix):
        weight, bias = base[f"{layer}.weight"], base[f"{layer}.bias"]
        shift = base[f"{layer}.shift"].astype(np.int64)
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
        mix: updates, whose deltas are added up.

    Returns:
        float32 tensors by name; with those of the prompt generators, if the mix has any.
    """
    out = {name: tensor.astype(np.float32) for name, tensor in base.items()}
    for layer, updates in _layers(base, mix):
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
    networks = {name.partition(".")[0] for name in base}
    mixed = mix_prompts(mix)
    return out | {n: t for n, t in mixed.items() if n.partition(".")[0] in networks}


def mix_prompts(mix: Sequence[Share]) -> Tensors:
    """The weighted mean of the prompt generators in a mix, float32; empty if there are none.

    Their prompts weigh as much in the attention as the shares that have prompts do in the mix:
    `log_weight` is the logarithm of that part.
    """
    shares = [share for share in mix if share.update.prompts]
    if not shares:
        return {}
    total = sum(share.parts for share in shares)
    out: Tensors = {
        name: np.average(
            [s.update.prompts[name].astype(np.float32) for s in shares],
            0,
            [s.parts for s in shares],
        ).astype(np.float32)
        for name in shares[0].update.prompts
    }
    log_weight = np.array(math.log(total / PARTS), np.float32)
    return out | dict.fromkeys(LOG_WEIGHTS, log_weight)


def _layers(
    base: Mapping[str, NDArray[Any]], mix: Sequence[Share]
) -> Iterator[tuple[str, list[tuple[LayerUpdate, int]]]]:
    """The layers of a base, each with its updates and their weights."""
    for layer in (n.removesuffix(".weight") for n in base if n.endswith(".weight")):
        yield layer, [(s.update.layers[layer], s.parts) for s in mix if layer in s.update.layers]


def scales(weight: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Units of the factors of a layer, from its base weight [N, ...] with K values in each row.

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
        update: of a base. shapes: weight shape of every layer of the base.

    Returns:
        The tensors of an adapter, as service/docs/format.md specifies them.
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
    return out | dict(update.vectors) | dict(update.prompts)


def unpack(
    tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], sizes: Sizes
) -> Update:
    """Unpack what `pack` returned, without prompts, and check it against the base.

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
    vectors = {
        "y.step": stored_integers(tensors, "y.step", (sizes.M,), 1, STEP_MAX),
        "z.step": stored_integers(tensors, "z.step", (sizes.Cz,), 1, STEP_MAX),
        "z.level": stored_integers(tensors, "z.level", (sizes.Cz,), 1, LEVELS - 1),
        "level.offset": stored_integers(
            tensors, "level.offset", (sizes.M,), -OFFSET_MAX, OFFSET_MAX
        ),
    }
    return Update(_unpack_layers(tensors, shapes), vectors)


def _unpack_layers(
    tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LayerUpdate]:
    """Cut the flat tensors into the updates of layers, and check their ranges."""
    ranks, groups = tensors["ranks"].tolist(), tensors["groups"].tolist()
    if len(ranks) != len(shapes):
        raise StoreError(f"adapter has {len(ranks)} layers, the base {len(shapes)}")
    names = [name for name, rank in zip(sorted(shapes), ranks, strict=True) if rank >= 0]
    if len(groups) != len(names):
        raise StoreError(f"adapter has bias groups of {len(groups)} layers, changes {len(names)}")
    rows = [shapes[name][0] for name in names]
    columns = [math.prod(shapes[name][1:]) for name in names]
    ranks = [rank for rank in ranks if rank >= 0]
    for name, n, r, g in zip(names, rows, ranks, groups, strict=True):
        if r > MAX_RANK or g < 1 or n % g:
            raise StoreError(f"adapter layer {name} has rank {r} and {g} bias groups")
    e = tensors["exponents"]
    if e.size and not -Q <= int(e.min()) <= int(e.max()) <= MAX_EXPONENT:
        raise StoreError(f"adapter has exponents outside {-Q}..{MAX_EXPONENT}")
    dims = zip(rows, columns, ranks, strict=True)
    factors = _cut(tensors, "factors", [s for n, k, r in dims for s in ((n, r), (r, k))])
    parts = zip(
        factors[::2],
        factors[1::2],
        _cut(tensors, "exponents", [(r,) for r in ranks]),
        _cut(tensors, "biases", [(n,) for n in rows]),
        _cut(tensors, "bias_exponents", [(g,) for g in groups]),
        strict=True,
    )
    return {name: LayerUpdate(*part) for name, part in zip(names, parts, strict=True)}


def _cut(
    tensors: Mapping[str, NDArray[Any]], name: str, shapes: Sequence[tuple[int, ...]]
) -> list[NDArray[np.int8]]:
    """Cut a flat tensor into arrays of these shapes, which must take all of it."""
    flat, sizes = tensors[name], [math.prod(shape) for shape in shapes]
    if len(flat) != sum(sizes):
        raise StoreError(f"adapter tensor {name} has {len(flat)} values, expected {sum(sizes)}")
    cuts = zip(accumulate(sizes), sizes, shapes, strict=True)
    return [flat[end - size : end].reshape(shape) for end, size, shape in cuts]


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
