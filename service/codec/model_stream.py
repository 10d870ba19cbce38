"""One image's update of g_s <-> bytes: gates, exponents, factors and biases, coded like latents.

The payload is one run of the latents' own coder with the model's own tables, so it needs no second
entropy coder and no floating-point prior, and no separator that a payload could hold. In order:

    rank R | a gate for every bias and for R rank-1 pieces of every linear layer |
    for every open gate an exponent and its scale levels | the symbols of every open gate

A scale level per open gate is what makes a zero cheap: where most symbols are zero it is about a
tenth of a bit, against 4.3 bits under the fixed prior of "Dynamic Low-Rank Instance Adaptation for
Universal Neural Image Compression", whose gates and low-rank pieces these are.

What the symbols mean is lowrank.LayerUpdate's: delta W = 2^e · b · a and a bias, both in units of
the layer's own rows and columns. Layers are taken in order of name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Decoder, Encoder, Tables
from service.codec.entropy_model import LEVELS
from service.codec.lowrank import LayerUpdate, Update
from service.errors import BadStream

MAX_RANK = 8
"""Rank-1 pieces of a layer, at most."""

SYMBOL_MAX = 127
"""Largest factor or bias symbol."""

EXPONENT_MIN, EXPONENT_MAX = -20, 0
"""Of the factors' product and of biases; 0 already lets a layer change beyond recognition."""

RANK_LEVEL, GATE_LEVEL, EXPONENT_LEVEL, LEVEL_LEVEL = 20, 14, 30, 40
"""Scale levels (sigma 1.0, 0.53, 3.2 and 9.8) that ranks, gates, exponents and levels are coded at.
"""

EXPONENT_MID, LEVEL_MID = -8, 16
"""What exponents and levels are coded as differences from."""

Shapes = Mapping[str, tuple[int, ...]]
Symbols = NDArray[np.int32]
Int8 = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class _Group:
    """What one gate opens: an exponent and its vectors (a bias alone, or a factor b and its a)."""

    exponent: int
    vectors: tuple[Symbols, ...]


def write_update(update: Update, shapes: Shapes, tables: Tables) -> bytes:
    """Code an update.

    Args:
        update: of g_s layers; `vectors` is not looked at. Pieces that are zero are left out.
        shapes: weight shape of every layer of g_s, by name.
        tables: of the model.

    Returns:
        The payload; `read_update` gives the update without its zero pieces back.
    """
    rank = max((len(u.e) for u in update.layers.values()), default=0)
    groups = [g for name in sorted(shapes) for g in _groups(update, name, shapes[name], rank)]
    found = [g for g in groups if g is not None]
    levels = [best_level(v, tables)[0] for g in found for v in g.vectors]
    encoder = Encoder(tables)
    _push(encoder, [rank], RANK_LEVEL)
    _push(encoder, [int(g is not None) for g in groups], GATE_LEVEL)
    _push(encoder, [g.exponent - EXPONENT_MID for g in found], EXPONENT_LEVEL)
    _push(encoder, [level - LEVEL_MID for level in levels], LEVEL_LEVEL)
    vectors = [v for g in found for v in g.vectors]
    for vector, level in zip(vectors, levels, strict=True):
        _push(encoder, vector, level)
    return encoder.finish()


def read_update(data: bytes, shapes: Shapes, tables: Tables) -> Update:
    """What `write_update` coded.

    Args:
        data: the payload. shapes, tables: as for `write_update`.

    Raises:
        BadStream: the payload was not made by `write_update` for this model.
    """
    decoder = Decoder(tables, data)
    (rank,) = _pull(decoder, 1, RANK_LEVEL, 0, MAX_RANK, "rank")
    slots = [
        (name, kind) for name in sorted(shapes) for kind in _kinds(shapes[name], rank)
    ]
    gates = _pull(decoder, len(slots), GATE_LEVEL, 0, 1, "gate")
    chosen = [slot for slot, gate in zip(slots, gates, strict=True) if gate]
    low, high = EXPONENT_MIN - EXPONENT_MID, EXPONENT_MAX - EXPONENT_MID
    exponents = _pull(decoder, len(chosen), EXPONENT_LEVEL, low, high, "exponent")
    sizes = [n for name, kind in chosen for n in _sizes(shapes[name], kind)]
    low, high = 1 - LEVEL_MID, LEVELS - 1 - LEVEL_MID
    levels = _pull(decoder, len(sizes), LEVEL_LEVEL, low, high, "scale level")
    vectors = iter(
        [
            _pull(decoder, n, level + LEVEL_MID, -SYMBOL_MAX, SYMBOL_MAX, "update symbol")
            for n, level in zip(sizes, levels, strict=True)
        ]
    )
    decoder.finish()
    groups: dict[str, dict[int, _Group]] = {}
    for (name, kind), exponent in zip(chosen, exponents, strict=True):
        parts = tuple(
            np.array(next(vectors), np.int32) for _ in _sizes(shapes[name], kind)
        )
        groups.setdefault(name, {})[kind] = _Group(exponent + EXPONENT_MID, parts)
    return Update({name: _layer(shapes[name], g) for name, g in groups.items()}, {})


