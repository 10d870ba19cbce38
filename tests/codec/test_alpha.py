"""Alpha planes come back bit for bit, and nothing else comes back."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.codec import webp
from service.codec.alpha import LEFT, NONE, UP, fill_hidden, pack, unpack
from service.codec.tiles import Box
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


def again(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = alpha.shape
    return unpack(pack(alpha), height, width, Box(0, 0, height, width))


@pytest.mark.parametrize("kind", ["flat", "rows", "columns", "matte", "noise"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 61)])
def test_a_plane_comes_back(kind: str, size: tuple[int, int]) -> None:
    alpha = plane(kind, *size)
    assert np.array_equal(again(alpha), alpha)


@given(st.data(), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60)
def test_any_plane_comes_back(data: st.DataObject, height: int, width: int) -> None:
    raw = data.draw(st.binary(min_size=height * width, max_size=height * width))
    alpha = np.frombuffer(raw, np.uint8).reshape(height, width)
    assert np.array_equal(again(alpha), alpha)


def test_a_part_is_cut_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webp, "PIECE", 32)
    alpha = plane("noise", 70, 90)
    data = pack(alpha)
    for box in (Box(0, 0, 70, 90), Box(40, 30, 41, 33), Box(69, 89, 70, 90)):
        assert np.array_equal(unpack(data, 70, 90, box), alpha[box.slices])


def test_the_filter_that_packs_best_is_used() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 1))
    ramps = ((noise + 7 * np.arange(64)) % 256).astype(np.uint8)
    assert pack(ramps)[0] == LEFT
    assert pack(ramps.T)[0] == UP
    assert pack(plane("matte", 30, 30))[0] == NONE
    for wrong in (b"", b"\3" + pack(ramps)[1:]):
        with pytest.raises(BadStream, match="filter"):
            unpack(wrong, 64, 64, Box(0, 0, 64, 64))


def test_planes_are_packed_well() -> None:
    assert len(pack(plane("flat", 300, 300))) < 30
    assert len(pack(plane("matte", 300, 300))) < 300 * 300 / 100
    noise = plane("noise", 300, 300)
    assert len(pack(noise)) < 1.01 * noise.size + 64


def test_any_bytes_are_a_plane_of_that_size_or_a_bad_stream() -> None:
    data, whole = pack(plane("matte", 30, 40)), Box(0, 0, 30, 40)
    rng = np.random.default_rng(0)
    refused = 0
    for n in [*range(len(data)), *range(100)]:
        changed = bytearray(data[:n] if n < len(data) else data)
        if changed:
            changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        try:
            assert unpack(bytes(changed), 30, 40, whole).shape == (30, 40)
        except BadStream:
            refused += 1
    assert refused > len(data) / 2
    with pytest.raises(BadStream):
        unpack(b"", 30, 40, whole)


def test_a_large_plane_in_few_bytes_takes_no_more_memory_than_declared() -> None:
    bomb = pack(np.zeros((4000, 4000), np.uint8))
    tracemalloc.start()
    with suppress(BadStream):
        assert unpack(bomb, 50, 50, Box(0, 0, 50, 50)).shape == (50, 50)
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
