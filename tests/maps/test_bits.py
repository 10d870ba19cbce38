"""Where a stream spends its bits, as its decoder tells and as a figure shows it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.codec.container import LOSSLESS
from service.codec.graphics import make_layer
from service.engine.engine import Engine
from service.engine.types import StreamBits
from service.maps.bits import StreamMap, draw_bits
from service.maps.figure import SIDE, fitted
from service.maps.scale import NOTHING, VIRIDIS, ColourScale, sample
from service.picture import Picture
from service.runtime.pipeline import LoadedModel, encode


def spent(width: int, height: int, bits: float = 64.0) -> StreamBits:
    """A stream with the same bits in every block."""
    shape = -(-height // 16), -(-width // 16)
    return StreamBits(
        width, height, 4.0, np.full(shape, bits, np.float32), np.zeros(shape, bool), 9
    )


def test_bits_of_a_decoded_stream_are_those_of_its_encoding(
    engine: Engine, numpy_engine: Engine, loaded: LoadedModel, photo: Picture
) -> None:
    data, latents = encode(loaded, photo, 64)
    for decoder in (engine, numpy_engine):
        told = decoder.stream_bits(data)
        assert (told.width, told.height, told.rate) == (photo.width, photo.height, 4.0)
        assert latents.bits is not None and np.array_equal(told.bits, latents.bits)
        assert told.bits.sum() / 8 == pytest.approx(told.latent_bytes, rel=0.01, abs=4)
        assert 0.9 * len(data) < told.latent_bytes < len(data) and not told.exact.any()


def test_blocks_of_a_graphics_layer_have_no_bits_and_a_lossless_stream_none_at_all(
    engine: Engine, loaded: LoadedModel, photo: Picture
) -> None:
    marked = np.zeros((5, 7), bool)
    marked[1:, 3:6] = True
    data, latents = encode(loaded, photo, 64, layer=make_layer(photo, marked))
    told = engine.stream_bits(data)
    assert latents.bits is not None and np.array_equal(told.bits, latents.bits)
    assert np.array_equal(told.exact, marked)
    assert (told.bits[marked] == 0).all() and (told.bits[~marked] > 0).all()
    assert told.bits.sum() / 8 == pytest.approx(told.latent_bytes, rel=0.01, abs=4)
    lossless = engine.stream_bits(engine.compress(photo, LOSSLESS).data)
    assert lossless.exact.all() and not lossless.bits.any() and lossless.latent_bytes == 0


def test_density_is_of_the_pixels_that_there_are() -> None:
    """So its sum over the pixels is the bits of the stream, also of blocks cut by an edge."""
    density = StreamMap(4.0, spent(33, 17), 99).density
    assert np.array_equal(density, [[0.25, 0.25, 4], [4, 4, 64]])
    shown = sample(density, (33 / 16, 17 / 16), (33, 17))
    assert shown.sum() == pytest.approx(6 * 64)


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (48, 32), (7744, 5164)])
def test_a_figure_has_its_declared_size_which_is_limited(size: tuple[int, int]) -> None:
    maps = [StreamMap(rate, spent(*size), 10**6) for rate in range(1, 9)]
    small = Picture(np.zeros((*fitted(*size)[::-1], 3), np.uint8))
    figure = draw_bits(small, maps)
    with Image.open(io.BytesIO(figure.data)) as image:
        assert image.format == "PNG" and image.size == (figure.width, figure.height)
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert figure.width <= 6 * (SIDE + 60) and figure.height <= 3 * (SIDE + 100)


def test_equal_numbers_have_equal_colours_in_all_maps_and_exact_blocks_none() -> None:
    low, high = spent(32, 16, 64), spent(32, 16, 256)
    high.exact[0, 1] = True
    maps = [StreamMap(1.0, low, 9), StreamMap(8.0, high, 9)]
    figure = draw_bits(Picture(np.zeros((16, 32, 3), np.uint8)), maps)
    with Image.open(io.BytesIO(figure.data)) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    scale = ColourScale(1.0, "bits per pixel")
    assert set(map(tuple, scale.colours(np.array([[0.25, 1.0]]))[0].tolist())) < colours
    assert NOTHING in colours


def test_a_scale_grows_from_dark_to_light_and_its_ticks_are_round_and_apart() -> None:
    for top in (3e-3, 0.4, 1.0, 2.7, 640.0):
        scale = ColourScale(top, "%")
        colours = scale.colours(np.linspace(0, 2 * top, 201)[None])[0].astype(int)
        assert tuple(colours[0]) == VIRIDIS[0] and tuple(colours[-1]) == VIRIDIS[-1]
        light = colours @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(light) >= -1).all() and (light[100:] == light[-1]).all()
        ticks = scale.ticks()
        places = sorted(place for place, _ in ticks)
        assert len(ticks) >= 4 and places[0] == 0 and places[-1] <= 1
        assert min(np.diff(places)) > 0.1
        assert all(float(text) == pytest.approx(place**2 * top) for place, text in ticks)
