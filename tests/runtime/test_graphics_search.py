"""The first look tells drawings from photographs, and the marked blocks are worth more together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from small_model import photo_like

from service.codec import webp
from service.codec.graphics import write_layer
from service.datasets.colours import Rng
from service.datasets.fields import dithered
from service.datasets.pages import page
from service.picture import U8, Picture
from service.runtime import graphics_search
from service.runtime.graphics_costs import (
    block_bits,
    block_sums,
    predictable_share,
)
from service.runtime.graphics_search import BORDER_BITS, GraphicsSearch, mark_blocks


def text(size: int = 320) -> U8:
    return np.asarray(page(Rng(np.random.PCG64(1)), size)).copy()


def test_sums_are_those_of_each_block() -> None:
    values = np.random.default_rng(0).integers(0, 9, (37, 50))
    sums = block_sums(values)
    assert sums.shape == (3, 4)
    assert sums[1, 2] == values[16:32, 32:48].sum()
    assert sums[2, 3] == values[32:, 48:].sum()


def test_gradients_and_repeats_are_predictable_and_noise_is_not() -> None:
    y, x = np.mgrid[:64, :64]
    gradient = np.stack([x + y, 2 * x, 255 - y], -1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert predictable_share(gradient)[1:, 1:].min() == 1
    assert predictable_share(noise).max() < 0.05
    assert predictable_share(text()).mean() > 0.8
    assert predictable_share(photo_like(96, 96)).mean() < 0.4


def test_a_picture_of_several_tiles_is_looked_at_like_its_parts() -> None:
    rgb = np.tile(photo_like(64, 64), (1, 17, 1))[:, :1080]
    whole, last = predictable_share(rgb), predictable_share(rgb[:, 1024:])
    assert np.array_equal(whole[:, 64:], last)
    assert np.allclose(block_bits(rgb)[:, 64:], block_bits(rgb[:, 1024:]))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_estimate_is_near_the_bytes_of_lossless_webp(scale: float) -> None:
    size = round(256 * scale)
    for rgb in (photo_like(size, size), text(size + 64)[:size, :size]):
        ratio = len(webp.encode(rgb)) / (block_bits(rgb).sum() / 8)
        assert 0.3 < ratio < 1.6


def value(marked: NDArray[np.bool_], gains: NDArray[np.float32]) -> float:
    """Gains of the marked blocks less the price of the edges."""
    edges = (marked[1:] != marked[:-1]).sum() + (marked[:, 1:] != marked[:, :-1]).sum()
    return float(gains[marked].sum() - 2 * BORDER_BITS * edges)


def test_marked_blocks_are_worth_at_least_what_blocks_alone_are() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        gains = rng.normal(0, 60, (12, 15)).astype(np.float32)
        assert value(mark_blocks(gains), gains) >= value(gains > 0, gains)
    assert mark_blocks(np.full((4, 4), 100, np.float32)).all()
    assert not mark_blocks(np.full((4, 4), -100, np.float32)).any()
    hole = np.full((5, 5), 90, np.float32)
    hole[2, 2] = -10
    assert mark_blocks(hole).all(), "a hole that hardly pays is closed"


def test_a_photograph_is_let_go_after_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the middle is coded, quickly: neither the estimate nor the usual encoding runs."""
    calls: list[tuple[webp.Effort, int]] = []
    encode = webp.encode

    def recorded(samples: U8, effort: webp.Effort = webp.NORMAL) -> bytes:
        calls.append((effort, samples.size))
        return encode(samples, effort)

    monkeypatch.setattr(graphics_search.webp, "encode", recorded)
    search = GraphicsSearch(Picture(photo_like(300, 400)))
    for bits_per_pixel in (1.5, 3.0):
        assert not search.looks_graphic(bits_per_pixel * 300 * 400)
    assert calls == [(webp.QUICK, 3 * graphics_search.SAMPLE_SIDE**2)]


def test_drawings_and_dithered_pictures_are_looked_at() -> None:
    few = np.asarray(dithered(Rng(np.random.PCG64(2)), 320)).copy()
    for rgb in (text(), few):
        search = GraphicsSearch(Picture(rgb))
        plain_bits = 1.2 * 8 * len(write_layer(search.complete))
        assert search.looks_graphic(plain_bits) and search.complete_may_pay(plain_bits)


def test_an_exactly_repeated_texture_is_looked_at() -> None:
    """The networks spend more than 10 bits on a pixel of noise, however often it is repeated."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    search = GraphicsSearch(Picture(np.tile(noise, (4, 4, 1))))
    assert search.looks_graphic(10 * 256**2) and search.complete_may_pay(10 * 256**2)
    assert len(write_layer(search.complete)) < 256**2 / 4


def test_no_part_is_proposed_where_every_block_is_cheap_already() -> None:
    search = GraphicsSearch(Picture(text()))
    shape = search.complete.marked.shape
    assert search.partial(np.full(shape, 0.1, np.float32), 100.0) is None
    costs = np.full(shape, 0.1, np.float32)
    costs[5:12, 5:12] = 5000
    layer = search.partial(costs, float(costs.sum()))
    assert layer is not None and layer.marked[6:11, 6:11].all()
    assert not layer.is_complete
