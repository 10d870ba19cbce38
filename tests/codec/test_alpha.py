"""Alpha planes come back bit for bit, and nothing else comes back."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.codec.alpha import LEFT, NONE, UP, fill_hidden, max_packed_bytes, pack, unpack
from service.errors import BadStream


def plane(kind: str, height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    return {
        "flat": np.full((height, width), 77),
        "rows": 255 - y * 3 % 256,
        "columns": x * 5 % 256,
        "matte": ((x - width / 2) ** 2 + (y - height / 2) ** 2 < height * width / 9) * 255,
        "noise": rng.integers(0, 256, (height, width)),
    }[kind].astype(np.uint8)


@pytest.mark.parametrize("kind", ["flat", "rows", "columns", "matte", "noise"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 61)])
def test_a_plane_comes_back(kind: str, size: tuple[int, int]) -> None:
    alpha = plane(kind, *size)
    assert np.array_equal(unpack(pack(alpha), *size), alpha)


@given(st.data(), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60)
def test_any_plane_comes_back(data: st.DataObject, height: int, width: int) -> None:
    raw = data.draw(st.binary(min_size=height * width, max_size=height * width))
    alpha = np.frombuffer(raw, np.uint8).reshape(height, width)
    assert np.array_equal(unpack(pack(alpha), height, width), alpha)


def test_the_filter_that_packs_best_is_used() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 1))
    ramps = ((noise + 7 * np.arange(64)) % 256).astype(np.uint8)
    assert pack(ramps)[0] == LEFT
    assert pack(ramps.T)[0] == UP
    assert pack(plane("noise", 30, 30))[0] == NONE
    assert len(pack(plane("matte", 300, 300))) < 300 * 300 / 20


def test_deflate_that_inflates_to_nothing_is_refused_by_its_length() -> None:
    samples, empty = bytes(range(12)), b"\0\0\0\xff\xff"
    head = b"\0\x78\x9c" + b"\0\x0c\0\xf3\xff" + samples
    tail = b"\1\0\0\xff\xff" + zlib.adler32(samples).to_bytes(4, "big")
    fits = (max_packed_bytes(12) - len(head) - len(tail)) // len(empty)
    assert unpack(head + empty * fits + tail, 3, 4).tobytes() == samples
    with pytest.raises(BadStream, match="alpha section takes"):
        unpack(head + empty * (fits + 1) + tail, 3, 4)


def test_every_prefix_is_a_bad_stream() -> None:
    data = pack(plane("matte", 30, 40))
    for n in range(len(data)):
        with pytest.raises(BadStream):
            unpack(data[:n], 30, 40)


def test_another_size_or_filter_or_a_tail_is_a_bad_stream() -> None:
    data = pack(plane("matte", 30, 40))
    for size in ((30, 41), (31, 40), (29, 40), (1, 1)):
        with pytest.raises(BadStream):
            unpack(data, *size)
    for wrong in (b"\3" + data[1:], data + b"\0", b"", b"\0", b"\0garbage"):
        with pytest.raises(BadStream):
            unpack(wrong, 30, 40)


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    bomb = bytes([NONE]) + zlib.compress(bytes(2**26), 9)
    tracemalloc.start()
    with pytest.raises(BadStream):
        unpack(bomb, 50, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@given(st.data(), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60)
def test_hidden_colours_follow_from_the_visible_ones(
    data: st.DataObject, height: int, width: int
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    alpha = rng.choice(np.array([0, 0, 3, 255], np.uint8), (height, width))
    visible = alpha[..., None] > 0
    one, other = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    filled = fill_hidden(one, alpha)
    assert np.array_equal(filled, fill_hidden(np.where(visible, one, other), alpha))
    assert np.array_equal(filled[alpha > 0], one[alpha > 0])
    if visible.any():
        visible = one[alpha > 0]
        assert (filled >= visible.min(0)).all() and (filled <= visible.max(0)).all()


def test_a_colour_goes_on_unchanged_and_two_blend_into_each_other() -> None:
    rgb = np.zeros((8, 64, 3), np.uint8)
    rgb[:, :8], rgb[:, -8:] = (10, 20, 30), (250, 20, 30)
    alpha = np.zeros((8, 64), np.uint8)
    alpha[:, :8] = alpha[:, -8:] = 255
    filled = fill_hidden(rgb, alpha)
    assert (filled[..., 1:] == (20, 30)).all()
    steps = np.diff(filled[4, :, 0].astype(int))
    assert (steps >= 0).all() and steps.max() <= 24
    assert np.array_equal(fill_hidden(rgb, np.full_like(alpha, 255)), rgb)
    assert (fill_hidden(rgb, np.zeros_like(alpha)) == 128).all()
