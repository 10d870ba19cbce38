"""The entropy model: z_hat and coded parts of y_hat -> means and scale levels of the next part.

Notation: y are the latents, z the hyper-latents that describe them, hats mean decoded values, h_s
is the network that turns z_hat into features P. z is coded with a fixed level per channel. y is
coded in four steps. Step t codes one quarter of the channels at each position of a 2×2 cell, a
different quarter at each of the four positions; it sees P and the y_hat of earlier steps.

Encoder and decoder run the same code: `EntropyModel.run` asks its caller for the symbols of each
step; an encoder answers by rounding y, a decoder by reading the stream. The networks are integer
(fixed_point.py), so means and levels are the same on every machine.

Each rate has its own quantiser steps per channel: y_hat = mu + symbol · y.step and z_hat = z.mean +
symbol · z.step. Latents keep one range at every rate, and so do the networks that predict them.

Formats: symbols are integers; mu and y_hat are Q6 (Y_FRAC); the format of P is per channel, chosen
at export. Positions are grouped by class p = 2·(row mod 2) + (column mod 2), so that the last layer
of a step runs only for the quarter that it codes and the first layer only over coded channels.

Idea: quadtree partition (Lu et al. 2022, "High-efficiency lossy image coding through adaptive
neighborhood information aggregation") as in DCVC-DC (Li et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec.fixed_point import (
    ACTIVATION_MAX,
    NUMPY,
    Array,
    ArrayBackend,
    IntBlock,
    IntLayer,
    IntLinear,
    floor_and_clip,
    shuffle2,
)
from service.codec.sizes import Sizes
from service.errors import StoreError

Y_FRAC = 6
"""Fractional bits of mu and y_hat: both are in units of 1/64."""

Z_FRAC = 3
"""Fractional bits of z_hat - z.mean, which enters the networks clipped to ±ACTIVATION_MAX."""

STEP_FRAC = 8
"""Fractional bits that quantiser steps have beyond those of the value (y: Q14, z: Q11)."""

MU_MAX = 2**14 - 1
"""Largest |mu|, 255.98 in Q6. Extreme pictures reach 145."""

Y_MAX = 2**15 - 1
"""Largest |y_hat|, 511.98 in Q6."""

STEP_MAX = 2**21 - 1
"""Largest stored quantiser step, so that symbol · step fits 32 bits."""

SYMBOL_MAX = 511
"""Largest absolute symbol."""

LEVELS = 64
"""Number of scale levels. Symbols of level 0 are not coded and always 0."""

STEPS = 4
"""Coding steps of y, classes of positions and groups of channels."""

GROUP_AT = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]])
"""[step, class] -> the channel group g (channels g, g+4, g+8, ...) that is coded there."""

Symbols = NDArray[np.int32]
Choose = Callable[[int, NDArray[np.int32], NDArray[np.uint8]], Symbols]
"""(step, mu, levels) -> symbols, each [B, n] in coding order: int32, Q6 int32 and uint8."""


class StepNetworks(Protocol):
    """The networks of the four steps, with the features and coded latents of one batch."""

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Run step t: mu (Q6) and levels, each [B, n] in coding order."""
        ...

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        """Add decoded latents, the input of later steps.

        Args:
            p: class of positions.
            group: channel group.
            y_hat: [B, rows, columns, M/4] of that class and group, Q6.
        """
        ...


