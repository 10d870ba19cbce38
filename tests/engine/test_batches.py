"""Worked on together or alone: the same bytes, the same pixels, the same errors."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ladder import with_rates
from small_model import photo_like

from engine.builds import Builds, bytes_of_one
from service.codec.latents import LatentCoder
from service.engine.engine import Engine
from service.engine.target import Target
from service.engine.types import Compressed, Decompressed
from service.errors import (
    BadParameter,
    BadStream,
    CheckFailed,
    RankpressError,
    RateUnavailable,
    TooManyPixels,
    UnknownModel,
)
from service.picture import Picture, Region, View
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel
from service.store.read import load_store

SIZES = ((40, 64), (48, 64), (33, 60), (17, 90), (1, 1), (70, 40))
RATES = (3, 3.5, 4, 5, 6)


@pytest.fixture(scope="module")
def base(small_model: StoredModel) -> LoadedModel:
    return load_models((with_rates(small_model, (3, 5, 6)),), "cpu", torch.float32)[0]


@pytest.fixture(scope="module")
def engine(base: LoadedModel) -> Engine:
    return Engine((base,), max_batch=4)


def pictures(count: int) -> list[Picture]:
    """Of mixed sizes, three of each; (33, 60), (40, 64) and (48, 64) pad to one size."""
    sizes = [size for size in SIZES for _ in range(3)][:count]
    random.Random(1).shuffle(sizes)
    alpha = photo_like(48, 64, 9)[..., 0]
    made = [Picture(photo_like(h, w, i)) for i, (h, w) in enumerate(sizes)]
    return [*made, Picture(photo_like(48, 64, 5), alpha), Picture(photo_like(48, 64, 6), icc=b"x")]


def data_of(made: Compressed | RankpressError) -> bytes:
    assert isinstance(made, Compressed), made
    return made.data


def picture_of(made: Decompressed | RankpressError) -> Picture:
    assert isinstance(made, Decompressed), made
    return made.picture


@pytest.mark.parametrize("rate", RATES)
def test_pictures_of_mixed_sizes_together_give_the_bytes_of_one_at_a_time(
    engine: Engine, rate: float
) -> None:
    many = pictures(18)
    alone = [engine.compress(p, rate) for p in many]
    made = engine.compress_batch(many, rate)
    assert list(map(data_of, made)) == [a.data for a in alone]
    assert [m.psnr_db for m in made if isinstance(m, Compressed)] == [a.psnr_db for a in alone]


def test_streams_of_mixed_rates_and_sizes_together_give_the_pixels_of_one_at_a_time(
    engine: Engine,
) -> None:
    streams = [engine.compress(p, r).data for p in pictures(6) for r in RATES]
    alone = [engine.decompress(s) for s in streams]
    made = engine.decompress_batch(streams)
    for one, other in zip(made, alone, strict=True):
        assert np.array_equal(picture_of(one).rgb, other.picture.rgb)
        assert isinstance(one, Decompressed) and one.rate == other.rate
        assert (one.picture.alpha is None) == (other.picture.alpha is None)
        assert one.picture.icc == other.picture.icc


def test_the_shipped_model_gives_the_same_bytes_in_its_own_working_type() -> None:
    """In bfloat16 where the CPU has it: there, g_a of a batch would give other latents."""
    engine = Engine(load_models(load_store(), "cpu", None))
    many = [Picture(photo_like(64, 80, i)) for i in range(4)]
    for rate in (4, 7):
        alone = [engine.compress(p, rate).data for p in many]
        made = engine.compress_batch(many, rate)
        assert list(map(data_of, made)) == alone
        back = engine.decompress_batch(alone)
        for one, stream in zip(back, alone, strict=True):
            assert np.array_equal(picture_of(one).rgb, engine.decompress(stream).picture.rgb)


def test_pictures_of_several_tiles_can_go_together_too(engine: Engine) -> None:
    many = [Picture(photo_like(40, 1050, i)) for i in range(2)]
    made = engine.compress_batch(many, 4)
    assert list(map(data_of, made)) == [engine.compress(p, 4).data for p in many]


def test_the_entropy_networks_are_called_once_for_a_batch(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above would pass without any batch."""
    batches: list[int] = []
    encode, decode = LatentCoder.encode, LatentCoder.decode

    def counting_encode(self, y, *more):  # type: ignore[no-untyped-def]
        batches.append(len(y))
        return encode(self, y, *more)

    def counting_decode(self, data, *more):  # type: ignore[no-untyped-def]
        batches.append(len(data))
        return decode(self, data, *more)

    monkeypatch.setattr(LatentCoder, "encode", counting_encode)
    monkeypatch.setattr(LatentCoder, "decode", counting_decode)
    engine = Engine((base,), check=True)
    made = engine.compress_batch([Picture(photo_like(40, 64, i)) for i in range(3)], 5)
    assert batches == [3, 3], "coded together, and checked together"
    batches.clear()
    engine.decompress_batch(list(map(data_of, made)))
    assert batches == [3]


def test_one_that_fails_does_not_touch_the_others(base: LoadedModel, engine: Engine) -> None:
    good = [engine.compress(Picture(photo_like(40, 64, i)), 5).data for i in range(3)]
    middle = len(good[1]) // 2
    flipped = good[1][:middle] + bytes([good[1][middle] ^ 1]) + good[1][middle + 1 :]
    small = Engine((base,), max_pixels=48 * 64)
    made = small.decompress_batch([good[0], flipped, b"", good[2][:-5], good[2]])
    kinds = [type(m) for m in made]
    assert kinds == [Decompressed, BadStream, BadStream, BadStream, Decompressed]
    assert np.array_equal(picture_of(made[4]).rgb, engine.decompress(good[2]).picture.rgb)

    many = [Picture(photo_like(40, 64)), Picture(photo_like(49, 64)), Picture(photo_like(64, 40))]
    compressed = small.compress_batch(many, 5)
    assert isinstance(compressed[1], TooManyPixels)
    assert data_of(compressed[0]) == engine.compress(many[0], 5).data
    assert data_of(compressed[2]) == engine.compress(many[2], 5).data


