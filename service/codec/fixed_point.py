"""Exact integer layers carried in floating point: the same integers on every machine.

A layer computes `floor((W q + bias) / 2^shift)` and clips the result to ±ACTIVATION_MAX. All
operands are integers, held in IEEE-754 floats. Every product and every partial sum is a multiple of
2^-shift below 2^24 (float32) or 2^53 (float64) steps, so each one is exact and the order of
summation, fused multiply-add, batch size and thread count cannot change the result.
`IntLinear.bound` is the proof obligation; it is checked whenever a layer is built.

One source serves numpy and torch: `xp` is either module, and only functions that both have are
used.

Q-formats: an activation q of a channel with `frac` f stands for q / 2^f. Weights carry the shift of
their output channel. The rounding half is part of the bias.

Idea: integer networks for data compression (Ballé, Johnston & Minnen, ICLR 2019). We differ in the
carrier (floats, so that any BLAS serves) and in proving bounds instead of saturating accumulators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import StoreError

Array = Any
"""A numpy array or a torch tensor: mypy cannot express "the subset both share"."""

ACTIVATION_MAX = 1023
"""Activations are integers in ±1023 (10 bits and a sign)."""

EXACT_FLOAT32 = 2**24
"""Integers up to here, and their sums in any order, are exact in float32."""

LEAK = 0.125
"""Slope of LeakyReLU for negative values, a power of two and so exact."""


@dataclass(frozen=True, eq=False)
class IntLinear:
    """A 1×1 layer in integers, as stored.

    Attributes:
        weight: [N, K] integers.
        bias: [N] integers, the rounding half 2^(shift-1) included.
        shift: [N] integers, 0–30.
    """

    weight: NDArray[np.int32]
    bias: NDArray[np.int64]
    shift: NDArray[np.int32]

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int]
    ) -> IntLinear:
        """The layer stored as `name`.weight, .bias and .shift, its weight of a known shape.

        Raises:
            StoreError: a tensor is missing or has the wrong shape or kind.
        """
        parts = []
        for part in ("weight", "bias", "shift"):
            tensor = tensors.get(f"{name}.{part}")
            if tensor is None:
                raise StoreError(f"tensor {name}.{part} is missing")
            if not np.issubdtype(tensor.dtype, np.integer):
                raise StoreError(f"tensor {name}.{part} is {tensor.dtype}, expected integers")
            parts.append(tensor)
        weight, bias, shift = parts
        if (weight.shape, bias.shape, shift.shape) != (shape, shape[:1], shape[:1]):
            raise StoreError(
                f"layer {name} has weight {weight.shape}, bias {bias.shape}, shift {shift.shape}; "
                f"expected {shape}, {shape[:1]}, {shape[:1]}"
            )
        if shift.size and (shift.min() < 0 or shift.max() > 30):
            raise StoreError(f"layer {name} has shifts outside 0..30")
        return cls(weight.astype(np.int32), bias.astype(np.int64), shift.astype(np.int32))

    def bound(self, input_max: int) -> int:
        """Largest |accumulator| that inputs in ±input_max can reach, partial sums included."""
        total = np.abs(self.weight.astype(np.int64)).sum(1) * input_max + np.abs(self.bias)
        return int(total.max()) if total.size else 0

    def columns(self, index: NDArray[np.intp]) -> IntLinear:
        """The layer restricted to some input channels, without its bias."""
        return IntLinear(self.weight[:, index], np.zeros_like(self.bias), self.shift)

    def rows(self, index: NDArray[np.intp]) -> IntLinear:
        """The layer restricted to some output channels."""
        return IntLinear(self.weight[index], self.bias[index], self.shift[index])


@dataclass(frozen=True, eq=False)
class Numbers:
    """Where integers are carried: the array module, the float type and the device.

    Attributes:
        xp: numpy or torch.
        dtype: xp.float32 or xp.float64.
        device: torch device, None for numpy.
    """

    xp: ModuleType
    dtype: Any
    device: Any = None

    def carry(self, values: NDArray[Any]) -> Array:
        """Copy an array of exactly representable numbers onto the device."""
        if self.device is None:
            return np.ascontiguousarray(values, dtype=self.dtype)
        return self.xp.asarray(np.ascontiguousarray(values), dtype=self.dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros of the carrying type."""
        if self.device is None:
            return np.zeros(shape, self.dtype)
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)

    def multiply_add(self, out: Array, x: Array, factor: Array) -> None:
        """out += x · factor in place; one pass where the module has such a call."""
        if self.device is None:
            out += x * factor
        else:
            out.addcmul_(x, factor)

    def leaky(self, x: Array) -> Array:
        """LeakyReLU(1/8) in place: a multiplication by a power of two, so exact."""
        if self.device is None:
            return np.maximum(x, x * LEAK, out=x)
        return self.xp.nn.functional.leaky_relu_(x, LEAK)

    def integers(self, values: Array) -> NDArray[np.int32]:
        """Bring integers back as a numpy array."""
        host = values if self.device is None else values.cpu().numpy()
        return np.asarray(host).astype(np.int32)


