"""The entropy networks through ONNX Runtime are those of numpy, bit for bit, at any input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.codec.entropy_model import STEPS, SYMBOL_MAX, Z_FRAC, EntropyModel
from service.codec.fixed_point import ACTIVATION_MAX
from service.errors import StoreError
from service.runtime.decode_only import load_decode_only
from service.store.model import StoredModel
from service.store.read import load_store
from service.transforms.entropy_onnx import OnnxEntropyModel

SHAPES = [(1, 1), (1, 2), (2, 1), (1, 7), (5, 1), (4, 4), (3, 5), (9, 13)]


def walked(model: EntropyModel, batch: int, size: tuple[int, int], spread: float) -> list[Any]:
    """y_hat and every mu and level, for random symbols; a wide spread saturates activations."""
    rng = np.random.default_rng(size[0] * 100 + size[1])
    seen: list[Any] = []

    def symbols(shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.normal(0, spread, shape).clip(-SYMBOL_MAX, SYMBOL_MAX)
        return drawn.round().astype(np.int32)

    def choose(_: int, mu: np.ndarray, levels: np.ndarray) -> np.ndarray:
        seen.extend((mu, levels))
        return np.where(levels == 0, 0, symbols(mu.shape))

    z = symbols((batch, -(-size[0] // 4), -(-size[1] // 4), model.sizes.Cz))
    return [model.run(z, *size, choose), *seen]


def check_equal(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) == 1 + 2 * STEPS
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.mark.parametrize("spread", [2.0, 300.0])
@pytest.mark.parametrize("size", SHAPES)
def test_every_mean_and_level_is_that_of_numpy_at_every_size(
    small_model: StoredModel, size: tuple[int, int], spread: float
) -> None:
    for batch in (1, 3):
        found = OnnxEntropyModel(small_model)
        expected = EntropyModel(small_model.sizes, small_model.entropy)
        check_equal(walked(found, batch, size, spread), walked(expected, batch, size, spread))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spread", [3.0, 60.0, 1000.0])
def test_the_shipped_networks_too_also_where_they_saturate(threads: int, spread: float) -> None:
    model = load_store()[0]
    expected = EntropyModel(model.sizes, model.entropy)
    found = OnnxEntropyModel(model, threads)
    extremes = walked(expected, 2, (11, 14), spread)
    check_equal(walked(found, 2, (11, 14), spread), extremes)
    if spread == 1000.0:
        z_hat = np.full((1, 2, 2, model.sizes.Cz), SYMBOL_MAX << Z_FRAC).clip(max=ACTIVATION_MAX)
        features = expected.features(z_hat.astype(np.int32))
        assert np.abs(features).max() == ACTIVATION_MAX, "this test sees saturation"
        assert extremes[2].max() == 63, "and the highest level"


def test_every_weight_at_its_bound_stays_exact(small_model: StoredModel) -> None:
    """Random weights scaled until a layer's accumulator can reach 2^24, the last that is taken."""
    rng = np.random.default_rng(5)
    tensors = dict(small_model.entropy)
    for name in [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]:
        weight = rng.integers(-1000, 1001, tensors[f"{name}.weight"].shape)
        bias, shift = np.zeros(len(weight), np.int64), np.full(len(weight), 9)
        room = (2**24 - 1 - 2**8) // ACTIVATION_MAX
        weight = np.sign(weight) * (np.abs(weight) * room // np.abs(weight).sum(1, keepdims=True))
        tensors[f"{name}.weight"] = weight.astype(np.int32)
        tensors[f"{name}.bias"] = (bias + 2**8).astype(np.int32)
        tensors[f"{name}.shift"] = shift.astype(np.int32)
    found = OnnxEntropyModel(replace(small_model, entropy=tensors))
    expected = EntropyModel(small_model.sizes, tensors)
    for spread in (20.0, 500.0):
        check_equal(walked(found, 2, (6, 7), spread), walked(expected, 2, (6, 7), spread))


def test_threads_share_the_sessions(small_model: StoredModel) -> None:
    found = OnnxEntropyModel(small_model)
    alone = walked(found, 1, (9, 13), 5.0)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda _: walked(found, 1, (9, 13), 5.0), range(12)):
            check_equal(answer, alone)


def test_the_light_decoder_runs_them_in_sessions(small_model: StoredModel) -> None:
    (light,) = load_decode_only((small_model,))
    assert isinstance(light.coder.entropy, OnnxEntropyModel)


def test_layers_beyond_the_bound_are_refused_as_ever(small_model: StoredModel) -> None:
    tensors = dict(small_model.entropy)
    tensors["h_s.0.weight"] = np.full_like(tensors["h_s.0.weight"], 10_000, dtype=np.int32)
    with pytest.raises(StoreError, match="beyond the exact range"):
        load_decode_only((replace(small_model, entropy=tensors),))
