"""What a compression is asked for: a rate, or one target of size or quality. The rules of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from service.codec.container import LOSSLESS as LOSSLESS  # also for those who may not import it
from service.codec.container import RATE_UNIT as RATE_UNIT  # also for those who may not import it
from service.errors import BadParameter, RateUnavailable

Method = Literal["model", "latent"]
"""How an adaptation codes a picture: container.MODEL or container.LATENT."""

LOSSLESS_NAME: Final = "lossless"
"""What users write in place of a rate for a stream that holds every pixel exactly."""

DEFAULT_RATE: Final = 4.0
"""The rate of a request that names neither a rate nor a target."""


@dataclass(frozen=True)
class Target:
    """The size or quality that a stream must meet: exactly one of these.

    Attributes:
        bpp: bits of the whole stream per pixel, at most.
        max_bytes: bytes of the whole stream, at most.
        psnr_db: PSNR of the 8-bit RGB reconstruction in dB, at least; errors are weighted by alpha
            (picture.squared_error).
    """

    bpp: float | None = None
    max_bytes: int | None = None
    psnr_db: float | None = None

    def __post_init__(self) -> None:
        """Raise BadParameter unless exactly one is set, to a positive number."""
        given = [v for v in (self.bpp, self.max_bytes, self.psnr_db) if v is not None]
        if len(given) != 1 or not (math.isfinite(given[0]) and given[0] > 0):
            raise BadParameter(f"a target is one positive number, found {given}")


def rate_or_target(
    rate: float | str | None = None,
    target_bpp: float | None = None,
    max_bytes: int | None = None,
    target_psnr: float | None = None,
    *,
    spelling: Callable[[str], str] = str,
) -> float | Target:
    """What was asked for, at most one of them: a rate, or a target; DEFAULT_RATE where nothing was.

    A rate is a number, its text, or "lossless", which gives container.LOSSLESS.

    `spelling` gives the name that the user knows an option by, from the name used here.

    Raises:
        BadParameter: more than one was given, the rate is none, or a target is no positive number.
    """
    options = {"rate": rate, "target_bpp": target_bpp, "max_bytes": max_bytes,
               "target_psnr": target_psnr}  # fmt: skip
    given = [spelling(name) for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise BadParameter(f"{' and '.join(given)} were given, expected only one of them")
    if rate is not None or not given:
        return DEFAULT_RATE if rate is None else _rate_of(rate)
    return Target(target_bpp, max_bytes, target_psnr)


def _rate_of(rate: float | str) -> float:
    if rate == LOSSLESS_NAME:
        return LOSSLESS
    try:
        number = float(rate)
    except ValueError:
        number = math.nan
    if not 1 <= number <= 8:
        raise BadParameter(f'rate is {rate}, expected a number from 1 to 8 or "{LOSSLESS_NAME}"')
    return number


def rate_text(rate: float) -> str:
    """A rate as people read it: "4", "2.25" or "lossless"."""
    return LOSSLESS_NAME if rate == LOSSLESS else f"{rate:g}"


def rate16_of(rate: float, name: str = "rate") -> int:
    """A rate in sixteenths, or a quality; `name` says which in errors.

    Raises:
        BadParameter: it is no number from 1 to 8.
    """
    if not (math.isfinite(rate) and 1 <= rate <= 8):
        raise BadParameter(f"{name} is {rate:g}, expected a number from 1 to 8")
    return round(rate * RATE_UNIT)


def adaptation_level(
    method: Method,
    rate: float | None,
    quality: float | None,
    autoencoder: str | None,
    *,
    spelling: Callable[[str], str] = str,
) -> float:
    """The rate or the quality of an adaptation; DEFAULT_RATE where a rate is left out.

    `spelling` gives the name that the user knows an option by, from the name used here.

    Raises:
        BadParameter: an option belongs to the other method, or the quality is missing.
    """
    others = {"quality": quality, "autoencoder": autoencoder}
    if method == "latent":
        others = {"rate": rate}
    wrong = [spelling(name) for name, value in others.items() if value is not None]
    if wrong:
        raise BadParameter(
            f"{' and '.join(wrong)} would have no effect with {spelling('method')} {method}"
        )
    if method == "latent":
        if quality is None:
            raise BadParameter(f"{spelling('method')} latent needs {spelling('quality')}, 1 to 8")
        return quality
    return DEFAULT_RATE if rate is None else rate


def whole_rates(rate16: int) -> tuple[int, ...]:
    """The whole rates that a rate in sixteenths is made of: itself, or its two neighbours."""
    whole, parts = divmod(rate16, RATE_UNIT)
    return (whole, whole + 1) if parts else (whole,)


def rate_unavailable(model: str, rate: float, available: Iterable[float]) -> RateUnavailable:
    """The error for a rate that the stored rates of a model, given by its name, do not make."""
    rates = tuple(sorted(available))
    listed = ", ".join(f"{r:g}" for r in rates)
    return RateUnavailable(
        f"model {model} has no rate {rate:g}; it has {listed} and what lies between neighbours",
        rates,
    )
