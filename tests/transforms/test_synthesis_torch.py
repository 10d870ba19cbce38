"""The transforms in torch give the same with oneDNN's products and without, as on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.store.model import StoredModel
from service.transforms import torch_layers
from service.transforms.synthesis_torch import TorchTransforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_onednn(
    small_model: StoredModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    packed = TorchTransforms(small_model, CPU, dtype)
    monkeypatch.setattr(torch_layers, "has_onednn", lambda _: False)
    plain = TorchTransforms(small_model, CPU, dtype)
    pixels = photo_like(80, 112, 3)
    y, expected = packed.analyse(pixels), plain.analyse(pixels)
    tolerance = np.abs(expected).max() * (1e-5 if dtype == torch.float32 else 1e-2)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)
    z, expected = packed.hyper_analyse(y[None]), plain.hyper_analyse(y[None])
    tolerance = np.abs(expected).max() * (1e-5 if dtype == torch.float32 else 1e-2)
    np.testing.assert_allclose(z, expected, rtol=0, atol=tolerance)
    y_hat = np.round(y * 64).astype(np.int16)
    off = np.abs(packed.synthesise(y_hat).astype(int) - plain.synthesise(y_hat))
    assert off.max() <= 1 and (off > 0).mean() < 1e-2


def test_samples_that_are_not_a_number_become_zero(small_model: StoredModel) -> None:
    """A hostile update of the weights can cause them."""
    s = small_model.sizes
    name = f"g_s.{2 + s.nd16 + s.nd8}.l.bias"
    bias = small_model.transforms[name].astype(np.float32)
    bias[0], bias[1] = np.nan, np.inf
    hostile = replace(small_model, transforms=small_model.transforms | {name: bias})
    y_hat = np.zeros((2, 3, s.M), np.int16)
    found = TorchTransforms(hostile, CPU, torch.float32).synthesise(y_hat)
    expected = TorchTransforms(small_model, CPU, torch.float32).synthesise(y_hat).copy()
    expected[::8, ::8, 0], expected[::8, ::8, 1] = 0, 255
    assert np.array_equal(found, expected)
