"""Means and scale levels: the same integers from every machine, in any grouping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Small
from numpy.typing import NDArray
from small_model import with_steps

from service.codec.entropy_model import (
    GROUP_AT,
    LEVELS,
    MU_MAX,
    STEP_FRAC,
    STEPS,
    SYMBOL_MAX,
    Y_FRAC,
    Y_MAX,
    EntropyModel,
    gather,
)
from service.codec.fixed_point import ACTIVATION_MAX, LEAK, NUMPY, ArrayBackend
from service.errors import StoreError
from service.store.model import StoredModel, Tensors
from service.transforms.entropy_onnx import OnnxEntropyModel

CPU = torch.device("cpu")
BACKENDS = {
    "numpy32": NUMPY,
    "numpy64": ArrayBackend(np, np.float64),
    "torch32": ArrayBackend(torch, torch.float32, CPU),
    "torch64": ArrayBackend(torch, torch.float64, CPU),
}
SHAPES = [(1, 1), (1, 2), (2, 1), (1, 7), (5, 1), (2, 2), (3, 5), (8, 9), (13, 6)]

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def small_model(small: Small) -> StoredModel:
    return with_steps(small.stored)


class Choices:
    """Symbols that depend on position alone, and a record of the outputs of the networks."""

    def __init__(self, symbols: I32) -> None:
        self.symbols, self.networks_output = symbols, []  # type: ignore[var-annotated]

    def __call__(self, t: int, mu: I32, levels: NDArray[np.uint8]) -> I32:
        self.networks_output.append((mu.copy(), levels.copy()))
        return np.where(levels == 0, 0, gather(self.symbols, t))


def random_inputs(model: StoredModel, height: int, width: int, batch: int = 1) -> tuple[I32, I32]:
    """z and y symbols, mostly small, some at the ends of their range."""
    rng = np.random.default_rng(height * 100 + width)
    z = rng.normal(0, 4, (batch, -(-height // 4), -(-width // 4), model.sizes.Cz))
    y = rng.normal(0, 3, (batch, height, width, model.sizes.M)).round().astype(np.int32)
    y[rng.random(y.shape) < 0.02] = SYMBOL_MAX
    y[rng.random(y.shape) < 0.02] = -SYMBOL_MAX
    return z.round().astype(np.int32), y


def run(model: StoredModel, backend: ArrayBackend, z: I32, y: I32) -> tuple[Any, Any, Any]:
    """y_hat, and mu and levels of all steps, in one row per batch item."""
    return run_networks(EntropyModel(model.sizes, model.entropy, backend), z, y)


def run_networks(networks: EntropyModel, z: I32, y: I32) -> tuple[Any, Any, Any]:
    """What `run` gives, from networks that are ready."""
    chosen = Choices(y)
    y_hat = networks.run(z, *y.shape[1:3], chosen)
    mu, levels = (np.concatenate(part, 1) for part in zip(*chosen.networks_output, strict=True))
    return y_hat, mu, levels


def witness(model: StoredModel, z: I32, y: I32) -> tuple[Any, Any, Any]:
    """Every network in full at every position and channel in float64; masks pick what is coded."""
    t, M = model.entropy, model.sizes.M

    def linear(name: str, x: F64, weight: F64 | None = None) -> F64:
        weight = t[f"{name}.weight"].astype(np.float64) if weight is None else weight
        return (x @ weight.T + t[f"{name}.bias"]) / 2.0 ** t[f"{name}.shift"]

    def clip(x: F64) -> F64:
        return np.floor(x).clip(-ACTIVATION_MAX, ACTIVATION_MAX)

    def leaky(x: F64) -> F64:
        return clip(np.where(x < 0, x * LEAK, x))

    def block(name: str, x: F64) -> F64:
        h, w = x.shape[1:3]
        sides = ((0, 0), (1, 1), (1, 1), (0, 0))
        p = np.pad(leaky(linear(f"{name}.pw1", x)), sides, mode="edge")
        nine = np.stack([p[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w] for k in range(9)], -1)
        acc = (nine * t[f"{name}.dw.weight"]).sum(-1) + t[f"{name}.dw.bias"]
        x = clip(linear(f"{name}.pw2", clip(acc / 2.0 ** t[f"{name}.dw.shift"])) + x)
        return clip(linear(f"{name}.f2", leaky(linear(f"{name}.f1", x))) + x)

    def shuffle(x: F64) -> F64:
        b, h, w, c = x.shape
        return clip(x).reshape(b, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, -1)

    height, width = y.shape[1:3]
    z_hat = np.floor(z * t["z.step"] / 2.0**STEP_FRAC + 0.5)
    features = block("h_s.1", shuffle(linear("h_s.0", clip(z_hat))))
    features = block("h_s.3", shuffle(linear("h_s.2", features)))[:, :height, :width]
    place = np.arange(height)[:, None] % 2 * 2 + np.arange(width)[None] % 2
    y_hat, means, scales = np.zeros(y.shape, np.int64), [], []
    for step in range(STEPS):
        hidden = features
        if step:
            context = clip(y_hat * 2.0 ** (t["context.frac"].astype(np.float64) - Y_FRAC) + 0.5)
            first = clip(linear(f"step.{step}.first", np.concatenate([features, context], -1)))
            hidden = block(f"step.{step}.block", first)
        out = np.floor(linear(f"step.{step}.head", hidden)).astype(np.int64)
        mu, level = out[..., :M].clip(-MU_MAX, MU_MAX), out[..., M:].clip(0, LEVELS - 1)
        coded = GROUP_AT[step][place][..., None] == np.arange(M) % 4
        residual = np.floor(np.where(level == 0, 0, y) * t["y.step"] / 2.0**STEP_FRAC + 0.5)
        y_hat = np.where(coded, (residual + mu).clip(-Y_MAX, Y_MAX), y_hat)
        means.append(gather(mu, step))
        scales.append(gather(level, step))
    return y_hat, np.concatenate(means, 1), np.concatenate(scales, 1)


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("height, width", SHAPES)
def test_the_walk_equals_full_masked_networks(
    small_model: StoredModel, height: int, width: int
) -> None:
    z, y = random_inputs(small_model, height, width)
    expected = witness(small_model, z, y)
    for name, backend in BACKENDS.items():
        assert same(run(small_model, backend, z, y), expected), name
    in_sessions = OnnxEntropyModel(small_model, 1)
    assert same(run_networks(in_sessions, z, y), expected), "onnx"


def test_means_and_levels_of_the_test_model_vary(small_model: StoredModel) -> None:
    """Otherwise the tests around this one prove little."""
    _, mu, levels = run(small_model, NUMPY, *random_inputs(small_model, 16, 16))
    assert len(np.unique(levels)) > 30
    assert 0.02 < (levels == 0).mean() < 0.5
    assert len(np.unique(mu)) > 100


@pytest.mark.parametrize("name", ["numpy32", "torch32"])
def test_a_batch_of_eight_equals_eight_alone_in_any_order(
    small_model: StoredModel, name: str
) -> None:
    z, y = random_inputs(small_model, 6, 9, batch=8)
    together = run(small_model, BACKENDS[name], z, y)
    for i in (5, 0, 7, 2, 6, 1, 3, 4):
        alone = run(small_model, BACKENDS[name], z[i : i + 1], y[i : i + 1])
        assert same(alone, tuple(part[i : i + 1] for part in together))


def test_one_and_two_threads_agree(
    small_model: StoredModel, torch_threads: Callable[[int], None]
) -> None:
    z, y = random_inputs(small_model, 64, 64)
    actual = []
    for threads in (1, 2):
        torch_threads(threads)
        actual.append(run(small_model, BACKENDS["torch32"], z, y))
    assert same(actual[0], actual[1])
    assert same(actual[0], run(small_model, NUMPY, z, y))


@pytest.mark.gpu
def test_cuda_agrees_with_numpy(small_model: StoredModel) -> None:
    cuda = ArrayBackend(torch, torch.float64, torch.device("cuda"))
    z, y = random_inputs(small_model, 33, 40, batch=2)
    assert same(run(small_model, cuda, z, y), run(small_model, NUMPY, z, y))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (6, 1), (4, 4), (5, 7)])
def test_gather_visits_every_latent_once_in_its_step(height: int, width: int) -> None:
    M = 8
    values = np.arange(height * width * M).reshape(1, height, width, M)
    steps = [gather(values, t)[0].tolist() for t in range(STEPS)]
    assert sorted(v for step in steps for v in step) == list(range(values.size))
    for t, step in enumerate(steps):
        for value in step:
            row, col, channel = np.unravel_index(value, values.shape[1:])
            assert channel % 4 == GROUP_AT[t, row % 2 * 2 + col % 2]


def test_each_step_codes_another_group_at_each_position() -> None:
    assert all(sorted(row) == [0, 1, 2, 3] for row in GROUP_AT.tolist())
    assert all(sorted(column) == [0, 1, 2, 3] for column in GROUP_AT.T.tolist())


def test_z_beyond_its_range_is_clipped(small_model: StoredModel) -> None:
    """A damaged stream can hold z symbols of ±511."""
    z, y = random_inputs(small_model, 5, 5)
    z[0, 0, 0] = 511
    enough = 1 + ACTIVATION_MAX * 2**STEP_FRAC // small_model.entropy["z.step"]
    clipped = np.minimum(z, enough)
    assert not np.array_equal(clipped, z)
    assert same(run(small_model, NUMPY, z, y), run(small_model, NUMPY, clipped, y))


@pytest.mark.parametrize("sign, level", [(1, LEVELS - 1), (-1, 0)])
def test_means_and_levels_stay_in_range(small_model: StoredModel, sign: int, level: int) -> None:
    tensors = dict(small_model.entropy)
    for t in range(STEPS):
        for part, value in (("weight", 0), ("shift", 0), ("bias", sign * 2**20)):
            tensors[f"step.{t}.head.{part}"] = np.full_like(tensors[f"step.{t}.head.{part}"], value)
    model = replace(small_model, entropy=tensors)
    for backend in BACKENDS.values():
        y_hat, mu, levels = run(model, backend, *random_inputs(model, 3, 4))
        assert (mu == sign * MU_MAX).all() and (levels == level).all()
        assert (np.abs(y_hat.astype(int)) <= Y_MAX).all()


@pytest.mark.parametrize("damage", ["missing", "float", "wider", "taller"])
def test_a_wrong_tensor_is_a_store_error(small_model: StoredModel, damage: str) -> None:
    """Whichever tensor it is, the model is refused when it is built, not when it is used."""
    for name, tensor in small_model.entropy.items():
        if name == "tables" or name.endswith(("in_frac", "out_frac")):
            continue  # not read by the networks
        tensors: Tensors = dict(small_model.entropy)
        if damage == "missing":
            del tensors[name]
        elif damage == "float":
            tensors[name] = tensor.astype(np.float32)
        else:
            axis = 0 if damage == "taller" else tensor.ndim - 1
            tensors[name] = np.concatenate([tensor, tensor], axis)
        with pytest.raises(StoreError):
            EntropyModel(small_model.sizes, tensors)


@pytest.mark.parametrize("value", [-1, 0, LEVELS, 256 + 3])
def test_a_level_of_z_off_the_ladder_is_refused(small_model: StoredModel, value: int) -> None:
    levels = small_model.entropy["z.level"].astype(np.int16)
    levels[0] = value
    with pytest.raises(StoreError, match=r"z\.level"):
        EntropyModel(small_model.sizes, small_model.entropy | {"z.level": levels})


def test_sizes_that_do_not_fit_the_tensors_are_refused(small_model: StoredModel) -> None:
    for name in ("M", "Cz", "cp", "cc"):
        sizes = replace(small_model.sizes, **{name: 2 * getattr(small_model.sizes, name)})
        with pytest.raises(StoreError):
            EntropyModel(sizes, small_model.entropy)
