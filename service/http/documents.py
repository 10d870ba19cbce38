"""The JSON documents that every service answers with: the base of all of them, and problems."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """Something that is answered."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, from_attributes=True)


class InvalidParameter(Document):
    """One parameter that is wrong."""

    parameter: str
    """Its name."""

    reason: str
    """What is wrong with it."""


class Problem(Document):
    """An error (RFC 9457)."""

    type: str
    """Stable URI of the kind of problem: program against this."""

    title: str
    """The kind of problem in words."""

    status: int
    """The HTTP status."""

    detail: str
    """What happened here: what was found and what was expected."""

    instance: str
    """Names this request; it ends in the X-Request-Id that the log line carries."""

    available: tuple[float, ...] | None = None
    """With `rate-unavailable`: the whole rates that can be asked for; where two of them are
    neighbours, so can those between."""

    found: float | None = None
    """With `target-unreachable`: the nearest there is, in the unit of the target."""

    asked: float | None = None
    """With `target-unreachable`: the target."""

    invalid: tuple[InvalidParameter, ...] | None = None
    """With `bad-parameter`: the parameters that are wrong."""
