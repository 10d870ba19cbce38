"""z_hat and the y_hat coded so far -> means and scale levels, the same on every machine.

z is coded per channel. h_s turns it into features P; y is then coded in four steps. Step t codes,
at each position of a 2×2 cell, one quarter of the channels, a different quarter at each of the four
positions; every later step sees P and what is coded already (quadtree partition: Lu et al. 2022,
"High-efficiency lossy image coding through adaptive neighborhood information aggregation";
DCVC-DC).

Both directions run the same code: `EntropyModel.run` asks its caller for the symbols of each step,
an encoder answers by rounding y, a decoder by reading the stream.

A rate has its own quantiser steps per channel: y_hat = mu + symbol · y.step and z_hat = z.mean +
symbol · z.step. Latents so keep one range at every rate, and so do the networks that predict them.

Formats: symbols are integers; mu and y_hat are in units of 2^-Y_FRAC; `frac` of the features is per
channel, chosen at export. Positions are grouped by class p = 2·(row mod 2) + (column mod 2), so
that a step's last layer runs only for the quarter that is coded and its first only over known
channels.
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
    Block,
    IntLinear,
    Layer,
    Numbers,
    settle,
    shuffle2,
)
from service.codec.sizes import Sizes
from service.errors import StoreError

Y_FRAC = 6
"""mu and y_hat are integers in units of 1/64."""

Z_FRAC = 3
"""z_hat - z.mean enters the networks in units of 1/8, clipped to ±ACTIVATION_MAX."""

STEP_FRAC = 8
"""Quantiser steps have this many fractional bits more than what they step through."""

MU_MAX = 2**14 - 1
"""|mu| is clipped to 255.98. Extreme pictures reach 145."""

Y_MAX = 2**15 - 1
"""|y_hat| is clipped to 511.98."""

STEP_MAX = 2**21 - 1
"""Largest stored quantiser step: symbol · step fits 32 bits."""

SYMBOL_MAX = 511
"""Symbols are integers in ±511."""

LEVELS = 64
"""Scale levels; level 0 is not coded, its symbol is always 0."""

STEPS = 4

GROUP_AT = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]])
"""[step, class]: which channel group (channels g, g+4, g+8, ...) is coded there."""

Symbols = NDArray[np.int32]
Choose = Callable[[int, NDArray[np.int32], NDArray[np.uint8]], Symbols]
"""(step, mu, levels) -> symbols, all flat in coding order, per batch item [B, n]."""


class Walk(Protocol):
    """The networks on their way through the four steps of some latents."""

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """mu and levels of step t, [B, n] each, in coding order."""
        ...

    def learn(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        """Take in y_hat of one channel group at one class of positions: [B, rows, cols, M/4]."""
        ...


class EntropyModel:
    """The integer networks of one model at one rate. Immutable; safe to share between threads."""

    def __init__(
        self, sizes: Sizes, tensors: Mapping[str, NDArray[Any]], numbers: Numbers = NUMPY
    ) -> None:
        """Build from stored tensors.

        Args:
            sizes: channel counts.
            tensors: names "h_s.0.weight" and so on, see export/export.py.
            numbers: array module, float type and device to run on.

        Raises:
            StoreError: a tensor is missing, of the wrong shape, or could overflow.
        """
        self.sizes, self.numbers, self.xp = sizes, numbers, numbers.xp

        up0 = IntLinear.from_tensors(tensors, "h_s.0", (4 * sizes.Cz, sizes.Cz))
        up1 = IntLinear.from_tensors(tensors, "h_s.2", (4 * sizes.cp, sizes.Cz))
        self.up0 = Layer(numbers, up0, input_max=ACTIVATION_MAX, name="h_s.0")
        self.block0 = Block(numbers, tensors, "h_s.1", sizes.Cz)
        self.up1 = Layer(numbers, up1, input_max=ACTIVATION_MAX, name="h_s.2")
        self.block1 = Block(numbers, tensors, "h_s.3", sizes.cp)
        self.steps = [Step(sizes, tensors, numbers, t) for t in range(STEPS)]
        context_frac = vector(tensors, "context.frac", sizes.M, -30, 30).astype(np.int64)
        self.context_shift = numbers.carry(np.ldexp(1.0, context_frac - Y_FRAC))
        self.z_levels = vector(tensors, "z.level", sizes.Cz, 1, LEVELS - 1).astype(np.uint8)
        self.z_mean = vector(tensors, "z.mean", sizes.Cz, -(2**31), 2**31 - 1) / 2.0**16
        self._y_step = _steps(tensors, "y.step", sizes.M)
        self._z_step = _steps(tensors, "z.step", sizes.Cz)

    @property
    def z_step(self) -> NDArray[np.float64]:
        """Quantiser steps of z, [Cz]."""
        return self._z_step / 2.0 ** (Z_FRAC + STEP_FRAC)

    def y_steps(self, t: int, height: int, width: int) -> NDArray[np.float32]:
        """Quantiser steps of y in the coding order of step t, in units of 2^-Y_FRAC, [n]."""
        groups = [
            np.tile(self._y_step[GROUP_AT[t, p] :: 4], c.size)
            for p, c in enumerate(classes_of(height, width))
        ]
        return (np.concatenate(groups) / 2.0**STEP_FRAC).astype(np.float32)

    def begin(self, z_hat: NDArray[np.int32], height: int, width: int) -> Walk:
        """Run h_s and be ready for step 0; another way to run the networks replaces this.

        Args:
            z_hat: [B, ceil(height/4), ceil(width/4), Cz] in units of 2^-Z_FRAC, in ±ACTIVATION_MAX.
            height: of the latents.
            width: of the latents.
        """
        return _Walk(self, self.features(z_hat)[:, :height, :width])

    def features(self, z_hat: NDArray[np.int32]) -> Array:
        """h_s. z_hat: see `begin` -> P [B, 4h, 4w, cp] integers."""
        x = self.numbers.carry(z_hat)
        x = self.block0(settle(self.xp, shuffle2(self.up0.accumulate(x))))
        return self.block1(settle(self.xp, shuffle2(self.up1.accumulate(x))))

    def run(
        self, z: NDArray[np.int32], height: int, width: int, choose: Choose
    ) -> NDArray[np.int16]:
        """Walk the four steps.

        Args:
            z: [B, ceil(height/4), ceil(width/4), Cz] hyper-latent symbols.
            height: of the latents.
            width: of the latents.
            choose: gives the symbols of each step; see `gather` for their order, 0 at level 0.

        Returns:
            y_hat [B, height, width, M] in units of 2^-Y_FRAC, int16.
        """
        z_hat = _times_step(z, self._z_step).clip(-ACTIVATION_MAX, ACTIVATION_MAX)
        walk = self.begin(z_hat, height, width)
        classes = classes_of(height, width)
        quarter = self.sizes.M // 4
        coded = [np.empty((len(z), c.height, c.width, STEPS, quarter), np.int16) for c in classes]
        for t in range(STEPS):
            mu, levels = walk.parameters(t)
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
                    walk.learn(p, int(GROUP_AT[t, p]), value)
        y_hat = np.empty((len(z), height, width, self.sizes.M), np.int16)
        for p, c in enumerate(classes):
            step_of_group = np.argsort(GROUP_AT[:, p])
            by_group = coded[p][..., step_of_group, :].swapaxes(-1, -2)
            y_hat[:, c.rows, c.cols] = by_group.reshape(len(z), c.height, c.width, self.sizes.M)
        return y_hat

    def context(self, y_hat: NDArray[np.int32], group: int) -> Array:
        """y_hat of one channel group as activations."""
        scaled = self.numbers.carry(y_hat) * self.context_shift[group::4] + 0.5
        return settle(self.xp, scaled)


class _Walk:
    """A walk in the numbers of its model, layer by layer."""

    def __init__(self, model: EntropyModel, features: Array) -> None:
        """features: P [B, H, W, cp]."""
        _, height, width, _ = features.shape
        self._model, self._classes = model, classes_of(height, width)
        self._parts = [features[:, c.rows, c.cols] for c in self._classes]
        # The part of each first layer that reads P: [B, H, W, cc] multiples of 2^-shift.
        self._shared = [step.features.accumulate(features) for step in model.steps[1:]]
        self._known: list[list[Array]] = [[] for _ in self._classes]

    def learn(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        self._known[p].append(self._model.context(y_hat, group))

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        step, numbers, xp = self._model.steps[t], self._model.numbers, self._model.xp
        quarter = self._model.sizes.M // 4
        hidden = self._parts if t == 0 else self._hidden(t)
        means, levels = [], []
        for head, h in zip(step.heads, hidden, strict=True):
            out = head.accumulate(h)
            xp.floor(out, out=out)
            flat = out.reshape(len(out), -1, 2 * quarter)
            means.append(xp.clip(flat[..., :quarter], -MU_MAX, MU_MAX).reshape(len(out), -1))
            levels.append(xp.clip(flat[..., quarter:], 0, LEVELS - 1).reshape(len(out), -1))
        mu = numbers.integers(xp.concatenate(means, 1))
        return mu, numbers.integers(xp.concatenate(levels, 1)).astype(np.uint8)

    def _hidden(self, t: int) -> list[Array]:
        """First layer and block of step t; the block's output at each class of positions."""
        step, shared, xp = self._model.steps[t], self._shared[t - 1], self._model.xp
        for c, layer, values in zip(self._classes, step.context, self._known, strict=True):
            shared[:, c.rows, c.cols] += layer.multiply(xp.concatenate(values, -1))
        out = step.block(settle(xp, shared))
        return [out[:, c.rows, c.cols] for c in self._classes]


