"""Conversions between trained adapters and what is stored of them.

This module sets the units in which adapters of a stored model are trained, quantises a trained
adapter to an 8-bit update, and loads an update into an adapter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.codec.entropy_model import LEVELS, STEP_FRAC, STEP_MAX, Y_FRAC, Z_FRAC
from service.codec.lowrank import OFFSET_FRAC, LayerUpdate, Update, scales
from service.nets.lora import Domain, PromptAdapter, RateAdapter
from service.nets.model import LOG_STEP
from service.nets.twin import entropy_layers, tap_scale, torch_name, units
from service.store.model import StoredModel

F64 = NDArray[np.float64]

TYPICAL_ACTIVATION = 128
"""Order of magnitude of integer activations; sets the unit of bias deltas."""


def domains(stored: StoredModel, ranks: dict[str, int]) -> dict[str, Domain]:
    """The scales and ranks in which each layer of a model is adapted, by its name in Backbone.

    Args:
        ranks: rank of the updates of "g_a", "g_s", "h_a" and "entropy", and of the "kernels" (the
            depthwise layers) of g_a and g_s.
    """
    out = {}
    for name, weight in stored.transforms.items():
        layer, _, part = name.rpartition(".")
        if part != "weight":
            continue
        row_scales, column_scales = scales(weight)
        rows, columns = _t(row_scales), _t(column_scales)
        fan_in = weight[0].size
        rank = ranks[name[:3]]
        if weight.ndim > 2:
            rank = 0 if layer.startswith("h_a") else ranks.get("kernels", 0)
        out[layer] = Domain(rows, columns, rows * math.sqrt(fan_in), rank)
    for layer in entropy_layers(stored):
        unit, inputs = units(stored, layer)
        weight_unit = unit * _step(stored, layer) * tap_scale(stored, layer)
        bias_unit = unit * _bias_step(stored, layer)
        rank = 0 if layer.endswith(".dw") else ranks["entropy"]
        out[torch_name(layer)] = Domain(_t(weight_unit), _t(inputs), _t(bias_unit), rank)
    return out


@torch.no_grad()
def quantise_adapter(stored: StoredModel, adapter: RateAdapter) -> Update:
    """Return a trained adapter of a stored model as an update: 8-bit factors, float16 prompts."""
    layers = {}
    prompts = {}
    if isinstance(adapter, PromptAdapter):
        prompts = {n: t.detach().half().numpy() for n, t in adapter.prompts().items()}
    for layer in entropy_layers(stored):
        name = torch_name(layer)
        if name not in adapter.domains:
            continue
        unit = _bias_unit(stored, layer)
        groups = 2 if layer.endswith(".head") else 1
        bias = adapter.d[name.replace(".", "/")].double().numpy()
        bias = (bias + _mean_response(stored, adapter, name)) * unit
        layers[layer] = _layer(adapter, name, _step(stored, layer), bias, groups)
    for name, domain in adapter.domains.items():
        if name.startswith(("g_a", "g_s", "h_a")):
            unit = (domain.bias / domain.rows).double().numpy()
            bias = adapter.d[name.replace(".", "/")].double().numpy() * unit
            layers[name] = _layer(adapter, name, 1.0, bias, 1)
    unit_step = adapter.unit_step.double().numpy()
    # the step of a channel that a rate does not use can grow without bound
    largest = STEP_MAX / 2.0 ** (Y_FRAC + STEP_FRAC)
    y_step = np.minimum(unit_step * np.exp(adapter.log_y_step.double().numpy()), largest)
    z_step = adapter.log_z_step.exp().double().numpy()
    levels = (adapter.z_idx.double().numpy() * 8).round().clip(1, LEVELS - 1)
    offset = -np.log(y_step / unit_step) / LOG_STEP
    return Update(
        layers,
        {
            "y.step": np.round(y_step * 2 ** (Y_FRAC + STEP_FRAC)).astype(np.int32),
            "z.step": np.round(z_step * 2 ** (Z_FRAC + STEP_FRAC)).astype(np.int32),
            "z.level": levels.astype(np.uint8),
            "level.offset": np.round(offset * 2**OFFSET_FRAC).astype(np.int16),
        },
        prompts,
    )


@torch.no_grad()
def load_update(adapter: RateAdapter, stored: StoredModel, update: Update) -> None:
    """Load an update of a stored model into an adapter of the same sizes, in place.

    If the adapter's base is that model, the adapter then merges to the same weights as the update;
    if its base was trained on from that model, to similar ones. Factors beyond the adapter's ranks
    are dropped, and so are changes of layers that the adapter does not change.
    """
    if isinstance(adapter, PromptAdapter):
        weights = adapter.prompts()
        for name, values in update.prompts.items():
            weights[name].copy_(_t(values))
    for layer, change in update.layers.items():
        step, groups = 1.0, len(change.bias_e)
        name = layer
        if f"{layer}.weight" in stored.entropy:
            name, step = torch_name(layer), _step(stored, layer)
            unit = _bias_unit(stored, layer)
        else:
            weight = stored.transforms[f"{layer}.weight"]
            unit = np.full(len(weight), math.sqrt(weight[0].size))
        key = name.replace(".", "/")
        if key not in adapter.d:
            continue
        exponents = np.repeat(change.bias_e.astype(np.float64), len(change.bias) // groups)
        bias = change.bias * np.exp2(exponents) / unit
        adapter.d[key].copy_(_t(bias))
        if key in adapter.a:
            a, b = change.a.astype(np.float64), change.b * np.exp2(change.e.astype(np.float64))
            scale = np.sqrt(np.square(a).mean(1)).clip(1e-9)  # A factors start with unit variance
            rank = min(len(a), len(adapter.a[key]))
            adapter.a[key][:rank] = _t((a / scale[:, None])[:rank])
            adapter.b[key][:, :rank] = _t((b / step * scale)[:, :rank])
            adapter.d[key].sub_(_t(_mean_response(stored, adapter, name)))
    vectors = update.vectors
    adapter.log_y_step.copy_(_t(np.log(vectors["y.step"] / stored.entropy["y.step"])))
    adapter.log_z_step.copy_(_t(np.log(vectors["z.step"] / 2.0 ** (Z_FRAC + STEP_FRAC))))
    adapter.z_idx.copy_(_t(vectors["z.level"] / 8.0))


def _mean_response(stored: StoredModel, adapter: RateAdapter, name: str) -> F64:
    """The response of the first layer of h_s to a change of its weights, as a bias delta [N].

    Its stored input lacks z.mean, whose response is part of the stored bias.
    """
    domain, key = adapter.domains[name], name.replace(".", "/")
    if name != torch_name("h_s.0") or not domain.rank:
        return np.zeros(len(domain.rows))
    mean = stored.entropy["z.mean"] / 2.0**16
    hidden = adapter.a[key].double().numpy() @ (domain.columns.double().numpy() * mean)
    change = domain.rows.double().numpy() * (adapter.b[key].double().numpy() @ hidden)
    out: F64 = change / domain.bias.double().numpy()
    return out


def _layer(adapter: RateAdapter, name: str, step: float, bias: F64, groups: int) -> LayerUpdate:
    """Quantise a layer's factors, and its bias deltas in `groups` that have their own exponents."""
    key, domain = name.replace(".", "/"), adapter.domains[name]
    a, b = np.zeros((0, len(domain.columns))), np.zeros((len(bias), 0))
    if domain.rank:
        a, b = adapter.a[key].double().numpy(), adapter.b[key].double().numpy() * step
    # only the product b·a counts: scale `a` to the whole 8-bit range, and `b` inversely
    peak = np.abs(a).max(1, initial=1e-9)
    whole_a = np.round(a * (127 / peak)[:, None])
    b = b * (peak / 127)
    e = _exponents(np.abs(b).max(0, initial=0.0))
    bias_e = _exponents(np.abs(bias).reshape(groups, -1).max(1))
    spread = np.repeat(bias_e, len(bias) // groups)
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


def _step(stored: StoredModel, layer: str) -> float:
    """A power of two near the rms of a layer's integer weights: the unit of its factors."""
    weight = stored.entropy[f"{layer}.weight"].astype(np.float64)
    return 2.0 ** round(math.log2(max(1.0, float(np.sqrt(np.square(weight).mean())))))


def _bias_step(stored: StoredModel, layer: str) -> F64:
    """Accumulator steps in one unit of a bias delta, [N]."""
    weight = stored.entropy[f"{layer}.weight"].astype(np.float64)
    rms = np.sqrt(np.square(weight).mean(1)).clip(1)
    out: F64 = rms * math.sqrt(weight.shape[1]) * TYPICAL_ACTIVATION
    return out


def _bias_unit(stored: StoredModel, layer: str) -> F64:
    """One unit of a bias delta in steps of the layer's output (2^shift accumulator steps), [N]."""
    out: F64 = _bias_step(stored, layer) / np.exp2(stored.entropy[f"{layer}.shift"].astype(float))
    return out


def _t(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
