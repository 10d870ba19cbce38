"""Which image format answers an `Accept` header (RFC 9110, section 12.5.1) and holds the picture.

The most specific range that matches a format gives its weight; the heaviest format wins. Between
equals, a format that was named wins over one that a wildcard let in (browsers send
`image/avif,image/webp,image/*`), then the order of the preference that is passed: `EXACT` where
somebody wants what was decoded, `SMALL` where a picture is delivered to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.engine.types import StreamShape
from service.errors import NotAcceptable
from service.images.cost import WriteLimits
from service.images.write import MEDIA_TYPES, OPAQUE, Format, fits


@dataclass(frozen=True)
class Form:
    """A file format and its quality; None is what `write_image` takes for the format."""

    format: Format
    quality: int | None


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
_WEIGHT = re.compile(r"\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}")
"""More than RFC 9110 allows: of what clients send, q=.8 and q=0.8000 have a meaning."""


def rank_formats(accept: str | None, preference: Preference) -> tuple[Format, ...]:
    """The formats that the value of an `Accept` header leaves, the best first.

    Args:
        accept: the header; none, or an empty one, means `*/*`.
        preference: decides between equals.

    Raises:
        NotAcceptable: the header leaves none of the formats.
    """
    weights = _parse(accept) if accept and accept.strip() else {"*/*": 1.0}

    def rank(name: Format) -> tuple[float, bool, int]:
        weight, specificity = _rank(weights, name)
        named = specificity == _NAMED
        order = preference.named if named else preference.unnamed
        return weight, named, -order.index(name)

    left = [name for name in preference.named if _rank(weights, name)[0] > 0]
    if not left:
        offers = ", ".join(MEDIA_TYPES[name] for name in preference.named)
        raise NotAcceptable(f"the Accept header leaves no format that can be written: {offers}")
    return tuple(sorted(left, key=rank, reverse=True))


def choose_forms(
    forms: Sequence[Form], shape: StreamShape, limits: WriteLimits
) -> tuple[Form, ...]:
    """The forms that a picture can be written in, the best first; those without alpha last.

    Args:
        forms: that may be written, the best first. shape: of the picture as it will be written.
        limits: of what writing may take.

    Raises:
        NotAcceptable: it can be written in none of them.
    """
    refusals = [(form, _refusal(form, shape, limits)) for form in forms]
    able = [form for form, refusal in refusals if refusal is None]
    if not able:
        reasons = "; ".join(refusal for _, refusal in refusals if refusal is not None)
        raise NotAcceptable(f"{reasons}: ask for another format, for a region or for max_size")
    if shape.has_alpha:
        able.sort(key=lambda form: form.format in OPAQUE)
    return tuple(able)


def _refusal(form: Form, shape: StreamShape, limits: WriteLimits) -> str | None:
    """Why a picture cannot be written in a form; None if it can."""
    if not fits(form.format, shape.width, shape.height):
        return f"{form.format} cannot hold a picture of {shape.width}x{shape.height} pixels"
    return limits.refusal(form.format, form.quality, shape.width * shape.height)


def _parse(accept: str) -> dict[str, float]:
    """Weight of every well-formed media range; malformed ones are left out.

    A range keeps its place where only its weight is malformed.
    """
    weights: dict[str, float] = {}
    for element in accept.split(",", MAX_RANGES)[:MAX_RANGES]:
        name, *parameters = (part.strip() for part in element.split(";"))
        if _RANGE.fullmatch(name):
            weights[name.lower()] = _weight(parameters)
    return weights


def _weight(parameters: list[str]) -> float:
    """The q parameter, between 0 and 1; 1 without one and for a malformed one."""
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            return min(1.0, float(value)) if _WEIGHT.fullmatch(value.strip()) else 1.0
    return 1.0


def _rank(weights: dict[str, float], name: Format) -> tuple[float, int]:
    """Weight of a format, and how specific the range was that gave it."""
    for specificity, key in ((_NAMED, MEDIA_TYPES[name]), (1, "image/*"), (0, "*/*")):
        if key in weights:
            return weights[key], specificity
    return 0.0, 0
