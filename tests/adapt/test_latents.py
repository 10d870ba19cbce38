"""Variables of a tile cost and mean what the exact coder makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import photo_like, with_steps

from service.adapt.latents import RateModel, annealed
from service.codec.entropy_model import Y_FRAC
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel

CPU = torch.device("cpu")


def tile(loaded: LoadedModel, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    assert loaded.analysis is not None
    y = loaded.analysis.analyse(photo_like(16 * height, 16 * width, 3))
    return y, loaded.analysis.hyper_analyse(y[None])[0]


@pytest.mark.parametrize(("height", "width"), [(4, 8), (5, 7), (1, 1), (12, 9)])
@pytest.mark.parametrize("steps", [False, True])
def test_rounded_variables_cost_what_the_coder_spends(
    small_model: StoredModel, height: int, width: int, steps: bool
) -> None:
    stored = with_steps(small_model) if steps else small_model
    model = load_models((stored,), "cpu", torch.float32)[0]
    y, z = tile(model, height, width)
    exact = model.coder.encode(y[None], z[None])
    with torch.no_grad():
        ours = RateModel(stored, CPU, torch.float32).code(
            torch.from_numpy(y), torch.from_numpy(z), torch.round
        )
    spent = 8 * sum(map(len, exact.data[0]))
    # the integer networks' rounding may move a symbol or a level here and there
    assert abs(float(ours.bits) - spent) < 0.02 * spent + 64
    off = np.abs(ours.y_hat.numpy() - exact.y_hat[0] / 2**Y_FRAC)
    assert (off < 0.1).mean() > 0.9


def test_bits_have_gradients_for_every_variable_that_is_coded(small_model: StoredModel) -> None:
    model = load_models((small_model,), "cpu", torch.float32)[0]
    y, z = (torch.from_numpy(v).requires_grad_() for v in tile(model, 6, 6))
    generator = torch.Generator().manual_seed(1)
    coded = RateModel(small_model, CPU, torch.float32).code(y, z, annealed(0.5, generator))
    coded.bits.backward()
    assert y.grad is not None and z.grad is not None
    assert (y.grad != 0).float().mean() > 0.3 and (z.grad != 0).float().mean() > 0.5


def test_annealing_stays_between_neighbours_and_ends_at_the_nearest() -> None:
    v = torch.linspace(-3, 3, 1001)
    for tau in (0.5, 0.2, 0.05):
        relaxed = annealed(tau, torch.Generator().manual_seed(2))(v)
        assert (relaxed >= v.floor()).all() and (relaxed <= v.floor() + 1).all()
    clear = (v - v.round()).abs() < 0.3
    assert torch.allclose(relaxed[clear], v[clear].round(), atol=0.01)


def test_annealing_takes_the_nearer_neighbour_more_often() -> None:
    v = torch.full((4000,), 0.3)
    relaxed = annealed(0.5, torch.Generator().manual_seed(3))(v)
    # P(up) = sigmoid((atanh .3 - atanh .7) / tau) as in the paper
    expected = torch.sigmoid((torch.atanh(v[0]) - torch.atanh(1 - v[0])) / 0.5)
    assert abs(float((relaxed > 0.5).float().mean() - expected)) < 0.03


def test_the_same_generator_draws_the_same() -> None:
    v = torch.linspace(-3, 3, 100)
    one, two = (annealed(0.4, torch.Generator().manual_seed(5))(v) for _ in range(2))
    assert torch.equal(one, two)
