"""Which image format answers an `Accept` header (RFC 9110, section 12.5.1).

The most specific range that matches a format gives its weight; the heaviest format wins. Between
equals, a format that was named wins over one that a wildcard let in (browsers send
`image/avif,image/webp,image/*`), then the order of the preference that is passed: `EXACT` where
somebody wants what was decoded, `SMALL` where a picture is delivered to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from service.errors import NotAcceptable
from service.images import MEDIA_TYPES, Format


@dataclass(frozen=True)
class Preference:
    """Orders of the formats, the best first.

    Attributes:
        named: among those that Accept names. unnamed: among those that a wildcard lets in, and
            where there is no Accept: whoever asks so may not read new formats.
    """

    named: tuple[Format, ...]
    unnamed: tuple[Format, ...]


EXACT: Final = Preference(("png", "webp", "avif", "jpeg"), ("png", "webp", "avif", "jpeg"))
"""Lossless formats first: they show what was decoded."""

SMALL: Final = Preference(("avif", "webp", "jpeg", "png"), ("jpeg", "webp", "avif", "png"))
"""The smallest that is named; else what every client reads. PNG only where nothing else is."""

MAX_RANGES = 100
"""Media ranges of a header that are looked at."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})")
_NAMED = 2
"""Specificity of a range without a wildcard."""
_WEIGHT = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?")


def choose_format(
    accept: str | None, preference: Preference, avoid: Collection[Format] = ()
) -> Format:
    """The format to write for the value of an `Accept` header.

    Args:
        accept: the header; none, or an empty one, means `*/*`.
        preference: decides between equals.
        avoid: formats that are chosen only where the header leaves no other.

    Raises:
        NotAcceptable: the header leaves none of the formats.
    """
    weights = _parse(accept) if accept and accept.strip() else {"*/*": 1.0}

    def rank(name: Format) -> tuple[bool, float, bool, int]:
        weight, specificity = _rank(weights, name)
        named = specificity == _NAMED
        order = preference.named if named else preference.unnamed
        return weight > 0 and name not in avoid, weight, named, -order.index(name)

    best = max(preference.named, key=rank)
    if _rank(weights, best)[0] <= 0:
        offers = ", ".join(MEDIA_TYPES[name] for name in preference.named)
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
    for specificity, key in ((_NAMED, MEDIA_TYPES[name]), (1, "image/*"), (0, "*/*")):
        if key in weights:
            return weights[key], specificity
    return 0.0, 0
