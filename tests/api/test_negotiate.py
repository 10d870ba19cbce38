"""Accept headers, by the rules of RFC 9110 section 12.5.1."""

from __future__ import annotations

import pytest

from service.api.negotiate import EXACT, SMALL, choose_format
from service.errors import NotAcceptable


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
        # Parts that are malformed are left out, the others hold.
        ("image/png;q=2, image/jpeg", "jpeg"),
        ("image/png;q=-1, nonsense, /, image/webp;q=0.001", "webp"),
        ("image/webp ; q=0.3 , image/jpeg;q=0.30", "webp"),
    ],
)
def test_the_heaviest_format_wins(accept: str | None, expected: str) -> None:
    assert choose_format(accept, EXACT) == expected


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
    assert choose_format(accept, SMALL) == opaque
    assert choose_format(accept, SMALL, {"jpeg"}) == alpha


def test_what_is_to_be_avoided_is_chosen_only_where_nothing_else_is_left() -> None:
    assert choose_format("image/png, image/jpeg;q=0.1", SMALL, {"png"}) == "jpeg"
    assert choose_format("image/png, image/jpeg;q=0", SMALL, {"png"}) == "png"
    with pytest.raises(NotAcceptable):
        choose_format("image/png;q=0", SMALL, {"png"})


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/*;q=0", "*/*;q=0.0", "png"])
def test_nothing_acceptable_is_refused_with_what_there_is(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png, image/webp, image/avif, image/jpeg"):
        choose_format(accept, EXACT)


def test_a_hostile_header_takes_no_time() -> None:
    with pytest.raises(NotAcceptable):
        choose_format("a/b;q=0." * 100_000, EXACT)
    with pytest.raises(NotAcceptable):
        choose_format(",".join(["a/b"] * 100_000) + ",image/png", EXACT)
