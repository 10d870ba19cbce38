"""Small views come from the preview network: the pixels of the shrunk picture, at their place.

Laws of geometry are tested with a random network, the look of pictures with the shipped one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.codec import container
from service.codec.tiles import SCALES, TILE_PIXELS, Box, piece_count, tiles
from service.datasets.colours import Rng
from service.datasets.pages import page
from service.engine.engine import Engine
from service.engine.requests import SCALED_SPEED, scale_of
from service.errors import BadStream
from service.images.resize import shrink
from service.nets.previews import PreviewNetwork
from service.picture import U8, Picture, Region, View
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, decode_latents
from service.store.model import StoredModel
from service.store.read import load_store

RATE = 4


@pytest.fixture(scope="module")
def with_previews(small_model: StoredModel) -> StoredModel:
    """The small model with a random preview network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = PreviewNetwork(small_model.sizes.M, 12, 1)
        for block in network.trunk[1:]:
            for layer in (block.pw2, block.f2):
                torch.nn.init.orthogonal_(layer.weight)
        for head in network.head.values():
            head.l.weight.data *= 0.05
    tensors = {name: t.detach().half().numpy() for name, t in network.state_dict().items()}
    return replace(small_model, previews=tensors)


@pytest.fixture(scope="module")
def scaling(with_previews: StoredModel) -> Engine:
    return Engine(load_models((with_previews,), "cpu", torch.float32))


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return load_models(load_store(), "cpu", torch.float32)[0]


def size_at(scale: int, width: int, height: int) -> tuple[int, int]:
    return -(-width // scale), -(-height // scale)


def off(one: U8, other: U8) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


def psnr_db(one: U8, other: U8) -> float:
    return float(-10 * np.log10(np.square(off(one, other) / 255).mean() + 1e-10))


def test_the_smallest_scale_that_suffices_is_chosen() -> None:
    pixels = Box(0, 0, 100, 801)
    for size, scale in ((101, 8), (102, 4), (201, 4), (202, 2), (401, 2), (402, 1), (801, 1)):
        assert scale_of(View(max_size=size), pixels) == scale
    assert scale_of(View(size=(101, 14)), pixels) == 4, "a side may need more than the other"
    assert scale_of(View(size=(101, 13)), pixels) == 8
    assert scale_of(View(max_size=8), Box(0, 0, 1, 64)) == 8
    assert scale_of(View(max_size=1), Box(0, 0, 2, 2)) == 8
    assert scale_of(View(), Box(0, 0, 1, 1)) == 1, "nothing is smaller"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("height", "width"), [(80, 112), (16, 304), (1120, 16), (16, 16)])
def test_pixels_are_those_that_the_network_gives_for_all_latents_at_once(
    scaling: Engine, with_previews: StoredModel, scale: int, height: int, width: int
) -> None:
    data = scaling.compress(Picture(photo_like(height, width, 4)), RATE).data
    network = PreviewNetwork(with_previews.sizes.M, 12, 1)
    network.load_state_dict(
        {n: torch.from_numpy(t).float() for n, t in with_previews.previews.items()}
    )
    (model,) = load_models((with_previews,), "cpu", torch.float32)
    latents = decode_latents(model, container.read_stream(data), Box(0, 0, height, width))
    with torch.no_grad():
        made = network(torch.from_numpy(latents.y_hat)[None].float() / 64)[scale][0] + 0.5
    expected = (made * 255).round().clamp(0, 255).byte().numpy()
    assert expected.std() > 5, "this test sees a picture"
    found = scaling.decompress(data, View(size=size_at(scale, width, height))).picture.rgb
    assert off(found, expected).max() <= 1


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("height", "width"), [(75, 107), (1, 300), (300, 1), (9, 17), (2, 1)])
def test_odd_sizes_are_rounded_up_and_every_size_below_is_made(
    scaling: Engine, scale: int, height: int, width: int
) -> None:
    for grey in (False, True):
        rgb = photo_like(height, width, 4)
        rgb = np.repeat(rgb[..., :1], 3, -1) if grey else rgb
        data = scaling.compress(Picture(rgb, grey=grey), RATE).data
        size = size_at(scale, width, height)
        found = scaling.decompress(data, View(size=size)).picture
        assert (found.width, found.height, found.grey) == (*size, grey)
        assert not grey or (found.rgb == found.rgb[..., :1]).all()
        bound = max(1, max(size) - 1)
        assert max(scaling.decompress(data, View(max_size=bound)).picture.rgb.shape[:2]) == bound


@pytest.mark.parametrize("scale", SCALES)
def test_a_scaled_region_is_the_crop_of_the_scaled_picture(scaling: Engine, scale: int) -> None:
    """Also across the border of tiles: no seams, whatever else is decoded."""
    height, width = 1200, 1104
    data = scaling.compress(Picture(photo_like(height, width, 5)), RATE).data
    whole = scaling.decompress(data, View(size=size_at(scale, width, height))).picture.rgb
    for region in (Region(0, 0, 64, 32), Region(1000, 1008, 96, 80), Region(24, 40, 8, 88)):
        size = region.width // scale, region.height // scale
        found = scaling.decompress(data, View(region, size=size)).picture.rgb
        x, y = region.x // scale, region.y // scale
        assert off(found, whole[y : y + size[1], x : x + size[0]]).max() <= 1


