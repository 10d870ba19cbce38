"""Procedural pictures are functions of the seed and their number; plain areas are exactly plain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from service.datasets.colours import Rng
from service.datasets.drawings import product
from service.datasets.fields import dithered, pixel_art, plain_cells
from service.datasets.gradients import Drawing
from service.datasets.interfaces import interface
from service.datasets.pages import chart, code, page
from service.datasets.procedural import KINDS, LEAST_SIDE, procedural_tiles
from service.datasets.text import Face, label, lines_of, words

LUMA = np.array([0.299, 0.587, 0.114])


Draw = Callable[[Rng, int], Drawing]


def drawn(draw: Draw, number: int, size: int = LEAST_SIDE) -> NDArray[np.uint8]:
    return np.asarray(draw(Rng(np.random.PCG64((1, number))), size))


def colour_count(rgb: NDArray[np.uint8]) -> int:
    return len(np.unique(rgb.astype(int) @ [1, 256, 65536]))


@pytest.mark.parametrize("size", [64, 256, 512])
def test_tiles_are_rgb_of_the_size_asked_for(size: int) -> None:
    tiles = procedural_tiles(6, size, 0)
    assert tiles.shape == (6, size, size, 3) and tiles.dtype == np.uint8


def test_no_tiles_are_an_empty_array() -> None:
    assert procedural_tiles(0, 256, 0).shape == (0, 256, 256, 3)


def test_a_tile_depends_on_the_seed_and_its_number_alone() -> None:
    tiles = procedural_tiles(24, 256, 5)
    assert np.array_equal(procedural_tiles(24, 256, 5), tiles)
    assert np.array_equal(procedural_tiles(9, 256, 5), tiles[:9]), "fewer tiles are a prefix"
    other = procedural_tiles(24, 256, 6)
    assert all((a != b).any() for a, b in zip(tiles, other, strict=True))


def test_no_two_tiles_are_equal() -> None:
    tiles = procedural_tiles(100, 256, 2)
    assert len({tile.tobytes() for tile in tiles}) == len(tiles)


def test_shares_sum_to_one() -> None:
    assert sum(KINDS.values()) == pytest.approx(1)


@pytest.mark.parametrize("draw", KINDS, ids=lambda draw: draw.__name__)
def test_every_kind_is_drawn_at_any_size_and_varies(draw: Draw) -> None:
    for size in (LEAST_SIDE, 397, 512):
        pictures = [draw(Rng(np.random.PCG64((3, k))), size) for k in range(12)]
        assert {(p.size, p.mode) for p in pictures} == {((size, size), "RGB")}
        assert len({p.tobytes() for p in pictures}) == 12


def test_plain_cells_are_rectangles_of_one_colour_and_have_the_colours_that_matter() -> None:
    seen = set()
    for k in range(100):
        rgb = drawn(plain_cells, k)
        assert 2 <= colour_count(rgb) <= 4
        colours = np.unique(rgb[:: LEAST_SIDE // 20, :: LEAST_SIDE // 20].reshape(-1, 3), axis=0)
        assert len(colours) == colour_count(rgb)
        for colour in colours:
            cell = (rgb == colour).all(2)
            assert np.array_equal(cell, cell.any(1)[:, None] & cell.any(0)), "a whole rectangle"
            seen.add(tuple(colour.tolist()))
    corners = {(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)}
    assert corners <= seen, "white, black, pure red and the other corners of the colour cube"
    assert len(seen) > 100


@pytest.mark.parametrize("draw", [page, code, interface, chart], ids=lambda draw: draw.__name__)
def test_text_has_strong_contrast(draw: Draw) -> None:
    for k in range(20):
        luma = drawn(draw, k) @ LUMA
        assert np.ptp(luma) > 80, k
        steps = np.abs(np.diff(luma, axis=1))
        assert (steps > 50).mean() > 0.002, k


def test_things_for_sale_are_on_pure_white() -> None:
    white = [(drawn(product, k)[:8] == 255).all() for k in range(40)]
    assert np.mean(white) > 0.8


def test_enlarged_and_dithered_pictures_have_few_colours() -> None:
    for k in range(20):
        assert colour_count(drawn(pixel_art, k)) <= 16
        assert colour_count(drawn(dithered, k)) <= 216


def test_lines_of_text_fit_their_width() -> None:
    rng = Rng(np.random.PCG64(0))
    for face in (Face(9), Face(20).bolder(), Face(22, zoom=2)):
        lines = lines_of(rng, face, 300, 8)
        assert len(lines) == 8
        assert all(face.length(" ".join(line)) <= 301 for line in lines if len(line) > 1)
        assert np.mean([face.length(" ".join(line)) for line in lines]) > 200


def test_words_are_as_long_as_english_ones() -> None:
    rng = Rng(np.random.PCG64(0))
    lengths = [len(word) for word in words(rng, 5000)]
    assert 4 < np.mean(lengths) < 5.5 and max(lengths) <= 14 and min(lengths) >= 1
    assert any("\u0301" in word for word in words(rng, 500)), "some are accented"
    assert all(label(rng) for _ in range(100))
