"""What is decoded is what was encoded, whoever runs the networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Small
from numpy.typing import NDArray
from small_model import decode_only as load_decode_only
from small_model import with_steps

from service.codec.coder import Tables
from service.codec.entropy_model import (
    CLASSES,
    GROUP_AT,
    STEP_FRAC,
    Y_FRAC,
    Y_MAX,
    EntropyModel,
)
from service.codec.fixed_point import ArrayBackend
from service.codec.latents import LEADING, LatentCoder
from service.codec.tiles import SEGMENTS, Box
from service.errors import BadStream
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel


@pytest.fixture(scope="module")
def loaded(small: Small) -> LoadedModel:
    """Not every quantiser step is 1."""
    return load_models((with_steps(small.stored),), "cpu", torch.float32)[0]


@pytest.fixture(scope="module")
def decode_only(small: Small) -> LoadedModel:
    return load_decode_only(with_steps(small.stored))


F32 = NDArray[np.float32]
SHAPES = [(1, 1), (1, 6), (7, 1), (4, 4), (9, 13)]


def random_latents(model: StoredModel, h: int, w: int, batch: int = 1) -> tuple[F32, F32]:
    rng = np.random.default_rng(h * 31 + w)
    y = rng.normal(0, 6, (batch, h, w, model.sizes.M))
    z = rng.normal(0, 3, (batch, -(-h // 4), -(-w // 4), model.sizes.Cz))
    return y.astype(np.float32), z.astype(np.float32)


@pytest.mark.parametrize("height, width", SHAPES)
def test_decoding_gives_the_latents_that_encoding_promised(
    loaded: LoadedModel, decode_only: LoadedModel, height: int, width: int
) -> None:
    y, z = random_latents(loaded.stored, height, width, batch=3)
    coded = loaded.coder.encode(y, z)
    for model in (loaded, decode_only):
        decoded = model.coder.decode(coded.data, Box(0, 0, height, width))
        assert decoded.y_hat.dtype == np.int16
        assert np.array_equal(decoded.y_hat, coded.y_hat)


@pytest.mark.parametrize("height, width", [*SHAPES, (33, 32)])
def test_bits_are_told_alike_by_both_sides_and_sum_to_the_bytes(
    loaded: LoadedModel, height: int, width: int
) -> None:
    y, z = random_latents(loaded.stored, height, width, batch=2)
    skipped = np.random.default_rng(0).random((height, width)) < 0.5
    for mask in (None, skipped):
        coded, box = loaded.coder.encode(y, z, mask), Box(0, 0, height, width)
        decoded = loaded.coder.decode_with_bits(coded.data, box, mask)
        assert decoded.bits is not None and np.array_equal(decoded.bits, coded.bits)
        assert loaded.coder.decode(coded.data, box, mask).bits is None
        for bits, pieces in zip(coded.bits, coded.data, strict=True):
            size_bits = 8 * sum(map(len, pieces))
            assert abs(bits.sum() - size_bits) <= 0.01 * size_bits + 32 * len(pieces)
            assert mask is None or not bits[mask].any()


def test_latents_are_within_half_a_step_where_they_are_coded(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 8, 8)
    off = np.abs(loaded.coder.encode(y, z).y_hat / 2**Y_FRAC - y)
    steps = loaded.stored.entropy["y.step"] / 2.0 ** (Y_FRAC + STEP_FRAC)
    assert steps.max() > 4 * steps.min()
    assert 0.7 < (off <= 0.5 * steps + 2.0**-Y_FRAC).mean() < 1, "level 0 alone may be further off"


def test_batches_and_tile_order_do_not_matter(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 5, 6, batch=8)
    together = loaded.coder.encode(y, z)
    box = Box(0, 0, 5, 6)
    for i in (6, 1, 0, 7, 3, 2, 5, 4):
        alone = loaded.coder.encode(y[i : i + 1], z[i : i + 1])
        assert alone.data[0] == together.data[i]
        decoded = loaded.coder.decode([together.data[i]], box)
        assert np.array_equal(decoded.y_hat[0], together.y_hat[i])
    shuffled = loaded.coder.decode([together.data[i] for i in (3, 0, 7)], box)
    assert np.array_equal(shuffled.y_hat, together.y_hat[[3, 0, 7]])


def test_latents_out_of_range_are_clamped_and_still_decode(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 4, 5)
    y[0, 0], y[0, 1], z[0, 0] = 1e9, -1e9, 1e5
    coded = loaded.coder.encode(y, z)
    decoded = loaded.coder.decode(coded.data, Box(0, 0, 4, 5))
    assert np.array_equal(decoded.y_hat, coded.y_hat)
    assert np.abs(coded.y_hat.astype(int)).max() <= Y_MAX


@pytest.mark.gpu
def test_cuda_writes_and_reads_the_same_bytes(decode_only: LoadedModel) -> None:
    stored = decode_only.stored
    backend = ArrayBackend(torch, torch.float64, torch.device("cuda"))
    entropy = EntropyModel(stored.sizes, stored.entropy, backend)
    cuda = LatentCoder(entropy, Tables(stored.entropy["tables"]))
    y, z = random_latents(stored, 20, 30, batch=2)
    coded = cuda.encode(y, z)
    assert coded.data == decode_only.coder.encode(y, z).data
    decoded = decode_only.coder.decode(coded.data, Box(0, 0, 20, 30))
    assert np.array_equal(decoded.y_hat, coded.y_hat)


def test_every_cut_of_a_piece_decodes_to_others_or_is_bad(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 3, 3)
    coded = loaded.coder.encode(y, z)
    ((piece,),) = coded.data
    for n in range(len(piece)):
        try:
            decoded = loaded.coder.decode([(piece[:n],)], Box(0, 0, 3, 3))
        except BadStream:
            continue
        assert not np.array_equal(decoded.y_hat, coded.y_hat)


def test_bytes_beyond_the_last_symbol_are_a_bad_stream(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 3, 3)
    ((piece,),) = loaded.coder.encode(y, z).data
    with pytest.raises(BadStream, match="do not end where their symbols do"):
        loaded.coder.decode([(b"\1\2\3\4" + piece,)], Box(0, 0, 3, 3))


def test_another_model_does_not_read_the_bytes_as_the_same(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 6, 6)
    coded = loaded.coder.encode(y, z)
    tensors = dict(loaded.stored.entropy)
    tensors["step.0.head.bias"] = tensors["step.0.head.bias"] + 2**12
    other = replace(loaded.stored, entropy=tensors)
    coder = LatentCoder(EntropyModel(other.sizes, other.entropy), loaded.coder.tables)
    try:
        decoded = coder.decode(coded.data, Box(0, 0, 6, 6))
    except BadStream:
        return
    assert not np.array_equal(decoded.y_hat, coded.y_hat)


def test_missing_pieces_leave_what_is_predicted(loaded: LoadedModel) -> None:
    """y_hat of a step is coded only where its piece is there; z alone gives means everywhere."""
    y, z = random_latents(loaded.stored, 33, 32)
    coded = loaded.coder.encode(y, z)
    box = Box(0, 0, 33, 32)
    (pieces,) = coded.data
    assert len(pieces) == len(SEGMENTS)
    errors = []
    for n in range(len(pieces) + 1):
        decoded = loaded.coder.decode([pieces[:n]], box).y_hat[0] / 2**Y_FRAC
        errors.append(np.square(decoded - y[0]).mean())
    assert np.array_equal(decoded, coded.y_hat[0] / 2**Y_FRAC)
    assert errors[2:] == sorted(errors[2:], reverse=True), "steps bring y_hat closer to y"
    # After z and step 0a, the latents of that step's leading channels are those of the whole.
    part = loaded.coder.decode([pieces[:2]], box).y_hat[0]
    for p, (rows, columns) in enumerate(CLASSES):
        leading = range(GROUP_AT[0, p], 4 * LEADING, 4)
        kept = part[rows, columns][..., list(leading)]
        assert np.array_equal(kept, coded.y_hat[0][rows, columns][..., list(leading)])


def test_a_batch_may_have_tiles_that_are_cut(loaded: LoadedModel) -> None:
    y, z = random_latents(loaded.stored, 33, 32, batch=3)
    coded, box = loaded.coder.encode(y, z), Box(0, 0, 33, 32)
    cut = [coded.data[0][:3], coded.data[1], ()]
    together = loaded.coder.decode(cut, box).y_hat
    for pieces, y_hat in zip(cut, together, strict=True):
        assert np.array_equal(loaded.coder.decode([pieces], box).y_hat[0], y_hat)
