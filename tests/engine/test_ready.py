"""Effort 0 names the ready update that pays most; what a name means, every decoder agrees on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hostile import check_any_bytes
from small_ladder import with_rates
from small_model import decode_only, photo_like

from service.adapt.adaptation import AdaptationTask, PictureAdaptation
from service.adapt.plan import AdaptationPlan, plan_of
from service.codec import container
from service.codec.coder import Tables
from service.codec.lowrank import PARTS, Share, merge_transforms
from service.codec.model_stream import read_update
from service.engine.engine import Engine
from service.errors import BadParameter, UnknownModel, UnknownUpdate, UnsupportedStream
from service.picture import Picture, Region, View
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel, StoredUpdate, layer_shapes

LMBDA = 0.05


def drawing(height: int = 80, width: int = 96) -> Picture:
    """Flat colours, unlike what the small model is made for."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, :, 0], rgb[:, :, 2] = 250, 40
    rgb[10:50, 20:70] = (10, 200, 120)
    return Picture(rgb)


def fitted(model: LoadedModel, picture: Picture) -> bytes:
    """The update that adapting to a picture sends: a ready one holds the same."""
    adaptation = PictureAdaptation(
        model, AdaptationTask(picture, 64, LMBDA, AdaptationPlan(120, 1, rank=1))
    )
    adaptation.advance(math.inf)
    update = container.read_stream(adaptation.best()).update
    assert update is not None
    return update


@pytest.fixture(scope="module")
def stored(loaded: LoadedModel, small_model: StoredModel) -> StoredModel:
    """The small model with rates 4 and 5 and two ready updates, one of them for drawings."""
    swapped = Picture(np.ascontiguousarray(drawing().rgb[..., ::-1]))
    updates = tuple(
        StoredUpdate(name, fitted(loaded, picture), {})
        for name, picture in (("swapped", swapped), ("drawing", drawing()))
    )
    return replace(with_rates(small_model, (5,)), updates=updates)


@pytest.fixture(scope="module")
def ready(stored: StoredModel) -> LoadedModel:
    return load_models((stored,), "cpu", torch.float32)[0]


@pytest.fixture(scope="module")
def codec(ready: LoadedModel) -> Engine:
    return Engine((ready,))


def quick(model: LoadedModel, picture: Picture, lmbda: float = LMBDA) -> PictureAdaptation:
    adaptation = PictureAdaptation(model, AdaptationTask(picture, 64, lmbda, plan_of(0)))
    assert adaptation.done
    return adaptation


def loss(data: bytes, psnr_db: float, picture: Picture) -> float:
    bpp = 8 * len(data) / (picture.width * picture.height)
    return bpp + LMBDA * 255**2 / 10 ** (psnr_db / 10)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.square(one.astype(float) - other).mean())


def test_effort_0_names_the_update_that_serves_the_picture(
    ready: LoadedModel, stored: StoredModel, codec: Engine
) -> None:
    picture = drawing(60, 70)
    done = quick(ready, picture)
    stream = container.read_stream(done.best())
    assert stream.update is None and stream.ready == stored.updates[1].reference
    plain, told = codec.compress(picture, 4), done.progress
    assert len(done.best()) == len(plain.data) + 6
    assert (told.first_bytes, told.first_psnr_db) == (len(plain.data), plain.psnr_db)
    decoded = codec.decompress(done.best()).picture.rgb
    assert psnr(decoded, picture.rgb) == pytest.approx(told.psnr_db)
    before = loss(plain.data, told.first_psnr_db, picture)
    assert loss(done.best(), told.psnr_db, picture) < 0.95 * before
    assert told.phase == "done" and told.total == 0


def test_the_plain_stream_stays_where_a_name_does_not_pay(
    ready: LoadedModel, loaded: LoadedModel, codec: Engine
) -> None:
    """Where bytes are all that counts, and where there is no update to name."""
    plain = codec.compress(drawing(), 4).data
    assert quick(ready, drawing(), lmbda=1e-9).best() == plain
    assert quick(loaded, drawing()).best() == plain


def test_a_name_stands_for_the_bytes_that_it_names(
    ready: LoadedModel, stored: StoredModel, codec: Engine
) -> None:
    named = container.read_stream(quick(ready, drawing()).best())
    brought = replace(named, ready=None, update=stored.updates[1].data)
    one, two = (codec.decompress(container.write_stream(s)).picture.rgb for s in (named, brought))
    assert np.array_equal(one, two)
    plain = container.write_stream(replace(named, ready=None))
    assert not np.array_equal(codec.decompress(plain).picture.rgb, one)


