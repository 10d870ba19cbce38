"""Latents of tiles <-> bytes: the entropy model and the coder taking turns.

Tiles of equal size are coded together as a batch; each has its own bytes. A tile holds z (the
hyper-latents), then the four steps of y (the latents). Encoder and decoder both go through
`EntropyModel.run`, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Decoder, Encoder, Tables
from service.codec.entropy_model import SYMBOL_MAX, Y_FRAC, EntropyModel, gather
from service.codec.tiles import Box, hyper_shape

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
    """Encoded tiles: the bytes of each, and what they decode to."""

    data: tuple[bytes, ...]


class LatentCoder:
    """Coder of latents for one model at one rate. Immutable; safe to share between threads."""

    def __init__(self, entropy: EntropyModel, tables: Tables) -> None:
        self.entropy, self.tables = entropy, tables

    def encode(self, y: NDArray[np.float32], z: NDArray[np.float32]) -> CodedTiles:
        """Quantise and encode.

        Args:
            y: [B, h, w, M] float32 latents of B tiles of one size.
            z: [B, ceil(h/4), ceil(w/4), Cz] float32 hyper-latents.
        """
        encoders = [Encoder(self.tables) for _ in y]
        fixed = np.asarray(y, np.float32) * np.float32(2**Y_FRAC)
        z_symbols = _symbols((z - self.entropy.z_mean) / self.entropy.z_step)
        code_s = 0.0

        def push(symbols: I32, levels: NDArray[np.uint8]) -> None:
            nonlocal code_s
            start = perf_counter()
            for encoder, row, level in zip(encoders, symbols, levels, strict=True):
                encoder.push(row, level)
            code_s += perf_counter() - start

        def choose(t: int, mu: I32, levels: NDArray[np.uint8]) -> I32:
            error = gather(fixed, t) - mu
            symbols = _symbols(error / self.entropy.y_steps(t, y.shape[1], y.shape[2]))
            symbols[levels == 0] = 0
            push(symbols, levels)
            return symbols

        push(z_symbols.reshape(len(z), -1), self._z_levels(*z.shape[:3]))
        y_hat = self.entropy.run(z_symbols, y.shape[1], y.shape[2], choose)
        start = perf_counter()
        data = tuple(e.finish() for e in encoders)
        return CodedTiles(y_hat, code_s + perf_counter() - start, data)

    def decode(self, data: Sequence[bytes], tile: Box) -> DecodedTiles:
        """Decode the bytes of tiles that all have the size of one `tile`.

        Raises:
            BadStream: `encode` with this model does not write these bytes.
        """
        decoders = [Decoder(self.tables, d) for d in data]
        z_shape = (len(data), *hyper_shape(tile))
        code_s = 0.0

        def choose(_: int, __: I32, levels: NDArray[np.uint8]) -> I32:
            nonlocal code_s
            start = perf_counter()
            symbols = np.stack([d.pull(row) for d, row in zip(decoders, levels, strict=True)])
            code_s += perf_counter() - start
            return symbols

        z = choose(0, np.empty(0, np.int32), self._z_levels(*z_shape))
        y_hat = self.entropy.run(z.reshape(*z_shape, -1), tile.height, tile.width, choose)
        for decoder in decoders:
            decoder.finish()
        return DecodedTiles(y_hat, code_s)

    def _z_levels(self, batch: int, rows: int, cols: int) -> NDArray[np.uint8]:
        """Levels of all hyper-latents of each tile in coding order, [batch, rows · cols · Cz]."""
        return np.tile(self.entropy.z_levels, (batch, rows * cols))


def _symbols(scaled: NDArray[np.floating[Any]]) -> I32:
    """Round to integers in ±SYMBOL_MAX."""
    symbols: I32 = np.rint(scaled).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
    return symbols
