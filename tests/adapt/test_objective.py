"""A tile's variables are latents in units that are near the quantiser's steps, and exact."""

from __future__ import annotations

import numpy as np
import torch
from small_model import photo_like, with_steps

from service.adapt.objective import Objective
from service.codec.tiles import Z_CELL
from service.nets.twin import quantiser_steps
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.model import StoredModel


def test_variables_are_latents_in_powers_of_two_near_the_steps(small_model: StoredModel) -> None:
    stored = with_steps(small_model)
    model = load_models((stored,), "cpu", torch.float32)[0]
    assert model.analysis is not None
    rgb = photo_like(16 * Z_CELL, 32 * Z_CELL, 3)
    (tile,) = Objective(model, Picture(rgb), 0.05).tiles
    y = model.analysis.analyse(rgb)
    z = model.analysis.hyper_analyse(y[None])[0]
    steps = quantiser_steps(stored)
    for found, plain in zip(tile.latents, (y, z), strict=True):
        assert np.array_equal(found.detach().numpy(), plain)
    for unit, step in zip(tile.units, steps, strict=True):
        ratio = (unit / step).log2()
        assert ratio.abs().max() <= 0.5001
        assert torch.equal(unit.log2(), unit.log2().round())
    assert torch.equal(tile.y, torch.from_numpy(y) / tile.units[0])