@pytest.mark.parametrize("rate", [4, 4.5, 5])
def test_decoders_without_torch_agree_at_every_rate(
    stored: StoredModel, codec: Engine, rate: float
) -> None:
    data = codec.adapt(drawing(), rate, effort=0).best()
    assert container.describe(data).ready is not None
    expected = codec.decompress(data).picture.rgb.astype(int)
    light = Engine(load_decode_only((stored,), 1))
    assert np.abs(light.decompress(data).picture.rgb - expected).max() <= 1
    part = light.decompress(data, View(Region(30, 20, 40, 50))).picture.rgb
    assert np.abs(part - expected[20:70, 30:70]).max() <= 1


def test_numpy_alone_agrees_too(stored: StoredModel, codec: Engine) -> None:
    data = codec.adapt(drawing(), 4, effort=0).best()
    off = Engine((decode_only(stored),)).decompress(data).picture.rgb.astype(int)
    assert np.abs(off - codec.decompress(data).picture.rgb).max() <= 1


def test_streams_that_name_updates_decode_beside_others(codec: Engine) -> None:
    streams = [codec.adapt(drawing(), 4, effort=0).best(), codec.compress(drawing(), 4).data]
    streams.append(container.write_stream(replace(container.read_stream(streams[0]),
                                                  ready=b"none")))  # fmt: skip
    together = codec.decompress_batch(streams)
    assert isinstance(together[2], UnknownUpdate)
    for data, made in zip(streams[:2], together, strict=False):
        assert np.array_equal(made.picture.rgb, codec.decompress(data).picture.rgb)


def test_an_update_that_is_not_in_the_store_is_named(
    engine: Engine, numpy_engine: Engine, ready: LoadedModel, stored: StoredModel
) -> None:
    data = quick(ready, drawing()).best()
    name = stored.updates[1].reference.hex()
    for other in (engine, numpy_engine):
        with pytest.raises(UnknownUpdate, match=f"ready update {name} of model small.*none"):
            other.decompress(data)
    assert issubclass(UnknownUpdate, UnknownModel), "what to do about it is the same"


def test_a_decoder_without_updates_says_so(ready: LoadedModel, stored: StoredModel) -> None:
    old = Engine((replace(decode_only(stored), build_synthesis=None),))
    with pytest.raises(UnsupportedStream, match="updates"):
        old.decompress(quick(ready, drawing()).best())


def test_any_name_gives_a_picture_or_a_bad_stream(codec: Engine, ready: LoadedModel) -> None:
    stream = container.read_stream(quick(ready, drawing()).best())
    rng = np.random.default_rng(0)
    names = [u.reference for u in ready.stored.updates] + [rng.bytes(4) for _ in range(20)]
    outcomes = [
        check_any_bytes(codec, container.write_stream(replace(stream, ready=n))) for n in names
    ]
    assert outcomes == [True, True] + 20 * [False]
    nameless = container.write_stream(replace(stream, ready=b"", update=None))
    assert not check_any_bytes(codec, nameless)


def test_a_finished_adaptation_comes_back_from_its_checkpoint(ready: LoadedModel) -> None:
    first = quick(ready, drawing())
    job = AdaptationTask(drawing(), 64, LMBDA, plan_of(0))
    second = PictureAdaptation(ready, job, first.checkpoint())
    assert second.done and second.best() == first.best() and second.progress == first.progress


LITTLE = AdaptationPlan(5, 60, rank=1, latent_lr=2e-2)
"""Too few steps for an update of the picture's own."""


def steps_of(
    model: LoadedModel, plan: AdaptationPlan, count: float = math.inf
) -> PictureAdaptation:
    adaptation = PictureAdaptation(model, AdaptationTask(drawing(), 64, LMBDA, plan))
    while not adaptation.done and count > 0:
        adaptation.advance(0)
        count -= 1
    return adaptation


def test_latents_are_annealed_through_the_ready_update_where_it_is_better(
    ready: LoadedModel, loaded: LoadedModel, codec: Engine
) -> None:
    none, some = quick(ready, drawing()), steps_of(ready, LITTLE)
    stream = container.read_stream(some.best())
    assert stream.ready == container.read_stream(none.best()).ready and stream.update is None
    decoded = codec.decompress(some.best()).picture.rgb
    assert psnr(decoded, drawing().rgb) == pytest.approx(some.progress.psnr_db)
    losses = [
        loss(a.best(), a.progress.psnr_db, drawing())
        for a in (some, none, steps_of(loaded, LITTLE))
    ]
    assert losses[0] < 0.998 * losses[1] and losses[0] < 0.95 * losses[2]


