"""Accept headers, by the rules of RFC 9110 section 12.5."""

from __future__ import annotations

import math

import pytest

from service.engine.types import StreamShape
from service.errors import NotAcceptable
from service.http.negotiate import (
    EXACT,
    SMALL,
    Form,
    Preference,
    accepts_coding,
    choose_forms,
    rank_formats,
)
from service.images.write import WriteLimits

NO_LIMITS = WriteLimits(math.inf, 2**62)


def chosen(
    accept: str | None, preference: Preference, width: int = 9, height: int = 9, alpha: bool = False
) -> str:
    """The format for a picture."""
    forms = [Form(name, None) for name in rank_formats(accept, preference)]
    return choose_forms(forms, StreamShape(width, height, alpha), NO_LIMITS)[0].format


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "png"),
        ("", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("IMAGE/WebP", "webp"),
        ("image/jpeg", "jpeg"),
        ("image/avif, image/jpeg;q=0.5", "avif"),
        ("image/jpeg;q=0.5, image/webp;q=0.4", "jpeg"),
        ("image/jpeg;q=0.2, image/*;q=0.1", "jpeg"),
        # The most specific range counts, also when it says less than the wildcard.
        ("image/png;q=0.1, image/webp;q=0.2, */*", "avif"),
        ("image/png;q=0, */*", "webp"),
        ("text/html, */*;q=0.8", "png"),
        # What Firefox and Chrome send: named formats win over the ones a wildcard lets in.
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "png"),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "webp"),
        # Parts that are malformed are left out, the others hold; a weight is read as it is meant.
        ("image/jpeg;q=.8, image/webp;q=.9", "webp"),
        ("image/jpeg;q=0.8001, image/webp;q=0.8", "jpeg"),
        ("image/jpeg;q=1.000, image/webp;q=0.9999", "jpeg"),
        ("image/jpeg;q=2, image/webp;q=0.9", "jpeg"),
        ("image/jpeg;q=high, image/webp;q=0.9", "jpeg"),
        ("image/jpeg;q=, image/webp;q=0.9", "jpeg"),
        ("*/*;q=.8", "png"),
        ("nonsense, /, image/webp;q=0.001", "webp"),
        ("image/webp ; q=0.3 , image/jpeg;q=0.30", "webp"),
    ],
)
def test_the_heaviest_format_wins(accept: str | None, expected: str) -> None:
    assert chosen(accept, EXACT) == expected


@pytest.mark.parametrize(
    ("accept", "opaque", "alpha"),
    [
        (None, "jpeg", "webp"),
        ("*/*", "jpeg", "webp"),
        ("image/*", "jpeg", "webp"),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "avif", "avif"),
        ("image/webp,*/*", "webp", "webp"),
        ("image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "png", "png"),
        ("image/png,image/jpeg", "jpeg", "png"),
        ("image/png", "png", "png"),
        ("image/jpeg", "jpeg", "jpeg"),
        ("image/jpeg;q=0.9,image/png;q=0.1", "jpeg", "png"),
    ],
)
def test_small_files_are_preferred_and_alpha_is_kept_where_it_can_be(
    accept: str | None, opaque: str, alpha: str
) -> None:
    assert chosen(accept, SMALL) == opaque
    assert chosen(accept, SMALL, alpha=True) == alpha


@pytest.mark.parametrize(
    ("accept", "side", "alpha", "expected"),
    [
        ("image/webp,*/*", 16383, False, "webp"),
        ("image/webp,*/*", 16384, False, "jpeg"),
        ("image/webp,*/*", 65500, False, "jpeg"),
        ("image/webp,*/*", 65501, False, "avif"),
        ("image/webp,*/*", 65536, False, "png"),
        ("*/*", 16384, False, "jpeg"),
        ("*/*", 16383, True, "webp"),
        ("*/*", 16384, True, "avif"),
        ("*/*", 65536, True, "png"),
        ("image/avif,image/webp", 16384, True, "avif"),
        ("image/webp;q=1, image/jpeg;q=0.1", 16384, True, "jpeg"),
        ("image/jpeg", 65500, True, "jpeg"),
    ],
)
def test_of_what_is_accepted_the_picture_must_fit(
    accept: str, side: int, alpha: bool, expected: str
) -> None:
    assert chosen(accept, SMALL, side, 5, alpha) == expected
    assert chosen(accept, SMALL, 5, side, alpha) == expected


@pytest.mark.parametrize(
    ("accept", "side"),
    [("image/webp", 16384), ("image/webp,image/jpeg", 65501), ("image/avif", 65536)],
)
def test_a_picture_that_no_accepted_format_holds_is_refused_by_its_size(
    accept: str, side: int
) -> None:
    with pytest.raises(NotAcceptable, match=rf"{accept[6:10]} cannot hold .* {side}x5 pixels"):
        chosen(accept, SMALL, side, 5)


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/*;q=0", "*/*;q=0.0", "png"])
def test_nothing_acceptable_is_refused_with_what_there_is(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png, image/webp, image/avif, image/jpeg"):
        chosen(accept, EXACT)


def test_a_hostile_header_takes_no_time() -> None:
    with pytest.raises(NotAcceptable):
        rank_formats("a/b;q=0." * 100_000, EXACT)
    with pytest.raises(NotAcceptable):
        rank_formats(",".join(["a/b"] * 100_000) + ",image/png", EXACT)


def test_a_format_that_would_take_too_long_or_too_much_memory_is_passed_over() -> None:
    """A stream of 119 bytes can say 10,000x10,000 pixels: as AVIF they would take minutes."""
    forms = [Form(name, None) for name in ("avif", "webp", "jpeg", "png")]
    limits = WriteLimits(30.0, 1536 * 2**20)

    def able(side: int) -> list[str]:
        return [f.format for f in choose_forms(forms, StreamShape(side, side, False), limits)]

    assert able(1000) == ["avif", "webp", "jpeg", "png"]
    assert able(6000) == ["webp", "jpeg", "png"]  # AVIF would take 32 s
    assert able(10_000) == ["jpeg", "png"]  # WebP would take 2 GB
    with pytest.raises(NotAcceptable, match=r"avif of 100 megapixels can take 90 s and \d+ MiB"):
        choose_forms(forms[:1], StreamShape(10_000, 10_000, False), limits)
    with pytest.raises(NotAcceptable, match="the limits are 1 s and 1536 MiB"):
        choose_forms(forms[:1], StreamShape(1000, 2000, False), WriteLimits(1.0, 1536 * 2**20))


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("br;q=1.0, GZIP;q=.5", True),
        ("gzip;q=0", False),
        ("gzip ; q=0.000, br", False),
        ("x-gzip, xgzip, gzip2", False),
        ("identity", False),
        ("*", False),
        ("", False),
    ],
)
def test_a_content_coding_must_be_named_with_a_weight(header: str, accepted: bool) -> None:
    assert accepts_coding(header, "gzip") is accepted
