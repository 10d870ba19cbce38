"""JSON documents of answers: the base class of all of them, and problems (RFC 9457)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A JSON document of an answer; attribute docstrings become its OpenAPI descriptions."""

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
    """What is wrong with this request, and what was expected."""

    instance: str
    """URI of this request; it ends in the X-Request-Id that the log line carries."""

    available: tuple[float, ...] | None = None
    """With `rate-unavailable`: the whole rates that can be requested. Rates between two neighbours
    of them can be requested too."""

    found: float | None = None
    """With `target-unreachable`: the nearest value that can be reached, in the target's unit."""

    asked: float | None = None
    """With `target-unreachable`: the target."""

    invalid: tuple[InvalidParameter, ...] | None = None
    """With `bad-parameter`: the parameters that are wrong."""
