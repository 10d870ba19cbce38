"""The MS-SSIM that is trained for: what an independent implementation computes, with gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as witness
from small_model import photo_like
from torch import Tensor

from service.eval import metrics
from service.train.ms_ssim import ms_ssim


def batch(*seeds: int, height: int = 192, width: int = 224) -> Tensor:
    pictures = [torch.from_numpy(photo_like(height, width, seed)) for seed in seeds]
    return torch.stack(pictures).float() / 255


def damaged(x: Tensor, amount: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rough = torch.randn(x[:, ::4, ::4].shape, generator=generator)
    return x + amount * rough.repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.mark.parametrize("amount", [0.003, 0.03, 0.2])
def test_it_is_what_pytorch_msssim_computes_with_its_gradient(amount: float) -> None:
    x, y = batch(0, 1), damaged(batch(0, 1), amount).requires_grad_()
    ours = ms_ssim(x, y)
    theirs = witness(
        x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2), data_range=1.0, size_average=False
    )
    assert torch.allclose(ours, theirs, atol=2e-5)
    mine, other = (torch.autograd.grad(v.sum(), y)[0] for v in (ours, theirs))
    assert float((mine - other).abs().max()) < 0.01 * float(other.abs().max())


def test_it_is_the_figure_that_eval_reports() -> None:
    x = photo_like(192, 224, 0)
    y = np.clip(x.astype(int) + np.random.default_rng(0).integers(-9, 10, x.shape), 0, 255)
    y = y.astype(np.uint8)
    ours = ms_ssim(*(torch.from_numpy(p)[None].float() / 255 for p in (x, y)))
    assert float(ours) == pytest.approx(metrics.ms_ssim(x, y), abs=2e-5)


def test_equal_pictures_have_one_and_no_slope() -> None:
    x = batch(0)
    y = x.clone().requires_grad_()
    value = ms_ssim(x, y)
    (slope,) = torch.autograd.grad(value.sum(), y)
    assert float(value.detach()) == pytest.approx(1, abs=1e-6)
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize("other", ["negative", "flat", "same flat"])
def test_pictures_without_likeness_have_finite_slopes(other: str) -> None:
    """Means of structure below zero, and windows without any contrast."""
    x = torch.full((1, 192, 192, 3), 0.5) if other == "same flat" else batch(0, width=192)
    y = (1 - x if other == "negative" else torch.full_like(x, 0.5)).requires_grad_()
    value = ms_ssim(x, y)
    (slope,) = torch.autograd.grad(value.sum(), y)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all()
    assert 0 <= float(value.detach()) <= 1 + 1e-6


def test_sides_that_halve_unevenly_lose_their_last_row_as_in_the_figure() -> None:
    x, y = photo_like(183, 201, 0), photo_like(183, 201, 0)[:, ::-1].copy()
    ours = ms_ssim(*(torch.from_numpy(p)[None].float() / 255 for p in (x, y)))
    assert float(ours) == pytest.approx(metrics.ms_ssim(x, y), abs=5e-4)
