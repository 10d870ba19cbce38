"""Layers are exact integers whatever carries them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.codec.fixed_point import (
    ACTIVATION_MAX,
    EXACT_FLOAT32,
    NUMPY,
    ArrayBackend,
    IntBlock,
    IntDepthwise,
    IntLayer,
    IntLinear,
    shuffle2,
)
from service.errors import StoreError

I64 = NDArray[np.int64]
CPU = torch.device("cpu")
BACKENDS = {
    "numpy32": NUMPY,
    "numpy64": ArrayBackend(np, np.float64),
    "torch32": ArrayBackend(torch, torch.float32, CPU),
    "torch64": ArrayBackend(torch, torch.float64, CPU),
}


def rational_layer(
    linear: IntLinear, x: I64, *, leak: bool = False, skip: I64 | None = None
) -> Any:
    """One output at a time in Python's unbounded integers."""
    out = np.empty((*x.shape[:-1], len(linear.bias)), np.int64)
    for at in np.ndindex(*out.shape):
        row = at[-1]
        acc = int(linear.bias[row])
        for w, q in zip(linear.weight[row].tolist(), x[at[:-1]].tolist(), strict=True):
            acc += w * q
        shift = int(linear.shift[row])
        value = acc >> (shift + 3 if leak and acc < 0 else shift)
        if skip is not None:
            value += int(skip[at])
        out[at] = max(-ACTIVATION_MAX, min(ACTIVATION_MAX, value))
    return out


def random_layer(rng: np.random.Generator, outputs: int, inputs: int) -> IntLinear:
    """A layer whose rows reach just below the bound, with shifts from 0 to 20."""
    shift = rng.integers(0, 21, outputs).astype(np.int32)
    size = (EXACT_FLOAT32 - 2**20) // (inputs * ACTIVATION_MAX)
    weight = rng.integers(-size, size + 1, (outputs, inputs)).astype(np.int32)
    bias = rng.integers(-(2**19), 2**19, outputs) + (1 << shift >> 1)
    return IntLinear(weight, bias, shift)


def activations(rng: np.random.Generator, *shape: int) -> I64:
    return rng.integers(-ACTIVATION_MAX, ACTIVATION_MAX + 1, shape)


def random_block(rng: np.random.Generator, channels: int) -> dict[str, NDArray[Any]]:
    """Tensors of IntBlock "b", scaled so that outputs do not all clip."""
    tensors: dict[str, NDArray[Any]] = {}
    shapes = {"pw1": (1, 1), "pw2": (1, 1), "f1": (2, 1), "f2": (1, 2)}
    for part, (n, k) in shapes.items():
        tensors |= _scaled(rng, f"b.{part}", n * channels, k * channels)
    return tensors | _scaled(rng, "b.dw", channels, 9)


def _scaled(rng: np.random.Generator, name: str, n: int, k: int) -> dict[str, NDArray[Any]]:
    weight = rng.integers(-(2**7), 2**7, (n, k)).astype(np.int16)
    shift = np.full(n, int(np.log2(2**6 * k**0.5)), np.int8)
    bias = (rng.integers(-(2**8), 2**8, n) + 2 ** (shift.astype(int) - 1)).astype(np.int32)
    return {f"{name}.weight": weight, f"{name}.bias": bias, f"{name}.shift": shift}


