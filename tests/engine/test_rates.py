"""Every stored rate, and every sixteenth between two, is a codec of its own on one base."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ladder import small_update, with_rates, with_update
from small_model import photo_like

from service.codec.container import read_stream, write_stream
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.errors import BadStream, RateUnavailable, UnknownModel
from service.picture import Picture
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, decode_latents
from service.store.model import StoredModel

STORED = (1, 2, 3, 4, 5, 6, 7, 8)
FRACTIONS = (1 + 1 / 16, 2.5, 3.5, 3 + 15 / 16, 4 + 1 / 16, 4.75, 6.25, 7 + 15 / 16)


@pytest.fixture(scope="module")
def ladder(small_model: StoredModel) -> StoredModel:
    return with_rates(small_model, STORED)


@pytest.fixture(scope="module")
def base(ladder: StoredModel) -> LoadedModel:
    return load_models((ladder,), "cpu", torch.float32)[0]


@pytest.fixture(scope="module")
def engine(base: LoadedModel) -> Engine:
    return Engine((base,))


@pytest.fixture(scope="module")
def numpy_base(ladder: StoredModel) -> LoadedModel:
    return load_decode_only((ladder,))[0]


def y_hat(base: LoadedModel, data: bytes) -> np.ndarray:
    """Latents of a stream decoded with weights merged for it."""
    stream = read_stream(data)
    assert base.build is not None
    model = base.build(base.stored.at_rate(stream.header.rate16))
    return decode_latents(model, stream, Box(0, 0, stream.header.height, stream.header.width)).y_hat


@pytest.mark.parametrize("rate", STORED + FRACTIONS)
def test_a_rate_round_trips_and_numpy_sees_the_latents_of_torch(
    engine: Engine, base: LoadedModel, numpy_base: LoadedModel, photo: Picture, rate: float
) -> None:
    made = engine.compress(photo, rate)  # the check compares latents
    assert made.rate == rate and made.psnr_db is not None
    back = engine.decompress(made.data)
    assert back.rate == rate and back.picture.rgb.shape == photo.rgb.shape
    assert np.array_equal(y_hat(base, made.data), y_hat(numpy_base, made.data))
    off = np.abs(Engine((numpy_base,)).decompress(made.data).picture.rgb.astype(int)
                 - back.picture.rgb)  # fmt: skip
    assert off.max() <= 1


def test_streams_of_all_rates_differ_and_grow(engine: Engine, photo: Picture) -> None:
    sizes = [len(engine.compress(photo, rate).data) for rate in STORED]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(STORED)
    nearby = {engine.compress(photo, 5 + k / 16).data for k in range(17)}
    assert len(nearby) == 17


def test_whole_rates_are_exactly_their_adapter_and_rate_4_the_base(
    ladder: StoredModel, small_model: StoredModel, photo: Picture, engine: Engine
) -> None:
    """What lies beside a rate in the store does not enter into it."""
    alone = Engine(load_models((with_rates(small_model, (6,)),), "cpu", torch.float32))
    assert alone.compress(photo, 6).data == engine.compress(photo, 6).data
    plain = Engine(load_models((small_model,), "cpu", torch.float32))
    assert plain.compress(photo, 4).data == engine.compress(photo, 4).data
    assert ladder.at_rate(64) is ladder


def test_between_rates_errors_weigh_in_between(ladder: StoredModel) -> None:
    """Halfway, the geometric mean of the neighbours' lmbda; at whole rates their own."""
    assert ladder.lmbda_at(80) == pytest.approx(0.025)
    assert ladder.lmbda_at(88) == pytest.approx((0.025 * 0.0483) ** 0.5)


def test_adapting_at_a_rate_beside_the_base(engine: Engine, photo: Picture) -> None:
    plain = engine.compress(photo, 5.5)
    adaptation = engine.adapt(photo, 5.5, effort=0)
    assert adaptation.best() == plain.data


def test_a_mixed_burst_gives_the_bytes_of_one_request_at_a_time(base: LoadedModel) -> None:
    sizes = ((40, 64), (75, 33), (17, 90))
    pictures = [Picture(photo_like(h, w, i)) for i, (h, w) in enumerate(sizes)]
    work = [(p, r) for p in pictures for r in (1, 2.5, 4, 4.5, 6, 8)] * 3
    random.Random(1).shuffle(work)
    engine = Engine((base,), cache_bytes=200_000)  # about two rates of the small model
    expected = {(id(p), r): Engine((base,)).compress(p, r).data for p, r in set(work)}
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda job: engine.compress(*job).data, work))
        back = list(pool.map(engine.decompress, made))
    assert made == [expected[id(p), r] for p, r in work]
    for (picture, rate), decoded in zip(work, back, strict=True):
        assert decoded.rate == rate and decoded.picture.rgb.shape == picture.rgb.shape


def test_retraining_a_rate_refuses_its_old_streams_and_no_others(
    ladder: StoredModel, small_model: StoredModel, engine: Engine, photo: Picture
) -> None:
    retrained = with_update(ladder, 6, small_update(small_model, 6, seed=7))
    after = Engine(load_models((retrained,), "cpu", torch.float32))
    for rate in (*STORED, *FRACTIONS, 5 + 1 / 16, 5.5, 6 + 15 / 16):
        data = engine.compress(photo, rate).data
        if 5 < rate < 7:  # mixed from rate 6
            with pytest.raises(UnknownModel, match=f"at rate {rate:g}"):
                after.decompress(data)
        else:
            before = engine.decompress(data).picture.rgb
            assert np.array_equal(after.decompress(data).picture.rgb, before)


def test_a_store_without_the_rate_does_not_decode_its_streams(
    small_model: StoredModel, engine: Engine, photo: Picture
) -> None:
    few = Engine(load_models((with_rates(small_model, (5,)),), "cpu", torch.float32))
    for rate in (4, 4.5, 5):
        assert few.decompress(engine.compress(photo, rate).data).rate == rate
    for rate in (3.5, 5 + 1 / 16, 6):
        with pytest.raises(UnknownModel):
            few.decompress(engine.compress(photo, rate).data)
        with pytest.raises(RateUnavailable) as refusal:
            few.compress(photo, rate)
        assert refusal.value.available == (4, 5)


def test_a_stream_whose_rate_was_changed_never_passes_for_another(
    engine: Engine, ladder: StoredModel, photo: Picture
) -> None:
    """4.5 and 5 need the same files; their entropy models differ, so the bits run out of step."""
    stream = read_stream(engine.compress(photo, 5).data)
    for rate16 in (0, 15, 64, 72, 88, 96, 129, 255):
        header = replace(stream.header, rate16=rate16)
        if ladder.offers(rate16) and ladder.identity_at(rate16)[:4] == header.model:
            try:
                engine.decompress(write_stream(replace(stream, header=header)))
            except BadStream:
                continue
        else:
            with pytest.raises(BadStream):
                engine.decompress(write_stream(replace(stream, header=header)))


@pytest.mark.gpu
def test_cuda_writes_streams_of_every_rate_that_numpy_decodes(
    ladder: StoredModel, numpy_base: LoadedModel, photo: Picture
) -> None:
    (cuda,) = load_models((ladder,), "cuda", torch.float32)
    engine = Engine((cuda,))
    for rate in STORED + FRACTIONS:
        data = engine.compress(photo, rate).data
        assert np.array_equal(y_hat(cuda, data), y_hat(numpy_base, data))
