"""Conditional and range requests on a whole answer in memory (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from service.errors import RangeUnsatisfiable

MAX_TAGS = 100
"""Entity tags of a header that are looked at."""

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """Bytes first..last of an answer, both included."""

    first: int
    last: int


def tags(if_none_match: str) -> Iterator[str]:
    """The entity tags of an If-None-Match header, without quotes and W/."""
    for number, match in enumerate(_TAG.finditer(if_none_match)):
        if number >= MAX_TAGS:
            return
        yield match[1]


def requested_span(headers: Mapping[str, str], etag: str, size: int) -> Span | None:
    """The part that a request asks for; None for the whole.

    The whole answers what has no Range header, one that is malformed, of another unit or of several
    ranges (all of which a server may ignore), and one whose If-Range names another answer.

    Args:
        headers: of the request, names in lower case. etag: of the answer, quoted and strong.
        size: bytes of the answer.

    Raises:
        RangeUnsatisfiable: the range lies beyond the end.
    """
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        span = Span(max(0, size - int(last)), size - 1)
    else:
        span = Span(int(first), min(int(last), size - 1) if last else size - 1)
        if last and int(last) < int(first):
            return None
    if span.first > span.last:
        raise RangeUnsatisfiable(f"the range starts beyond the {size} bytes there are", size)
    return span
