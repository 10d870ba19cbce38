"""Latent streams in the engine: fitted, decoded whole and in part, and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from small_autoencoder import CellMeans, small_autoencoders
from small_model import photo_like

from service.codec import container
from service.codec.container import describe, read_stream, write_stream
from service.engine.engine import Engine
from service.engine.types import AutoencoderInfo
from service.errors import (
    BadParameter,
    BadStream,
    MissingExtra,
    ModelUnavailable,
    TooManyPixels,
    UnknownModel,
)
from service.images.resize import shrink
from service.picture import Picture, Region, View
from service.runtime.pipeline import LoadedModel

KL, LARGE = CellMeans("kl"), CellMeans("large", cell=32)
HEIGHT, WIDTH = 43, 75


@pytest.fixture(scope="module")
def fitting(loaded: LoadedModel) -> Engine:
    return Engine((loaded,), autoencoders=small_autoencoders(KL, LARGE))


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Grey, with alpha and metadata, and with sides that are no multiples of a cell."""
    rgb = np.repeat(photo_like(HEIGHT, WIDTH, 3)[..., :1], 3, -1)
    alpha = photo_like(HEIGHT, WIDTH, 4)[..., 0]
    return Picture(rgb, alpha, True, b"profile", b"Exif")


@pytest.fixture(scope="module")
def data(fitting: Engine, picture: Picture) -> bytes:
    return fitted(fitting, picture)


def fitted(engine: Engine, picture: Picture, autoencoder: str | None = None) -> bytes:
    with pytest.MonkeyPatch.context() as few:
        few.setattr("service.adapt.overfit.STEPS", {0: 3})
        adaptation = engine.fit_latents(picture, 2.5, effort=0, autoencoder=autoencoder)
        while not adaptation.done:
            adaptation.advance(60)
    return adaptation.best()


def test_a_picture_is_fitted_and_comes_back(
    fitting: Engine, decode_only: LoadedModel, picture: Picture, data: bytes
) -> None:
    info = describe(data)
    assert (info.method, info.rate, info.model) == ("latent", 2.5, KL.identity[:4].hex())
    out = fitting.decompress(data)
    assert (out.model, out.rate, out.complete) == ("kl", 2.5, 1)
    back = out.picture
    assert back.rgb.shape == picture.rgb.shape and back.grey
    assert np.array_equal(back.rgb, np.repeat(back.rgb[..., :1], 3, -1))
    assert back.alpha is not None and np.array_equal(back.alpha, picture.alpha)
    assert (back.icc, back.exif) == (b"profile", b"Exif")
    light = Engine((decode_only,), autoencoders=small_autoencoders(LARGE, KL))
    assert np.array_equal(light.decompress(data).picture.rgb, back.rgb)
    (of_batch, plain) = fitting.decompress_batch([data, fitting.compress(picture, 4).data])
    assert not isinstance(of_batch, Exception) and not isinstance(plain, Exception)
    assert np.array_equal(of_batch.picture.rgb, back.rgb) and plain.model == "small"


def test_a_view_of_a_latent_stream_is_that_view_of_the_whole(fitting: Engine, data: bytes) -> None:
    whole = fitting.decompress(data).picture
    region = Region(13, 5, 40, 30)
    part = fitting.decompress(data, View(region)).picture
    assert np.array_equal(part.rgb, whole.rgb[5:35, 13:53])
    assert part.alpha is not None and whole.alpha is not None
    assert np.array_equal(part.alpha, whole.alpha[5:35, 13:53])
    small = View(max_size=20)
    assert np.array_equal(fitting.decompress(data, small).picture.rgb, shrink(whole, small).rgb)


def test_the_work_of_a_latent_stream_is_that_of_the_whole_picture(
    fitting: Engine, data: bytes
) -> None:
    whole = fitting.preview_stream(data)
    assert (whole.shape.width, whole.shape.height, whole.shape.has_alpha) == (WIDTH, HEIGHT, True)
    assert whole.load.pixels > WIDTH * HEIGHT
    part = fitting.preview_stream(data, View(Region(0, 0, 1, 1)))
    assert part.load.pixels == whole.load.pixels


