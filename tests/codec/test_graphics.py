"""The graphics layer holds marked pixels exactly, and any bytes are a layer or a typed error."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.codec import webp
from service.codec.graphics import (
    GraphicsLayer,
    hide,
    make_layer,
    marked_pixels,
    read_layer,
    write_layer,
)
from service.codec.tiles import Box
from service.errors import BadStream
from service.picture import U8, Picture


def drawing(height: int, width: int, seed: int = 0) -> U8:
    """Rectangles in four colours, [height, width, 3]."""
    rng = np.random.default_rng(seed)
    rgb = np.full((height, width, 3), 255, np.uint8)
    for colour in rng.integers(0, 256, (4, 3)):
        top, left = rng.integers(0, height), rng.integers(0, width)
        rgb[top : top + height // 3 + 1, left : left + width // 2 + 1] = colour
    return rgb


def some_blocks(height: int, width: int, seed: int = 0) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    marked: NDArray[np.bool_] = rng.random((-(-height // 16), -(-width // 16))) < 0.5
    return marked


def over(layer: GraphicsLayer, pixels: Box, background: int = 7) -> U8:
    rgb = np.full((pixels.height, pixels.width, 3), background, np.uint8)
    layer.lay_over(rgb, pixels)
    return rgb


@pytest.mark.parametrize("effort", [webp.QUICK, webp.FAST, webp.NORMAL, webp.BEST])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 70, 4), (33, 5, 3), (40, 40, 4)])
def test_lossless_samples_come_back(shape: tuple[int, int, int], effort: webp.Effort) -> None:
    samples = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    coded = webp.encode(samples, effort)
    assert np.array_equal(webp.decode(coded, *shape[:2], shape[2] == 4), samples)


def test_coded_pixels_are_those_of_a_webp_file() -> None:
    """The witness is Pillow's own file: RIFF and chunk headers of 20 bytes, then 5 bytes."""
    samples = drawing(50, 60)
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "WEBP", lossless=True, method=4, quality=100)
    coded = webp.encode(samples)
    assert coded == file.getvalue()[25 : 25 + len(coded)]
    assert len(file.getvalue()) - len(coded) in (25, 26)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 40), (130, 61)])
def test_marked_pixels_are_exact_and_others_are_left_alone(size: tuple[int, int]) -> None:
    rgb, marked = drawing(*size), some_blocks(*size, seed=3)
    marked[0, 0] = True
    layer = make_layer(Picture(rgb), marked)
    whole = Box(0, 0, *size)
    again = read_layer(write_layer(layer), size[1], size[0])
    assert np.array_equal(again.marked, marked)
    shown = marked_pixels(marked, whole)[..., None]
    assert np.array_equal(over(again, whole), np.where(shown, rgb, 7))
    region = Box(size[0] // 2, size[1] // 3, size[0], size[1])
    assert np.array_equal(over(again, region), over(again, whole)[region.slices])


def test_a_complete_layer_holds_the_alpha_plane() -> None:
    rgb, alpha = drawing(40, 50), np.random.default_rng(1).integers(0, 3, (40, 50)) * 127
    picture = Picture(rgb, alpha.astype(np.uint8))
    layer = make_layer(picture, np.ones((3, 4), np.bool_))
    again = read_layer(write_layer(layer), 50, 40)
    assert again.is_complete and again.has_alpha
    whole = Box(0, 0, 40, 50)
    assert np.array_equal(again.alpha_plane(whole), picture.alpha)
    assert np.array_equal(over(again, whole), np.where(alpha[..., None] > 0, rgb, 0))


def test_a_picture_larger_than_a_piece_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webp, "PIECE", 32)
    rgb, marked = drawing(70, 90), some_blocks(70, 90)
    marked[:2, :2] = False
    layer = read_layer(write_layer(make_layer(Picture(rgb), marked)), 90, 70)
    assert [bool(piece) for piece in layer.pieces[:1]] == [False] and len(layer.pieces) == 9
    whole = Box(0, 0, 70, 90)
    assert np.array_equal(
        over(layer, whole), np.where(marked_pixels(marked, whole)[..., None], rgb, 7)
    )


def test_marked_blocks_are_transparent_to_the_networks() -> None:
    alpha = np.full((20, 40), 9, np.uint8)
    marked = np.array([[True, False, False], [False, False, True]])
    hidden = hide(Picture(drawing(20, 40), alpha), marked).alpha
    assert hidden is not None
    assert np.array_equal(hidden == 0, marked_pixels(marked, Box(0, 0, 20, 40)))
    assert set(np.unique(hidden)) == {0, 9} and (alpha == 9).all()


def test_a_flat_picture_takes_a_few_bytes() -> None:
    layer = make_layer(Picture(np.full((512, 384, 3), 255, np.uint8)), np.ones((32, 24), np.bool_))
    assert len(write_layer(layer)) <= 40


def sections() -> list[bytes]:
    rgb = drawing(70, 90)
    marks = [np.ones((5, 6), np.bool_), some_blocks(70, 90)]
    alpha = np.where(rgb[..., 0] > 100, 255, 0).astype(np.uint8)
    layers = [make_layer(Picture(rgb), m) for m in marks]
    return [write_layer(layer) for layer in [*layers, make_layer(Picture(rgb, alpha), marks[0])]]


@given(st.data())
@settings(max_examples=400)
def test_any_bytes_are_a_layer_or_a_bad_stream(data: st.DataObject) -> None:
    base = bytearray(data.draw(st.sampled_from(sections())))
    for place in data.draw(st.lists(st.integers(0, len(base) - 1), max_size=4)):
        base[place] = data.draw(st.integers(0, 255))
    mutated = bytes(base[: data.draw(st.integers(0, len(base)))]) + data.draw(st.binary(max_size=4))
    whole = Box(0, 0, 70, 90)
    try:
        layer = read_layer(mutated, 90, 70)
        rgb = over(layer, whole)
    except BadStream:
        return
    assert layer.marked.shape == (5, 6)
    assert (rgb[~marked_pixels(layer.marked, whole)] == 7).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (b"", "flags"),
        (b"\2", "flags of the graphics layer are 2"),
        (b"\4", "flags of the graphics layer are 4"),
        (b"\1", "does not agree with its map"),
        (b"\0", "map length"),
        (b"\0\1\xff", "map of the graphics layer is cut"),
        (b"\0\4\1\2\3\4", "map of the graphics layer is not valid deflate"),
    ],
)
def test_a_wrong_layer_says_what_is_wrong(section: bytes, message: str) -> None:
    with pytest.raises(BadStream, match=message):
        read_layer(section, 90, 70)


def test_pixels_of_another_size_are_never_decoded() -> None:
    """The reader declares the size itself, so a hostile picture cannot ask for more memory."""
    large = webp.encode(np.zeros((4000, 4000, 3), np.uint8))
    tracemalloc.start()
    try:
        samples = webp.decode(large, 20, 30, False)
    except BadStream:
        samples = np.zeros((20, 30, 3), np.uint8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples.shape == (20, 30, 3) and peak < 2**20
