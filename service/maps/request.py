"""What a figure is to show, checked before any work is done for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from service.codec.container import PSNR
from service.engine.requests import model_index
from service.engine.target import DEFAULT_RATE, rate16_of
from service.engine.types import Codec
from service.errors import BadParameter

MOST_RATES: Final = 8
"""Rates that one figure shows at most."""

Position = tuple[int, int]
"""Column and row of a pixel, from 0."""


@dataclass(frozen=True)
class MapRequest:
    """What a figure is to show.

    Attributes:
        rates: at which a picture is compressed; None for the lowest, the usual and the highest.
        model: that compresses it; None for the first.
        attention: whether to show the attention of a window in place of bits.
        at: the pixel whose attention is shown; None for the middle.
    """

    rates: tuple[float, ...] | None = None
    model: str | None = None
    attention: bool = False
    at: Position | None = None

    @classmethod
    def parse(cls, rates: str | None, model: str | None, attention: bool, at: str | None) -> Self:
        """Read what users write: rates such as "1,4,8", and a position such as "384,256".

        Raises:
            BadParameter: a text is none of these, or a position was given without attention.
        """
        if at is not None and not attention:
            raise BadParameter("at is the position of --attention, which was not asked for")
        return cls(
            None if rates is None else _read_rates(rates),
            model,
            attention,
            None if at is None else _read_position(at),
        )

    def check_stream(self) -> None:
        """Raise BadParameter for what can be shown of pictures alone."""
        given = {"rates": self.rates, "model": self.model, "attention": self.attention or None}
        names = [name for name, value in given.items() if value is not None]
        if names:
            raise BadParameter(f"{' and '.join(names)} can be chosen for a picture, not a stream")

    def rates_of(self, codec: Codec) -> tuple[float, ...]:
        """The rates that are asked for, ascending, or those that a codec's model offers.

        Raises:
            ModelUnavailable: there is no such model.
        """
        if self.rates is not None:
            return self.rates
        models = codec.models()
        model = models[model_index(self.model, [m.name for m in models])]
        offered = [rate.rate for rate in model.rates if rate.tune == PSNR]
        usual = min(offered, key=lambda rate: abs(rate - DEFAULT_RATE))
        return tuple(sorted({min(offered), usual, max(offered)}))

    def position_in(self, width: int, height: int) -> Position:
        """The pixel whose attention is shown. Raises BadParameter: the picture does not have it."""
        column, row = (width // 2, height // 2) if self.at is None else self.at
        if not (column < width and row < height):
            raise BadParameter(f"at is {column},{row}, the picture is {width}x{height}")
        return column, row


def _read_rates(text: str) -> tuple[float, ...]:
    parts = [part.strip() for part in text.split(",")]
    wrong = not all(re.fullmatch(r"\d(\.\d{1,6})?", part) for part in parts)
    if wrong or len(parts) > MOST_RATES or len(set(map(float, parts))) < len(parts):
        raise BadParameter(
            f"rates are {text[:100]!r}, expected up to {MOST_RATES} different numbers from 1 to 8"
        )
    rates = sorted(map(float, parts))
    for rate in rates:
        rate16_of(rate)
    return tuple(rates)


def _read_position(text: str) -> Position:
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9})", text.replace(" ", ""))
    if match is None:
        raise BadParameter(f"at is {text[:100]!r}, expected two whole numbers x,y")
    return int(match[1]), int(match[2])
