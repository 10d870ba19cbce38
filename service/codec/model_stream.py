"""An update of the synthesis g_s for one image <-> bytes.

The payload is coded like a tile, with the coder and the tables of the latents, so it needs neither
a second entropy coder nor a floating-point prior. In order:

    rank R | a gate for every bias and for R rank-1 pieces of every linear layer |
    for every open gate an exponent | a scale level for every vector | the symbols of every vector

lowrank.LayerUpdate says what the symbols mean: delta W = 2^e · b · a and a bias delta, in units of
the layer's own rows and columns. Layers are in order of name.

Idea: the gates and low-rank pieces of "Dynamic Low-Rank Instance Adaptation for Universal Neural
Image Compression" (Lv et al. 2023). We differ in storing a scale level for each vector, which makes
zeros cheap: where most symbols are zero, one costs about 0.1 bits, against 4.3 under their fixed
prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Decoder, Encoder, Tables
from service.codec.entropy_model import LEVELS
from service.codec.lowrank import LayerUpdate, Update
from service.errors import BadStream

MAX_RANK = 8
"""Largest number of rank-1 pieces of a layer."""

SYMBOL_MAX = 127
"""Largest absolute symbol of a factor or bias."""

EXPONENT_MIN, EXPONENT_MAX = -20, 0
"""Range of exponents of factors and biases; 0 already changes a layer beyond recognition."""

RANK_LEVEL, GATE_LEVEL, EXPONENT_LEVEL, LEVEL_LEVEL = 20, 14, 30, 40
"""Scale levels at which ranks, gates, exponents and levels are coded (sigma 1, .53, 3.2, 9.8)."""

EXPONENT_MID, LEVEL_MID = -8, 16
"""Exponents and levels are coded as differences from these values."""

Shapes = Mapping[str, tuple[int, ...]]

_BIAS = -1
"""Kind of the gate of a bias; the kind of other gates is the number of their rank-1 piece."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """What an open gate sends: an exponent, and a bias [N] or the two factors b [N] and a [K]."""

    exponent: int
    vectors: tuple[NDArray[Any], ...]


def write_update(update: Update, shapes: Shapes, tables: Tables) -> bytes:
    """Code an update of g_s; `read_update` gives it back, without pieces that are zero.

    Args:
        update: of layers of g_s, without `vectors`. shapes: weight shape of every layer of g_s.
        tables: of the model.
    """
    rank = max((len(u.e) for u in update.layers.values()), default=0)
    gates = [_piece(update.layers.get(name), kind) for name, kind in _gates(shapes, rank)]
    pieces = [piece for piece in gates if piece is not None]
    vectors = [v for piece in pieces for v in piece.vectors]
    levels = [best_level(v, tables)[0] for v in vectors]
    encoder = Encoder(tables)
    _push(encoder, [rank], RANK_LEVEL)
    _push(encoder, [int(piece is not None) for piece in gates], GATE_LEVEL)
    _push(encoder, [piece.exponent - EXPONENT_MID for piece in pieces], EXPONENT_LEVEL)
    _push(encoder, [level - LEVEL_MID for level in levels], LEVEL_LEVEL)
    for vector, level in zip(vectors, levels, strict=True):
        _push(encoder, vector, level)
    return encoder.finish()


def read_update(data: bytes, shapes: Shapes, tables: Tables) -> Update:
    """Decode what `write_update` returned for the same shapes and tables.

    Raises:
        BadStream: `write_update` for this model does not write these bytes.
    """
    decoder = Decoder(tables, data)
    (rank,) = _pull(decoder, 1, RANK_LEVEL, 0, MAX_RANK, "rank")
    gates = _gates(shapes, rank)
    opened = _pull(decoder, len(gates), GATE_LEVEL, 0, 1, "gate")
    chosen = [gate for gate, is_open in zip(gates, opened, strict=True) if is_open]
    low, high = EXPONENT_MIN - EXPONENT_MID, EXPONENT_MAX - EXPONENT_MID
    exponents = _pull(decoder, len(chosen), EXPONENT_LEVEL, low, high, "exponent")
    sizes = [shapes[name][:1] if kind == _BIAS else shapes[name] for name, kind in chosen]
    lengths = [n for size in sizes for n in size]
    low, high = 1 - LEVEL_MID, LEVELS - 1 - LEVEL_MID
    levels = _pull(decoder, len(lengths), LEVEL_LEVEL, low, high, "scale level")
    vectors = [
        _pull(decoder, n, level + LEVEL_MID, -SYMBOL_MAX, SYMBOL_MAX, "update symbol")
        for n, level in zip(lengths, levels, strict=True)
    ]
    decoder.finish()
    pieces: dict[str, dict[int, _Piece]] = {}
    unread = iter(np.array(vector, np.int8) for vector in vectors)
    for (name, kind), size, exponent in zip(chosen, sizes, exponents, strict=True):
        piece = _Piece(exponent + EXPONENT_MID, tuple(next(unread) for _ in size))
        pieces.setdefault(name, {})[kind] = piece
    return Update({name: _layer(shapes[name], by_kind) for name, by_kind in pieces.items()}, {})


def _gates(shapes: Shapes, rank: int) -> list[tuple[str, int]]:
    """Layer and kind of every gate: the bias of each layer and the pieces of each linear one."""
    return [
        (name, kind)
        for name in sorted(shapes)
        for kind in range(_BIAS, rank if len(shapes[name]) == 2 else 0)
    ]


def _piece(layer: LayerUpdate | None, kind: int) -> _Piece | None:
    """What a gate of a layer sends; None for a closed gate."""
    if layer is None or kind >= len(layer.e):
        return None
    if kind == _BIAS:
        piece = _Piece(int(layer.bias_e[0]), (layer.bias,))
    else:
        piece = _Piece(int(layer.e[kind]), (layer.b[:, kind], layer.a[kind]))
    return piece if all(v.any() for v in piece.vectors) else None


def _layer(shape: tuple[int, ...], by_kind: Mapping[int, _Piece]) -> LayerUpdate:
    """Join the pieces of a layer, in order of kind, into the update that lowrank merges."""
    pieces = [piece for kind, piece in by_kind.items() if kind != _BIAS]
    bias = by_kind.get(_BIAS, _Piece(0, (np.zeros(shape[0], np.int8),)))
    b = np.array([piece.vectors[0] for piece in pieces], np.int8).reshape(len(pieces), shape[0])
    a = np.array([piece.vectors[1] for piece in pieces], np.int8)
    return LayerUpdate(
        np.ascontiguousarray(b.T),
        a.reshape(len(pieces), int(np.prod(shape[1:]))),
        np.array([piece.exponent for piece in pieces], np.int8),
        bias.vectors[0],
        np.array([bias.exponent], np.int8),
    )


def best_level(symbols: NDArray[Any], tables: Tables) -> tuple[int, float]:
    """Find the scale level that codes symbols [n] with the fewest bits; returns it and the bits."""
    values, counts = np.unique(symbols, return_counts=True)
    levels = np.arange(1, LEVELS, dtype=np.uint8)
    bits = tables.costs(values.astype(np.int32), levels[:, None]) @ counts
    best = int(bits.argmin())
    return best + 1, float(bits[best])


def _push(encoder: Encoder, symbols: Sequence[int] | NDArray[Any], level: int) -> None:
    encoder.push(np.asarray(symbols, np.int32), np.full(len(symbols), level, np.uint8))


def _pull(decoder: Decoder, count: int, level: int, low: int, high: int, name: str) -> list[int]:
    """Decode symbols of one level and check their range."""
    symbols = decoder.pull(np.full(count, level, np.uint8))
    if count and not low <= int(symbols.min()) <= int(symbols.max()) <= high:
        actual = f"{symbols.min()} to {symbols.max()}"
        raise BadStream(f"model update: {name} is {actual}, expected {low} to {high}")
    out: list[int] = symbols.tolist()
    return out
