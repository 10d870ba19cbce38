"""Streams that are cut: each segment makes the picture better, and any cut is safe."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from small_model import photo_like

from service.codec.container import describe, read_stream, write_stream
from service.codec.graphics import make_layer
from service.codec.tiles import SEGMENTS
from service.engine.engine import Engine
from service.errors import BadStream
from service.picture import Picture, Region, View, squared_error
from service.runtime.loading import load_models
from service.runtime.pipeline import encode
from service.store.read import load_store

PARTIAL = View(partial=True)


@pytest.fixture(scope="module")
def shipped() -> Engine:
    """The shipped model, whose predictions are worth something."""
    return Engine(load_models(load_store(), "cpu", None, 1), check=False)


@pytest.fixture(scope="module")
def photo() -> Picture:
    """Of more latents than one piece holds."""
    return Picture(photo_like(528, 560, 7))


def errors_at(engine: Engine, picture: Picture, data: bytes) -> list[float]:
    """Squared error after each segment."""
    return [
        squared_error(picture.rgb, engine.decompress(data[:end], PARTIAL).picture.rgb)
        for _, end in describe(data).marks
    ]


@pytest.mark.parametrize("rate", [1, 4, 8])
def test_every_segment_makes_the_picture_better(
    shipped: Engine, photo: Picture, rate: float
) -> None:
    data = shipped.compress(photo, rate).data
    marks = describe(data).marks
    assert [name for name, _ in marks] == list(SEGMENTS)
    errors = errors_at(shipped, photo, data)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == squared_error(photo.rgb, shipped.decompress(data).picture.rgb)
    grey = np.full_like(photo.rgb, photo.rgb.mean().round().astype(np.uint8))
    assert errors[0] < 0.6 * squared_error(photo.rgb, grey), "z alone is a picture"


def test_between_two_marks_the_picture_is_that_of_the_first(
    shipped: Engine, photo: Picture
) -> None:
    data = shipped.compress(photo, 2).data
    marks = [end for _, end in describe(data).marks]
    for low, high in zip(marks, marks[1:], strict=False):
        first, last = (shipped.decompress(data[:n], PARTIAL) for n in (low, high - 1))
        assert np.array_equal(first.picture.rgb, last.picture.rgb)
        assert first.complete == last.complete < 1
        assert first.picture.notes[0].startswith("the stream is cut: ")
    whole = shipped.decompress(data, PARTIAL)
    assert (whole.complete, whole.picture.notes) == (1, ())
    assert np.array_equal(whole.picture.rgb, shipped.decompress(data).picture.rgb)


def test_a_cut_stream_is_an_error_unless_it_may_be_cut(shipped: Engine, photo: Picture) -> None:
    data = shipped.compress(photo, 2).data
    for n in (len(data) - 1, describe(data).marks[2][1], 30, 3, 0):
        with pytest.raises(BadStream):
            shipped.decompress(data[:n])
        with pytest.raises(BadStream):
            shipped.preview_stream(data[:n])
    assert shipped.preview_stream(data[:-1], PARTIAL).shape.width == photo.width


def test_a_region_of_a_cut_stream_is_that_of_its_picture(shipped: Engine, photo: Picture) -> None:
    data = shipped.compress(photo, 4).data
    cut = data[: describe(data).marks[1][1]]
    whole = shipped.decompress(cut, PARTIAL).picture.rgb
    part = shipped.decompress(cut, View(Region(100, 60, 90, 70), partial=True)).picture.rgb
    assert np.abs(part.astype(int) - whole[60:130, 100:190]).max() <= 1


def test_alpha_and_exact_blocks_are_there_from_the_first_segment(
    shipped: Engine, photo: Picture
) -> None:
    entry = load_models(load_store(), "cpu", None, 1)[0]
    alpha = np.full(photo.rgb.shape[:2], 200, np.uint8)
    marked: NDArray[np.bool_] = np.zeros((33, 35), np.bool_)
    marked[3:9, 4:20] = True
    picture = replace(photo, alpha=alpha)
    data, _ = encode(entry, picture, 64, layer=make_layer(picture, marked))
    cut = shipped.decompress(data[: describe(data).marks[0][1]], PARTIAL).picture
    assert cut.alpha is not None and np.array_equal(cut.alpha, alpha)
    exact = np.s_[16 * 3 : 16 * 9, 16 * 4 : 16 * 20]
    assert np.array_equal(cut.rgb[exact], photo.rgb[exact])
    assert not np.array_equal(cut.rgb, photo.rgb)


def test_a_lossless_stream_needs_its_layer_as_a_whole(shipped: Engine) -> None:
    picture = Picture(photo_like(40, 50), exif=b"Exif")
    data = shipped.compress(picture, float("inf")).data
    behind = len(data) - 4 - 2 - dict(describe(data).sections)["exif"]
    assert np.array_equal(shipped.decompress(data[:behind], PARTIAL).picture.rgb, picture.rgb)
    for n in range(behind):
        with pytest.raises(BadStream):
            shipped.decompress(data[:n], PARTIAL)


def test_damage_in_a_cut_stream_is_a_picture_or_a_bad_stream(
    shipped: Engine, photo: Picture
) -> None:
    stream = read_stream(shipped.compress(photo, 1).data)
    data = write_stream(stream)[:-1]
    for place in range(20, len(data), len(data) // 40):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        with suppress(BadStream):
            assert shipped.decompress(damaged, PARTIAL).picture.rgb.shape == photo.rgb.shape
