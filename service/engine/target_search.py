"""The search for the rate that meets a size or a quality best, over rates in sixteenths.

The logarithm of the size and the PSNR are almost linear in the rate, so the curves measured on
Kodak, moved so that they go through the first stream, predict which rate to try next. Whole rates
are tried until two neighbours enclose the goal (their weights are cached), then sixteenths between
the two. The result is a real stream and not a prediction: it meets the goal by its own bytes or its
own decoded pixels, and, where size and PSNR grow with the rate, no other rate of the ladder meets
the goal better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from service.codec.container import LOSSLESS, PSNR
from service.codec.lowrank import PARTS
from service.engine.target import Target, rate_text
from service.engine.types import Compressed, Timings
from service.errors import TargetUnreachable
from service.store.model import StoredModel, StoredRate

TYPICAL_LOG_BPP = -0.9, 0.4
"""log(bpp) at rate 4 and its growth a rate, where the store has not measured them."""

TYPICAL_PSNR_DB = 33.0, 1.6
"""PSNR in dB at rate 4 and its growth a rate, where the store has not measured them."""

MAX_PSNR_DB = 120.0
"""PSNR that an exact reconstruction counts as in interpolations."""

USUAL_ENCODES = 5
"""Times that a search compresses the picture, rounded up (on average 4.6 for 25 photographs)."""

GUESSES = 4
"""Interpolations between two enclosing rates before the search only halves."""

Attempt = Callable[[int], Compressed]
"""A rate in sixteenths -> the picture compressed at that rate."""


@dataclass(frozen=True)
class SizeGoal:
    """The largest stream within the bits per pixel or the bytes of a target."""

    target: Target
    pixels: int
    from_below: ClassVar = True
    needs_psnr: ClassVar = False

    @property
    def limit_bpp(self) -> float:
        """Bits per pixel that a stream may have."""
        if self.target.bpp is not None:
            return self.target.bpp
        assert self.target.max_bytes is not None
        return self.target.max_bytes * 8 / self.pixels

    @property
    def level(self) -> float:
        """log of the bits per pixel that a stream may have."""
        return math.log(self.limit_bpp)

    def value(self, stream: Compressed) -> float:
        """log of the bits per pixel."""
        return math.log(stream.bpp)

    def fits(self, size_bytes: int) -> bool:
        """Whether a stream of that many bytes is small enough."""
        return size_bytes * 8 / self.pixels <= self.limit_bpp

    def meets(self, stream: Compressed) -> bool:
        """Whether the stream is small enough."""
        return self.fits(len(stream.data))

    def needs_check(self, data: bytes, check: bool) -> bool:
        """Whether a fresh stream must be decoded again and measured: not one that is too large.

        `check` says whether streams are checked where no target is given.
        """
        return check and self.fits(len(data))

    def curve(self, rates: Sequence[StoredRate]) -> list[float]:
        """log of Kodak's bits per pixel."""
        known = [math.log(r.kodak_bpp) for r in rates if r.kodak_bpp]
        return _rising(known, rates, TYPICAL_LOG_BPP)

    def unreachable(self, nearest: Compressed) -> TargetUnreachable:
        """Says how small the smallest stream is."""
        rate = rate_text(nearest.rate)
        smallest = f"the smallest stream, at rate {rate}, has {len(nearest.data)} bytes"
        limit = self.target.max_bytes
        if limit is not None:
            message = f"{smallest}, {len(nearest.data) - limit} more than max_bytes {limit}"
            return TargetUnreachable(message, len(nearest.data), limit)
        message = f"{smallest} or {nearest.bpp:.4f} bits per pixel"
        message += f", target_bpp is {self.limit_bpp:g}"
        return TargetUnreachable(message, nearest.bpp, self.limit_bpp)


@dataclass(frozen=True)
class QualityGoal:
    """The smallest stream whose PSNR is at least `psnr_db`."""

    psnr_db: float
    from_below: ClassVar = False
    needs_psnr: ClassVar = True

    @property
    def level(self) -> float:
        """PSNR in dB."""
        return self.psnr_db

    def value(self, stream: Compressed) -> float:
        """PSNR in dB."""
        assert stream.psnr_db is not None
        return min(stream.psnr_db, MAX_PSNR_DB)

    def meets(self, stream: Compressed) -> bool:
        """Whether the stream is good enough."""
        assert stream.psnr_db is not None
        return stream.psnr_db >= self.psnr_db

    def needs_check(self, data: bytes, check: bool) -> bool:
        """Always: with it, the PSNR is measured."""
        del data, check
        return True

    def curve(self, rates: Sequence[StoredRate]) -> list[float]:
        """Kodak's PSNR in dB."""
        known = [r.kodak_psnr_db for r in rates if r.kodak_psnr_db is not None]
        return _rising(known, rates, TYPICAL_PSNR_DB)

    def unreachable(self, nearest: Compressed) -> TargetUnreachable:
        """Says how good the best stream is."""
        best = self.value(nearest)
        message = f"the best stream, at rate {rate_text(nearest.rate)}, has {best:.3f} dB"
        return TargetUnreachable(f"{message}, target_psnr is {self.psnr_db:g}", best, self.psnr_db)


Goal = SizeGoal | QualityGoal
"""What a search looks for: the place where a curve over the rate, almost linear, crosses `level`.

With `from_below` the result is the last rate up to the level, otherwise the first from it on."""


