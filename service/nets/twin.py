"""The float twin of a stored model: a Backbone with the weights that its integers stand for.

Integers have no gradients, so training adapters (service/train) and adapting to one picture
(service/adapt) differentiate the twin instead. The tensors may be those of the base or merged for a
rate: the quantiser steps and level offsets of a rate are part of them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.codec.entropy_model import STEP_FRAC, Y_FRAC, Z_FRAC
from service.codec.lowrank import LOG_WEIGHTS
from service.nets.model import Backbone
from service.store.model import StoredModel

PROMPTS = LOG_WEIGHTS[0]
"""A tensor that transforms with prompts have."""

F64 = NDArray[np.float64]


def torch_name(layer: str) -> str:
    """Name in Backbone of a layer of the stored entropy networks."""
    part = layer.split(".")
    if part[0] == "h_s":
        return f"{layer}.l" if len(part) == 2 else layer
    t, kind = int(part[1]), part[2]
    if kind == "head":
        return "head0" if t == 0 else f"ctx.{t - 1}.2"
    return f"ctx.{t - 1}.0" if kind == "first" else f"ctx.{t - 1}.1.{part[3]}"


def entropy_layers(stored: StoredModel) -> list[str]:
    """Names of the integer layers of a model, sorted."""
    return sorted(n.removesuffix(".weight") for n in stored.entropy if n.endswith(".weight"))


def float_twin(stored: StoredModel) -> Backbone:
    """A frozen float32 Backbone that computes what the stored integers compute, unrounded."""
    model = Backbone(stored.sizes, nn.Linear)
    if PROMPTS in stored.transforms:
        model.attach_prompts()
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
    model.y_step, model.z_step = quantiser_steps(stored)
    model.unit_step = model.y_step.clone()
    return model.eval().requires_grad_(False)


def _real_layer(stored: StoredModel, layer: str) -> tuple[F64, F64]:
    """The real weight [N, K] and bias [N] that the integers of a layer stand for."""
    unit, columns = units(stored, layer)
    weight = stored.entropy[f"{layer}.weight"] * unit[:, None] * columns
    weight = weight * tap_scale(stored, layer)[:, None]
    half = np.exp2(stored.entropy[f"{layer}.shift"].astype(np.float64) - 1)
    bias = (stored.entropy[f"{layer}.bias"] - half) * unit
    return weight, bias


def units(stored: StoredModel, layer: str) -> tuple[F64, F64]:
    """Real value of one unit of an integer weight, as factors of rows [N] and of columns [K]."""
    shift, out_frac, in_frac = (
        stored.entropy[f"{layer}.{part}"].astype(np.float64)
        for part in ("shift", "out_frac", "in_frac")
    )
    rows = np.exp2(-shift - out_frac)
    if layer.endswith(".head"):
        rows[stored.sizes.M :] /= 8  # the float networks give level / 8
    columns: F64 = np.exp2(in_frac)
    return rows, columns


def tap_scale(stored: StoredModel, layer: str) -> F64:
    """Factor [N] of a layer's weights in addition to `units`.

    It is 1 but for depthwise layers, whose taps are in the format of the channel that they read.
    """
    if not layer.endswith(".dw"):
        return np.ones(len(stored.entropy[f"{layer}.bias"]))
    pw1 = stored.entropy[f"{layer.removesuffix('dw')}pw1.out_frac"].astype(np.float64)
    scale: F64 = np.exp2(pw1)
    return scale


def quantiser_steps(stored: StoredModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiser steps of y [M] and z [Cz] as float32 tensors."""
    y = torch.from_numpy(stored.entropy["y.step"].astype(np.float32))
    z = torch.from_numpy(stored.entropy["z.step"].astype(np.float32))
    return y / 2 ** (Y_FRAC + STEP_FRAC), z / 2 ** (Z_FRAC + STEP_FRAC)