def block_witness(tensors: dict[str, NDArray[Any]], x: I64) -> I64:
    """IntBlock in int64: shifts for the pointwise layers, a padded sum for the depthwise one."""
    part = {p: tuple(tensors[f"b.{p}.{v}"].astype(np.int64) for v in ("weight", "bias", "shift"))
            for p in ("pw1", "dw", "pw2", "f1", "f2")}  # fmt: skip

    def linear(name: str, q: I64) -> tuple[I64, I64]:
        weight, bias, shift = part[name]
        return q @ weight.T + bias, shift

    def clip(q: I64) -> I64:
        return q.clip(-ACTIVATION_MAX, ACTIVATION_MAX)

    def leaky(name: str, q: I64) -> I64:
        acc, shift = linear(name, q)
        return clip(np.where(acc < 0, acc >> (shift + 3), acc >> shift))

    t = np.pad(leaky("pw1", x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    weight, bias, shift = part["dw"]
    height, width = x.shape[1:3]
    acc = bias + sum(
        t[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width] * weight[:, k] for k in range(9)
    )
    acc, shift = linear("pw2", clip(acc >> shift))
    x = clip((acc >> shift) + x)
    acc, shift = linear("f2", leaky("f1", x))
    return clip((acc >> shift) + x)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> ArrayBackend:
    return BACKENDS[request.param]


def test_a_layer_equals_python_integers(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(1)
    linear = random_layer(rng, 12, 30)
    x, skip = activations(rng, 9, 30), activations(rng, 9, 12)
    layer = IntLayer(backend, linear, name="t")
    carried = backend.array(x)
    assert (backend.integers(layer(carried)) == rational_layer(linear, x)).all()
    assert (backend.integers(layer.leaky(carried)) == rational_layer(linear, x, leak=True)).all()
    with_skip = backend.integers(layer.residual(carried, backend.array(skip)))
    assert (with_skip == rational_layer(linear, x, skip=skip)).all()


def test_a_residual_is_exact_where_the_sum_needs_more_bits_than_float32_has(
    backend: ArrayBackend,
) -> None:
    """0.99999988 + 1000 is 1001 in float32; floor((2^23 - 1) / 2^23 + 1000) is 1000."""
    linear = IntLinear(np.array([[0]], np.int32), np.array([2**23 - 1]), np.array([23], np.int32))
    layer = IntLayer(backend, linear, name="t")
    out = layer.residual(backend.array(np.array([[0]])), backend.array(np.array([[1000]])))
    assert backend.integers(out).item() == 1000


def test_inputs_that_reach_the_bound_stay_exact(backend: ArrayBackend) -> None:
    """All terms of one sign, weights of the worst size: the accumulator ends next to 2^24."""
    rng = np.random.default_rng(2)
    inputs = 1000
    weight = np.full((4, inputs), 16, np.int32)
    weight[1] = rng.choice([-16, 16], inputs)
    weight[2, ::2] = -16
    spare = EXACT_FLOAT32 - 1 - 16 * inputs * ACTIVATION_MAX
    linear = IntLinear(weight, np.array([spare, -spare, 1, spare]), np.array([14] * 4, np.int32))
    assert linear.bound() == EXACT_FLOAT32 - 1
    x = np.stack([ACTIVATION_MAX * np.sign(w) for w in weight] + [-np.sign(weight[1])])
    layer = IntLayer(backend, linear, name="t")
    actual = backend.integers(layer(backend.array(x)))
    assert (actual == rational_layer(linear, x.astype(np.int64))).all()


def test_a_depthwise_layer_equals_python_integers(backend: ArrayBackend) -> None:
    rng = np.random.default_rng(3)
    linear = random_layer(rng, 5, 9)
    for shape in ((2, 4, 3), (1, 1, 1), (1, 1, 6), (1, 5, 1), (3, 2, 2)):
        x = activations(rng, *shape, 5)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        expected = np.empty_like(x)
        for b, i, j, c in np.ndindex(*x.shape):
            one = IntLinear(
                linear.weight[c : c + 1], linear.bias[c : c + 1], linear.shift[c : c + 1]
            )
            taps = padded[b, i : i + 3, j : j + 3, c].reshape(1, 9)
            expected[b, i, j, c] = rational_layer(one, taps).item()
        actual = IntDepthwise(backend, linear, name="t")(backend.array(x))
        assert (backend.integers(actual) == expected).all()


@pytest.mark.parametrize("batch", [1, 8])
def test_a_block_equals_its_int64_witness_at_any_batch_size(
    backend: ArrayBackend, batch: int
) -> None:
    rng = np.random.default_rng(4)
    tensors = random_block(rng, 24)
    x = activations(rng, 8, 7, 6, 24)
    expected = block_witness(tensors, x)
    block = IntBlock(backend, tensors, "b", 24)
    actual = [backend.integers(block(backend.array(x[i : i + batch]))) for i in range(0, 8, batch)]
    assert (np.concatenate(actual) == expected).all()
    assert 0.5 < (np.abs(expected) < ACTIVATION_MAX).mean() < 1


def test_a_block_is_the_same_with_one_and_two_threads(
    torch_threads: Callable[[int], None],
) -> None:
    rng = np.random.default_rng(5)
    tensors = random_block(rng, 96)
    x = activations(rng, 2, 24, 24, 96)
    backend = BACKENDS["torch32"]
    block, actual = IntBlock(backend, tensors, "b", 96), []
    for threads in (1, 2):
        torch_threads(threads)
        actual.append(backend.integers(block(backend.array(x))))
    assert (actual[0] == actual[1]).all()
    assert (actual[0] == block_witness(tensors, x)).all()


@pytest.mark.gpu
def test_a_block_on_cuda_equals_its_int64_witness() -> None:
    rng = np.random.default_rng(6)
    tensors = random_block(rng, 96)
    x = activations(rng, 2, 24, 24, 96)
    backend = ArrayBackend(torch, torch.float64, torch.device("cuda"))
    actual = backend.integers(IntBlock(backend, tensors, "b", 96)(backend.array(x)))
    assert (actual == block_witness(tensors, x)).all()


def test_a_layer_over_the_bound_is_refused() -> None:
    weight = np.full((1, 1), 2**14, np.int32)
    shift = np.zeros(1, np.int32)
    at = EXACT_FLOAT32 - 2**14 * ACTIVATION_MAX
    IntLayer(NUMPY, IntLinear(weight, np.array([at - 1]), shift), name="t")
    for bias in (at, -at):
        with pytest.raises(StoreError, match="layer t can reach 16777216"):
            over = IntLinear(weight, np.array([bias]), shift)
            IntLayer(NUMPY, over, name="t")
    over = IntLinear(np.full((1, 9), 2**12, np.int32), np.array([0]), shift)
    with pytest.raises(StoreError, match="layer t can reach"):
        IntDepthwise(NUMPY, over, name="t")


def test_the_bound_counts_partial_sums_and_the_bias() -> None:
    linear = IntLinear(np.array([[3, -4], [1, 0]]), np.array([-5, 2]), np.zeros(2, np.int32))
    assert linear.bound() == 7 * ACTIVATION_MAX + 5


@pytest.mark.parametrize("part", ["weight", "bias", "shift"])
@pytest.mark.parametrize("damage", ["missing", "float", "short", "flat"])
def test_a_wrong_tensor_is_refused(part: str, damage: str) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "t.weight": np.ones((3, 2), np.int16),
        "t.bias": np.ones(3, np.int32),
        "t.shift": np.ones(3, np.int8),
    }
    assert IntLinear.from_tensors(tensors, "t", (3, 2)).weight.shape == (3, 2)
    name = f"t.{part}"
    tensor = tensors.pop(name)
    if damage != "missing":
        wrong = {"float": tensor.astype(np.float32), "short": tensor[:2], "flat": tensor.ravel()}
        tensors[name] = wrong[damage] if damage != "flat" else wrong[damage][None, None]
    with pytest.raises(StoreError, match="t"):
        IntLinear.from_tensors(tensors, "t", (3, 2))


@pytest.mark.parametrize("shift", [-1, 31])
def test_a_shift_out_of_range_is_refused(shift: int) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "t.weight": np.ones((1, 1), np.int16),
        "t.bias": np.ones(1, np.int32),
        "t.shift": np.array([shift], np.int8),
    }
    with pytest.raises(StoreError, match=r"t\.shift holds"):
        IntLinear.from_tensors(tensors, "t", (1, 1))


def test_shuffle_puts_channels_into_cells() -> None:
    x = np.arange(2 * 3 * 5 * 8).reshape(2, 3, 5, 8)
    out = shuffle2(x)
    for b, i, j, c in np.ndindex(*out.shape):
        assert out[b, i, j, c] == x[b, i // 2, j // 2, (i % 2 * 2 + j % 2) * 2 + c]
