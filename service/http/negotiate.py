"""Chooses the image format of an answer by the `Accept` header (RFC 9110, section 12.5.1), and
reads which content codings `Accept-Encoding` allows (section 12.5.3).

The most specific media range that matches a format gives its weight, and the format with the
highest weight wins. Between equal weights, a format that is named wins over one that a wildcard
allows (browsers send `image/avif,image/webp,image/*`); then the order of a `Preference` decides:
`EXACT` for clients that need the decoded pixels, `SMALL` for pictures that are shown to people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.engine.types import StreamShape
from service.errors import NotAcceptable
from service.images.write import MEDIA_TYPES, OPAQUE, Format, WriteLimits, fits


@dataclass(frozen=True)
class Form:
    """A file format and its quality; None for the format's default in `write_image`."""

    format: Format
    quality: int | None


@dataclass(frozen=True)
class Preference:
    """Orders of the formats, the best first.

    Attributes:
        named: of the formats that Accept names.
        unnamed: of the formats that a wildcard allows, also if there is no Accept header. Such a
            client may not be able to read new formats.
    """

    named: tuple[Format, ...]
    unnamed: tuple[Format, ...]


EXACT: Final = Preference(("png", "webp", "avif", "jpeg"), ("png", "webp", "avif", "jpeg"))
"""Lossless formats first: they keep the decoded pixels."""

SMALL: Final = Preference(("avif", "webp", "jpeg", "png"), ("jpeg", "webp", "avif", "png"))
"""The smallest format that is named, else one that every client reads; PNG is the last choice."""

MAX_RANGES = 100
"""Elements of a header that are read; more are ignored."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})")
_CODING = re.compile(_TOKEN)
_WEIGHT = re.compile(r"\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}")
"""More than RFC 9110 allows: some clients send q=.8 or q=0.8000."""


def rank_formats(accept: str | None, preference: Preference) -> tuple[Format, ...]:
    """The formats that an `Accept` header allows, the best first.

    Args:
        accept: value of the header; None or an empty one means `*/*`.
        preference: decides between equal weights.

    Raises:
        NotAcceptable: the header allows none of the formats.
    """
    weights = _parse(accept) if accept and accept.strip() else {"*/*": 1.0}

    def rank(name: Format) -> tuple[float, bool, int]:
        for is_named, key in ((True, MEDIA_TYPES[name]), (False, "image/*"), (False, "*/*")):
            if key in weights:
                order = preference.named if is_named else preference.unnamed
                return weights[key], is_named, -order.index(name)
        return 0.0, False, 0

    allowed = [name for name in preference.named if rank(name)[0] > 0]
    if not allowed:
        formats = ", ".join(MEDIA_TYPES[name] for name in preference.named)
        raise NotAcceptable(f"the Accept header allows none of the formats: {formats}")
    return tuple(sorted(allowed, key=rank, reverse=True))


def weight_of(accept: str | None, media_type: str) -> float:
    """The weight that an `Accept` header gives a media type; a missing or empty one means `*/*`."""
    weights = _parse(accept) if accept and accept.strip() else {"*/*": 1.0}
    keys = media_type, f"{media_type.partition('/')[0]}/*", "*/*"
    return next((weights[key] for key in keys if key in weights), 0.0)


def accepts_coding(accept_encoding: str, coding: str) -> bool:
    """Whether an `Accept-Encoding` header names a content coding with a weight above 0."""
    return _parse(accept_encoding, _CODING).get(coding, 0.0) > 0


def choose_forms(
    forms: Sequence[Form], shape: StreamShape, limits: WriteLimits
) -> tuple[Form, ...]:
    """The forms that a picture can be written in, the best first.

    For a picture with alpha, the formats without alpha are last.

    Args:
        forms: that the client accepts, the best first.
        shape: of the picture as it will be written.
        limits: on the time and memory of writing.

    Raises:
        NotAcceptable: the picture can be written in none of the forms.
    """
    refusals = [(form, _refusal(form, shape, limits)) for form in forms]
    possible = [form for form, refusal in refusals if refusal is None]
    if not possible:
        reasons = "; ".join(refusal for _, refusal in refusals if refusal is not None)
        raise NotAcceptable(f"{reasons}: request another format, a region or a max_size")
    if shape.has_alpha:
        possible.sort(key=lambda form: form.format in OPAQUE)
    return tuple(possible)


def _refusal(form: Form, shape: StreamShape, limits: WriteLimits) -> str | None:
    """Why a picture cannot be written in a form; None if it can."""
    if not fits(form.format, shape.width, shape.height):
        return f"{form.format} cannot hold a picture of {shape.width}x{shape.height} pixels"
    return limits.refusal(form.format, form.quality, shape.width * shape.height)


def _parse(header: str, form: re.Pattern[str] = _RANGE) -> dict[str, float]:
    """Weight of every element whose name has a form, such as a media range; others are ignored.

    An element whose weight alone is malformed has the weight 1.
    """
    weights: dict[str, float] = {}
    for element in header.split(",", MAX_RANGES)[:MAX_RANGES]:
        name, *parameters = (part.strip() for part in element.split(";"))
        if form.fullmatch(name):
            weights[name.lower()] = _weight(parameters)
    return weights


def _weight(parameters: list[str]) -> float:
    """The q parameter, between 0 and 1; 1 if it is missing or malformed."""
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            return min(1.0, float(value)) if _WEIGHT.fullmatch(value.strip()) else 1.0
    return 1.0
