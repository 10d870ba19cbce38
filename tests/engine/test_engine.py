"""Pictures become streams and come back, whatever their size and whoever decodes them."""

from __future__ import annotations

import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.codec import container
from service.codec.container import read_stream, write_stream
from service.codec.latents import CodedTiles, LatentCoder
from service.codec.tiles import PATCH, TILE_PIXELS, padded_pixels, piece_count, tiles
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.engine.self_test import GOLDEN_TOLERANCE
from service.engine.target import Target
from service.engine.types import Compressed
from service.errors import (
    BadParameter,
    CheckFailed,
    MissingExtra,
    RateUnavailable,
    SelfTestFailed,
    StoreError,
    TooManyPixels,
    UnknownModel,
)
from service.picture import U8, Picture, Region, View
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.settings import Settings
from service.store.model import StoredModel, StoredRate
from service.store.read import load_store
from service.store.write import write_model

RATE = 4
SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (16, 16), (17, 31), (33, 16), (75, 106), (128, 64)]


def psnr_db(a: U8, b: U8) -> float:
    mse = np.square(a.astype(np.float64) - b).mean()
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def same_pictures(a: Picture, b: Picture) -> bool:
    return np.array_equal(a.rgb, b.rgb)


@pytest.mark.parametrize("height, width", SIZES)
def test_a_picture_of_any_size_comes_back_in_that_size(
    engine: Engine, height: int, width: int
) -> None:
    picture = Picture(photo_like(height, width, 5))
    made = engine.compress(picture, RATE)
    back = engine.decompress(made.data)
    assert back.picture.rgb.shape == (height, width, 3)
    assert (made.width, made.height, made.rate, back.rate) == (width, height, RATE, RATE)
    assert back.model == "small"
    assert made.bpp == 8 * len(made.data) / (height * width)
    assert made.psnr_db == pytest.approx(psnr_db(picture.rgb, back.picture.rgb))
    assert back.picture.alpha is None and not back.picture.grey


@pytest.mark.parametrize("height, width", SIZES)
def test_numpy_decodes_within_one_step_of_torch(
    engine: Engine, numpy_engine: Engine, height: int, width: int
) -> None:
    data = engine.compress(Picture(photo_like(height, width, 6)), RATE).data
    with_torch = engine.decompress(data).picture.rgb.astype(int)
    with_numpy = numpy_engine.decompress(data).picture.rgb.astype(int)
    assert np.abs(with_torch - with_numpy).max() <= 1
    assert (with_torch != with_numpy).mean() < 0.01


def test_alpha_is_lossless_and_metadata_is_carried(engine: Engine) -> None:
    alpha = photo_like(40, 53, 7)[..., 0]
    picture = Picture(photo_like(40, 53), alpha=alpha, icc=b"profile", exif=b"II*\0exif")
    data = engine.compress(picture, RATE).data
    back = engine.decompress(data).picture
    assert np.array_equal(back.alpha, alpha)
    assert (back.icc, back.exif) == (b"profile", b"II*\0exif")
    part = engine.decompress(data, View(Region(3, 4, 20, 30))).picture
    assert np.array_equal(part.alpha, alpha[4:34, 3:23])
    plain = engine.decompress(engine.compress(Picture(picture.rgb), RATE).data).picture
    assert (plain.alpha, plain.icc, plain.exif) == (None, None, None)


def test_grey_stays_grey(engine: Engine) -> None:
    rgb = np.repeat(photo_like(40, 53)[..., :1], 3, -1)
    made = engine.compress(Picture(rgb, grey=True), RATE)
    back = engine.decompress(made.data).picture
    assert back.grey
    assert (back.rgb == back.rgb[..., :1]).all()
    assert made.psnr_db == pytest.approx(psnr_db(rgb, back.rgb))


def test_arrays_that_must_not_be_written_to_are_left_alone(engine: Engine) -> None:
    rgb = photo_like(48, 32)
    rgb.setflags(write=False)
    made = engine.compress(Picture(rgb), RATE)
    assert engine.decompress(made.data).picture.rgb.shape == rgb.shape


def test_compressing_twice_gives_the_same_bytes(engine: Engine, photo: Picture) -> None:
    assert engine.compress(photo, RATE).data == engine.compress(photo, RATE).data