class EntropyModel:
    """The integer networks of one model at one rate. Immutable; safe to share between threads."""

    def __init__(
        self, sizes: Sizes, tensors: Mapping[str, NDArray[Any]], backend: ArrayBackend = NUMPY
    ) -> None:
        """Build from stored tensors.

        Args:
            sizes: channel counts.
            tensors: names "h_s.0.weight" and so on, see service/docs/format.md.
            backend: array module, float type and device to run on.

        Raises:
            StoreError: a tensor is missing, of the wrong shape, or could overflow.
        """
        self.sizes, self.backend, self.xp = sizes, backend, backend.xp

        up0 = IntLinear.from_tensors(tensors, "h_s.0", (4 * sizes.Cz, sizes.Cz))
        up1 = IntLinear.from_tensors(tensors, "h_s.2", (4 * sizes.cp, sizes.Cz))
        self.up0 = IntLayer(backend, up0, name="h_s.0")
        self.block0 = IntBlock(backend, tensors, "h_s.1", sizes.Cz)
        self.up1 = IntLayer(backend, up1, name="h_s.2")
        self.block1 = IntBlock(backend, tensors, "h_s.3", sizes.cp)
        self.steps = [Step(sizes, tensors, backend, t) for t in range(STEPS)]
        context_frac = vector(tensors, "context.frac", sizes.M, -30, 30).astype(np.int64)
        self.context_shift = backend.array(np.ldexp(1.0, context_frac - Y_FRAC))
        self.z_levels = vector(tensors, "z.level", sizes.Cz, 1, LEVELS - 1).astype(np.uint8)
        self.z_mean = vector(tensors, "z.mean", sizes.Cz, -(2**31), 2**31 - 1) / 2.0**16
        self._y_step = _steps(tensors, "y.step", sizes.M)
        self._z_step = _steps(tensors, "z.step", sizes.Cz)

    @property
    def z_step(self) -> NDArray[np.float64]:
        """Quantiser steps of z as real numbers, [Cz]."""
        return self._z_step / 2.0 ** (Z_FRAC + STEP_FRAC)

    def y_steps(self, t: int, height: int, width: int) -> NDArray[np.float32]:
        """Quantiser steps of y in the coding order of step t, [n], in units of 2^-Y_FRAC."""
        groups = [
            np.tile(self._y_step[GROUP_AT[t, p] :: 4], c.size)
            for p, c in enumerate(position_classes(height, width))
        ]
        return (np.concatenate(groups) / 2.0**STEP_FRAC).astype(np.float32)

    def begin(self, z_hat: NDArray[np.int32], height: int, width: int) -> StepNetworks:
        """Run h_s and return the step networks; subclasses replace this to run them elsewhere.

        Args:
            z_hat: [B, ceil(height/4), ceil(width/4), Cz] Q3 (Z_FRAC) in ±ACTIVATION_MAX.
            height: rows of latents.
            width: columns of latents.
        """
        return _ArrayStepNetworks(self, self.features(z_hat)[:, :height, :width])

    def features(self, z_hat: NDArray[np.int32]) -> Array:
        """Run h_s: z_hat [B, h, w, Cz], see `begin`, -> P [B, 4h, 4w, cp] activations."""
        x = self.backend.array(z_hat)
        x = self.block0(floor_and_clip(self.xp, shuffle2(self.up0.accumulate(x))))
        return self.block1(floor_and_clip(self.xp, shuffle2(self.up1.accumulate(x))))

    def run(
        self, z: NDArray[np.int32], height: int, width: int, choose: Choose
    ) -> NDArray[np.int16]:
        """Run the four steps.

        Args:
            z: [B, ceil(height/4), ceil(width/4), Cz] int32 symbols of the hyper-latents.
            height: rows of latents.
            width: columns of latents.
            choose: returns the symbols of each step in the order of `gather`, 0 at level 0.

        Returns:
            y_hat [B, height, width, M] int16, Q6.
        """
        z_hat = _times_step(z, self._z_step).clip(-ACTIVATION_MAX, ACTIVATION_MAX)
        networks = self.begin(z_hat, height, width)
        classes = position_classes(height, width)
        quarter = self.sizes.M // 4
        coded = [np.empty((len(z), c.height, c.width, STEPS, quarter), np.int16) for c in classes]
        for t in range(STEPS):
            mu, levels = networks.parameters(t)
            symbols = choose(t, mu, levels)
            start = 0
            for p, c in enumerate(classes):
                span = slice(start, start := start + c.size * quarter)
                shape = (len(z), c.height, c.width, quarter)
                value = _times_step(
                    symbols[:, span].reshape(shape), self._y_step[GROUP_AT[t, p] :: 4]
                )
                value += mu[:, span].reshape(shape)
                np.clip(value, -Y_MAX, Y_MAX, out=value)
                coded[p][..., t, :] = value
                if t < STEPS - 1:
                    networks.add_known(p, int(GROUP_AT[t, p]), value)
        y_hat = np.empty((len(z), height, width, self.sizes.M), np.int16)
        for p, c in enumerate(classes):
            step_of_group = np.argsort(GROUP_AT[:, p])
            by_group = coded[p][..., step_of_group, :].swapaxes(-1, -2)
            y_hat[:, c.rows, c.cols] = by_group.reshape(len(z), c.height, c.width, self.sizes.M)
        return y_hat

    def context(self, y_hat: NDArray[np.int32], group: int) -> Array:
        """y_hat [..., M/4] of one channel group, Q6 -> activations of the same shape."""
        scaled = self.backend.array(y_hat) * self.context_shift[group::4] + 0.5
        return floor_and_clip(self.xp, scaled)


