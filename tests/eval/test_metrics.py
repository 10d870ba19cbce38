"""Metrics compared with other implementations and with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_msssim import ms_ssim as witness_ms_ssim

from service.eval.metrics import ms_ssim_db, psnr_db, ssimulacra2
from service.eval.pictures import generate
from service.ms_ssim import MS_SSIM_SIDE, ms_ssim
from service.picture import Picture

U8 = NDArray[np.uint8]


def noisy(rgb: U8, amount: float) -> U8:
    noise = np.random.default_rng(1).normal(0, amount, rgb.shape)
    return (rgb + noise).clip(0, 255).astype(np.uint8)


def as_tensor(rgb: U8) -> torch.Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].double()


def test_psnr_is_its_definition() -> None:
    rgb = generate(40, 30).rgb
    other = noisy(rgb, 9)
    mse = np.mean((rgb.astype(float) - other) ** 2)
    assert psnr_db(Picture(rgb), other) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-9)
    assert psnr_db(Picture(rgb), rgb) == np.inf


def test_psnr_of_one_step_everywhere_is_48_13_db() -> None:
    rgb = np.full((7, 5, 3), 200, np.uint8)
    assert psnr_db(Picture(rgb), rgb + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_db(Picture(rgb + 1), rgb) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_of_a_picture_with_alpha_is_of_what_is_seen() -> None:
    original = generate(40, 30)
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:15] = 255
    picture = Picture(original.rgb, alpha)
    other = noisy(original.rgb, 9)
    visible = np.mean((original.rgb[:15].astype(float) - other[:15]) ** 2)
    result = psnr_db(picture, Picture(other, alpha).on_white().rgb)
    assert result == pytest.approx(10 * np.log10(255**2 / visible), abs=1e-9)


@pytest.mark.parametrize("amount", [2.0, 10.0, 60.0])
def test_ms_ssim_agrees_with_an_independent_implementation(amount: float) -> None:
    rgb = generate(256, 192, seed=3).rgb
    other = noisy(rgb, amount)
    expected = float(witness_ms_ssim(as_tensor(rgb), as_tensor(other), data_range=255))
    assert ms_ssim(rgb, other) == pytest.approx(expected, abs=2e-6)


def test_ms_ssim_of_equal_pictures_is_one_and_flat_ones_are_no_trouble() -> None:
    white = np.full((176, 176, 3), 255, np.uint8)
    assert ms_ssim(white, white) == pytest.approx(1, abs=1e-9)
    expected = float(witness_ms_ssim(as_tensor(white), as_tensor(white - 40), data_range=255))
    assert ms_ssim(white, white - 40) == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_is_undefined_below_five_scales() -> None:
    rgb = generate(MS_SSIM_SIDE, MS_SSIM_SIDE).rgb
    assert ms_ssim(rgb, rgb) == pytest.approx(1)
    assert ms_ssim(rgb[1:], rgb[1:]) is None


def test_ms_ssim_in_db_is_twenty_at_099() -> None:
    assert ms_ssim_db(0.99) == pytest.approx(20)
    assert ms_ssim_db(1.0) == np.inf


def test_ssimulacra2_falls_with_noise_from_a_hundred() -> None:
    rgb = generate(96, 64).rgb
    scores = [ssimulacra2(rgb, rgb), *(ssimulacra2(rgb, noisy(rgb, a)) for a in (4, 30))]
    assert scores[0] == pytest.approx(100)
    assert scores[0] > scores[1] > scores[2]