_BIAS = -1
"""Kind of a gate: the bias, or the number of a rank-1 piece."""


def _kinds(shape: tuple[int, ...], rank: int) -> range:
    """Gates of a layer: its bias and, where it is a Linear, its rank-1 pieces."""
    return range(_BIAS, rank if len(shape) == 2 else 0)


def _sizes(shape: tuple[int, ...], kind: int) -> tuple[int, ...]:
    """Lengths of the vectors behind a gate."""
    return (shape[0],) if kind == _BIAS else shape


def _groups(
    update: Update, name: str, shape: tuple[int, ...], rank: int
) -> list[_Group | None]:
    """The layer's groups by gate; None where nothing is sent."""
    kinds = _kinds(shape, rank)
    layer = update.layers.get(name)
    if layer is None:
        return [None] * len(kinds)
    out: list[_Group | None] = []
    for kind in kinds:
        if kind == _BIAS:
            group = _Group(int(layer.bias_e[0]), (layer.bias.astype(np.int32),))
        elif kind < len(layer.e):
            factors = layer.b[:, kind].astype(np.int32), layer.a[kind].astype(np.int32)
            group = _Group(int(layer.e[kind]), factors)
        else:
            group = _Group(0, (np.zeros(0, np.int32),))
        out.append(group if all(v.any() for v in group.vectors) else None)
    return out


def _layer(shape: tuple[int, ...], groups: Mapping[int, _Group]) -> LayerUpdate:
    """A layer's groups as the update that lowrank merges."""
    pieces = [g for kind, g in sorted(groups.items()) if kind != _BIAS]
    bias = groups.get(_BIAS, _Group(0, (np.zeros(shape[0], np.int32),)))
    columns = int(np.prod(shape[1:]))
    b = np.array([g.vectors[0] for g in pieces], np.int8).reshape(len(pieces), shape[0])
    a = np.array([g.vectors[1] for g in pieces], np.int8).reshape(len(pieces), columns)
    return LayerUpdate(
        np.ascontiguousarray(b.T),
        a,
        np.array([g.exponent for g in pieces], np.int8),
        bias.vectors[0].astype(np.int8),
        np.array([bias.exponent], np.int8),
    )


def best_level(symbols: Symbols, tables: Tables) -> tuple[int, float]:
    """The scale level that codes symbols with the fewest bits, and these bits."""
    values, counts = np.unique(symbols, return_counts=True)
    whole = values.astype(np.int32)
    costs = [
        float(counts @ tables.costs(whole, np.full(len(whole), level, np.uint8)))
        for level in range(1, LEVELS)
    ]
    best = int(np.argmin(costs))
    return best + 1, costs[best]


def _push(encoder: Encoder, symbols: Sequence[int] | Symbols, level: int) -> None:
    encoder.push(np.asarray(symbols, np.int32), np.full(len(symbols), level, np.uint8))


def _pull(
    decoder: Decoder, count: int, level: int, low: int, high: int, what: str
) -> list[int]:
    """Symbols of one level within their range."""
    symbols = decoder.pull(np.full(count, level, np.uint8))
    if count and not low <= int(symbols.min()) <= int(symbols.max()) <= high:
        found = f"{symbols.min()} to {symbols.max()}"
        raise BadStream(f"model update: {what} is {found}, expected {low} to {high}")
    out: list[int] = symbols.tolist()
    return out