@pytest.fixture(scope="module")
def both(stored: StoredModel) -> tuple[StoredModel, bytes]:
    """A stream with an update of its own on top of one for other pictures, and what decodes it."""
    other = replace(stored, updates=stored.updates[:1])
    (model,) = load_models((other,), "cpu", torch.float32)
    assert container.read_stream(quick(model, drawing()).best()).ready is not None
    done = steps_of(model, AdaptationPlan(120, 5, rank=1))
    told, picture = done.progress, drawing()
    alone = steps_of(model, AdaptationPlan(0, 5, rank=1)).progress, quick(model, picture).progress
    assert told.psnr_db > max(one.psnr_db for one in alone) + 0.3
    decoded = Engine((model,)).decompress(done.best()).picture.rgb
    assert psnr(decoded, picture.rgb) == pytest.approx(told.psnr_db)
    return other, done.best()


def test_an_update_of_the_picture_s_own_is_added_to_a_ready_one(
    both: tuple[StoredModel, bytes],
) -> None:
    """Every decoder adds them, in units of the weights without either."""
    stored, data = both
    stream = container.read_stream(data)
    assert stream.update is not None and stream.ready == stored.updates[0].reference
    tables, shapes = Tables(stored.entropy["tables"]), layer_shapes(stored.synthesis)
    total = {name: tensor.astype(np.float64) for name, tensor in stored.synthesis.items()}
    for payload in (stream.update, stored.updates[0].data):
        share = Share(read_update(payload, shapes, tables), PARTS)
        for name, tensor in merge_transforms(stored.synthesis, [share]).items():
            total[name] += tensor.astype(np.float64) - stored.synthesis[name]
    sums = {name: tensor.astype(np.float32) for name, tensor in total.items()}
    added = replace(stored, transforms={**stored.transforms, **sums})
    bare = container.write_stream(replace(stream, update=None, ready=None))
    expected = Engine(load_models((added,), "cpu", torch.float32)).decompress(bare)
    decoders = load_models((stored,), "cpu", torch.float32), load_decode_only((stored,), 1)
    for decoder in (*decoders, (decode_only(stored),)):
        rgb = Engine(decoder).decompress(data).picture.rgb
        assert np.abs(rgb.astype(int) - expected.picture.rgb).max() <= 1


def test_a_run_with_both_updates_goes_on_from_a_checkpoint(both: tuple[StoredModel, bytes]) -> None:
    (model,) = load_models((both[0],), "cpu", torch.float32)
    plan = AdaptationPlan(120, 5, rank=1)
    for steps in (60, 122):
        cut = steps_of(model, plan, steps)
        again = PictureAdaptation(
            model, AdaptationTask(drawing(), 64, LMBDA, plan), cut.checkpoint()
        )
        again.advance(math.inf)
        assert again.best() == both[1]


def test_latents_alone_leave_the_decoder_as_it_is(ready: LoadedModel) -> None:
    stream = container.read_stream(steps_of(ready, replace(LITTLE, decoder_steps=0)).best())
    assert stream.ready is None and stream.update is None


@pytest.mark.parametrize("steps", [0, 3, 20])
def test_a_run_with_a_ready_update_goes_on_from_a_checkpoint(
    ready: LoadedModel, steps: int
) -> None:
    whole, cut = steps_of(ready, LITTLE), steps_of(ready, LITTLE, steps)
    job = AdaptationTask(drawing(), 64, LMBDA, LITTLE)
    again = PictureAdaptation(ready, job, cut.checkpoint())
    assert again.progress == cut.progress and again.best() == cut.best()
    again.advance(math.inf)
    assert again.best() == whole.best()


def test_a_checkpoint_of_an_update_that_is_gone_is_refused(
    ready: LoadedModel, loaded: LoadedModel
) -> None:
    cut = steps_of(ready, LITTLE, 20)
    gone = replace(ready, stored=replace(ready.stored, updates=()))
    assert gone.stored.identity == loaded.stored.identity
    with pytest.raises(BadParameter, match="ready update"):
        PictureAdaptation(gone, AdaptationTask(drawing(), 64, LMBDA, LITTLE), cut.checkpoint())


def test_pictures_of_several_tiles_and_alpha(ready: LoadedModel, codec: Engine) -> None:
    alpha = np.full((40, 1040), 7, np.uint8)
    done = quick(ready, Picture(drawing(40, 1040).rgb, alpha))
    assert container.read_stream(done.best()).ready is not None
    picture = codec.decompress(done.best()).picture
    assert np.array_equal(picture.alpha, alpha)
    assert psnr(picture.rgb, drawing(40, 1040).rgb) == pytest.approx(done.progress.psnr_db)
    grey = Picture(np.repeat(photo_like(33, 40, 2)[..., :1], 3, axis=2), grey=True)
    assert codec.decompress(quick(ready, grey).best()).picture.grey
