"""Tiles and windows cover everything once and stay inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec.tiles import (
    PATCH,
    TILE,
    TILE_PIXELS,
    Z_CELL,
    Box,
    hyper_shape,
    latent_box,
    padded_pixels,
    tile_count,
    tiles,
    visible_at_eighth,
    windows,
    work_pixels,
)

sides = st.integers(1, 3 * TILE + 1)


@given(sides, sides)
def test_tiles_cover_every_latent_exactly_once(height: int, width: int) -> None:
    box = Box(0, 0, height, width)
    hits = np.zeros((height, width), int)
    for tile in tiles(box):
        assert 1 <= tile.height <= TILE and 1 <= tile.width <= TILE
        hits[tile.slices] += 1
    assert (hits == 1).all()
    assert tile_count(box) == len(list(tiles(box)))


@given(st.integers(0, 500), sides, sides)
def test_windows_cover_every_latent_exactly_once_and_are_of_like_sizes(
    corner: int, height: int, width: int
) -> None:
    box = Box(corner, corner, corner + height, corner + width)
    hits = np.zeros((height, width), int)
    sizes = []
    for window in windows(box):
        sizes.append((window.height, window.width))
        hits[window.relative(box).slices] += 1
    assert (hits == 1).all()
    assert np.ptp(sizes, axis=0).max() <= 1
    assert np.max(sizes) <= 5 * TILE // 4


def test_a_little_more_than_a_tile_is_one_window() -> None:
    full_hd = latent_box(1920, 1080)
    assert list(windows(full_hd)) == [Box(0, 0, 68, 60), Box(0, 60, 68, 120)]


@given(sides, sides, st.integers(0, 100))
def test_what_blocks_see_is_inside_the_window_and_reaches_as_far_as_they_do(
    height: int, width: int, blocks: int
) -> None:
    window = Box(0, 0, height + 8, width + 8)
    inner = Box(4, 4, height + 4, width + 4)
    visible = visible_at_eighth(inner, window, blocks)
    assert visible == visible.cut(window.scaled(2))
    assert inner.scaled(2).top - visible.top == min(blocks, 8)
    assert visible.right - inner.scaled(2).right == min(blocks, 8)


def test_tiles_are_stored_row_by_row() -> None:
    corners = [(t.top, t.left) for t in tiles(Box(0, 0, 2 * TILE, TILE + 1))]
    assert corners == [(0, 0), (0, TILE), (TILE, 0), (TILE, TILE)]


@given(sides, sides, st.integers(0, 12))
def test_a_window_holds_its_tile_and_stays_inside(height: int, width: int, halo: int) -> None:
    box = Box(0, 0, height, width)
    for tile in tiles(box):
        window = tile.grown(halo, box)
        assert window.cut(box) == window and tile.cut(window) == tile
        reach = (tile.top - window.top, window.bottom - tile.bottom)
        edge = (tile.top, height - tile.bottom)
        assert reach == tuple(min(halo, e) for e in edge)
        inside = np.arange(height)[window.slices[0]][tile.relative(window).slices[0]]
        assert inside.tolist() == list(range(tile.top, tile.bottom))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_latents_cover_the_pixels_without_a_spare_row(width: int, height: int) -> None:
    box = latent_box(width, height)
    px = box.scaled(PATCH)
    assert height <= px.height < height + PATCH and width <= px.width < width + PATCH
    assert tile_count(box) == -(-height // (TILE * PATCH)) * -(-width // (TILE * PATCH))


@given(sides, sides)
def test_hyper_latents_cover_the_tile(height: int, width: int) -> None:
    rows, cols = hyper_shape(Box(3, 5, 3 + height, 5 + width))
    assert height <= rows * Z_CELL < height + Z_CELL
    assert width <= cols * Z_CELL < width + Z_CELL


boxes = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda v: Box(min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)


@given(boxes, boxes)
def test_a_cut_is_the_intersection(a: Box, b: Box) -> None:
    cells = {(r, c) for r in range(a.top, a.bottom) for c in range(a.left, a.right)}
    cells &= {(r, c) for r in range(b.top, b.bottom) for c in range(b.left, b.right)}
    both = a.cut(b)
    assert both.empty == (not cells)
    if cells:
        assert cells == {
            (r, c) for r in range(both.top, both.bottom) for c in range(both.left, both.right)
        }


def test_a_box_counted_from_another() -> None:
    assert Box(5, 6, 9, 11).relative(Box(4, 2, 20, 20)) == Box(1, 4, 5, 9)
    with pytest.raises(AttributeError):
        Box(0, 0, 1, 1).top = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("width", "height", "cell", "pixels"),
    [
        (10_000, 10_000, 16, 10**8),
        (1, 60_000, 16, 16 * 60_000),
        (60_000, 1, 16, 16 * 60_000),
        (17, 15, 16, 32 * 16),
        (65, 1, 64, 128 * 64),
    ],
)
def test_padded_pixels_are_those_of_whole_cells(
    width: int, height: int, cell: int, pixels: int
) -> None:
    assert padded_pixels(width, height, cell) == pixels


def test_work_counts_halos_and_tiles_and_only_those_that_are_needed() -> None:
    one = latent_box(1024, 1024)
    assert work_pixels(one, one, 4) == 1024**2 + TILE_PIXELS
    thin = latent_box(1, 60_000)  # 59 tiles of 64 latents, with halos above and below
    assert work_pixels(thin, thin, 4) == (3750 + 58 * 8) * PATCH**2 + 59 * TILE_PIXELS
    two = latent_box(2048, 1024)
    left = (64 + 4) * 64 * PATCH**2 + TILE_PIXELS
    assert work_pixels(two, two, 4) == 2 * left
    assert work_pixels(two, Box(0, 0, 9, 60), 4) == left
    assert work_pixels(two, Box(0, 0, 9, 61), 4) == 2 * left, "its halo is in the next tile"