def test_an_engine_lists_its_autoencoders(fitting: Engine, engine: Engine) -> None:
    assert fitting.autoencoders() == tuple(
        AutoencoderInfo(one.name, one.identity.hex()) for one in (KL, LARGE)
    )
    assert engine.autoencoders() == ()


def test_an_adaptation_goes_on_from_its_checkpoint(fitting: Engine, picture: Picture) -> None:
    arguments = {"effort": 0, "seed": 5, "autoencoder": "kl"}
    with pytest.MonkeyPatch.context() as few:
        few.setattr("service.adapt.overfit.STEPS", {0: 3})
        begun = fitting.fit_latents(picture, 2, **arguments)  # type: ignore[arg-type]
        begun.advance(0)
        saved, step = begun.checkpoint(), begun.progress.step
        begun.advance(60)
        resumed = fitting.fit_latents(picture, 2, checkpoint=saved, **arguments)  # type: ignore[arg-type]
        assert resumed.progress.step == step
        resumed.advance(60)
        assert resumed.best() == begun.best()
        with pytest.raises(BadParameter):
            fitting.fit_latents(picture, 3, checkpoint=saved, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"quality": 0.9}, "quality is 0.9, expected a number from 1 to 8"),
        ({"quality": float("nan")}, "quality is nan"),
        ({"effort": 5}, "effort is 5"),
        ({"max_seconds": 0.0}, "max_seconds is 0"),
    ],
)
def test_wrong_arguments_are_refused(
    fitting: Engine, picture: Picture, change: dict[str, float], expected: str
) -> None:
    arguments = {"quality": 2.0, "effort": 0} | change
    with pytest.raises(BadParameter, match=expected):
        fitting.fit_latents(picture, **arguments)  # type: ignore[arg-type]


def test_fitting_needs_an_autoencoder_and_torch(
    fitting: Engine, engine: Engine, decode_only: LoadedModel, picture: Picture
) -> None:
    with pytest.raises(ModelUnavailable):
        fitting.fit_latents(picture, 2, effort=0, autoencoder="unknown")
    with pytest.raises(ModelUnavailable, match="no autoencoder is loaded"):
        engine.fit_latents(picture, 2, effort=0)
    light = Engine((decode_only,), autoencoders=small_autoencoders(KL))
    with pytest.raises(MissingExtra, match="pip install"):
        light.fit_latents(picture, 2, effort=0)


def test_pictures_are_limited_in_the_cells_of_the_autoencoder(
    fitting: Engine, loaded: LoadedModel, picture: Picture
) -> None:
    data = fitted(fitting, picture, "large")
    limit = 48 * 80  # in cells of 16 pixels; in those of 32 it is 64 × 96
    engine = Engine((loaded,), max_pixels=limit, autoencoders=small_autoencoders(KL, LARGE))
    assert engine.decompress(fitted(engine, picture)).picture.width == WIDTH
    for work in (
        lambda: engine.decompress(data),
        lambda: engine.fit_latents(picture, 2, effort=0, autoencoder="large"),
    ):
        with pytest.raises(TooManyPixels, match="rounded up to 32: 6144 pixels"):
            work()


def test_a_latent_stream_needs_its_autoencoder(
    engine: Engine, fitting: Engine, data: bytes
) -> None:
    other = write_stream(changed(data, lambda h: replace(h, model=b"\1\2\3\4")))
    for codec, stream in ((engine, data), (fitting, other)):
        with pytest.raises(UnknownModel, match="autoencoder"):
            codec.decompress(stream)


def changed(
    data: bytes, change: Callable[[container.Header], container.Header]
) -> container.Stream:
    stream = read_stream(data)
    return replace(stream, header=change(stream.header))


def test_damaged_and_cut_latent_streams_are_refused(fitting: Engine, data: bytes) -> None:
    larger = changed(data, lambda h: replace(h, width=4 * WIDTH))
    for stream in (larger, replace(read_stream(data), overfit=b"")):
        with pytest.raises(BadStream):
            fitting.decompress(write_stream(stream))
    with pytest.raises(BadStream, match="cannot be decoded in part"):
        fitting.decompress(data[:-9], View(partial=True))


def test_a_latent_stream_does_not_tell_where_its_bits_are(fitting: Engine, data: bytes) -> None:
    with pytest.raises(BadParameter, match="latent stream"):
        fitting.stream_bits(data)