class _ArrayStepNetworks:
    """Step networks that run in the array module of their model, layer by layer."""

    def __init__(self, model: EntropyModel, features: Array) -> None:
        """Start with the features P [B, H, W, cp]."""
        _, height, width, _ = features.shape
        self._model, self._classes = model, position_classes(height, width)
        self._parts = [features[:, c.rows, c.cols] for c in self._classes]
        # What each first layer computes from P: [B, H, W, cc] multiples of 2^-shift.
        self._shared = [step.features.accumulate(features) for step in model.steps[1:]]
        self._known: list[list[Array]] = [[] for _ in self._classes]

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        self._known[p].append(self._model.context(y_hat, group))

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        step, backend, xp = self._model.steps[t], self._model.backend, self._model.xp
        quarter = self._model.sizes.M // 4
        hidden = self._parts if t == 0 else self._hidden(t)
        means, levels = [], []
        for head, h in zip(step.heads, hidden, strict=True):
            out = head.accumulate(h)
            xp.floor(out, out=out)
            flat = out.reshape(len(out), -1, 2 * quarter)
            means.append(xp.clip(flat[..., :quarter], -MU_MAX, MU_MAX).reshape(len(out), -1))
            levels.append(xp.clip(flat[..., quarter:], 0, LEVELS - 1).reshape(len(out), -1))
        mu = backend.integers(xp.concatenate(means, 1))
        return mu, backend.integers(xp.concatenate(levels, 1)).astype(np.uint8)

    def _hidden(self, t: int) -> list[Array]:
        """Run the first layer and block of step t; returns the result by class of positions."""
        step, shared, xp = self._model.steps[t], self._shared[t - 1], self._model.xp
        for c, layer, values in zip(self._classes, step.context, self._known, strict=True):
            shared[:, c.rows, c.cols] += layer.multiply(xp.concatenate(values, -1))
        out = step.block(floor_and_clip(xp, shared))
        return [out[:, c.rows, c.cols] for c in self._classes]


@dataclass(frozen=True)
class PositionClass:
    """The positions of one class in a latent grid: index slices, rows and columns."""

    rows: slice
    cols: slice
    height: int
    width: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.height * self.width


def position_classes(height: int, width: int) -> tuple[PositionClass, ...]:
    """The four classes of a grid; in a grid of one row or column some are empty."""
    corners = [divmod(p, 2) for p in range(STEPS)]
    return tuple(
        PositionClass(
            slice(r, None, 2), slice(c, None, 2), (height - r + 1) // 2, (width - c + 1) // 2
        )
        for r, c in corners
    )


class Step:
    """Layers of one step: a head for step 0; a first layer, a block and a head for the others.

    Heads and the context part of the first layer are cut by class of positions: entry p holds the
    rows or columns of the channels that class p codes in this step, or has coded before.
    """

    def __init__(
        self,
        sizes: Sizes,
        tensors: Mapping[str, NDArray[Any]],
        backend: ArrayBackend,
        t: int,
    ) -> None:
        name, M = f"step.{t}", sizes.M

        def layer(linear: IntLinear, part: str) -> IntLayer:
            return IntLayer(backend, linear, name=f"{name}.{part}")

        head = IntLinear.from_tensors(
            tensors, f"{name}.head", (2 * M, sizes.cp if t == 0 else sizes.cc)
        )
        groups = [np.arange(GROUP_AT[t, p], M, 4) for p in range(STEPS)]
        self.heads = [layer(head.rows(np.concatenate([g, g + M])), "head") for g in groups]
        if t == 0:
            return
        first = IntLinear.from_tensors(tensors, f"{name}.first", (sizes.cc, sizes.cp + M))
        # The whole layer proves the bound: its two halves are added before rounding.
        self.first = layer(first, "first")
        reads_p = IntLinear(first.weight[:, : sizes.cp], first.bias, first.shift)
        self.features = layer(reads_p, "first")
        coded = [
            np.concatenate([np.arange(GROUP_AT[s, p], M, 4) for s in range(t)])
            for p in range(STEPS)
        ]
        self.context = [layer(first.columns(sizes.cp + c), "first") for c in coded]
        self.block = IntBlock(backend, tensors, f"{name}.block", sizes.cc)


def gather(values: Array, t: int) -> Array:
    """Reorder latents [B, H, W, M] into the coding order of step t: [B, n].

    The order is class 0–3; in a class row by row; at a position the channels of the group upwards.
    """
    batch, height, width, _ = values.shape
    parts = []
    for p, c in enumerate(position_classes(height, width)):
        parts.append(values[:, c.rows, c.cols, GROUP_AT[t, p] :: 4].reshape(batch, -1))
    return np.concatenate(parts, 1)


def _times_step(symbols: NDArray[np.int32], step: NDArray[np.int32]) -> NDArray[np.int32]:
    """symbol · step, rounded to drop STEP_FRAC bits; a new array."""
    out = symbols * step
    out += 2 ** (STEP_FRAC - 1)
    out >>= STEP_FRAC
    return out


def _steps(tensors: Mapping[str, NDArray[Any]], name: str, size: int) -> NDArray[np.int32]:
    """Read stored quantiser steps, [size]."""
    steps: NDArray[np.int32] = vector(tensors, name, size, 1, STEP_MAX).astype(np.int32)
    return steps


def vector(
    tensors: Mapping[str, NDArray[Any]], name: str, size: int, low: int, high: int
) -> NDArray[Any]:
    """Check and return a stored integer vector [size] with values from low to high.

    Raises:
        StoreError: the vector is missing, of another shape or dtype, or a value is out of range.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != (size,) or not np.issubdtype(tensor.dtype, np.integer):
        actual = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise StoreError(f"tensor {name} is {actual}, expected {size} integers")
    if tensor.min() < low or tensor.max() > high:
        raise StoreError(
            f"tensor {name} holds {tensor.min()} to {tensor.max()}, expected {low} to {high}"
        )
    return tensor
