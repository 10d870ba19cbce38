"""Latents of tiles <-> bytes: the entropy model and the coder taking turns.

Tiles of equal size are coded together as a batch; each has its own bytes. A tile is coded in
segments: z (the hyper-latents), then the four steps of y (the latents). In step 0, the first
channels of each group, which hold most of what is visible, are a segment of their own. Each segment
is a piece of bytes, but small tiles are one piece. Encoder and decoder both go through
`EntropyModel.run`, so they cannot differ.

Symbols of a piece that is missing at the end are 0: y_hat is then as predicted from the pieces that
are there. Latents under the graphics layer are not coded: their symbols are 0, and so are those of
a hyper-latent whose latents all lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Decoder, Encoder, Tables
from service.codec.entropy_model import CLASSES, SYMBOL_MAX, Y_FRAC, EntropyModel, gather
from service.codec.graphics import Mask
from service.codec.tiles import Z_CELL, Box, Pieces, hyper_shape, piece_count

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

LEADING = 4
"""Channels of each group that are coded first in step 0. On Kodak at rate 4, z and they are 12 % of
the bytes and give 21.1 dB; with the rest of step 0 it is 30 % and 22.3 dB (`eval-parts`)."""


@dataclass(frozen=True, eq=False)
class DecodedTiles:
    """Decoded tiles.

    Attributes:
        y_hat: [B, h, w, M] int16 Q6, the same on every machine.
        code_s: seconds of entropy coding, without the networks.
        bits: [B, h, w] float32, ideal code length of each position; that of a hyper-latent is
            spread evenly over its positions that are coded. None where it was not asked for.
    """

    y_hat: NDArray[np.int16]
    code_s: float
    bits: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class CodedTiles(DecodedTiles):
    """Encoded tiles: the pieces of each, and what they decode to.

    Attributes:
        bits: of every position, see DecodedTiles.
        data: pieces of each tile, in the order of tiles.SEGMENTS.
    """

    bits: NDArray[np.float32]
    data: tuple[Pieces, ...]


class LatentCoder:
    """Coder of latents for one model at one rate. Immutable; safe to share between threads."""

    def __init__(self, entropy: EntropyModel, tables: Tables) -> None:
        self.entropy, self.tables = entropy, tables

    def encode(
        self, y: NDArray[np.float32], z: NDArray[np.float32], skipped: Mask | None = None
    ) -> CodedTiles:
        """Quantise and encode.

        Args:
            y: [B, h, w, M] float32 latents of B tiles of one size.
            z: [B, ceil(h/4), ceil(w/4), Cz] float32 hyper-latents.
            skipped: [h, w] bool, positions that are not coded; None where all are.
        """
        plan = _CodingPlan(self.entropy, y.shape[1], y.shape[2], skipped)
        whole = Box(0, 0, y.shape[1], y.shape[2])
        encoders = [[Encoder(self.tables) for _ in range(piece_count(whole))] for _ in y]
        fixed = np.asarray(y, np.float32) * np.float32(2**Y_FRAC)
        z_symbols = _symbols((z - self.entropy.z_mean) / self.entropy.z_step)
        bits = np.zeros(y.shape[:3], np.float32)
        code_s = 0.0

        segment = count()

        def push(symbols: I32, levels: U8) -> None:
            nonlocal code_s
            start, at = perf_counter(), next(segment)
            for pieces, one, its_levels in zip(encoders, symbols, levels, strict=True):
                piece = pieces[min(at, len(pieces) - 1)]
                piece.push(one.reshape(-1), its_levels.reshape(-1))
            code_s += perf_counter() - start

        def choose(t: int, mu: I32, levels: U8) -> I32:
            error = gather(fixed, t) - mu
            symbols = _symbols(error / self.entropy.y_steps(t, y.shape[1], y.shape[2]))
            levels = plan.coded(levels)
            symbols[levels == 0] = 0
            for part, its_levels in zip(plan.parts(t, symbols), plan.parts(t, levels), strict=True):
                push(part, its_levels)
            plan.add_bits(bits, self._bit_costs(levels, symbols))
            return symbols

        z_levels = plan.z_levels(len(z))
        z_symbols[z_levels.reshape(z.shape) == 0] = 0
        push(z_symbols, z_levels)
        plan.add_z_bits(bits, self._bit_costs(z_levels, z_symbols.reshape(len(z), -1)))
        y_hat = self.entropy.run(z_symbols, y.shape[1], y.shape[2], choose)
        start = perf_counter()
        data = tuple(tuple(piece.finish() for piece in pieces) for pieces in encoders)
        return CodedTiles(y_hat, code_s + perf_counter() - start, bits, data)

    def decode(
        self, data: Sequence[Pieces], tile: Box, skipped: Mask | None = None
    ) -> DecodedTiles:
        """Decode tiles that all have the size of one `tile`; see `encode`.

        Args:
            data: pieces of each tile; symbols of those that are missing at the end are 0.

        Raises:
            BadStream: `encode` with this model does not write these bytes.
        """
        return self._decode(data, tile, skipped, None)

    def decode_with_bits(
        self, data: Sequence[Pieces], tile: Box, skipped: Mask | None = None
    ) -> DecodedTiles:
        """Decode as `decode` does, and tell the code length of each position, too."""
        bits = np.zeros((len(data), tile.height, tile.width), np.float32)
        return self._decode(data, tile, skipped, bits)

    def _decode(
        self,
        data: Sequence[Pieces],
        tile: Box,
        skipped: Mask | None,
        bits: NDArray[np.float32] | None,
    ) -> DecodedTiles:
        """Decode tiles, and add the code length of each position to bits [B, h, w] if given."""
        plan = _CodingPlan(self.entropy, tile.height, tile.width, skipped)
        code_s = 0.0
        decoders = [[Decoder(self.tables, piece) for piece in pieces] for pieces in data]
        segment, last = count(), piece_count(tile) - 1

        def pull(symbols: I32, levels: U8) -> None:
            nonlocal code_s
            start, at = perf_counter(), min(next(segment), last)
            for one, pieces, its_levels in zip(symbols, decoders, levels, strict=True):
                for piece in pieces[at : at + 1]:
                    one[...] = piece.pull(its_levels.reshape(-1)).reshape(one.shape)
            code_s += perf_counter() - start

        def choose(t: int, _: I32, levels: U8) -> I32:
            levels = plan.coded(levels)
            symbols = np.zeros(levels.shape, np.int32)
            for part, its_levels in zip(plan.parts(t, symbols), plan.parts(t, levels), strict=True):
                pull(part, its_levels)
            if bits is not None:
                plan.add_bits(bits, self._bit_costs(levels, symbols))
            return symbols

        z_levels = plan.z_levels(len(data))
        z_symbols = np.zeros(z_levels.shape, np.int32)
        pull(z_symbols, z_levels)
        if bits is not None:
            plan.add_z_bits(bits, self._bit_costs(z_levels, z_symbols))
        z = z_symbols.reshape(len(data), *hyper_shape(tile), -1)
        y_hat = self.entropy.run(z, tile.height, tile.width, choose)
        for piece in chain.from_iterable(decoders):
            piece.finish()
        return DecodedTiles(y_hat, code_s, bits)

    def _bit_costs(self, levels: U8, symbols: I32) -> NDArray[np.float32]:
        """Ideal code length in bits of symbols [B, n] at levels [B, n]; 0 at level 0."""
        return self.tables.bit_costs[levels, symbols + SYMBOL_MAX]


class _CodingPlan:
    """Which symbols of a tile are coded, and the positions that they belong to."""

    def __init__(
        self, entropy: EntropyModel, height: int, width: int, skipped: Mask | None
    ) -> None:
        self._z_channels, self._quarter = entropy.z_levels, entropy.sizes.M // 4
        self._extent, self._cells = (height, width), hyper_shape(Box(0, 0, height, width))
        self._skipped = skipped
        if skipped is not None:
            positions = np.concatenate([skipped[place].reshape(-1) for place in CLASSES])
            self._skipped_symbols = np.repeat(positions, self._quarter)

    def parts(self, t: int, symbols: NDArray[Any]) -> list[NDArray[Any]]:
        """The symbols (or levels) [B, n] of step t of y that each of its pieces holds."""
        channels = symbols.reshape(len(symbols), -1, self._quarter)
        return [channels] if t else [channels[..., :LEADING], channels[..., LEADING:]]

    def coded(self, levels: U8) -> U8:
        """Levels [B, n] of a step of y, 0 at positions that are not coded."""
        if self._skipped is None:
            return levels
        return np.where(self._skipped_symbols, np.uint8(0), levels)

    def z_levels(self, batch: int) -> U8:
        """Levels of the hyper-latents of each tile in coding order, [batch, n]."""
        rows, columns = self._cells
        levels = np.tile(self._z_channels, rows * columns)
        if self._skipped is not None:
            unused = ~self._coded_positions().any(axis=(1, 3))
            levels[np.repeat(unused.reshape(-1), len(self._z_channels))] = 0
        return np.broadcast_to(levels, (batch, levels.size))

    def add_bits(self, bits: NDArray[np.float32], costs: NDArray[np.float32]) -> None:
        """Add the costs [B, n] of the symbols of a step of y to bits [B, h, w]."""
        start = 0
        for rows, columns in CLASSES:
            target = bits[:, rows, columns]
            span = slice(start, start := start + target[0].size * self._quarter)
            target += costs[:, span].reshape(*target.shape, self._quarter).sum(-1)

    def add_z_bits(self, bits: NDArray[np.float32], costs: NDArray[np.float32]) -> None:
        """Spread the costs [B, n] of each hyper-latent over its coded positions, in bits."""
        coded = self._coded_positions()
        rows, _, columns, _ = coded.shape
        shares = coded / coded.sum((1, 3), keepdims=True).clip(1)
        cells = costs.reshape(len(bits), rows, 1, columns, 1, -1).sum(-1)
        spread = (cells * shares).reshape(len(bits), Z_CELL * rows, Z_CELL * columns)
        bits += spread[:, : bits.shape[1], : bits.shape[2]]

    def _coded_positions(self) -> NDArray[np.bool_]:
        """Which positions of each hyper-latent are coded: [rows, Z_CELL, columns, Z_CELL]."""
        (height, width), (rows, columns) = self._extent, self._cells
        coded = np.zeros((Z_CELL * rows, Z_CELL * columns), bool)
        coded[:height, :width] = True if self._skipped is None else ~self._skipped
        return coded.reshape(rows, Z_CELL, columns, Z_CELL)


def _symbols(scaled: NDArray[np.floating[Any]]) -> I32:
    """Round to integers in ±SYMBOL_MAX."""
    symbols: I32 = np.rint(scaled).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
    return symbols
