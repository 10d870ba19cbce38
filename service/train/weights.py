"""Weights to train on from: of an earlier run, of a model in a store, or of a state dict.

A stored model has its scales folded into its weights. Training needs them apart (see
transform_start.py), so `unfolded` takes scale vectors out again, by the rms of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from service.codec.sizes import Sizes
from service.errors import BadParameter
from service.nets.backbone import ScaledLinear
from service.nets.lora import RateAdapter
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.store.read import load_model
from service.train.adapters import domains, load_update, read_adapter
from service.train.checkpoint import has_state, read_about, read_tensors
from service.train.ladder import RANKS, RateLadder, divide_latents
from service.train.tunes import PSNR


def from_weights(path: Path, sizes: Sizes | None, rates: Sequence[int]) -> RateLadder:
    """Load earlier weights as a ladder to train on.

    Rates that the source holds are loaded too; the others start as the base.

    Args:
        path: the folder of a run (its averaged weights are used), the folder of a model in a store,
            or a safetensors state dict of Backbone.
        sizes: of the model in a state dict, which does not contain them; folders do.
        rates: of the ladder.

    Raises:
        BadParameter: the path leads to none of these.
    """
    if has_state(path):
        return _from_run(path, rates)
    if (path / "manifest.json").is_file():
        return from_stored(load_model(path), rates)
    base = Backbone(sizes)
    try:
        base.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise BadParameter(
            f"{path} is not a run, a model of a store or a state dict of these sizes: {error}"
        ) from error
    return RateLadder(base, rates)


def _from_run(path: Path, rates: Sequence[int]) -> RateLadder:
    about = read_about(path)
    tensors = read_tensors(path, "ema.")
    ladder = RateLadder(Backbone(Sizes.from_dict(about["sizes"])), rates)
    earlier = about["recipe"]["rates"]
    state = ladder.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("base."):
            state[name] = tensor
        else:
            for at, rate in enumerate(ladder.rates):
                if rate in earlier:
                    state[name][at] = tensor[earlier.index(rate)]
    ladder.load_state_dict(state)
    return ladder


def from_stored(stored: StoredModel, rates: Sequence[int]) -> RateLadder:
    """Load a stored model and its PSNR ladder, whose factors have 8 bits."""
    ladder = RateLadder(unfolded(float_twin(stored)), rates)
    by_rate = {r.rate: r.update for r in stored.ladder(PSNR.name)}
    for at, rate in enumerate(ladder.rates):
        update = by_rate.get(rate)
        if update is not None:
            adapter = RateAdapter(float_twin(stored), domains(stored, dict(RANKS)), 0)
            load_update(adapter, stored, update)
            read_adapter(ladder, at, adapter)
    return ladder


@torch.no_grad()
def unfolded(plain: Backbone) -> Backbone:
    """Return a backbone with scale vectors that computes the same as one with folded scales.

    Its latents are in quantiser steps of the base rate, as in training.
    """
    model = Backbone(plain.sizes)
    state = dict(plain.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, ScaledLinear):
            weight = state[f"{name}.weight"].double()
            rows = weight.square().mean(1).sqrt().clamp_min(1e-6) * math.sqrt(weight.shape[1])
            columns = (weight / rows[:, None]).square().mean(0).sqrt().clamp_min(1e-6)
            columns = columns * math.sqrt(weight.shape[1])
            state[f"{name}.weight"] = (weight / rows[:, None] / columns).float()
            state[f"{name}.bias"] = (state[f"{name}.bias"].double() / rows).float()
            state[f"{name}.so"], state[f"{name}.si"] = rows.float(), columns.float()
    model.load_state_dict(state)
    divide_latents(model, plain.unit_step)
    return model