def test_checking_does_not_change_the_stream(
    engine: Engine, loaded: LoadedModel, photo: Picture
) -> None:
    unchecked = Engine((loaded,), check=False).compress(photo, RATE)
    assert unchecked.data == engine.compress(photo, RATE).data
    assert unchecked.psnr_db is None


def test_threads_that_share_an_engine_get_what_each_would_alone(engine: Engine) -> None:
    pictures = [Picture(photo_like(40 + 7 * i, 64 - 5 * i, i)) for i in range(6)]
    streams = [engine.compress(p, RATE).data for p in pictures]
    decoded = [engine.decompress(d).picture for d in streams]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda p: engine.compress(p, RATE).data, pictures * 3))
        back = list(pool.map(lambda d: engine.decompress(d).picture, streams * 3))
    assert made == streams * 3
    assert all(same_pictures(a, b) for a, b in zip(back, decoded * 3, strict=True))


class Tampering:
    """A coder whose promise of y_hat is off by one unit in one place."""

    def __init__(self, model: LoadedModel) -> None:
        self.coder = model.coder

    def encode(self, *latents: np.ndarray) -> CodedTiles:
        coded = self.coder.encode(*latents)
        coded.y_hat[0, 0, 0, 0] += 1
        return coded

    def decode(self, *args: object) -> object:
        return self.coder.decode(*args)  # type: ignore[arg-type]


def test_the_check_catches_an_encoder_and_decoder_that_disagree(
    loaded: LoadedModel, photo: Picture
) -> None:
    broken = replace(loaded, coder=Tampering(loaded))  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match="other latents"):
        Engine((broken,)).compress(photo, RATE)
    Engine((broken,), check=False).compress(photo, RATE)


def test_pictures_over_the_limit_are_refused_before_any_work(
    loaded: LoadedModel, engine: Engine, photo: Picture
) -> None:
    data = engine.compress(photo, RATE).data
    pixels = padded_pixels(photo.width, photo.height)
    exactly = Engine((loaded,), max_pixels=pixels)
    assert exactly.decompress(data).picture.width == photo.width
    smaller = Engine((loaded,), max_pixels=pixels - 1)
    for call in (lambda: smaller.compress(photo, RATE), lambda: smaller.decompress(data)):
        with pytest.raises(TooManyPixels, match=f"{photo.width}x{photo.height}"):
            call()
    with pytest.raises(TooManyPixels):
        smaller.decompress(data[:14])


def test_a_thin_picture_counts_as_what_the_networks_run_over(
    loaded: LoadedModel, decode_only: LoadedModel, engine: Engine
) -> None:
    """1x1000 pixels are 16x1008 for the networks."""
    thin = Picture(np.zeros((1000, 1, 3), np.uint8))
    data = engine.compress(thin, RATE).data
    enough = Engine((loaded,), max_pixels=16 * 1008)
    assert enough.compress(thin, RATE).data == data
    assert np.array_equal(enough.decompress(data).picture.rgb, engine.decompress(data).picture.rgb)
    assert Engine((decode_only,), max_pixels=16 * 1008).decompress(data).picture.width == 1
    for model in (loaded, decode_only):
        small = Engine((model,), max_pixels=16 * 1008 - 1)
        for call in (
            lambda small=small: small.compress(thin, RATE),
            lambda small=small: small.compress(thin, Target(bpp=1.0)),
            lambda small=small: small.decompress(data),
            lambda small=small: small.decompress(data, View(Region(0, 0, 1, 1))),
            lambda small=small: small.picture_load((1, 1000), RATE),
            lambda small=small: small.preview_stream(data),
        ):
            with pytest.raises(TooManyPixels, match="1x1000, with sides rounded up to 16: 16128"):
                call()


def test_a_region_is_as_much_work_as_the_tiles_that_it_needs(
    loaded: LoadedModel, engine: Engine, photo: Picture
) -> None:
    """A header of 3000x1500 pixels: three tiles by two, of which a corner's region needs one."""
    made = read_stream(engine.compress(photo, RATE).data)
    header = replace(made.header, width=3000, height=1500)
    coded = tuple((b"",) * piece_count(tile) for tile in tiles(header.latents))
    data = write_stream(replace(made, header=header, tiles=coded))
    one = (64 + loaded.stored.sizes.halo) ** 2 * PATCH**2 + TILE_PIXELS
    assert engine.preview_stream(data, View(Region(0, 0, 100, 100))).load.pixels == one
    whole, size = engine.preview_stream(data).load.pixels, (3000, 1500)
    once = Engine((loaded,), check=False).picture_load(size, RATE).pixels
    twice = engine.picture_load(size, RATE).pixels
    assert once == whole and twice == 2 * whole > 8 * one, "compressing is checked"
    assert engine.preview_stream(data, View(Region(0, 0, 3000, 1500))).load.pixels == whole
    with pytest.raises(BadParameter):
        engine.preview_stream(data, View(Region(0, 0, 3001, 1)))