def test_a_stream_whose_latents_do_not_end_right_fails_alone(engine: Engine) -> None:
    """Its checksum is right, so only decoding finds out, after the batch has begun."""
    from dataclasses import replace

    from service.codec.container import read_stream, write_stream

    good = [engine.compress(Picture(photo_like(40, 64, i)), 5).data for i in range(3)]
    stream = read_stream(good[1])
    bad = write_stream(replace(stream, tiles=((stream.tiles[0][0] + b"\0\0\0\1",),)))
    with pytest.raises(BadStream):
        engine.decompress(bad)
    made = engine.decompress_batch([good[0], bad, good[2]])
    assert [type(m) for m in made] == [Decompressed, BadStream, Decompressed]


def test_an_unknown_stream_and_a_missing_rate_are_told_as_alone(engine: Engine) -> None:
    data = bytearray(engine.compress(Picture(photo_like(40, 64)), 5).data)
    data[4:8] = b"\0\0\0\0"
    with pytest.raises(BadStream):  # the checksum covers the header too
        engine.decompress(bytes(data))
    (made,) = engine.decompress_batch([bytes(data)])
    assert isinstance(made, BadStream) and not isinstance(made, UnknownModel)
    with pytest.raises(RateUnavailable):
        engine.compress_batch([Picture(photo_like(8, 8))], 8)
    with pytest.raises(BadParameter):
        engine.compress_batch([Picture(photo_like(8, 8))], 9)
    assert engine.compress_batch([], 4) == [] == engine.decompress_batch([])


def test_the_check_fails_only_those_that_differ(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = LatentCoder.encode

    def tampering(self, *latents):  # type: ignore[no-untyped-def]
        coded = encode(self, *latents)
        coded.y_hat[1, 0, 0, 0] += 1
        return coded

    monkeypatch.setattr(LatentCoder, "encode", tampering)
    made = Engine((base,)).compress_batch([Picture(photo_like(40, 64, i)) for i in range(3)], 4)
    assert [type(m) for m in made] == [Compressed, CheckFailed, Compressed]


def test_the_check_fails_only_the_stream_that_does_not_decode(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is the client's stream called damaged, nor are the others of the batch touched."""
    pictures = [Picture(photo_like(40, 64, i)) for i in range(3)]
    expected = Engine((base,)).compress_batch(pictures, 4)
    encode = LatentCoder.encode

    def tampering(self, *latents):  # type: ignore[no-untyped-def]
        coded = encode(self, *latents)
        return replace(coded, data=(*coded.data[:-1], (coded.data[-1][0][:-8],)))

    monkeypatch.setattr(LatentCoder, "encode", tampering)
    made = Engine((base,)).compress_batch(pictures, 4)
    assert [type(m) for m in made] == [Compressed, Compressed, CheckFailed]
    assert "the fresh stream does not decode" in str(made[2])
    for one, other in zip(made[:2], expected[:2], strict=True):
        assert isinstance(one, Compressed) and isinstance(other, Compressed)
        assert (one.data, one.psnr_db) == (other.data, other.psnr_db)
    with pytest.raises(CheckFailed):
        Engine((base,)).compress(pictures[0], Target(psnr_db=1.0))


def test_groups_tell_what_may_share_a_batch(engine: Engine) -> None:
    group = engine.picture_load((64, 40), 4).group
    assert group is not None and group.batch is not None
    assert group == engine.picture_load((60, 33), 4).group, "they pad to one size"
    assert group != engine.picture_load((64, 49), 4).group
    other = engine.picture_load((64, 40), 4.5).group
    assert other is not None and group.weights != other.weights
    huge = engine.picture_load((1025, 40), 4).group
    assert huge is not None and huge.batch is None, "several tiles: memory for one at a time"
    unknown = engine.picture_load(None, 4).group
    assert unknown is not None and unknown.batch is None
    assert engine.picture_load((64, 40), 8).group is None, "there is no such rate"
    assert engine.picture_load((64, 40), 4, "ms-ssim").group is None, "nor such a ladder"
    assert engine.picture_load((64, 40), Target(bpp=1.0)).group is None, "it takes several rates"
    data = engine.compress(Picture(photo_like(40, 64)), 4).data
    stream = engine.preview_stream(data).load.group
    part = engine.preview_stream(data, View(Region(0, 0, 8, 8))).load.group
    assert stream is not None and part is not None
    assert stream.weights == group.weights == part.weights, "one merge serves both ways"
    assert stream.batch != group.batch and part.batch is None


def test_warm_merges_every_whole_rate_once_and_stops_where_the_cache_ends(
    base: LoadedModel,
) -> None:
    builds = Builds(base)
    engine = Engine((builds.base,))
    assert engine.warm() == 3 == len(builds.rates)
    for rate in (3, 5, 6):
        engine.compress(Picture(photo_like(9, 9)), rate)
    assert len(builds.rates) == 3
    assert Engine((base,), cache_bytes=bytes_of_one(base)).warm() == 1
    assert Engine((base,), cache_bytes=0).warm() == 0