def test_a_scaled_region_decodes_only_its_tiles(scaling: Engine) -> None:
    """The network reads one latent around a region, less than g_s: 63 + 1 are the first tile."""
    data = scaling.compress(Picture(photo_like(64, 1104, 5)), RATE).data
    stream = container.read_stream(data)
    broken = container.write_stream(replace(stream, tiles=(stream.tiles[0], (b"\0\0\0\0",))))
    first = View(Region(0, 0, 1008, 64), max_size=100)
    sound = scaling.decompress(data, first).picture.rgb
    assert np.array_equal(scaling.decompress(broken, first).picture.rgb, sound)
    with pytest.raises(BadStream):
        scaling.decompress(broken, View(Region(0, 0, 1009, 64), max_size=100))


def test_a_small_view_is_less_work_and_is_worked_on_alone(
    scaling: Engine, engine: Engine, photo: Picture
) -> None:
    made = container.read_stream(engine.compress(photo, RATE).data)
    header = replace(made.header, width=3000, height=1500)
    coded = tuple((b"",) * piece_count(tile) for tile in tiles(header.latents))
    data = container.write_stream(replace(made, header=header, tiles=coded))
    whole = scaling.preview_stream(data).load.pixels
    small = scaling.preview_stream(data, View(max_size=375)).load
    assert TILE_PIXELS < small.pixels < whole / SCALED_SPEED
    assert small.group is not None and small.group.batch is None
    assert scaling.preview_stream(data, View(max_size=1501)).load.pixels == whole
    assert engine.preview_stream(data, View(max_size=375)).load.pixels == whole


def test_without_a_preview_network_the_whole_picture_is_shrunk(
    engine: Engine, photo: Picture
) -> None:
    data, view = engine.compress(photo, RATE).data, View(max_size=9)
    expected = shrink(engine.decompress(data).picture, view)
    assert np.array_equal(engine.decompress(data, view).picture.rgb, expected.rgb)


def test_every_runtime_gives_the_same_small_picture(
    scaling: Engine, with_previews: StoredModel, photo: Picture
) -> None:
    data, view = scaling.compress(photo, RATE).data, View(max_size=13)
    light = Engine(load_decode_only((with_previews,), 1))
    found, other = (e.decompress(data, view).picture.rgb for e in (scaling, light))
    assert np.array_equal(found, other)


def test_alpha_is_the_mean_of_what_a_pixel_covers(scaling: Engine) -> None:
    alpha = photo_like(41, 53, 7)[..., 0]
    data = scaling.compress(Picture(photo_like(41, 53), alpha=alpha), RATE).data
    found = scaling.decompress(data, View(Region(8, 16, 32, 24), size=(4, 3))).picture.alpha
    cells = alpha[16:40, 8:40].reshape(3, 8, 4, 8)
    assert found is not None
    assert np.abs(found - cells.mean((1, 3))).max() <= 0.51
    odd = scaling.decompress(data, View(max_size=7)).picture
    assert odd.alpha is not None and odd.alpha.shape == odd.rgb.shape[:2] == (5, 7)


@pytest.mark.parametrize(("scale", "least_db"), [(2, 33.0), (4, 35.0), (8, 37.0)])
@pytest.mark.parametrize("tune", container.TUNES)
def test_small_pictures_look_like_the_shrunk_picture(
    shipped: LoadedModel, scale: int, least_db: float, tune: str
) -> None:
    engine, picture = Engine((shipped,)), Picture(photo_like(200, 312, 3))
    for rate in (1, 4.5, 8):
        data = engine.compress(picture, rate, tune).data
        view = View(size=size_at(scale, 312, 200))
        expected = shrink(engine.decompress(data).picture, view).rgb
        assert psnr_db(engine.decompress(data, view).picture.rgb, expected) > least_db


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("with_alpha", [False, True])
def test_a_graphics_layer_stays_sharp(shipped: LoadedModel, scale: int, with_alpha: bool) -> None:
    """Text at the left of a photograph; alpha must not mix black into what shows."""
    text = np.asarray(page(Rng(np.random.PCG64(1)), 320))[:203]
    rgb = np.concatenate([text, photo_like(203, 316, 3)], 1)
    alpha = None
    if with_alpha:
        alpha = np.full(rgb.shape[:2], 255, np.uint8)
        alpha[40:80, 40:300] = 0
    engine = Engine((shipped,), graphics=True)
    data = engine.compress(Picture(rgb, alpha), RATE).data
    layer = container.read_stream(data).graphics
    assert layer is not None and not layer.is_complete
    marked = np.repeat(np.repeat(layer.marked, 16 // scale, 0), 16 // scale, 1)
    view = View(size=size_at(scale, 636, 203))
    expected = shrink(engine.decompress(data).picture, view).rgb
    found = engine.decompress(data, view).picture.rgb
    inside = marked[: len(found), : found.shape[1]]
    assert inside.mean() > 0.2
    assert psnr_db(found[inside], expected[inside]) > 30
    assert psnr_db(found, expected) > 30
