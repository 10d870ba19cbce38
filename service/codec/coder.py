"""Symbols and their scale levels <-> bytes, with constriction's ANS coder.

The symbols of a group are sorted by level (stable), and those of one level are coded with the
level's table in one call. Level 0 is not coded. ANS is a stack, so the encoder pushes groups and
symbols in the reverse of decoding order.

Tables are integers from the model store that sum to 2^24. `Categorical(w, perfect=False)` over n
symbols scales its cumulative weights by (2^24 − n) / sum(w), rounds them down and adds one unit to
every symbol. With w = table − 1, which sums to 2^24 − n, that factor is exactly 1, so constriction
codes with the stored integers.

To encode takes 5 ns a symbol. To decode takes 26 ns with a whole table, because constriction
searches it by halves, but 11 to 20 with a `NearTable`, which has the same intervals for all symbols
but very rare ones. Where a rare one occurs, the run is put back and decoded with the whole table:
what ANS decodes, encoding undoes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import constriction
import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import LEVELS, SYMBOL_MAX
from service.errors import BadStream, StoreError

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

TOTAL_BITS = 24
"""Probabilities are integers in units of 2^-24."""

RARE = 2**-13
"""Largest mass of the symbols beyond half the reach of a NearTable."""

LAPLACE_LEVELS = 48
"""Scales of a Laplace distribution: 2^(level / 4 - 4) for level 0 ... 47."""
LAPLACE_SHIFTS = 5
"""Distances of its mean from the nearest integer: 0 ... 4 eighths."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Symbols = NDArray[np.int32]
Levels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class NearTable:
    """The table of one level, with all symbols beyond ±reach as one symbol at each end.

    Attributes:
        reach: largest absolute symbol that has an entry of its own.
        model: constriction's model of 2 · reach + 3 symbols.
    """

    reach: int
    model: Any

    @classmethod
    def of(cls, mass: NDArray[np.int64]) -> NearTable:
        """Cut a table [2 · SYMBOL_MAX + 1] so far out that symbols beyond are very rare."""
        below, above = np.cumsum(mass)[:SYMBOL_MAX], np.cumsum(mass[::-1])[:SYMBOL_MAX]
        beyond = (below + above)[::-1]  # of ±1 and more, ±2 and more, ...
        half = int(np.argmax(beyond <= RARE * 2**TOTAL_BITS))
        reach = min(max(2 * half, 1), SYMBOL_MAX - 1)
        near = mass[SYMBOL_MAX - reach : SYMBOL_MAX + reach + 1]
        tails = mass[: SYMBOL_MAX - reach], mass[SYMBOL_MAX + reach + 1 :]
        below, above = (tail.sum(keepdims=True) for tail in tails)
        return cls(reach, symbol_model(np.concatenate([below, near, above])))


class ByNumber(Protocol[T_co]):
    """What has an item for each number, such as a list."""

    def __getitem__(self, number: int, /) -> T_co:
        """The item of a number."""
        ...


class CodingTables(Protocol):
    """What Encoder and Decoder need of tables; see Tables."""

    @property
    def models(self) -> ByNumber[Any]:
        """Constriction's model of each table."""
        ...

    @property
    def near(self) -> ByNumber[NearTable]:
        """What decodes most symbols of each table faster."""
        ...


