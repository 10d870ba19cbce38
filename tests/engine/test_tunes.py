"""Two ladders on one base: a stream belongs to one of them, and nothing ever mixes the two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ladder import small_update, with_rates, with_update
from small_model import photo_like

from service.codec.container import (
    MS_SSIM,
    PSNR,
    TUNES,
    Flags,
    describe,
    read_stream,
    write_stream,
)
from service.codec.lowrank import Share, merge_entropy, merge_transforms
from service.engine.engine import Engine
from service.engine.target import Target
from service.errors import BadParameter, RateUnavailable, UnknownModel
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.model import StoredModel

PHOTO = Picture(photo_like(100, 130))


@pytest.fixture(scope="module")
def both(small_model: StoredModel) -> StoredModel:
    """PSNR rates 3 to 6, MS-SSIM rates 4 to 6."""
    return with_rates(with_rates(small_model, (3, 5, 6)), (4, 5, 6), seed=1, tune=MS_SSIM)


@pytest.fixture(scope="module")
def engine(both: StoredModel) -> Engine:
    return Engine(load_models((both,), "cpu", torch.float32))


def test_each_ladder_lists_its_own_rates(small_model: StoredModel, both: StoredModel) -> None:
    assert both.tunes == TUNES and small_model.tunes == (PSNR,)
    assert [r.rate for r in both.ladder(PSNR)] == [3, 4, 5, 6]
    assert [r.rate for r in both.ladder(MS_SSIM)] == [4, 5, 6]
    assert small_model.ladder(MS_SSIM) == ()


def test_no_rate_is_mixed_from_two_ladders(both: StoredModel) -> None:
    for rate16 in range(16, 129):
        for tune in TUNES:
            if both.offers(rate16, tune):
                assert {r.tune for r, _ in both.mix(rate16, tune)} == {tune}
    assert both.offers(50, PSNR) and not both.offers(50, MS_SSIM), "3 is in the first alone"
    assert both.offers(66, MS_SSIM) and not both.offers(56, MS_SSIM)


@pytest.mark.parametrize("rate16", [64, 72, 80, 91])
def test_weights_of_a_tune_are_those_of_its_own_adapters(both: StoredModel, rate16: int) -> None:
    merged = both.at_rate(rate16, MS_SSIM)
    shares = []
    for rate, parts in ((rate16 // 16, 16 - rate16 % 16), (rate16 // 16 + 1, rate16 % 16)):
        if parts:
            shares.append(Share(small_update(both, rate, seed=1), parts))
    expected = merge_transforms(both.transforms, shares) | merge_entropy(both.entropy, shares)
    found = merged.transforms | merged.entropy
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_identity_of_a_rate_tells_the_tunes_apart(both: StoredModel) -> None:
    for rate16 in (64, 72, 80, 88, 96):
        one, other = (both.identity_at(rate16, tune) for tune in TUNES)
        assert one != other
        assert both.at_rate(rate16, MS_SSIM).identity == other


@pytest.mark.parametrize("rate", [4, 4.5, 6])
def test_a_stream_decodes_with_the_weights_of_its_tune(engine: Engine, rate: float) -> None:
    made = {tune: engine.compress(PHOTO, rate, tune) for tune in TUNES}  # the check compares
    for tune, one in made.items():
        assert (one.tune, describe(one.data).tune, read_stream(one.data).header.tune) == (tune,) * 3
        assert one.rate == rate and len(one.data) > 22
        again = engine.decompress(one.data)
        assert again.rate == rate and again.picture.width == PHOTO.width
    assert made[PSNR].data[14:] != made[MS_SSIM].data[14:], "other weights, other latents"
    assert engine.compress(PHOTO, rate).data == made[PSNR].data


@pytest.mark.parametrize("rate", [4, 5.25])
def test_a_stream_that_claims_the_other_tune_is_refused(engine: Engine, rate: float) -> None:
    for tune in TUNES:
        stream = read_stream(engine.compress(PHOTO, rate, tune).data)
        header = replace(stream.header, flags=stream.header.flags ^ Flags.MS_SSIM)
        with pytest.raises(UnknownModel, match=rf"tune {header.tune}; there the store holds"):
            engine.decompress(write_stream(replace(stream, header=header)))


def test_the_flag_costs_no_byte_and_grey_stays_its_own(engine: Engine) -> None:
    grey = Picture(np.repeat(photo_like(64, 64)[..., :1], 3, 2), grey=True)
    for tune, flags in ((PSNR, Flags.GREY), (MS_SSIM, Flags.GREY | Flags.MS_SSIM)):
        data = engine.compress(grey, 5, tune).data
        assert data[9] == flags and engine.decompress(data).picture.grey


def test_what_a_tune_does_not_offer_is_refused(small_model: StoredModel, engine: Engine) -> None:
    with pytest.raises(RateUnavailable, match="model small has no rate 3") as error:
        engine.compress(PHOTO, 3, MS_SSIM)
    assert error.value.available == (4, 5, 6)
    plain = Engine(load_models((small_model,), "cpu", torch.float32))
    for ask in (lambda: plain.compress(PHOTO, 4, MS_SSIM),
                lambda: plain.compress(PHOTO, Target(bpp=1.0), MS_SSIM)):  # fmt: skip
        with pytest.raises(BadParameter, match="has no tune 'ms-ssim', it has psnr"):
            ask()


def test_a_target_is_searched_within_its_tune(engine: Engine, both: StoredModel) -> None:
    for tune in TUNES:
        every = {r: engine.compress(PHOTO, r / 16, tune) for r in range(64, 97)}
        limit = len(every[75].data) + 1
        best = engine.compress(PHOTO, Target(max_bytes=limit), tune)
        assert best.tune == tune
        assert best.data in {one.data for one in every.values()}
        assert len(best.data) <= limit
        header = read_stream(best.data).header
        assert header.model == both.identity_at(header.rate16, tune)[:4]


def test_replacing_a_rate_of_one_tune_leaves_streams_of_the_other(both: StoredModel) -> None:
    changed = with_update(both, 5, small_update(both, 5, seed=7), MS_SSIM)
    before, after = (Engine(load_models((m,), "cpu", torch.float32)) for m in (both, changed))
    assert after.compress(PHOTO, 5).data == before.compress(PHOTO, 5).data
    assert after.decompress(before.compress(PHOTO, 5.5).data).rate == 5.5
    with pytest.raises(UnknownModel):
        after.decompress(before.compress(PHOTO, 5, MS_SSIM).data)
