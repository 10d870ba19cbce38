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
    stored_integers,
)
from service.codec.sizes import Sizes

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

CLASSES = tuple((slice(row, None, 2), slice(col, None, 2)) for row in range(2) for col in range(2))
"""[class] -> the rows and columns of its positions; a grid of one row or column has empty ones."""

Symbols = NDArray[np.int32]
Choose = Callable[[int, NDArray[np.int32], NDArray[np.uint8]], Symbols]
"""(step, mu, levels) -> symbols, each [B, n] in coding order: int32, Q6 int32 and uint8."""


class StepNetworks(Protocol):
    """The networks of the four steps, with the features and coded latents of one batch."""

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Run step t: mu (Q6) and levels, each [B, n] in coding order."""

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        """Add decoded latents of class p and a channel group: [B, rows, columns, M/4] Q6."""


class EntropyModel:
    """The integer networks of one model at one rate. Immutable; safe to share between threads."""

    def __init__(
        self, sizes: Sizes, tensors: Mapping[str, NDArray[Any]], backend: ArrayBackend = NUMPY
    ) -> None:
        """Build from stored tensors, which service/docs/format.md names.

        Raises:
            StoreError: a tensor is missing, of the wrong shape, or could overflow.
        """
        self.sizes, self.backend, self.xp = sizes, backend, backend.xp

        def integers(name: str, size: int, low: int, high: int) -> NDArray[np.integer[Any]]:
            return stored_integers(tensors, name, (size,), low, high)

        up0 = IntLinear.from_tensors(tensors, "h_s.0", (4 * sizes.Cz, sizes.Cz))
        up1 = IntLinear.from_tensors(tensors, "h_s.2", (4 * sizes.cp, sizes.Cz))
        self.up0 = IntLayer(backend, up0, name="h_s.0")
        self.block0 = IntBlock(backend, tensors, "h_s.1", sizes.Cz)
        self.up1 = IntLayer(backend, up1, name="h_s.2")
        self.block1 = IntBlock(backend, tensors, "h_s.3", sizes.cp)
        self.steps = [Step(sizes, tensors, backend, t) for t in range(STEPS)]
        context_frac = integers("context.frac", sizes.M, -30, 30).astype(np.int64)
        self.context_shift = backend.array(np.ldexp(1.0, context_frac - Y_FRAC))
        self.z_levels = integers("z.level", sizes.Cz, 1, LEVELS - 1).astype(np.uint8)
        self.z_mean = stored_integers(tensors, "z.mean", (sizes.Cz,)) / 2.0**16
        self._y_step = integers("y.step", sizes.M, 1, STEP_MAX).astype(np.int32)
        self._z_step = integers("z.step", sizes.Cz, 1, STEP_MAX).astype(np.int32)

    @property
    def z_step(self) -> NDArray[np.float64]:
        """Quantiser steps of z as real numbers, [Cz]."""
        return self._z_step / 2.0 ** (Z_FRAC + STEP_FRAC)

    def y_steps(self, t: int, height: int, width: int) -> NDArray[np.float32]:
        """Quantiser steps of y in the coding order of step t, [n], in units of 2^-Y_FRAC."""
        everywhere = np.broadcast_to(self._y_step, (1, height, width, self.sizes.M))
        steps: NDArray[np.int32] = gather(everywhere, t)[0]
        return (steps / 2.0**STEP_FRAC).astype(np.float32)

    def begin(self, z_hat: NDArray[np.int32], height: int, width: int) -> StepNetworks:
        """Run h_s and return the step networks; subclasses replace this to run them elsewhere.

        Args:
            z_hat: [B, ceil(height/4), ceil(width/4), Cz] Q3 (Z_FRAC) in ±ACTIVATION_MAX.
            height, width: rows and columns of latents.
        """
        return _ArrayStepNetworks(self, self.features(z_hat)[:, :height, :width])

    def features(self, z_hat: NDArray[np.int32]) -> Array:
        """Run h_s: z_hat [B, h, w, Cz], see `begin`, -> P [B, 4h, 4w, cp] activations."""
        x = self.backend.array(z_hat)
        x = self.block0(shuffle2(self.up0(x)))
        return self.block1(shuffle2(self.up1(x)))

    def run(
        self, z: NDArray[np.int32], height: int, width: int, choose: Choose
    ) -> NDArray[np.int16]:
        """Run the four steps.

        Args:
            z: [B, ceil(height/4), ceil(width/4), Cz] int32 symbols of the hyper-latents.
            height, width: rows and columns of latents.
            choose: returns the symbols of each step in the order of `gather`, 0 at level 0.

        Returns:
            y_hat [B, height, width, M] int16, Q6.
        """
        z_hat = _times_step(z, self._z_step).clip(-ACTIVATION_MAX, ACTIVATION_MAX)
        networks = self.begin(z_hat, height, width)
        y_hat = np.empty((len(z), height, width, self.sizes.M), np.int16)
        for t in range(STEPS):
            mu, levels = networks.parameters(t)
            symbols = choose(t, mu, levels)
            start = 0
            for p, (rows, cols) in enumerate(CLASSES):
                group = int(GROUP_AT[t, p])
                target = y_hat[:, rows, cols, group::4]
                span = slice(start, start := start + target[0].size)
                value = _times_step(symbols[:, span].reshape(target.shape), self._y_step[group::4])
                value += mu[:, span].reshape(target.shape)
                np.clip(value, -Y_MAX, Y_MAX, out=value)
                target[:] = value
                if t < STEPS - 1:
                    networks.add_known(p, group, value)
        return y_hat

    def context(self, y_hat: NDArray[np.int32], group: int) -> Array:
        """y_hat [..., M/4] of one channel group, Q6 -> activations of the same shape."""
        scaled = self.backend.array(y_hat)
        scaled *= self.context_shift[group::4]
        scaled += 0.5
        return floor_and_clip(self.xp, scaled)


class _ArrayStepNetworks:
    """Step networks that run in the array module of their model, layer by layer."""

    def __init__(self, model: EntropyModel, features: Array) -> None:
        """Start with the features P [B, H, W, cp]."""
        self._model = model
        self._parts = [features[:, rows, cols] for rows, cols in CLASSES]
        # What each first layer computes from P: [B, H, W, cc] multiples of 2^-shift.
        self._shared = [step.features.accumulate(features) for step in model.steps[1:]]
        # The coded latents of each class as activations, in the order of the steps.
        coded = (STEPS - 1) * model.sizes.M // 4
        self._known = [model.backend.empty((*p.shape[:3], coded)) for p in self._parts]
        self._channels = [0] * len(CLASSES)

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        start = self._channels[p]
        self._channels[p] += y_hat.shape[-1]
        self._known[p][..., start : self._channels[p]] = self._model.context(y_hat, group)

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        step, backend, xp = self._model.steps[t], self._model.backend, self._model.xp
        quarter = self._model.sizes.M // 4
        hidden = self._parts if t == 0 else self._hidden(t)
        parts = [head.accumulate(h) for head, h in zip(step.heads, hidden, strict=True)]
        out = xp.concatenate([p.reshape(len(p), -1, 2 * quarter) for p in parts], 1)
        xp.floor(out, out=out)
        mu = xp.clip(out[..., :quarter], -MU_MAX, MU_MAX).reshape(len(out), -1)
        levels = xp.clip(out[..., quarter:], 0, LEVELS - 1).reshape(len(out), -1)
        return backend.integers(mu), backend.integers(levels).astype(np.uint8)

    def _hidden(self, t: int) -> list[Array]:
        """Run the first layer and block of step t; returns the result by class of positions."""
        step, shared, xp = self._model.steps[t], self._shared[t - 1], self._model.xp
        known = zip(self._known, self._channels, strict=True)
        for place, layer, (values, channels) in zip(CLASSES, step.context, known, strict=True):
            shared[:, *place] += layer.multiply(values[..., :channels])
        out = step.block(floor_and_clip(xp, shared))
        return [out[:, rows, cols] for rows, cols in CLASSES]


class Step:
    """Layers of one step: a head for step 0; a first layer, a block and a head for the others.

    Heads and the context part of the first layer are cut by class of positions: entry p holds the
    rows or columns of the channels that class p codes in this step, or has coded before.
    """

    def __init__(
        self, sizes: Sizes, tensors: Mapping[str, NDArray[Any]], backend: ArrayBackend, t: int
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
    parts = [values[:, *place, GROUP_AT[t, p] :: 4] for p, place in enumerate(CLASSES)]
    return np.concatenate([part.reshape(len(values), -1) for part in parts], 1)


def _times_step(symbols: NDArray[np.int32], step: NDArray[np.int32]) -> NDArray[np.int32]:
    """symbol · step, rounded to drop STEP_FRAC bits; a new array."""
    out = symbols * step
    out += 2 ** (STEP_FRAC - 1)
    out >>= STEP_FRAC
    return out