def test_a_side_that_the_format_cannot_hold_is_refused(engine: Engine) -> None:
    long = np.zeros((1, container.MAX_SIDE + 1, 3), np.uint8)
    with pytest.raises(TooManyPixels, match=f"at most {container.MAX_SIDE}"):
        engine.compress(Picture(long), RATE)


def test_a_missing_rate_lists_those_that_are_there(loaded: LoadedModel, photo: Picture) -> None:
    rates = tuple(StoredRate(r, 0.01, None, None) for r in (4, 6))
    engine = Engine((replace(loaded, stored=replace(loaded.stored, rates=rates)),))
    with pytest.raises(RateUnavailable, match="model small has no rate 3; it has 4, 6") as e:
        engine.compress(photo, 3)
    assert e.value.available == (4, 6)
    with pytest.raises(RateUnavailable, match="rate 4.5"):
        engine.compress(photo, 4.5)
    assert engine.compress(photo, 4 + 1 / 40).rate == 4, "rates are stored in sixteenths"
    for rate in (0.99, 8.01, -1, math.nan, -math.inf):
        with pytest.raises(BadParameter, match="expected a number from 1 to 8"):
            engine.compress(photo, rate)


def test_a_stream_of_other_weights_is_an_unknown_model(engine: Engine, photo: Picture) -> None:
    stream = container.read_stream(engine.compress(photo, RATE).data)
    for change in ({"model": b"\0\1\2\3"}, {"rate16": 65}):
        header = replace(stream.header, **change)  # type: ignore[arg-type]
        data = container.write_stream(replace(stream, header=header))
        with pytest.raises(UnknownModel, match="the store holds"):
            engine.decompress(data)


def test_a_stream_is_decoded_by_the_model_it_names(
    loaded: LoadedModel, small_model: StoredModel, photo: Picture
) -> None:
    other = replace(small_model, name="other", sha256="00" * 32)
    other = replace(other, identity=other.identity_at(16 * RATE))
    both = Engine((loaded, *load_models((other,), "cpu", torch.float32)))
    stream = container.read_stream(both.compress(photo, RATE).data)
    header = replace(stream.header, model=other.identity[:4])
    data = container.write_stream(replace(stream, header=header))
    assert both.decompress(data).model == "other"
    assert [m.name for m in both.models()] == ["small", "other"]


@pytest.mark.parametrize(
    "region", [Region(100, 0, 7, 1), Region(0, 75, 1, 1), Region(0, 0, 107, 75)]
)
def test_a_region_outside_the_picture_is_refused(
    engine: Engine, photo: Picture, region: Region
) -> None:
    data = engine.compress(photo, RATE).data
    with pytest.raises(BadParameter, match="outside"):
        engine.decompress(data, View(region))


@pytest.mark.parametrize("region", [Region(-1, 0, 5, 5), Region(0, -1, 5, 5), Region(1, 1, 0, 5),
                                    Region(1, 1, 5, -5)])  # fmt: skip
def test_a_region_without_pixels_or_off_the_edge_is_refused(
    engine: Engine, photo: Picture, region: Region
) -> None:
    data = engine.compress(photo, RATE).data
    with pytest.raises(BadParameter):
        engine.decompress(data, View(region))


def test_models_say_what_they_are(engine: Engine, small_model: StoredModel) -> None:
    (info,) = engine.models()
    assert (info.name, info.sha256) == ("small", small_model.sha256)
    assert info.parameters == small_model.parameters > 1000
    assert [r.rate for r in info.rates] == [4]
    assert info.training == {"note": "made for tests"}


def test_the_golden_stream_passes_here(engine: Engine, numpy_engine: Engine) -> None:
    engine.self_test()
    numpy_engine.self_test()


