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
class CodedTiles:
    """Encoded tiles.

    Attributes:
        data: the bytes of each tile.
        y_hat: [B, h, w, M] int16 Q6, exactly what every decoder gets.
        code_s: seconds of entropy coding, without the networks.
    """

    data: tuple[bytes, ...]
    y_hat: NDArray[np.int16]
    code_s: float


@dataclass(frozen=True, eq=False)
class DecodedTiles:
    """Decoded tiles.

    Attributes:
        y_hat: [B, h, w, M] int16 Q6.
        code_s: seconds of entropy decoding, without the networks.
    """

    y_hat: NDArray[np.int16]
    code_s: float


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
        z_levels = self._z_levels(z.shape)
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

        push(z_symbols.reshape(len(z), -1), np.broadcast_to(z_levels, (len(z), z_levels.size)))
        y_hat = self.entropy.run(z_symbols, y.shape[1], y.shape[2], choose)
        start = perf_counter()
        data = tuple(e.finish() for e in encoders)
        return CodedTiles(data, y_hat, code_s + perf_counter() - start)

    def decode(self, data: Sequence[bytes], tile: Box) -> DecodedTiles:
        """Decode tiles of one size.

        Args:
            data: coded bytes of each tile.
            tile: one of the tiles, for its shape.

        Raises:
            BadStream: `encode` with this model does not write these bytes.
        """
        decoders = [Decoder(self.tables, d) for d in data]
        rows, cols = hyper_shape(tile)
        shape = (len(data), rows, cols, self.entropy.sizes.Cz)
        z_levels = self._z_levels(shape)
        code_s = 0.0

        def choose(_: int, __: I32, levels: NDArray[np.uint8]) -> I32:
            nonlocal code_s
            start = perf_counter()
            symbols = np.stack([d.pull(row) for d, row in zip(decoders, levels, strict=True)])
            code_s += perf_counter() - start
            return symbols

        z = choose(0, np.empty(0, np.int32), np.broadcast_to(z_levels, (len(data), z_levels.size)))
        y_hat = self.entropy.run(z.reshape(shape), tile.height, tile.width, choose)
        for decoder in decoders:
            decoder.finish()
        return DecodedTiles(y_hat, code_s)

    def _z_levels(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.tile(self.entropy.z_levels, shape[1] * shape[2])


def _symbols(scaled: NDArray[np.floating[Any]]) -> I32:
    """Round to integers in ±SYMBOL_MAX."""
    symbols: I32 = np.rint(scaled).clip(-SYMBOL_MAX, SYMBOL_MAX).astype(np.int32)
    return symbols
