"""Quantisation of float entropy networks to the integer layers of codec/entropy_model.py.

This is post-training quantisation. Each channel of an activation gets a power-of-two scale, from
the largest value on calibration pictures. Each output channel gets the largest weight shift whose
accumulator bound stays below LIMIT, and below RATE_LIMIT at rates that were trained with the base.
The bound is computed from the integer weights, not sampled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.coder import TOTAL_BITS
from service.codec.entropy_model import LEVELS, STEP_FRAC, STEPS, SYMBOL_MAX, Y_FRAC, Z_FRAC
from service.codec.fixed_point import ACTIVATION_MAX, EXACT_FLOAT32, LEAK, IntLinear
from service.nets.backbone import Block, Up
from service.nets.model import LOG_STEP, SIGMA_MIN, Backbone, step_masks

F64 = NDArray[np.float64]

LIMIT = 2**23
"""Half of float32's exact range; the other half is room for adapters that are trained later."""

RATE_LIMIT = 0.9 * EXACT_FLOAT32
"""Limit of rates that were trained with the base; the rest is room for rounding their factors."""

MARGIN = 1.25
"""Activations may exceed their largest value in calibration by this factor before they clip."""


@dataclass
class Ranges:
    """Largest |activation| per channel at each point where the integer networks round."""

    largest: dict[str, Tensor] = field(default_factory=lambda: defaultdict(lambda: torch.zeros(1)))

    def record(self, name: str, x: Tensor) -> Tensor:
        """Record the values x [..., C] at a point, and return x."""
        self.largest[name] = torch.maximum(
            self.largest[name], x.abs().reshape(-1, x.shape[-1]).amax(0)
        )
        return x

    def frac(self, name: str) -> NDArray[np.int64]:
        """Return the most fractional bits [C] with which MARGIN · largest fits ±ACTIVATION_MAX."""
        largest = self.largest[name].double().numpy().clip(2.0**-12)
        return np.floor(np.log2(ACTIVATION_MAX / (MARGIN * largest))).astype(np.int64)


@torch.inference_mode()
def calibrate(models: Sequence[Backbone], pictures: Sequence[Tensor]) -> Ranges:
    """Record the ranges of folded models on pictures [B, H, W, 3] in [0, 1], with real rounding."""
    ranges = Ranges()
    for model, x in product(models, pictures):
        y = model.g_a(x - 0.5)
        symbols = ((model.h_a(y) - model.z_mean) / model.z_step).round()
        p = symbols * model.z_step + model.z_mean
        for place in (0, 2):
            p = ranges.record(f"h_s.{place}", model.h_s[place](p))
            p = _record_block(model.h_s[place + 1], p, ranges, f"h_s.{place + 1}")
        y_hat = torch.zeros_like(y)
        for t, mask in enumerate(step_masks(y.shape[1], y.shape[2], y.shape[3], y.device)):
            if t == 0:
                out = model.head0(p)
            else:
                first, block, head = model.step(t)
                h = ranges.record(f"step.{t}.first", first(torch.cat([p, y_hat], -1)))
                out = head(_record_block(block, h, ranges, f"step.{t}.block"))
            mu = out.chunk(2, -1)[0]
            symbols = ((y - mu) / model.y_step).round()
            y_hat = y_hat + mask * (symbols * model.y_step + mu)
        ranges.record("context", y_hat)
    return ranges


