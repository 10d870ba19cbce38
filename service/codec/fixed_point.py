"""Integer layers that are computed in floating point and give the same integers on every machine.

A layer computes `floor((W q + bias) / 2^shift)` and clips the result to ±ACTIVATION_MAX. All
operands are integers held in IEEE-754 floats. Every product and every partial sum is a multiple of
2^-shift and at most 2^24 (float32) or 2^53 (float64) of them, so it is exact, and the order of
summation, fused multiply-add, batch size and thread count cannot change the result.
`IntLinear.bound` is the proof obligation; it is checked whenever a layer is built.

One source serves numpy and torch: `xp` is either module, and the code calls only functions that
both have.

Q formats: an activation q of a channel with `frac` f stands for q / 2^f. A weight has the shift of
its output channel. The half that rounds to nearest is part of the bias.

Idea: "Integer Networks for Data Compression with Latent-Variable Models" (Ballé, Johnston & Minnen,
ICLR 2019). We differ in holding integers in floats, so that any BLAS computes them, and in proving
bounds instead of saturating accumulators.
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
"""Largest absolute activation: activations are integers of 10 bits and a sign."""

EXACT_FLOAT32 = 2**24
"""Integers up to this one are exact in float32, and so are sums that stay below it."""

LEAK = 0.125
"""Slope of LeakyReLU for negative values: a power of two, so that the product is exact."""


@dataclass(frozen=True, eq=False)
class IntLinear:
    """The stored integers of a 1×1 layer with K inputs and N outputs.

    Attributes:
        weight: [N, K] int32.
        bias: [N] int64, in units of 2^-shift of an output, the rounding half 2^(shift-1) included.
        shift: [N] int32, 0–30.
    """

    weight: NDArray[np.int32]
    bias: NDArray[np.int64]
    shift: NDArray[np.int32]

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int]
    ) -> IntLinear:
        """Read a layer of shape [N, K], which is stored as `name`.weight, .bias and .shift.

        Raises:
            StoreError: see `stored_integers`.
        """
        weight = stored_integers(tensors, f"{name}.weight", shape)
        bias = stored_integers(tensors, f"{name}.bias", shape[:1])
        shift = stored_integers(tensors, f"{name}.shift", shape[:1], 0, 30)
        return cls(weight.astype(np.int32), bias.astype(np.int64), shift.astype(np.int32))

    def bound(self) -> int:
        """Largest |accumulator| for inputs in ±ACTIVATION_MAX, partial sums included."""
        total = np.abs(self.weight.astype(np.int64)).sum(1) * ACTIVATION_MAX + np.abs(self.bias)
        return int(total.max()) if total.size else 0

    def columns(self, index: NDArray[np.intp]) -> IntLinear:
        """The layer restricted to some input channels, without its bias."""
        return IntLinear(self.weight[:, index], np.zeros_like(self.bias), self.shift)

    def rows(self, index: NDArray[np.intp]) -> IntLinear:
        """The layer restricted to some output channels."""
        return IntLinear(self.weight[index], self.bias[index], self.shift[index])


def stored_integers(
    tensors: Mapping[str, NDArray[Any]],
    name: str,
    shape: tuple[int, ...],
    low: int = -(2**31),
    high: int = 2**31 - 1,
) -> NDArray[np.integer[Any]]:
    """Return a stored tensor once it is known to hold integers from low to high.

    Raises:
        StoreError: the tensor is missing, of another shape or dtype, or a value is out of range.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape or not np.issubdtype(tensor.dtype, np.integer):
        actual = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise StoreError(f"tensor {name} is {actual}, expected integers {shape}")
    if tensor.min() < low or tensor.max() > high:
        raise StoreError(
            f"tensor {name} holds {tensor.min()} to {tensor.max()}, expected {low} to {high}"
        )
    return tensor


@dataclass(frozen=True, eq=False)
class ArrayBackend:
    """The array module, float type and device that hold and compute integers.

    Attributes:
        xp: numpy or torch. dtype: float32 or float64 of xp. device: of torch, None for numpy.
    """

    xp: ModuleType
    dtype: Any
    device: Any = None

    def array(self, values: NDArray[Any]) -> Array:
        """Copy an array of exactly representable numbers to the device."""
        if self.device is None:
            return np.ascontiguousarray(values, dtype=self.dtype)
        return self.xp.asarray(np.ascontiguousarray(values), dtype=self.dtype, device=self.device)

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an array on the device whose values are not set."""
        if self.device is None:
            return np.empty(shape, self.dtype)
        return self.xp.empty(shape, dtype=self.dtype, device=self.device)

    def affine(self, x: Array, weight: Array, bias: Array) -> Array:
        """Compute x @ weight + bias of matrices, in one pass where the module has such a call."""
        if self.device is None:
            out = x @ weight
            return np.add(out, bias, out=out)
        return self.xp.addmm(bias, x, weight)

    def multiply_add(self, out: Array, x: Array, factor: Array) -> None:
        """Compute out += x · factor in place, in one pass where the module has such a call."""
        if self.device is None:
            out += x * factor
        else:
            out.addcmul_(x, factor)

    def leaky(self, x: Array) -> Array:
        """Apply LeakyReLU of slope LEAK in place."""
        if self.device is None:
            return np.maximum(x, x * LEAK, out=x)
        return self.xp.nn.functional.leaky_relu_(x, LEAK)

    def integers(self, values: Array) -> NDArray[np.int32]:
        """Copy integers back into an int32 array of numpy."""
        host = values if self.device is None else values.cpu().numpy()
        return np.asarray(host).astype(np.int32)


NUMPY = ArrayBackend(np, np.float32)
"""The decoder's default: float32 in numpy."""


