"""Which image format answers an `Accept` header (RFC 9110, section 12.5.1).

The most specific range that matches a format gives its weight; the heaviest format wins. Between
equals, a format that was named wins over one that a wildcard let in (browsers send
`image/avif,image/webp,image/*`), then the order of `PREFERENCE`.
"""

from __future__ import annotations

import re

from service.errors import NotAcceptable
from service.images import MEDIA_TYPES, Format

PREFERENCE: tuple[Format, ...] = ("png", "webp", "avif", "jpeg")
"""Lossless formats first: they show what was decoded."""

MAX_RANGES = 100
"""Media ranges of a header that are looked at."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})")
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")


def choose_format(accept: str | None) -> Format:
    """The format to write for the value of an `Accept` header; png when there is none.

    Raises:
        NotAcceptable: the header leaves none of the formats.
    """
    if accept is None or not accept.strip():
        return PREFERENCE[0]
    weights = _parse(accept)
    ranked = [(*_rank(weights, name), -place, name) for place, name in enumerate(PREFERENCE)]
    weight, _, _, best = max(ranked)
    if weight <= 0:
        offers = ", ".join(MEDIA_TYPES[name] for name in PREFERENCE)
        raise NotAcceptable(f"the Accept header leaves no format that can be written: {offers}")
    return best


def _parse(accept: str) -> dict[str, float]:
    """Weight of every well-formed media range; malformed ones are left out."""
    weights: dict[str, float] = {}
    for element in accept.split(",", MAX_RANGES)[:MAX_RANGES]:
        name, *parameters = (part.strip() for part in element.split(";"))
        weight = _weight(parameters)
        if weight is not None and _RANGE.fullmatch(name):
            weights[name.lower()] = weight
    return weights


def _weight(parameters: list[str]) -> float | None:
    """The q parameter, 1 without one, None for a malformed one."""
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            return float(value) if _WEIGHT.fullmatch(value.strip()) else None
    return 1.0


def _rank(weights: dict[str, float], name: Format) -> tuple[float, int]:
    """Weight of a format, and how specific the range was that gave it."""
    for specificity, key in ((2, MEDIA_TYPES[name]), (1, "image/*"), (0, "*/*")):
        if key in weights:
            return weights[key], specificity
    return 0.0, 0