def _record_block(block: nn.Module, x: Tensor, ranges: Ranges, name: str) -> Tensor:
    """Compute Block.forward, and record each rounding point; x and both sums share a format."""
    assert isinstance(block, Block)
    t = ranges.record(f"{name}.pw1", F.leaky_relu(block.pw1(x), LEAK))
    t = ranges.record(f"{name}.dw", block.dw(t))
    x = x + block.pw2(t)
    hidden = ranges.record(f"{name}.f1", F.leaky_relu(block.f1(x), LEAK))
    ranges.record(f"{name}.sum", x)
    return ranges.record(f"{name}.sum", x + block.f2(hidden))


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A layer of the entropy networks, and the formats of its input and output.

    Attributes:
        weight: [N, K].
        bias: [N].
        in_frac, out_frac: fractional bits of the input [K] and of the output [N].
    """

    weight: F64
    bias: F64
    in_frac: NDArray[np.int64]
    out_frac: NDArray[np.int64]


def quantise(
    model: Backbone, ranges: Ranges, rates: Sequence[Backbone] = ()
) -> dict[str, NDArray[np.generic]]:
    """Quantise a folded model to integer tensors, named as EntropyModel expects them.

    The shifts leave room for the weights of its rates, which `ranges` include.
    """
    out: dict[str, NDArray[np.generic]] = {}
    s = model.sizes
    at_rates = [_float_layers(rate, ranges) for rate in rates]
    for name, layer in _float_layers(model, ranges).items():
        integers = quantise_linear(layer, name, [layers[name] for layers in at_rates])
        out[f"{name}.weight"] = integers.weight.astype(np.int16)
        out[f"{name}.bias"] = integers.bias.astype(np.int32)
        out[f"{name}.shift"] = integers.shift.astype(np.int8)
        out[f"{name}.in_frac"] = layer.in_frac.astype(np.int8)
        out[f"{name}.out_frac"] = layer.out_frac.astype(np.int8)
    out["context.frac"] = ranges.frac("context").astype(np.int8)
    levels = (model.z_idx.detach().double().numpy() * 8).round().clip(1, LEVELS - 1)
    out["z.level"] = levels.astype(np.uint8)
    out["y.step"] = np.round(_f64(model.y_step) * 2 ** (Y_FRAC + STEP_FRAC)).astype(np.int32)
    out["z.step"] = np.full(s.Cz, 2 ** (Z_FRAC + STEP_FRAC), np.int32)
    out["z.mean"] = np.round(_f64(model.z_mean) * 2**16).astype(np.int32)
    out["tables"] = gaussian_tables().astype(np.int32)
    return out


def _float_layers(model: Backbone, ranges: Ranges) -> dict[str, FloatLayer]:
    """Return every layer of the entropy networks by its stored name."""
    out: dict[str, FloatLayer] = {}
    s = model.sizes
    z_frac = np.full(s.Cz, Z_FRAC)
    p_frac = _up_block(out, model, 0, z_frac, ranges, bias_input=model.z_mean)
    p_frac = _up_block(out, model, 2, p_frac, ranges, bias_input=None)
    context_frac = ranges.frac("context")
    for t in range(STEPS):
        if t == 0:
            frac = p_frac
        else:
            first, block, _ = model.step(t)
            frac = _joint_frac(ranges, f"step.{t}.first", f"step.{t}.block.sum")
            inputs = np.concatenate([p_frac, context_frac])
            out[f"step.{t}.first"] = FloatLayer(*_linear(first), inputs, frac)
            _block(out, block, f"step.{t}.block", frac, ranges)
        weight, bias = _linear(model.head0 if t == 0 else model.step(t)[2])
        weight[s.M :] *= 8  # the networks give level / 8
        bias[s.M :] *= 8
        head_frac = np.concatenate([np.full(s.M, Y_FRAC), np.zeros(s.M, np.int64)])
        out[f"step.{t}.head"] = FloatLayer(weight, bias, frac, head_frac)
    return out


def gaussian_tables() -> NDArray[np.int64]:
    """Return the probabilities of 0, ±1, ±2, ... at each level: [LEVELS, SYMBOL_MAX + 1].

    They are in units of 2^-24, each at least 1; with both signs, a level sums to 2^24 exactly.
    """
    symbols = 2 * SYMBOL_MAX + 1
    out = np.ones((LEVELS, SYMBOL_MAX + 1), np.int64)
    for k in range(LEVELS):
        r = math.sqrt(0.5) / (SIGMA_MIN * math.exp(LOG_STEP * k))
        edges = np.array([math.erfc((i - 0.5) * r) for i in range(SYMBOL_MAX + 2)])
        p = 0.5 * (edges[:-1] - edges[1:])
        p /= p[0] + 2 * p[1:].sum()
        out[k] += np.floor(p * (2**TOTAL_BITS - symbols)).astype(np.int64)
        out[k, 0] += 2**TOTAL_BITS - out[k, 0] - 2 * out[k, 1:].sum()
    return out


def quantise_linear(layer: FloatLayer, name: str, at_rates: Sequence[FloatLayer] = ()) -> IntLinear:
    """Return the integer layer whose floor((Wq + b) / 2^shift) is closest to a float layer.

    `at_rates`, the layer at rates, keep the accumulator bound with the same shifts.

    Raises:
        ValueError: the accumulator bound does not hold even with shift 0.
    """
    scaled, offset = _in_steps(layer)
    candidates = [(scaled, offset, LIMIT), *((*_in_steps(r), RATE_LIMIT) for r in at_rates)]
    shift = np.full(len(scaled), -1, np.int64)
    for s in range(24):
        fits = np.full(len(scaled), True)
        for weight, bias, limit in candidates:
            total = np.abs(np.round(weight * 2.0**s)).sum(1) * ACTIVATION_MAX
            fits &= total + np.abs(np.round(bias * 2.0**s)) < limit
        shift = np.where(fits, s, shift)
    if (shift < 0).any():
        raise ValueError(f"layer {name}: weights too large for the exact range at shift 0")
    return IntLinear(
        np.round(scaled * np.exp2(shift)[:, None]).astype(np.int32),
        np.round(offset * np.exp2(shift)).astype(np.int64),
        shift.astype(np.int32),
    )


def _in_steps(layer: FloatLayer) -> tuple[F64, F64]:
    """Return weight and bias in steps of the formats; 1/2 is added to the bias for rounding."""
    weight = layer.weight * np.exp2(layer.out_frac)[:, None] * np.exp2(-layer.in_frac)[None]
    return weight, layer.bias * np.exp2(layer.out_frac) + 0.5


def _up_block(
    out: dict[str, FloatLayer],
    model: Backbone,
    index: int,
    in_frac: NDArray[np.int64],
    ranges: Ranges,
    bias_input: Tensor | None,
) -> NDArray[np.int64]:
    """Add h_s[index] (Up 2) and the block after it, and return the block's format."""
    up, block = model.h_s[index], model.h_s[index + 1]
    assert isinstance(up, Up)
    frac = _joint_frac(ranges, f"h_s.{index}", f"h_s.{index + 1}.sum")
    weight, bias = _linear(up.l)
    if bias_input is not None:
        bias = bias + weight @ _f64(bias_input)
    out[f"h_s.{index}"] = FloatLayer(weight, bias, in_frac, np.tile(frac, 4))
    _block(out, block, f"h_s.{index + 1}", frac, ranges)
    return frac


