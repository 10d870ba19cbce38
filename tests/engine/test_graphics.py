"""With a graphics layer no picture is worse than without, and drawings are exact and small.

The pictures are drawn by the project's generator and coded with the shipped weights: a small random
model is so bad that every layer would pay.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import photo_like

from service.adapt.plan import AdaptationPlan
from service.codec import container
from service.codec.container import LOSSLESS
from service.codec.tiles import Box
from service.datasets.colours import Rng
from service.datasets.fields import dithered, pixel_art
from service.datasets.pages import chart, code, page
from service.engine.engine import Engine
from service.engine.target import Target
from service.engine.types import Compressed
from service.errors import BadStream, TargetUnreachable
from service.ms_ssim import ms_ssim
from service.picture import U8, Picture, Region, View, squared_error
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.read import load_store

DRAWINGS = (page, code, chart, pixel_art, dithered)
Draw = Callable[[Rng, int], Image.Image]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_models(load_store(), "cpu", torch.float32)[0]


@pytest.fixture(scope="module")
def engine(base: LoadedModel) -> Engine:
    return Engine((base,), graphics=True)


@pytest.fixture(scope="module")
def plain(base: LoadedModel) -> Engine:
    return Engine((base,))


def drawn(draw: Draw, size: int = 320, seed: int = 1) -> U8:
    return np.asarray(draw(Rng(np.random.PCG64(seed)), size)).copy()


def screen(height: int = 256, width: int = 320) -> U8:
    """A screenshot: a page of text with a photograph in it."""
    rgb = drawn(page)
    rgb[40:168, 100:292] = photo_like(128, 192, 5)
    return rgb[:height, :width]


def webp_bytes(picture: Picture) -> int:
    file = io.BytesIO()
    samples = picture.samples()
    if picture.grey and picture.alpha is None:
        samples = np.repeat(samples, 3, -1)
    Image.fromarray(samples).save(file, "WEBP", lossless=True)
    return len(file.getvalue())


def loss(engine: Engine, picture: Picture, layered: Compressed, lmbda: float) -> float:
    """R + lmbda·D in bits of the whole picture, from the bytes and the decoded pixels."""
    decoded = engine.decompress(layered.data).picture
    error = squared_error(decoded.rgb, picture.rgb, picture.alpha)
    return 8 * len(layered.data) + lmbda / 3 * error


def lmbda_of(engine: Engine, rate: float) -> float:
    rates = engine.models()[0].rates
    (lmbda,) = (r.lmbda for r in rates if r.tune == container.PSNR and r.rate == rate)
    assert lmbda is not None
    return lmbda


@pytest.mark.parametrize("rate", [1, 4, 8])
@pytest.mark.parametrize("name", ["page", "pixel_art", "dithered", "screen", "photo", "white"])
def test_no_picture_is_worse_with_a_layer(
    engine: Engine, plain: Engine, name: str, rate: int
) -> None:
    pictures = {
        "page": drawn(page),
        "pixel_art": drawn(pixel_art),
        "dithered": drawn(dithered),
        "screen": screen(),
        "photo": photo_like(160, 240, 3),
        "white": np.full((70, 50, 3), 255, np.uint8),
    }
    picture, lmbda = Picture(pictures[name]), lmbda_of(engine, rate)
    layered = engine.compress(picture, rate)
    without = plain.compress(picture, rate)
    assert loss(engine, picture, layered, lmbda) <= loss(plain, picture, without, lmbda) + 1e-6
    assert len(layered.data) <= webp_bytes(picture) + 64 or len(layered.data) <= len(without.data)
    error = squared_error(engine.decompress(layered.data).picture.rgb, picture.rgb)
    assert layered.psnr_db == pytest.approx(picture.psnr_db(error))


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_drawings_are_exact_and_as_small_as_lossless_webp(engine: Engine, draw: Draw) -> None:
    picture = Picture(drawn(draw))
    layered = engine.compress(picture, 6)
    assert (layered.rate, layered.psnr_db, layered.graphics_share) == (
        LOSSLESS,
        math.inf,
        1,
    )
    assert len(layered.data) <= webp_bytes(picture) + 64
    assert np.array_equal(engine.decompress(layered.data).picture.rgb, picture.rgb)


def test_a_photograph_gets_no_layer_and_the_same_bytes(engine: Engine, plain: Engine) -> None:
    picture = Picture(photo_like(160, 240, 3))
    for rate in (1, 4.5, 8):
        layered = engine.compress(picture, rate)
        assert layered.data == plain.compress(picture, rate).data and layered.graphics_share == 0


def test_a_photograph_on_a_page_is_coded_by_the_networks(engine: Engine, plain: Engine) -> None:
    picture = Picture(screen())
    layered, without = engine.compress(picture, 4), plain.compress(picture, 4)
    assert 0 < layered.graphics_share < 1 and layered.rate == 4
    assert layered.psnr_db is not None and without.psnr_db is not None
    assert layered.psnr_db > without.psnr_db and len(layered.data) < len(without.data)
    layer = container.read_stream(layered.data).graphics
    assert layer is not None
    decoded = engine.decompress(layered.data).picture.rgb
    exact = layer.marked.repeat(16, 0).repeat(16, 1)[:256, :320]
    assert np.array_equal(decoded[exact], picture.rgb[exact])
    assert not exact[60:150, 120:270].any(), "the inside of the photograph"


def test_regions_are_cut_from_the_whole(engine: Engine) -> None:
    picture = Picture(screen())
    data = engine.compress(picture, 4).data
    whole = engine.decompress(data).picture.rgb
    for region in (Region(0, 0, 90, 30), Region(90, 30, 130, 90), Region(310, 250, 10, 6)):
        box = Box(region.y, region.x, region.y + region.height, region.x + region.width)
        part = engine.decompress(data, View(region)).picture.rgb
        assert np.abs(part.astype(int) - whole[box.slices]).max() <= 1


def test_the_light_decoder_gives_the_same_pixels(engine: Engine) -> None:
    from service.runtime.decode_only import load_decode_only

    light = Engine(load_decode_only(load_store()))
    for picture in (Picture(screen()), Picture(drawn(code))):
        data = engine.compress(picture, 4).data
        difference = engine.decompress(data).picture.rgb.astype(int)
        difference -= light.decompress(data).picture.rgb
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("kind", ["rgb", "grey", "alpha", "grey_alpha", "noise", "one"])
def test_lossless_gives_every_pixel_back(engine: Engine, kind: str) -> None:
    rgb = screen(100, 90)
    grey = np.repeat(rgb[..., :1], 3, -1)
    alpha = np.tile(np.arange(90, dtype=np.uint8) * 2, (100, 1))
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    picture = {
        "rgb": Picture(rgb),
        "grey": Picture(grey, grey=True),
        "alpha": Picture(rgb, alpha),
        "grey_alpha": Picture(grey, alpha, grey=True),
        "noise": Picture(noise),
        "one": Picture(np.array([[[255, 0, 0]]], np.uint8)),
    }[kind]
    picture = replace(picture, icc=b"a profile", exif=b"Exif")
    layered = engine.compress(picture, LOSSLESS)
    decoded = engine.decompress(layered.data)
    assert (layered.rate, decoded.rate, layered.psnr_db) == (LOSSLESS, LOSSLESS, math.inf)
    assert np.array_equal(decoded.picture.samples(), picture.samples())
    assert (decoded.picture.grey, decoded.picture.icc, decoded.picture.exif) == (
        picture.grey,
        b"a profile",
        b"Exif",
    )
    assert len(replace_metadata(layered.data)) <= webp_bytes(picture) + 64


def replace_metadata(data: bytes) -> bytes:
    return container.write_stream(replace(container.read_stream(data), icc=None, exif=None))


def test_a_lossless_stream_needs_no_model(engine: Engine, small_engine: Engine) -> None:
    data = engine.compress(Picture(drawn(page)), LOSSLESS).data
    assert np.array_equal(small_engine.decompress(data).picture.rgb, drawn(page))


@pytest.fixture
def small_engine(loaded: LoadedModel) -> Engine:
    return Engine((loaded,))


def test_targets_choose_between_networks_and_layer(engine: Engine) -> None:
    text, photo = Picture(drawn(page)), Picture(photo_like(96, 128, 2))
    exact = engine.compress(text, LOSSLESS)
    layered = engine.compress(text, Target(max_bytes=len(exact.data) + 10))
    assert layered.rate == LOSSLESS and layered.data == exact.data
    assert engine.compress(text, Target(bpp=2 * exact.bpp)).rate == LOSSLESS
    with pytest.raises(TargetUnreachable, match="at rate lossless"):
        engine.compress(text, Target(max_bytes=20))
    assert engine.compress(photo, Target(psnr_db=34)).rate != LOSSLESS
    best = engine.compress(photo, Target(psnr_db=90))
    assert best.rate == LOSSLESS and best.psnr_db == math.inf
    assert best.encodes > 1 and best.timings.net_s > 0, "those of the search count"


@pytest.mark.parametrize("tune", container.TUNES)
def test_both_tunes_and_fractional_rates_take_layers(engine: Engine, tune: str) -> None:
    picture = Picture(screen())
    layered = engine.compress(picture, 3.5, tune)
    assert layered.graphics_share > 0 and (layered.rate, layered.tune) == (3.5, tune)


@pytest.mark.parametrize("rate", [1, 4, 7])
@pytest.mark.parametrize("name", ["page", "pixel_art", "screen"])
def test_no_picture_is_worse_by_ms_ssim_where_that_is_the_measure(
    engine: Engine, plain: Engine, name: str, rate: int
) -> None:
    rgb = {"page": drawn(page), "pixel_art": drawn(pixel_art), "screen": screen()}[name]
    lmbda = {r.rate: r.lmbda for r in engine.models()[0].rates if r.tune == "ms-ssim"}[rate]
    assert lmbda is not None
    losses = []
    for each in (engine, plain):
        layered = each.compress(Picture(rgb), rate, "ms-ssim")
        similarity = ms_ssim(rgb, each.decompress(layered.data).picture.rgb)
        assert similarity is not None
        losses.append(layered.bpp + lmbda * (1 - similarity))
    assert losses[0] <= losses[1] + 1e-6


def test_a_batch_gives_what_each_picture_gives_alone(engine: Engine) -> None:
    pictures = [Picture(screen()), Picture(photo_like(256, 320, 3)), Picture(drawn(page)[:256])]
    batch = engine.compress_batch(pictures, 4)
    alone = [engine.compress(picture, 4) for picture in pictures]
    streams = [layered.data for layered in batch if isinstance(layered, Compressed)]
    assert streams == [layered.data for layered in alone]
    decoded = engine.decompress_batch(streams)
    for one, data in zip(decoded, streams, strict=True):
        assert not isinstance(one, Exception)
        assert np.array_equal(one.picture.rgb, engine.decompress(data).picture.rgb)


def test_alpha_and_layer_go_together(engine: Engine) -> None:
    alpha = np.full((256, 320), 255, np.uint8)
    alpha[:, :50], alpha[:, 50:90] = 0, 120
    picture = Picture(screen(), alpha)
    layered = engine.compress(picture, 4)
    decoded = engine.decompress(layered.data).picture
    assert decoded.alpha is not None and np.array_equal(decoded.alpha, alpha)
    assert layered.graphics_share > 0
    error = squared_error(decoded.rgb, picture.rgb, alpha)
    assert layered.psnr_db == pytest.approx(picture.psnr_db(error))


def test_adaptation_fits_what_the_layer_does_not_hold(engine: Engine) -> None:
    picture = Picture(screen(160, 224))
    plan = AdaptationPlan(decoder_steps=0, latent_steps=30)
    adaptation = engine.adapt(picture, 4, effort=plan)
    first = engine.compress(picture, 4)
    assert adaptation.progress.first_bytes == len(first.data)
    adaptation.advance(0.01)
    saved = adaptation.checkpoint()
    adaptation.advance(math.inf)
    resumed = engine.adapt(picture, 4, effort=plan, checkpoint=saved)
    resumed.advance(math.inf)
    assert resumed.best() == adaptation.best()
    lmbda = lmbda_of(engine, 4)
    layered = replace(first, data=adaptation.best())
    assert loss(engine, picture, layered, lmbda) < 0.99 * loss(engine, picture, first, lmbda)
    layers = [container.read_stream(data).graphics for data in (first.data, layered.data)]
    assert layers[0] is not None and layers[1] is not None
    assert np.array_equal(layers[0].marked, layers[1].marked)


def test_adaptation_of_a_drawing_codes_it_harder_and_ends(engine: Engine) -> None:
    picture = Picture(drawn(pixel_art))
    adaptation = engine.adapt(picture, 4, effort=1)
    assert adaptation.done
    progress = adaptation.progress
    assert progress.bytes < progress.first_bytes and progress.psnr_db == math.inf
    assert np.array_equal(engine.decompress(adaptation.best()).picture.rgb, picture.rgb)
    again = engine.adapt(picture, 4, effort=1, checkpoint=adaptation.checkpoint())
    assert again.done and again.best() == adaptation.best()


def test_mutated_streams_with_layers_are_pictures_or_typed_errors(engine: Engine) -> None:
    streams = [engine.compress(Picture(screen(96, 128)), r).data for r in (4, LOSSLESS)]
    rng = np.random.default_rng(0)
    outcomes = set()
    for data in streams:
        stream = container.read_stream(data)
        assert stream.graphics is not None
        for _ in range(60):
            piece = bytearray(stream.graphics.pieces[0])
            piece[rng.integers(len(piece))] ^= 1 << rng.integers(8)
            layer = replace(
                stream.graphics, pieces=(bytes(piece[: rng.integers(1, 2 * len(piece))]),)
            )
            try:
                picture = engine.decompress(
                    container.write_stream(replace(stream, graphics=layer))
                ).picture
                outcomes.add(picture.rgb.shape)
            except BadStream:
                outcomes.add((0, 0, 0))
    assert outcomes == {(96, 128, 3), (0, 0, 0)}
