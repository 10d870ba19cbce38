"""Rates for the small model: adapters of random factors whose steps follow the ladder of lmbdas.

Their streams are as varied as those of trained ones, and grow with the rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import torch
from safetensors.numpy import save

from service.codec.lowrank import Update, pack
from service.nets.adapters import domains, quantise_adapter
from service.nets.lora import RateAdapter
from service.nets.twin import float_twin
from service.store.model import StoredModel, StoredRate, layer_shapes
from service.train.tunes import BASE, LADDER

RANKS = {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1}


def small_adapter(stored: StoredModel, rate: int, seed: int = 0) -> RateAdapter:
    """An adapter as training may leave it: every factor, bias, step and level has moved."""
    adapter = RateAdapter(float_twin(stored), domains(stored, RANKS), seed)
    adapter.start_from(adapter, LADDER[rate] / LADDER[BASE])
    generator = torch.Generator().manual_seed(100 * seed + rate)
    with torch.no_grad():
        for parameter in (*adapter.b.values(), *adapter.d.values()):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        for parameter in (adapter.log_y_step, adapter.log_z_step, adapter.z_idx):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter


def small_update(stored: StoredModel, rate: int, seed: int = 0) -> Update:
    """The same with 8-bit factors."""
    return quantise_adapter(stored, small_adapter(stored, rate, seed))


def with_update(stored: StoredModel, rate: int, update: Update, tune: str = "psnr") -> StoredModel:
    """The model with an update as one of its rates, another of that rate and tune replaced."""
    data = save(pack(update, layer_shapes(stored.transforms, stored.entropy)))
    digest = hashlib.sha256(data).digest()
    fresh = StoredRate(rate, LADDER[rate], None, None, update, digest, data, tune=tune)
    others = [r for r in stored.rates if (r.rate, r.tune) != (rate, tune)]
    return replace(stored, rates=tuple(sorted([*others, fresh], key=lambda r: r.rate)))


def with_rates(
    stored: StoredModel, rates: Iterable[int], seed: int = 0, tune: str = "psnr"
) -> StoredModel:
    """The model with small updates at these rates of a tune besides its own rate."""
    for rate in rates:
        if rate != BASE or tune != "psnr":
            stored = with_update(stored, rate, small_update(stored, rate, seed), tune)
    return stored