def _block(
    out: dict[str, FloatLayer],
    block: nn.Module,
    name: str,
    frac: NDArray[np.int64],
    ranges: Ranges,
) -> None:
    assert isinstance(block, Block) and block.dw.bias is not None
    pw1, dw, f1 = (ranges.frac(f"{name}.{part}") for part in ("pw1", "dw", "f1"))
    out[f"{name}.pw1"] = FloatLayer(*_linear(block.pw1), frac, pw1)
    # A depthwise output channel reads one input channel, so its format is folded into the taps.
    taps = _f64(block.dw.weight).reshape(-1, 9) * np.exp2(-pw1)[:, None]
    out[f"{name}.dw"] = FloatLayer(taps, _f64(block.dw.bias), np.zeros(9, np.int64), dw)
    out[f"{name}.pw2"] = FloatLayer(*_linear(block.pw2), dw, frac)
    out[f"{name}.f1"] = FloatLayer(*_linear(block.f1), frac, f1)
    out[f"{name}.f2"] = FloatLayer(*_linear(block.f2), f1, frac)


def _joint_frac(ranges: Ranges, *names: str) -> NDArray[np.int64]:
    fracs: NDArray[np.int64] = np.minimum.reduce([ranges.frac(n) for n in names])
    return fracs


def _linear(layer: nn.Module) -> tuple[F64, F64]:
    assert isinstance(layer, nn.Linear)
    return _f64(layer.weight), _f64(layer.bias)


def _f64(tensor: Tensor) -> F64:
    values: F64 = tensor.detach().double().cpu().numpy()
    return values.copy()
