"""Several models behind one engine: the one that is named compresses, as it would alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from small_ladder import small_update, with_rates
from small_model import photo_like, small_stored_model

from service.codec.container import LOSSLESS
from service.codec.lowrank import pack
from service.codec.sizes import ConvSizes
from service.engine.engine import Engine
from service.engine.target import Target
from service.engine.types import NO_MODEL, Compressed
from service.errors import BadParameter, ModelUnavailable, RateUnavailable
from service.picture import Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel, layer_shapes

OTHER = ConvSizes(M=24, Cz=8, c8=16, c16=16, ne8=1, ne16=1, nd8=3, nd16=2, cp=16, cc=16)
"""Sizes of the second model, whose g_s reads further than that of the small one."""


@pytest.fixture(scope="module")
def stored(small_model: StoredModel) -> tuple[StoredModel, StoredModel]:
    """Two models: `small` with the rates 3, 4 and 5, `other` with 4, 5 and 6."""
    other, _, _ = small_stored_model(OTHER, seed=1)
    return with_rates(small_model, (3, 5)), with_rates(replace(other, name="other"), (5, 6))


@pytest.fixture(scope="module")
def loaded(stored: tuple[StoredModel, ...]) -> tuple[LoadedModel, ...]:
    return load_models(stored, "cpu", torch.float32)


@pytest.fixture(scope="module")
def both(loaded: tuple[LoadedModel, ...]) -> Engine:
    return Engine(loaded)


@pytest.fixture(scope="module")
def alone(loaded: tuple[LoadedModel, ...]) -> Engine:
    """The second model by itself."""
    return Engine(loaded[1:])


@pytest.mark.parametrize(
    "rate", [4, 5.5, 6, LOSSLESS, Target(max_bytes=120), Target(psnr_db=8.25)], ids=str
)
def test_a_named_model_compresses_as_it_does_alone(
    both: Engine, alone: Engine, rate: float | Target
) -> None:
    picture = Picture(photo_like(40, 64, 1))
    made, expected = both.compress(picture, rate, model="other"), alone.compress(picture, rate)
    assert (made.data, made.rate, made.psnr_db) == (
        expected.data, expected.rate, expected.psnr_db,
    )  # fmt: skip
    assert made.model == expected.model == both.decompress(made.data).model
    assert made.model == (NO_MODEL if rate == LOSSLESS else "other")


def test_a_named_model_s_own_weight_of_the_error_decides_about_the_graphics_layer(
    loaded: tuple[LoadedModel, ...],
) -> None:
    """With next to no weight only what takes fewer bytes is stored exactly: flat colours here."""
    careless = replace(loaded[1].stored, rates=tuple(
        replace(rate, lmbda=1e-9) for rate in loaded[1].stored.rates
    ))  # fmt: skip
    engine = Engine((loaded[0], replace(loaded[1], stored=careless)), graphics=True)
    rgb = photo_like(64, 160, 3)
    rgb[:, 48:] = 255
    first, other = (engine.compress(Picture(rgb), 4, model=name) for name in ("small", "other"))
    assert (first.rate, first.model) == (LOSSLESS, NO_MODEL)
    assert (other.rate, other.model) == (4, "other") and 0 < other.graphics_share < 1
    decoded = engine.decompress(other.data)
    assert decoded.model == "other" and np.array_equal(decoded.picture.rgb[:, 48:], rgb[:, 48:])


def test_without_a_name_the_first_model_compresses(both: Engine) -> None:
    picture = Picture(photo_like(40, 64, 1))
    first = both.compress(picture, 4)
    assert first.data == both.compress(picture, 4, model="small").data
    assert first.data != both.compress(picture, 4, model="other").data
    assert [m.name for m in both.models()] == ["small", "other"] and first.model == "small"
    assert {m.family for m in both.models()} == {"conv"}


def test_a_batch_of_a_named_model_gives_the_bytes_of_one_at_a_time(
    both: Engine, alone: Engine
) -> None:
    many = [Picture(photo_like(40, 64, seed)) for seed in range(3)]
    made = both.compress_batch(many, 6, model="other")
    expected = [alone.compress(picture, 6).data for picture in many]
    assert [one.data for one in made if isinstance(one, Compressed)] == expected


def test_requests_for_two_models_never_share_a_batch(
    both: Engine, loaded: tuple[LoadedModel, ...]
) -> None:
    """Not even those of two names of the same weights: the answer names the model."""
    first, other = (both.picture_load((64, 40), 4, model=name).group for name in (None, "other"))
    assert first is not None and other is not None
    assert first.weights != other.weights and first.batch != other.batch
    copy = replace(loaded[0], stored=replace(loaded[0].stored, name="copy"))
    twins = Engine((loaded[0], copy))
    small, same = (twins.picture_load((64, 40), 4, model=name).group for name in ("small", "copy"))
    assert small == first and same is not None and same.batch != small.batch


def test_an_unknown_model_is_refused_by_name_before_the_picture_is_looked_at(
    loaded: tuple[LoadedModel, ...],
) -> None:
    """Another error would tell that the pixels were counted, or the rate looked for."""
    engine = Engine(loaded, max_pixels=1)
    large = Picture(photo_like(40, 64))
    for rate in (4, 9, LOSSLESS, Target(bpp=1.0)):
        for ask in (
            lambda rate=rate: engine.compress(large, rate, model="none"),
            lambda rate=rate: engine.compress_batch([large], rate, model="none"),
            lambda rate=rate: engine.picture_load((64, 40), rate, model="none"),
        ):
            with pytest.raises(ModelUnavailable, match="'none', expected one of small, other"):
                ask()  # type: ignore[no-untyped-call]


def test_a_rate_or_tune_that_the_named_model_lacks_is_refused_with_its_name(both: Engine) -> None:
    picture = Picture(photo_like(16, 16))
    with pytest.raises(RateUnavailable, match="model other has no rate 3; it has 4, 5, 6") as error:
        both.compress(picture, 3, model="other")
    assert error.value.available == (4, 5, 6)
    with pytest.raises(RateUnavailable, match="model small has no rate 6"):
        both.compress(picture, 6)
    for rate in (4, Target(bpp=1.0)):
        with pytest.raises(BadParameter, match="model other has no tune 'ms-ssim'"):
            both.compress(picture, rate, "ms-ssim", "other")


def test_the_work_of_a_stream_is_estimated_for_the_model_that_made_it(
    both: Engine, alone: Engine
) -> None:
    picture = Picture(photo_like(40, 1100))
    for rate in (4, 6):
        data = alone.compress(picture, rate).data
        assert both.preview_stream(data).load == alone.preview_stream(data).load
    assert both.picture_load((1100, 40), 4, model="other") == alone.picture_load((1100, 40), 4)
    assert both.picture_load((1100, 40), 4).pixels < alone.picture_load((1100, 40), 4).pixels


def test_an_adapter_for_the_second_model_serves_it_alone(
    loaded: tuple[LoadedModel, ...], stored: tuple[StoredModel, ...]
) -> None:
    engine, (first, other) = Engine(loaded), stored
    picture = Picture(photo_like(40, 64, 1))
    before = engine.compress(picture, 3).data
    data = save(pack(small_update(other, 3), layer_shapes(other.transforms, other.entropy)))
    info = engine.add_adapter(data, other.sha256, 3)
    assert (info.model, info.base) == ("other", other.sha256) and first.sha256 != other.sha256
    made = engine.compress(picture, 3, model="other")
    assert engine.decompress(made.data).model == "other" == made.model
    assert engine.compress(picture, 3.5, model="other").rate == 3.5
    assert engine.compress(picture, 3).data == before
    engine.remove_adapter(info.sha256)
    with pytest.raises(RateUnavailable, match="model other has no rate 3; it has 4, 5, 6"):
        engine.compress(picture, 3, model="other")
