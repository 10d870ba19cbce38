"""Symbols and their scale levels <-> bytes, with constriction's ANS coder.

The symbols of a group are sorted by level (stable), and those of one level are coded with the
level's table in one call: about 6 ns a symbol to encode and 30 ns to decode. Level 0 is not coded.
ANS is a stack, so the encoder pushes groups and symbols in the reverse of decoding order.

Tables are integers from the model store that sum to 2^24. `Categorical(w, perfect=False)` over n
symbols scales its cumulative weights by (2^24 − n) / sum(w), rounds them down and adds one unit to
every symbol. With w = table − 1, which sums to 2^24 − n, that factor is exactly 1, so constriction
codes with the stored integers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import LEVELS, SYMBOL_MAX
from service.errors import BadStream, StoreError

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

TOTAL_BITS = 24
"""Probabilities are integers in units of 2^-24."""

Symbols = NDArray[np.int32]
Levels = NDArray[np.uint8]


class Tables:
    """One probability table for each scale level. Immutable.

    Attributes:
        mass: [LEVELS, 2 · SYMBOL_MAX + 1] int64, probability of symbols -511…511 in units of 2^-24.
        models: constriction's model of each level.
        bit_costs: float32 like mass, ideal code length of each symbol in bits; 0 at level 0.
    """

    def __init__(self, half: NDArray[np.integer[Any]]) -> None:
        """Build from [LEVELS, SYMBOL_MAX + 1] integers: mass of symbols 0, ±1, ±2, ... times 2^24.

        Raises:
            StoreError: the tables are no integers or of another shape, a mass is below 1, or a
                table does not sum to 2^24.
        """
        shape = (LEVELS, SYMBOL_MAX + 1)
        if half.shape != shape or not np.issubdtype(half.dtype, np.integer):
            raise StoreError(f"tables are {half.dtype} {half.shape}, expected integers {shape}")
        mass = np.concatenate([half[:, :0:-1], half], 1).astype(np.int64)
        if mass.min() < 1 or (mass.sum(1) != 2**TOTAL_BITS).any():
            raise StoreError("tables have a mass below 1 or do not sum to 2^24")
        self.mass = mass
        self.bit_costs = (TOTAL_BITS - np.log2(mass)).astype(np.float32)
        self.bit_costs[0] = 0
        self.models = [Categorical((m - 1).astype(np.float64), perfect=False) for m in mass]

    def costs(self, symbols: Symbols, levels: Levels) -> NDArray[np.float64]:
        """Ideal code length in bits of symbols at levels (broadcast); level 0 included."""
        out: NDArray[np.float64] = TOTAL_BITS - np.log2(self.mass[levels, symbols + SYMBOL_MAX])
        return out


class Encoder:
    """Encoder of one piece: collects groups of symbols in decoding order, then codes them."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._groups: list[tuple[Symbols, Levels]] = []

    def push(self, symbols: Symbols, levels: Levels) -> None:
        """Append a group: symbols [n] int32 in ±SYMBOL_MAX, 0 at level 0, and levels [n] uint8."""
        order = np.argsort(levels, kind="stable")
        self._groups.append((symbols[order].astype(np.int32) + SYMBOL_MAX, levels[order]))

    def finish(self) -> bytes:
        """Code all groups; returns little-endian 32-bit words without the zero bytes at the end."""
        ans = AnsCoder()
        for symbols, levels in reversed(self._groups):
            for level, low, high in reversed(_runs(levels)):
                ans.encode_reverse(symbols[low:high], self._tables.models[level])
        words: NDArray[np.uint32] = ans.get_compressed()
        return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Decoder of one piece, group by group."""

    def __init__(self, tables: Tables, data: bytes | memoryview) -> None:
        """Raises BadStream: the bytes end in a zero, as Encoder never ends."""
        if data and data[-1] == 0:
            raise BadStream("coded symbols end in a zero byte")
        words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._tables = tables
        self._ans = AnsCoder(words)

    def pull(self, levels: Levels) -> Symbols:
        """Decode a group: levels [n] uint8 -> symbols [n] int32."""
        order = np.argsort(levels, kind="stable")
        symbols = np.zeros(len(levels), np.int32)
        for level, low, high in _runs(levels[order]):
            decoded = self._ans.decode(self._tables.models[level], high - low)
            symbols[order[low:high]] = decoded - SYMBOL_MAX
        return symbols

    def finish(self) -> None:
        """Raise BadStream unless every word was read and the coder is in its initial state."""
        if not self._ans.is_empty():
            raise BadStream("coded bytes do not end where their symbols do")


def _runs(levels: Levels) -> list[tuple[int, int, int]]:
    """(level, start, end) of each run of equal levels above 0 in sorted levels."""
    edges = np.searchsorted(levels, np.arange(1, LEVELS + 1)).tolist()
    return [(k + 1, low, high) for k, (low, high) in enumerate(pairwise(edges)) if high > low]