def test_a_golden_stream_that_does_not_reproduce_fails(loaded: LoadedModel) -> None:
    golden = loaded.stored.golden
    y_hat, rgb = golden.y_hat.copy(), golden.rgb.copy()
    y_hat[1, 2, 3] += 1
    rgb[9, 9, 1] = (int(rgb[9, 9, 1]) + 128) % 256
    assert abs(int(rgb[9, 9, 1]) - int(golden.rgb[9, 9, 1])) > GOLDEN_TOLERANCE
    cut = golden.stream[: len(golden.stream) // 2]
    tampered = [
        replace(golden, y_hat=y_hat),
        replace(golden, rgb=rgb),
        replace(golden, rgb=rgb[1:]),
        replace(golden, stream=cut),
    ]
    for wrong in tampered:
        model = replace(loaded, stored=replace(loaded.stored, golden=wrong))
        with pytest.raises(SelfTestFailed, match="model small"):
            Engine((model,)).self_test()


def test_without_torch_streams_are_read_and_compress_says_what_to_install(
    numpy_engine: Engine, engine: Engine, photo: Picture
) -> None:
    with pytest.raises(MissingExtra, match="rankpress.server"):
        numpy_engine.compress(photo, RATE)
    data = engine.compress(photo, RATE).data
    assert numpy_engine.decompress(data).picture.rgb.shape == photo.rgb.shape


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small: object) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_model(root / "small", small.stored, small.base)  # type: ignore[attr-defined]
    return root


def test_an_opened_store_compresses_as_its_model_does(
    store: Path, engine: Engine, photo: Picture, small_model: StoredModel
) -> None:
    opened = open_engine(Settings(store=store, device="cpu"))
    opened.self_test()
    data = opened.compress(photo, RATE).data
    assert engine.decompress(data).picture.rgb.shape == photo.rgb.shape
    with pytest.raises(BadParameter, match="nonsense"):
        load_models((small_model,), "nonsense", None)


def test_an_opened_store_without_torch_decodes(
    store: Path, engine: Engine, photo: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    opened = open_engine(Settings(store=store))
    opened.self_test()
    data = engine.compress(photo, RATE).data
    assert opened.decompress(data).picture.rgb.shape == photo.rgb.shape
    with pytest.raises(MissingExtra, match="cuda"):
        open_engine(Settings(store=store, device="cuda"))


def test_a_store_without_coding_tables_is_refused(small_model: StoredModel) -> None:
    entropy = {n: t for n, t in small_model.entropy.items() if n != "tables"}
    with pytest.raises(StoreError, match="tables"):
        load_models((replace(small_model, entropy=entropy),), "cpu", torch.float32)


def test_the_shipped_store_reproduces_its_golden_streams() -> None:
    engine = Engine(load_models(load_store(), "cpu", None))
    engine.self_test()
    made = engine.compress(Picture(photo_like(65, 1, 3)), engine.models()[0].rates[0].rate)
    assert engine.decompress(made.data).picture.rgb.shape == (65, 1, 3)


@pytest.mark.gpu
def test_streams_of_cuda_decode_in_numpy_to_the_same_latents(
    small_model: StoredModel, numpy_engine: Engine, photo: Picture
) -> None:
    cuda = Engine(load_models((small_model,), "cuda", torch.float32))
    data = cuda.compress(photo, RATE).data
    off = cuda.decompress(data).picture.rgb.astype(int)
    off -= numpy_engine.decompress(data).picture.rgb
    assert np.abs(off).max() <= 1


def test_what_is_not_measured_is_checked_all_the_same(
    loaded: LoadedModel, photo: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, full = Engine((loaded,), measure=False), Engine((loaded,))
    made = quick.compress(photo, RATE)
    assert made.psnr_db is None and made.data == full.compress(photo, RATE).data
    (batched,) = quick.compress_batch([photo], RATE)
    assert isinstance(batched, Compressed) and batched.psnr_db is None
    assert quick.compress(photo, Target(psnr_db=1.0)).psnr_db is not None
    decode = LatentCoder.decode

    def tampering(self, *coded):  # type: ignore[no-untyped-def]
        decoded = decode(self, *coded)
        decoded.y_hat[0, 0, 0, 0] += 1
        return decoded

    monkeypatch.setattr(LatentCoder, "decode", tampering)
    with pytest.raises(CheckFailed):
        quick.compress(photo, RATE)
