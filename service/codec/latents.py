"""Latents of tiles <-> bytes: the entropy model and the coder taking turns.

Tiles of equal size are coded together as a batch; each has its own bytes. A tile holds z (the
hyper-latents), then the four steps of y (the latents). Encoder and decoder both go through
`EntropyModel.run`, so they cannot differ. Latents under the graphics layer are not coded: their
symbols are 0, and so are those of a hyper-latent whose latents all lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Decoder, Encoder, Tables
from service.codec.entropy_model import CLASSES, SYMBOL_MAX, Y_FRAC, EntropyModel, gather
from service.codec.graphics import Mask
from service.codec.tiles import Z_CELL, Box, hyper_shape

I32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class DecodedTiles:
    """Decoded tiles.

    Attributes:
        y_hat: [B, h, w, M] int16 Q6, the same on every machine.
        code_s: seconds of entropy coding, without the networks.
    """

    y_hat: NDArray[np.int16]
    code_s: float


@dataclass(frozen=True, eq=False)
class CodedTiles(DecodedTiles):
    """Encoded tiles: the bytes of each, and what they decode to.

    Attributes:
        bits: [B, h, w] float32, ideal code length of each position; those of z are spread evenly.
    """

    data: tuple[bytes, ...]
    bits: NDArray[np.float32]


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
        encoders = [Encoder(self.tables) for _ in y]
        fixed = np.asarray(y, np.float32) * np.float32(2**Y_FRAC)
        z_symbols = _symbols((z - self.entropy.z_mean) / self.entropy.z_step)
        bits = np.zeros(y.shape[:3], np.float32)
        code_s = 0.0

        def push(symbols: I32, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
            nonlocal code_s
            start = perf_counter()
            symbols[levels == 0] = 0
            for encoder, row, level in zip(encoders, symbols, levels, strict=True):
                encoder.push(row, level)
            code_s += perf_counter() - start
            return self.tables.bit_costs[levels, symbols + SYMBOL_MAX]

        def choose(t: int, mu: I32, levels: NDArray[np.uint8]) -> I32:
            error = gather(fixed, t) - mu
            symbols = _symbols(error / self.entropy.y_steps(t, y.shape[1], y.shape[2]))
            plan.add_bits(bits, push(symbols, plan.coded(levels)))
            return symbols

        plan.add_z_bits(bits, push(z_symbols.reshape(len(z), -1), plan.z_levels(len(z))))
        y_hat = self.entropy.run(z_symbols, y.shape[1], y.shape[2], choose)
        start = perf_counter()
        data = tuple(e.finish() for e in encoders)
        return CodedTiles(y_hat, code_s + perf_counter() - start, data, bits)

    def decode(
        self, data: Sequence[bytes], tile: Box, skipped: Mask | None = None
    ) -> DecodedTiles:
        """Decode the bytes of tiles that all have the size of one `tile`; see `encode`.

        Raises:
            BadStream: `encode` with this model does not write these bytes.
        """
        decoders = [Decoder(self.tables, d) for d in data]
        plan = _CodingPlan(self.entropy, tile.height, tile.width, skipped)
        code_s = 0.0

        def pull(levels: NDArray[np.uint8]) -> I32:
            nonlocal code_s
            start = perf_counter()
            symbols = np.stack([d.pull(row) for d, row in zip(decoders, levels, strict=True)])
            code_s += perf_counter() - start
            return symbols

        def choose(_: int, __: I32, levels: NDArray[np.uint8]) -> I32:
            return pull(plan.coded(levels))

        z = pull(plan.z_levels(len(data))).reshape(len(data), *hyper_shape(tile), -1)
        y_hat = self.entropy.run(z, tile.height, tile.width, choose)
        for decoder in decoders:
            decoder.finish()
        return DecodedTiles(y_hat, code_s)


class _CodingPlan:
    """Which symbols of a tile are coded, and the positions that they belong to."""

    def __init__(
        self, entropy: EntropyModel, height: int, width: int, skipped: Mask | None
    ) -> None:
        self._z_channels, self._quarter = entropy.z_levels, entropy.sizes.M // 4
        self._cells = hyper_shape(Box(0, 0, height, width))
        self._skipped = skipped
        if skipped is not None:
            positions = np.concatenate([skipped[place].reshape(-1) for place in CLASSES])
            self._skipped_symbols = np.repeat(positions, self._quarter)

    def coded(self, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Levels [B, n] of a step of y, 0 at positions that are not coded."""
        if self._skipped is None:
            return levels
        return np.where(self._skipped_symbols, np.uint8(0), levels)

    def z_levels(self, batch: int) -> NDArray[np.uint8]:
        """Levels of the hyper-latents of each tile in coding order, [batch, n]."""
        rows, columns = self._cells
        levels = np.tile(self._z_channels, rows * columns)
        if self._skipped is not None:
            height, width = self._skipped.shape
            pad = ((0, Z_CELL * rows - height), (0, Z_CELL * columns - width))
            padded = np.pad(self._skipped, pad, constant_values=True)
            unused = np.all(padded.reshape(rows, Z_CELL, columns, Z_CELL), axis=(1, 3))
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
        """Spread the costs [B, n] of the hyper-latents evenly over bits [B, h, w]."""
        cells = costs.reshape(len(bits), *self._cells, -1).sum(-1) / Z_CELL**2
        spread = cells.repeat(Z_CELL, 1).repeat(Z_CELL, 2)
        bits += spread[:, : bits.shape[1], : bits.shape[2]]


def _symbols(scaled: NDArray[np.floating[Any]]) -> I32:
    """Round to integers in ±SYMBOL_MAX."""
    symbols: I32 = np.rint(scaled).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
    return symbols