class Tables:
    """One probability table for each scale level. Immutable.

    Attributes:
        mass: [LEVELS, 2 · SYMBOL_MAX + 1] int64, probability of symbols -511…511 in units of 2^-24.
        models: constriction's model of each level.
        near: what decodes most symbols of each level faster.
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
        self.models = [symbol_model(m) for m in mass]
        self.near = [NearTable.of(m) for m in mass]

    def costs(self, symbols: Symbols, levels: Levels) -> NDArray[np.float64]:
        """Ideal code length in bits of symbols at levels (broadcast); level 0 included."""
        out: NDArray[np.float64] = TOTAL_BITS - np.log2(self.mass[levels, symbols + SYMBOL_MAX])
        return out


class OnDemand(dict[int, T]):
    """Items by number, each made when it is first needed."""

    def __init__(self, make: Callable[[int], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> T:
        """Make an item."""
        self[number] = self._make(number)
        return self[number]


@cache
def laplace_masses(table: int) -> NDArray[np.int64]:
    """Probabilities of -SYMBOL_MAX ... SYMBOL_MAX in units of 2^-24, which sum to 2^24.

    Every product of two float64 is the same on all machines, and so are decimal's exponentials.

    Args:
        table: 1 + LAPLACE_SHIFTS · level + shift has scale 2^(level / 4 - 4) and mean shift / 8.
    """
    level, shift = divmod(table - 1, LAPLACE_SHIFTS)
    scale = Decimal(2) ** (Decimal(level) / 4 - 4)
    ratio = float((-1 / scale).exp())
    powers = np.multiply.accumulate(np.r_[1.0, np.full(SYMBOL_MAX - 1, ratio)])
    room = 2.0**TOTAL_BITS - (2 * SYMBOL_MAX + 1)
    sides = []
    for distance in (Decimal(4 - shift) / 8, Decimal(4 + shift) / 8):
        tail = 0.5 * float((-distance / scale).exp())
        sides.append(1 + np.floor(tail * (1 - ratio) * powers * room).astype(np.int64))
    above, below = sides
    centre = 2**TOTAL_BITS - above.sum() - below.sum()
    masses: NDArray[np.int64] = np.r_[below[::-1], centre, above]
    return masses


class LaplaceTables:
    """Tables of Laplace distributions, see `laplace_masses`; 0 stands for a value not coded.

    Attributes:
        models, near: see Tables.
    """

    models: ByNumber[Any] = OnDemand(lambda table: symbol_model(laplace_masses(table)))
    near: ByNumber[NearTable] = OnDemand(lambda table: NearTable.of(laplace_masses(table)))


class Encoder:
    """Encoder of one piece: collects groups of symbols in decoding order, then codes them."""

    def __init__(self, tables: CodingTables) -> None:
        self._tables = tables
        self._groups: list[tuple[Symbols, list[tuple[int, int, int]]]] = []

    def push(self, symbols: Symbols, levels: Levels) -> None:
        """Append a group: symbols [n] int32 in ±SYMBOL_MAX, 0 at level 0, and levels [n] uint8."""
        order, runs = _sort(levels)
        self._groups.append((symbols[order].astype(np.int32, copy=False) + SYMBOL_MAX, runs))

    def finish(self) -> bytes:
        """Code all groups; returns little-endian 32-bit words without the zero bytes at the end."""
        ans = AnsCoder()
        for symbols, runs in reversed(self._groups):
            for level, low, high in reversed(runs):
                ans.encode_reverse(symbols[low:high], self._tables.models[level])
        words: NDArray[np.uint32] = ans.get_compressed()
        return words.astype("<u4").tobytes().rstrip(b"\0")


class Decoder:
    """Decoder of one piece, group by group."""

    def __init__(self, tables: CodingTables, data: bytes | memoryview) -> None:
        """Raises BadStream: the bytes end in a zero, as Encoder never ends."""
        if data and data[-1] == 0:
            raise BadStream("coded symbols end in a zero byte")
        words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._tables = tables
        self._ans = AnsCoder(words)

    def pull(self, levels: Levels) -> Symbols:
        """Decode a group: levels [n] uint8 -> symbols [n] int32."""
        order, runs = _sort(levels)
        sorted_symbols = np.empty(len(order), np.int32)
        for level, low, high in runs:
            sorted_symbols[low:high] = self._pull_run(level, high - low)
        symbols = np.zeros(len(levels), np.int32)
        symbols[order] = sorted_symbols
        return symbols

    def _pull_run(self, level: int, count: int) -> Symbols:
        """Decode symbols of one level."""
        near = self._tables.near[level]
        decoded: Symbols = self._ans.decode(near.model, count)
        if decoded.min() > 0 and decoded.max() < 2 * near.reach + 2:
            return decoded - (near.reach + 1)
        self._ans.encode_reverse(decoded, near.model)
        decoded = self._ans.decode(self._tables.models[level], count)
        return decoded - SYMBOL_MAX

    def finish(self) -> None:
        """Raise BadStream unless every word was read and the coder is in its initial state."""
        if not self._ans.is_empty():
            raise BadStream("coded bytes do not end where their symbols do")


def symbol_model(mass: NDArray[np.int64]) -> Any:
    """Constriction's model of a table that sums to 2^24, with exactly these probabilities."""
    return Categorical((mass - 1).astype(np.float64), perfect=False)


def _sort(levels: Levels) -> tuple[NDArray[np.intp], list[tuple[int, int, int]]]:
    """Sort the symbols that are coded by level; those of one level keep their order.

    Returns:
        Their positions, and (level, start, end) of each run of one level among these.
    """
    ends = np.cumsum(np.bincount(levels, minlength=LEVELS)).tolist()
    order = np.argsort(levels, kind="stable")[ends[0] :]
    runs = [
        (level, low - ends[0], high - ends[0])
        for level, (low, high) in enumerate(pairwise(ends), 1)
        if high > low
    ]
    return order, runs