NUMPY = Numbers(np, np.float32)
"""The decoder's default: float32 in numpy."""


class Layer:
    """An IntLinear made ready to run: weight transposed and scaled by 2^-shift."""

    def __init__(self, numbers: Numbers, linear: IntLinear, *, input_max: int, name: str) -> None:
        check_bound(linear.bound(input_max), name)
        scale = np.ldexp(1.0, -linear.shift.astype(np.int64))
        self.xp, self.numbers = numbers.xp, numbers
        self.weight = numbers.carry((linear.weight * scale[:, None]).T)
        self.bias = numbers.carry(linear.bias * scale)

    def accumulate(self, x: Array) -> Array:
        """x: [..., K] integers -> [..., N] multiples of 2^-shift, a fresh array."""
        out = self.multiply(x)
        return self.xp.add(out, self.bias, out=out)

    def multiply(self, x: Array) -> Array:
        """The same without the bias.

        As one product of two matrices: numpy would take a stack of small ones row by row.
        """
        out = self.xp.matmul(x.reshape(-1, x.shape[-1]), self.weight)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def __call__(self, x: Array) -> Array:
        """x: [..., K] integers -> [..., N] integers in ±ACTIVATION_MAX."""
        return settle(self.xp, self.accumulate(x))

    def leaky(self, x: Array) -> Array:
        """The same through LeakyReLU(1/8) before rounding down."""
        return settle(self.xp, self.numbers.leaky(self.accumulate(x)))

    def residual(self, x: Array, skip: Array) -> Array:
        """The same with integers `skip` ([..., N]) added before clipping.

        Rounded down before the addition: the sum of a large skip and a small fraction would need
        more bits than float32 has, while integers add exactly.
        """
        out = self.accumulate(x)
        self.xp.floor(out, out=out)
        return settle(self.xp, self.xp.add(out, skip, out=out))


class Depthwise:
    """A depthwise 3×3 layer as nine shifted multiply-adds; edges are repeated outside."""

    def __init__(self, numbers: Numbers, linear: IntLinear, *, name: str) -> None:
        check_bound(linear.bound(ACTIVATION_MAX), name)
        scale = np.ldexp(1.0, -linear.shift.astype(np.int64))
        self.xp, self.numbers = numbers.xp, numbers
        self.taps = [numbers.carry(column) for column in (linear.weight * scale[:, None]).T]
        self.bias = numbers.carry(linear.bias * scale)

    def __call__(self, x: Array) -> Array:
        """x: [B, H, W, C] integers -> the same shape, integers in ±ACTIVATION_MAX."""
        xp, (_, height, width, _) = self.xp, x.shape
        out = xp.multiply(x, self.taps[4])
        xp.add(out, self.bias, out=out)
        padded = repeat_edges(xp, x)
        for k, tap in enumerate(self.taps):
            row, col = divmod(k, 3)
            if k != 4:
                seen = padded[:, row : row + height, col : col + width]
                self.numbers.multiply_add(out, seen, tap)
        return settle(xp, out)


class Block:
    """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)), all in integers."""

    def __init__(
        self, numbers: Numbers, tensors: Mapping[str, NDArray[Any]], name: str, channels: int
    ) -> None:
        c = channels

        def layer(part: str, outputs: int, inputs: int) -> Layer:
            linear = IntLinear.from_tensors(tensors, f"{name}.{part}", (outputs, inputs))
            return Layer(numbers, linear, input_max=ACTIVATION_MAX, name=f"{name}.{part}")

        self.pw1, self.pw2 = layer("pw1", c, c), layer("pw2", c, c)
        self.f1, self.f2 = layer("f1", 2 * c, c), layer("f2", c, 2 * c)
        self.dw = Depthwise(
            numbers, IntLinear.from_tensors(tensors, f"{name}.dw", (c, 9)), name=f"{name}.dw"
        )

    def __call__(self, x: Array) -> Array:
        """x: [B, H, W, C] integers -> the same shape and range."""
        x = self.pw2.residual(self.dw(self.pw1.leaky(x)), x)
        return self.f2.residual(self.f1.leaky(x), x)


def check_bound(bound: int, name: str) -> None:
    """Raise StoreError unless an accumulator bound is exact in float32."""
    if bound >= EXACT_FLOAT32:
        raise StoreError(f"layer {name} can reach {bound}, beyond the exact range {EXACT_FLOAT32}")


def settle(xp: ModuleType, values: Array) -> Array:
    """Round down and clip to ±ACTIVATION_MAX, in place."""
    xp.floor(values, out=values)
    return xp.clip(values, -ACTIVATION_MAX, ACTIVATION_MAX, out=values)


def repeat_edges(xp: ModuleType, x: Array) -> Array:
    """[B, H, W, C] -> [B, H+2, W+2, C]: the nearest position stands for each one outside."""
    x = xp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    return xp.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)


def shuffle2(x: Array) -> Array:
    """[B, H, W, 4C] -> [B, 2H, 2W, C]: each position's channels become a 2×2 cell."""
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height, width, 2, 2, channels // 4)
    return cells.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)