@dataclass(frozen=True)
class Class:
    """The positions of one class in a latent grid."""

    rows: slice
    cols: slice
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width


def classes_of(height: int, width: int) -> tuple[Class, ...]:
    """The four classes of a grid; those of a grid of one row or column may be empty."""
    return tuple(
        Class(slice(r, None, 2), slice(c, None, 2), (height - r + 1) // 2, (width - c + 1) // 2)
        for r, c in (divmod(p, 2) for p in range(STEPS))
    )


class Step:
    """One step's network: a linear head for step 0; linear, block, head for the others."""

    def __init__(
        self,
        sizes: Sizes,
        tensors: Mapping[str, NDArray[Any]],
        numbers: Numbers,
        t: int,
    ) -> None:
        name = f"step.{t}"
        head = IntLinear.from_tensors(
            tensors, f"{name}.head", (2 * sizes.M, sizes.cp if t == 0 else sizes.cc)
        )
        groups = [np.arange(GROUP_AT[t, p], sizes.M, 4) for p in range(STEPS)]
        self.heads = [
            Layer(
                numbers,
                head.rows(np.concatenate([g, g + sizes.M])),
                input_max=ACTIVATION_MAX,
                name=f"{name}.head",
            )
            for g in groups
        ]
        if t == 0:
            return
        first = IntLinear.from_tensors(tensors, f"{name}.first", (sizes.cc, sizes.cp + sizes.M))
        # The whole layer, which proves its bound: its two halves are added before rounding.
        self.first = Layer(numbers, first, input_max=ACTIVATION_MAX, name=f"{name}.first")
        reads_p = IntLinear(first.weight[:, : sizes.cp], first.bias, first.shift)
        self.features = Layer(numbers, reads_p, input_max=ACTIVATION_MAX, name=f"{name}.first")
        reads_y = first.columns(np.arange(sizes.cp, sizes.cp + sizes.M))
        self.context = [
            Layer(
                numbers,
                reads_y.columns(
                    np.concatenate([np.arange(GROUP_AT[s, p], sizes.M, 4) for s in range(t)])
                ),
                input_max=ACTIVATION_MAX,
                name=f"{name}.first",
            )
            for p in range(STEPS)
        ]
        self.block = Block(numbers, tensors, f"{name}.block", sizes.cc)


def gather(values: Array, t: int) -> Array:
    """Reorder latents [B, H, W, M] into the coding order of step t: [B, n].

    Order: class 0–3; within a class row by row; within a position the group's channels upwards.
    """
    batch, height, width, _ = values.shape
    parts = []
    for p, c in enumerate(classes_of(height, width)):
        parts.append(values[:, c.rows, c.cols, GROUP_AT[t, p] :: 4].reshape(batch, -1))
    return np.concatenate(parts, 1)


def _times_step(symbols: NDArray[np.int32], step: NDArray[np.int32]) -> NDArray[np.int32]:
    """symbol · step rounded to the format without STEP_FRAC, a fresh array."""
    out = symbols * step
    out += 2 ** (STEP_FRAC - 1)
    out >>= STEP_FRAC
    return out


def _steps(tensors: Mapping[str, NDArray[Any]], name: str, size: int) -> NDArray[np.int32]:
    """Quantiser steps, positive."""
    steps: NDArray[np.int32] = vector(tensors, name, size, 1, STEP_MAX).astype(np.int32)
    return steps


def vector(
    tensors: Mapping[str, NDArray[Any]], name: str, size: int, low: int, high: int
) -> NDArray[Any]:
    """A stored integer vector of a known length, its values within low..high.

    Raises:
        StoreError: missing, of another shape or kind, or a value out of range.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != (size,) or not np.issubdtype(tensor.dtype, np.integer):
        found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise StoreError(f"tensor {name} is {found}, expected {size} integers")
    if tensor.min() < low or tensor.max() > high:
        raise StoreError(
            f"tensor {name} holds {tensor.min()} to {tensor.max()}, expected {low} to {high}"
        )
    return tensor
