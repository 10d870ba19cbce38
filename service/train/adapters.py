"""Between the store's integers and the trainer's floats.

The float twin of a stored model, the domains in which its adapters are trained, and trained
adapters as 8-bit updates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.entropy_model import LEVELS, STEP_FRAC, Y_FRAC, Z_FRAC
from service.codec.lowrank import OFFSET_FRAC, LayerUpdate, Update, scales
from service.nets.lora import Domain, RateAdapter
from service.nets.model import LOG_STEP, Backbone
from service.store import StoredModel

F64 = NDArray[np.float64]

TYPICAL_ACTIVATION = 128
"""Integer activations are of this order; sets the unit of bias deltas."""


def torch_name(layer: str) -> str:
    """Name in Backbone of a layer of the stored entropy model."""
    part = layer.split(".")
    if part[0] == "h_s":
        return f"{layer}.l" if len(part) == 2 else layer
    t, kind = int(part[1]), part[2]
    if kind == "head":
        return "head0" if t == 0 else f"ctx.{t - 1}.2"
    return f"ctx.{t - 1}.0" if kind == "first" else f"ctx.{t - 1}.1.{part[3]}"


def entropy_layers(stored: StoredModel) -> list[str]:
    """Names of the integer layers, in order of name."""
    return sorted(n.removesuffix(".weight") for n in stored.entropy if n.endswith(".weight"))


def float_twin(stored: StoredModel) -> Backbone:
    """A frozen float Backbone that computes what the stored integers say, without rounding."""
    model = Backbone(stored.sizes, nn.Linear)
    state = {n: torch.from_numpy(t.astype(np.float32)) for n, t in stored.transforms.items()}
    z_mean = stored.entropy["z.mean"] / 2.0**16
    for layer in entropy_layers(stored):
        weight, bias = _real_layer(stored, layer)
        if layer == "h_s.0":
            bias = bias - weight @ z_mean
        name = torch_name(layer)
        shape = model.get_parameter(f"{name}.weight").shape
        state[f"{name}.weight"] = torch.from_numpy(weight).float().reshape(shape)
        state[f"{name}.bias"] = torch.from_numpy(bias).float()
    state["z_mean"] = torch.from_numpy(z_mean).float()
    state["z_idx"] = torch.from_numpy(stored.entropy["z.level"] / 8.0).float()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def domains(stored: StoredModel, ranks: dict[str, int]) -> dict[str, Domain]:
    """Scales of every layer of a model, by Backbone name.

    Args:
        stored: the base.
        ranks: rank of the updates of "g_a", "g_s", "h_a" and "entropy".
    """
    out = {}
    for name, weight in stored.transforms.items():
        layer, _, part = name.rpartition(".")
        if part != "weight":
            continue
        row_scales, column_scales = scales(weight)
        rows, columns = _t(row_scales), _t(column_scales)
        fan_in = weight[0].size
        rank = ranks[name[:3]] if weight.ndim == 2 else 0
        out[layer] = Domain(rows, columns, rows * math.sqrt(fan_in), rank)
    for layer in entropy_layers(stored):
        unit, inputs = _units(stored, layer)
        weight_unit = unit * _step(stored, layer) * _tap_scale(stored, layer)
        bias_unit = unit * _bias_step(stored, layer)
        rank = 0 if layer.endswith(".dw") else ranks["entropy"]
        out[torch_name(layer)] = Domain(_t(weight_unit), _t(inputs), _t(bias_unit), rank)
    return out


@torch.no_grad()
def quantised(stored: StoredModel, adapter: RateAdapter) -> Update:
    """A trained adapter with 8-bit factors."""
    layers = {}
    for layer in entropy_layers(stored):
        # bias deltas are stored in units of the layer's output: 2^shift accumulator steps
        shift = stored.entropy[f"{layer}.shift"].astype(np.float64)
        unit = _bias_step(stored, layer) / np.exp2(shift)
        groups = 2 if layer.endswith(".head") else 1
        layers[layer] = _layer(adapter, torch_name(layer), _step(stored, layer), unit, groups)
    for name, domain in adapter.domains.items():
        if name.startswith(("g_a", "g_s", "h_a")):
            unit = (domain.bias / domain.rows).double().numpy()
            layers[name] = _layer(adapter, name, 1.0, unit, 1)
    y_step = adapter.log_y_step.exp().double().numpy()
    z_step = adapter.log_z_step.exp().double().numpy()
    levels = (adapter.z_idx.double().numpy() * 8).round().clip(1, LEVELS - 1)
    offset = -adapter.log_y_step.double().numpy() / LOG_STEP
    return Update(
        layers,
        {
            "y.step": np.round(y_step * 2 ** (Y_FRAC + STEP_FRAC)).astype(np.int32),
            "z.step": np.round(z_step * 2 ** (Z_FRAC + STEP_FRAC)).astype(np.int32),
            "z.level": levels.astype(np.uint8),
            "level.offset": np.round(offset * 2**OFFSET_FRAC).astype(np.int16),
        },
    )


def _layer(
    adapter: RateAdapter, name: str, step: float, bias_unit: F64, groups: int
) -> LayerUpdate:
    key = name.replace(".", "/")
    bias = adapter.d[key].double().numpy() * bias_unit
    rank = adapter.domains[name].rank
    rows, columns = len(adapter.domains[name].rows), len(adapter.domains[name].columns)
    a, b = np.zeros((0, columns)), np.zeros((rows, 0))
    if rank:
        a, b = adapter.a[key].double().numpy(), adapter.b[key].double().numpy() * step
    # only the product counts: give `a` the whole 8-bit range and `b` what it loses
    peak = np.abs(a).max(1, initial=1e-9)
    whole_a = np.round(a * (127 / peak)[:, None])
    b = b * (peak / 127)
    e = _exponents(np.abs(b).max(0, initial=0.0))
    bias_e = _exponents(np.abs(bias).reshape(groups, -1).max(1))
    spread = np.repeat(bias_e, rows // groups)
    return LayerUpdate(
        np.round(b * np.exp2(-e)).astype(np.int8),
        whole_a.astype(np.int8),
        e.astype(np.int8),
        np.round(bias * np.exp2(-spread)).astype(np.int8),
        bias_e.astype(np.int8),
    )


def _exponents(peaks: F64) -> NDArray[np.int64]:
    """Smallest exponents for which peaks fit 127 steps."""
    return np.ceil(np.log2(np.maximum(peaks, 2.0**-20) / 127)).astype(np.int64)


def _real_layer(stored: StoredModel, layer: str) -> tuple[F64, F64]:
    """Weight [N, K] and bias [N] that the integers of a layer stand for."""
    unit, columns = _units(stored, layer)
    weight = stored.entropy[f"{layer}.weight"] * unit[:, None] * columns
    weight = weight * _tap_scale(stored, layer)[:, None]
    half = np.exp2(stored.entropy[f"{layer}.shift"].astype(np.float64) - 1)
    bias = (stored.entropy[f"{layer}.bias"] - half) * unit
    return weight, bias


def _units(stored: StoredModel, layer: str) -> tuple[F64, F64]:
    """Real value of one step of a weight: rows [N] times columns [K]."""
    shift, out_frac, in_frac = (
        stored.entropy[f"{layer}.{part}"].astype(np.float64)
        for part in ("shift", "out_frac", "in_frac")
    )
    rows = np.exp2(-shift - out_frac)
    if layer.endswith(".head"):
        rows[stored.sizes.M :] /= 8  # the float networks give level / 8
    columns: F64 = np.exp2(in_frac)
    return rows, columns


def _tap_scale(stored: StoredModel, layer: str) -> F64:
    """What depthwise taps hold besides their row's unit: the format of the channel they read."""
    if not layer.endswith(".dw"):
        return np.ones(len(stored.entropy[f"{layer}.bias"]))
    pw1 = stored.entropy[f"{layer.removesuffix('dw')}pw1.out_frac"].astype(np.float64)
    scale: F64 = np.exp2(pw1)
    return scale


def _step(stored: StoredModel, layer: str) -> float:
    """A power of two near the rms of a layer's integer weights: the unit of its factors."""
    weight = stored.entropy[f"{layer}.weight"].astype(np.float64)
    return 2.0 ** round(math.log2(max(1.0, float(np.sqrt(np.square(weight).mean())))))


def _bias_step(stored: StoredModel, layer: str) -> F64:
    """Accumulator steps that one unit of a bias delta stands for, [N]."""
    weight = stored.entropy[f"{layer}.weight"].astype(np.float64)
    rms = np.sqrt(np.square(weight).mean(1)).clip(1)
    out: F64 = rms * math.sqrt(weight.shape[1]) * TYPICAL_ACTIVATION
    return out


def _t(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
