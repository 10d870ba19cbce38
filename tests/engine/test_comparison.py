"""Files of other codecs for a target: they meet it, and the next quality would not do."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_model import photo_like

from service.engine.comparison import (
    PEER_EFFORTS,
    PeerFormat,
    compare,
    decode_peer,
    lowest_quality,
)
from service.engine.target import Target
from service.errors import NotAcceptable, TargetUnreachable
from service.images.write import WriteLimits, save_pillow, to_pillow
from service.picture import Picture, squared_error
from service.runtime.interruption import WorkAbandoned, interruptible

LIMITS = WriteLimits(30, 1 << 30)
PHOTO = Picture(photo_like(60, 90))
FORMATS: tuple[PeerFormat, ...] = ("jpeg", "webp", "avif")


def file_of(picture: Picture, format: PeerFormat, quality: int) -> bytes:
    options = {**PEER_EFFORTS[format].options, "quality": quality}
    return save_pillow(to_pillow(picture), format, options)


def psnr_of(picture: Picture, data: bytes) -> float:
    return picture.psnr_db(squared_error(picture.on_white().rgb, decode_peer(data)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("quality", [1, 30, 77, 100])
def test_the_best_file_within_a_size_and_the_next_would_be_larger(
    format: PeerFormat, quality: int
) -> None:
    for max_bytes in (
        len(file_of(PHOTO, format, quality)),
        len(file_of(PHOTO, format, quality)) + 9,
    ):
        made = compare(PHOTO, format, Target(max_bytes=max_bytes), LIMITS)
        assert len(made.data) <= max_bytes
        assert made.data == file_of(PHOTO, format, made.quality)
        assert made.quality == 100 or len(file_of(PHOTO, format, made.quality + 1)) > max_bytes
        assert made.psnr_db == psnr_of(PHOTO, made.data)
        assert made.encodes <= 12


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("quality", [1, 30, 77, 100])
def test_the_smallest_file_of_a_psnr_and_the_quality_below_misses_it(
    format: PeerFormat, quality: int
) -> None:
    target = psnr_of(PHOTO, file_of(PHOTO, format, quality))
    made = compare(PHOTO, format, Target(psnr_db=target), LIMITS)
    assert made.psnr_db == psnr_of(PHOTO, made.data) >= target
    assert made.quality == 1 or psnr_of(PHOTO, file_of(PHOTO, format, made.quality - 1)) < target


@pytest.mark.parametrize("format", FORMATS)
def test_a_target_out_of_reach_tells_the_nearest(format: PeerFormat) -> None:
    with pytest.raises(TargetUnreachable) as small:
        compare(PHOTO, format, Target(max_bytes=10), LIMITS)
    assert (small.value.nearest, small.value.requested) == (len(file_of(PHOTO, format, 1)), 10)
    with pytest.raises(TargetUnreachable) as good:
        compare(PHOTO, format, Target(psnr_db=100), LIMITS)
    best = psnr_of(PHOTO, file_of(PHOTO, format, 100))
    assert (good.value.nearest, good.value.requested) == (best, 100)


def test_alpha_is_kept_where_the_format_has_it_and_refused_elsewhere() -> None:
    alpha = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
    picture = Picture(PHOTO.rgb, alpha)
    for format in ("webp", "avif"):
        made = compare(picture, format, Target(psnr_db=30), LIMITS)
        assert made.psnr_db >= 30
        assert Image.open(io.BytesIO(made.data)).has_transparency_data
    with pytest.raises(NotAcceptable, match="alpha"):
        compare(picture, "jpeg", Target(psnr_db=30), LIMITS)


def test_a_grey_picture_is_written_and_a_plain_one_may_be_exact() -> None:
    grey = Picture(np.repeat(PHOTO.rgb[..., :1], 3, 2), grey=True)
    for format in FORMATS:
        assert compare(grey, format, Target(psnr_db=30), LIMITS).psnr_db >= 30
    plain = compare(
        Picture(np.full((20, 30, 3), 128, np.uint8)), "jpeg", Target(psnr_db=60), LIMITS
    )
    assert plain.psnr_db == math.inf


def test_the_limits_of_writing_hold() -> None:
    with pytest.raises(NotAcceptable, match="megapixels"):
        compare(PHOTO, "avif", Target(max_bytes=999), WriteLimits(0.001, 1 << 30))
    with pytest.raises(NotAcceptable, match="pixels a side"):
        compare(Picture(np.zeros((1, 17000, 3), np.uint8)), "webp", Target(max_bytes=999), LIMITS)


def test_work_that_nobody_waits_for_ends_before_the_next_encode() -> None:
    begun = 0

    def leave() -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            raise WorkAbandoned

    with interruptible(leave), pytest.raises(WorkAbandoned):
        compare(PHOTO, "jpeg", Target(psnr_db=33), LIMITS)
    assert begun == 3


@given(st.lists(st.floats(-5, 5) | st.just(math.inf), min_size=100, max_size=100), st.floats(-6, 6))
def test_the_search_ends_between_two_qualities_it_has_asked_for(
    values: list[float], level: float
) -> None:
    """Whether the values rise or not."""
    asked: dict[int, float] = {}

    def value(quality: int) -> float:
        assert quality not in asked
        asked[quality] = values[quality - 1]
        return asked[quality]

    quality = lowest_quality(value, level)
    assert 1 <= quality <= 101
    assert quality == 101 or asked[quality] >= level
    assert quality == 1 or asked[quality - 1] < level
    assert len(asked) <= 12


@given(st.lists(st.floats(-5, 5), min_size=100, max_size=100), st.floats(-6, 6))
def test_of_rising_values_it_is_the_lowest_that_reaches_the_level(
    values: list[float], level: float
) -> None:
    rising = sorted(values)
    expected = next((q for q, v in enumerate(rising, 1) if v >= level), 101)
    assert lowest_quality(lambda quality: rising[quality - 1], level) == expected