class IntLayer:
    """An IntLinear that is ready to run: its weight transposed and scaled by 2^-shift."""

    def __init__(self, backend: ArrayBackend, linear: IntLinear, *, name: str) -> None:
        """Prove that the layer is exact, then copy it to the backend.

        Raises:
            StoreError: an accumulator could leave the exact range of float32; it says the name.
        """
        bound = linear.bound()
        if bound >= EXACT_FLOAT32:
            raise StoreError(
                f"layer {name} can reach {bound}, beyond the exact range {EXACT_FLOAT32}"
            )
        scale = np.ldexp(1.0, -linear.shift.astype(np.int64))
        self.xp, self.backend = backend.xp, backend
        self.weight = backend.array((linear.weight * scale[:, None]).T)
        self.bias = backend.array(linear.bias * scale)

    def accumulate(self, x: Array) -> Array:
        """Compute W x + bias: [..., K] integers -> [..., N] multiples of 2^-shift."""
        # One product of two matrices: numpy multiplies stacks of matrices row by row.
        out = self.backend.affine(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def multiply(self, x: Array) -> Array:
        """Compute W x without the bias: [..., K] -> [..., N] multiples of 2^-shift."""
        out = x.reshape(-1, x.shape[-1]) @ self.weight
        return out.reshape(*x.shape[:-1], out.shape[-1])

    def __call__(self, x: Array) -> Array:
        """Compute a plain layer: [..., K] integers -> [..., N] integers in ±ACTIVATION_MAX."""
        return floor_and_clip(self.xp, self.accumulate(x))

    def leaky(self, x: Array) -> Array:
        """Compute the layer with LeakyReLU before rounding down; shapes as `__call__`."""
        return floor_and_clip(self.xp, self.backend.leaky(self.accumulate(x)))

    def residual(self, x: Array, skip: Array) -> Array:
        """Compute the layer with integers `skip` ([..., N]) added before clipping.

        The layer is rounded down before the addition: the sum of a large skip and a small fraction
        would need more bits than float32 has, while integers add exactly.
        """
        out = self.accumulate(x)
        self.xp.floor(out, out=out)
        return floor_and_clip(self.xp, self.xp.add(out, skip, out=out))


class IntDepthwise(IntLayer):
    """A depthwise 3×3 layer as nine shifted multiply-adds; the edge repeats outside."""

    def accumulate(self, x: Array) -> Array:
        """Compute the layer before rounding: [B, H, W, C] integers -> multiples of 2^-shift."""
        xp, (_, height, width, _) = self.xp, x.shape
        out = xp.multiply(x, self.weight[4])
        xp.add(out, self.bias, out=out)
        padded = repeat_edges(self.backend, x)
        for k, tap in enumerate(self.weight):
            row, col = divmod(k, 3)
            if k != 4:
                shifted = padded[:, row : row + height, col : col + width]
                self.backend.multiply_add(out, shifted, tap)
        return out


class IntBlock:
    """The residual block x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)), in integers."""

    def __init__(
        self, backend: ArrayBackend, tensors: Mapping[str, NDArray[Any]], name: str, channels: int
    ) -> None:
        c = channels

        def layer(
            part: str, outputs: int, inputs: int, kind: type[IntLayer] = IntLayer
        ) -> IntLayer:
            linear = IntLinear.from_tensors(tensors, f"{name}.{part}", (outputs, inputs))
            return kind(backend, linear, name=f"{name}.{part}")

        self.pw1, self.pw2 = layer("pw1", c, c), layer("pw2", c, c)
        self.f1, self.f2 = layer("f1", 2 * c, c), layer("f2", c, 2 * c)
        self.dw = layer("dw", c, 9, IntDepthwise)

    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] integers in ±ACTIVATION_MAX -> the same shape and range."""
        x = self.pw2.residual(self.dw(self.pw1.leaky(x)), x)
        return self.f2.residual(self.f1.leaky(x), x)


def floor_and_clip(xp: ModuleType, values: Array) -> Array:
    """Round down and clip to ±ACTIVATION_MAX, in place."""
    xp.floor(values, out=values)
    return xp.clip(values, -ACTIVATION_MAX, ACTIVATION_MAX, out=values)


def repeat_edges(backend: ArrayBackend, x: Array) -> Array:
    """[B, H, W, C] -> [B, H+2, W+2, C]: positions outside take the value of the nearest inside."""
    batch, height, width, channels = x.shape
    out = backend.empty((batch, height + 2, width + 2, channels))
    out[:, 1:-1, 1:-1] = x
    out[:, 0, 1:-1], out[:, -1, 1:-1] = x[:, 0], x[:, -1]
    out[:, :, 0], out[:, :, -1] = out[:, :, 1], out[:, :, -2]
    return out


def shuffle2(x: Array) -> Array:
    """[B, H, W, 4C] -> [B, 2H, 2W, C]: each position's channels become a 2×2 cell."""
    batch, height, width, channels = x.shape
    cells = x.reshape(batch, height, width, 2, 2, channels // 4)
    return cells.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)