def goal_of(target: Target, pixels: int) -> Goal:
    """The goal of a search for a target, for a picture of that many pixels."""
    if target.psnr_db is not None:
        return QualityGoal(target.psnr_db)
    return SizeGoal(target, pixels)


def search(
    goal: Goal,
    model: StoredModel,
    attempt: Attempt,
    tune: str = PSNR,
    lossless: Callable[[], Compressed] | None = None,
) -> Compressed:
    """The stream that meets a goal best; its `encodes` and `timings` are those of the search.

    Args:
        attempt: compresses at a rate of the ladder. tune: the ladder, one of model.tunes.
        lossless: compresses without loss, which is tried where no rate meets the goal; None: not.

    Raises:
        TargetUnreachable: no rate of the ladder meets the goal.
    """
    state = _Search(goal, model, tune)
    while (rate16 := state.next()) is not None:
        state.add(rate16, attempt(rate16))
    if lossless is not None and not any(map(goal.meets, state.streams.values())):
        state.streams[len(state.grid)] = lossless()
    return state.answer()


@dataclass(eq=False)
class _Search:
    """The streams so far, by their index in the ascending list of offered rates."""

    goal: Goal
    model: StoredModel
    tune: str
    streams: dict[int, Compressed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the goal anywhere between the ends of the list, or beyond one of them."""
        self.grid = [r for r in range(PARTS, 8 * PARTS + 1) if self.model.offers(r, self.tune)]
        stored = self.model.ladder(self.tune)
        self.rates16 = [round(PARTS * r.rate) for r in stored]
        self.curve = self.goal.curve(stored)
        self.low, self.high = -1, len(self.grid)

    def next(self) -> int | None:
        """The rate to try next, None when the goal is enclosed by two neighbours."""
        inside = range(self.low + 1, self.high)
        if not inside:
            return None
        whole = [i for i in inside if self.grid[i] in self.rates16]
        place = self._place()
        if whole:
            return self.grid[self._enclosing(whole, place)]
        if len(self.streams) > GUESSES + len(self.rates16) // 2:
            return self.grid[inside[len(inside) // 2]]
        last = math.floor(place) if self.goal.from_below else math.ceil(place)
        index = sum(rate16 < last for rate16 in self.grid)
        return self.grid[min(max(index, inside[0]), inside[-1])]

    def add(self, rate16: int, stream: Compressed) -> None:
        """Add the stream of a rate, which encloses the goal more narrowly."""
        index = self.grid.index(rate16)
        self.streams[index] = stream
        if self.goal.meets(stream) == self.goal.from_below:
            self.low = index
        else:
            self.high = index

    def answer(self) -> Compressed:
        """The best of the streams that meet the goal. Raises TargetUnreachable: none does."""
        streams = self.streams.values()
        met = [stream for stream in streams if self.goal.meets(stream)]
        if not met:
            nearest = min if self.goal.from_below else max
            raise self.goal.unreachable(nearest(streams, key=self.goal.value))
        if self.goal.from_below:
            best = max(met, key=lambda stream: (stream.rate == LOSSLESS, len(stream.data)))
        else:
            best = min(met, key=lambda stream: len(stream.data))
        timings = [stream.timings for stream in streams]
        names = ("swap_s", "net_s", "code_s", "graphics_s", "check_s")
        sums = Timings(*(sum(getattr(t, name) for t in timings) for name in names))
        return replace(best, encodes=len(timings), timings=sums)

    def _enclosing(self, whole: list[int], place: float) -> int:
        """The whole rate among those left that most likely encloses the goal with another."""
        if not self.streams:
            return min(whole, key=lambda i: abs(self.grid[i] - place))
        below = [i for i in whole if self.grid[i] <= place]
        above = [i for i in whole if self.grid[i] > place]
        if self.low >= 0 and above and (self.high == len(self.grid) or not below):
            return above[0]
        return below[-1] if below else above[0]

    def _place(self) -> float:
        """Where the curve is expected to cross the level, in sixteenths of a rate."""
        known = [i for i in (self.low, self.high) if i in self.streams]
        if not known:
            return self._rate16_at(self.goal.level)
        expected = [self._expected(self.grid[i]) for i in known]
        values = [self.goal.value(self.streams[i]) for i in known]
        step = self.goal.level - values[0]
        if len(known) == 2 and values[1] > values[0]:
            step *= (expected[1] - expected[0]) / (values[1] - values[0])
        return self._rate16_at(expected[0] + step)

    def _expected(self, rate16: int) -> float:
        """The curve's value at an offered rate."""
        mixed = self.model.mix(rate16, self.tune)
        mix = [(self.rates16.index(round(PARTS * r.rate)), n) for r, n in mixed]
        return sum(self.curve[i] * parts for i, parts in mix) / PARTS

    def _rate16_at(self, value: float) -> float:
        """The rate, in sixteenths, where the curve has a value; its ends are continued."""
        if len(self.curve) == 1:
            return float(self.rates16[0])
        k = sum(c <= value for c in self.curve[1:-1])
        part = (value - self.curve[k]) / (self.curve[k + 1] - self.curve[k])
        return self.rates16[k] + part * (self.rates16[k + 1] - self.rates16[k])


def _rising(
    known: list[float], rates: Sequence[StoredRate], typical: tuple[float, float]
) -> list[float]:
    """The measured curve where it is complete and rises, otherwise a typical one."""
    if len(known) == len(rates) and all(a < b for a, b in zip(known, known[1:], strict=False)):
        return known
    at_4, slope = typical
    return [at_4 + slope * (r.rate - 4) for r in rates]
