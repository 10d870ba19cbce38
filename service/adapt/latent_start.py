"""Where the fit of a latent stream starts: the weight of the error, steps, and grids that are used.

The steps of the grids follow from how much the decoder changes pixels where latents change: the
sensitivity, a matrix [C, C]. It predicts the error of small changes only. Coarsely rounded latents
have one to three times the predicted error, the most in smooth pictures, so the sensitivity is
multiplied by this ratio, which is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from service.adapt.latent_networks import UsedGrids
from service.autoencoders.interfaces import DifferentiableAutoencoder
from service.codec import container
from service.codec.overfit import LatentNetworks

LMBDA_OF_RATE_1: Final = 0.0018
"""lmbda of quality 5, which is that of rate 1 of the rate models."""
LMBDA_RATIO: Final = 1.93
"""Ratio of the lmbdas of neighbouring qualities, as of the rates."""
PATTERN_QUALITY: Final = 5
"""Quality at which steps of grids are the default ones."""

LEAST_ENERGY: Final = 0.004
"""Mean square of a grid, in its steps, from which on it is used. Grids with few values other than 0
matter too: a threshold of 0.05 loses about 1 dB at quality 5."""
LEAST_RATIO, MOST_RATIO = 0.25, 8.0
"""Bounds of the ratio of the measured error to the predicted one."""
PROBES: Final = 2
WINDOWS: Final = 6
WINDOW: Final = 64
"""Random directions, and windows and their sides in latents, that measure the sensitivity."""


def lmbda_of_quality(quality16: int) -> float:
    """lmbda of a quality in sixteenths."""
    quality = quality16 / container.RATE_UNIT
    return float(LMBDA_OF_RATE_1 * LMBDA_RATIO ** (quality - PATTERN_QUALITY))


def gain_of_quality(quality16: int) -> int:
    """Quarter octaves by which the grids' steps are larger than the default ones."""
    ratio = lmbda_of_quality(quality16) / lmbda_of_quality(PATTERN_QUALITY * container.RATE_UNIT)
    return round(-2 * math.log2(ratio))


def used_grids(grids: Sequence[Tensor], levels: Sequence[int]) -> UsedGrids:
    """The first grid, those of coarser levels, and those that are not nearly 0.

    Args:
        grids: of each level, [B, n, rows, columns], in their steps.
    """
    energy = grids[0].square().mean((0, 2, 3))
    is_used = [place == 0 or bool(e > LEAST_ENERGY) for place, e in enumerate(energy)]
    return UsedGrids.of(levels, is_used + [True] * sum(levels[1:]))


def starting_networks(
    defaults: LatentNetworks, target: Tensor, sensitivity: Tensor, quality16: int
) -> LatentNetworks:
    """The default networks with the gain of a quality.

    Where nothing was fitted (plain_networks), the gain of each grid is that of its channel's
    sensitivity, and the latents' mean is that of the picture.

    Args:
        target: [rows, columns, C], latents. sensitivity: [C, C].
    """
    tensors = dict(defaults.tensors)
    if tensors["syn.b2"].any():
        tensors["gain"] = tensors["gain"] + np.int32(gain_of_quality(quality16))
        return LatentNetworks(defaults.levels, tensors)
    skip = torch.from_numpy(defaults.weight("syn.skip"))
    weights = ((skip.T @ sensitivity) * skip.T).sum(1).clamp_min(1e-12)
    pattern = torch.from_numpy(defaults.tensors["gain"])
    steps = high_rate_step(quality16) / weights.sqrt()
    tensors["gain"] = (4 * torch.log2(steps) + pattern).round().clamp(-100, 100).int().numpy()
    mean = target.mean((0, 1)).numpy()
    tensors["syn.b2"] = (4 * np.rint(mean * 256)).clip(-(2**14), 2**14).astype(np.int32)
    return LatentNetworks(defaults.levels, tensors)


def high_rate_step(quality16: int) -> float:
    """The quantiser step of a variable whose unit changes the pixels, of 0-1, by 1 in all.

    At high rates D = step^2 / 12 and the bits fall by log2(step), so that R + lmbda·D is lowest
    where lmbda · 255^2 / 3 · D = 1 / (2 ln 2).
    """
    return math.sqrt(36 / (2 * math.log(2) * lmbda_of_quality(quality16) * 255**2))


def measure_sensitivity(
    autoencoder: DifferentiableAutoencoder, latents: Tensor, quality16: int, seed: int = 0
) -> Tensor:
    """The mean of J'J over positions, [C, C]; J has derivatives of pixels in [0, 1] by a latent.

    Random signs v of all pixels give J'v, and the mean of (J'v)(J'v)' is J'J: Hutchinson, "A
    stochastic estimator of the trace of the influence matrix". It is multiplied by a number so that
    it predicts the error of latents that are rounded to the steps of a quality.

    Args:
        latents: [rows, columns, C]; of large ones, random windows are looked at.
    """
    channels = latents.shape[2]
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(channels, channels), 0
    chosen = _windows(latents, generator)
    for window in chosen:
        variable = window[None].clone().requires_grad_()
        decoded = autoencoder.decode_tensor(variable)
        for _ in range(PROBES):
            signs = torch.randint(0, 2, decoded.shape, generator=generator).float() * 2 - 1
            (gradient,) = torch.autograd.grad(decoded, variable, signs, retain_graph=True)
            vectors = gradient.reshape(-1, channels)
            total += vectors.T @ vectors
            count += len(vectors)
    local = total / count
    return local * _error_ratio(autoencoder, chosen, local, high_rate_step(quality16))


def _windows(latents: Tensor, generator: torch.Generator) -> list[Tensor]:
    """All latents, or random windows of many."""
    rows, columns, _ = latents.shape
    if rows * columns <= WINDOW**2:
        return [latents]
    high, wide = min(WINDOW, rows), min(WINDOW, columns)
    windows = []
    for _ in range(WINDOWS):
        top = int(torch.randint(rows - high + 1, (1,), generator=generator))
        left = int(torch.randint(columns - wide + 1, (1,), generator=generator))
        windows.append(latents[top : top + high, left : left + wide])
    return windows


@torch.no_grad()
def _error_ratio(
    autoencoder: DifferentiableAutoencoder, windows: list[Tensor], local: Tensor, step: float
) -> float:
    """The squared error of rounded latents' pixels, divided by the predicted one.

    Args:
        windows: latents to round and decode. local: the sensitivity that predicts.
        step: of a variable whose unit changes the pixels by 1 in all.
    """
    diagonal = local.diagonal()
    steps = step / diagonal.clamp_min(1e-6 * float(diagonal.max()) + 1e-30).sqrt()
    mean = torch.cat([window.flatten(0, 1) for window in windows]).mean(0)
    measured = predicted = 0.0
    for window in windows:
        coarse = mean + ((window - mean) / steps).round() * steps
        pair = autoencoder.decode_tensor(torch.stack([window, coarse]))
        measured += float((pair[1] - pair[0]).square().sum())
        error = (coarse - window).flatten(0, 1)
        predicted += float(((error @ local) * error).sum())
    if predicted == 0:
        return 1.0
    return min(max(measured / predicted, LEAST_RATIO), MOST_RATIO)


def weighted_inverse(matrix: Tensor, sensitivity: Tensor) -> Tensor:
    """The inverse of a matrix [C, F] by least squares, [F, C], errors weighted by [C, C]."""
    a, weight = matrix.double(), sensitivity.double()
    eye = torch.eye(len(weight), dtype=torch.double)
    weight = weight + 1e-4 * weight.diagonal().mean() * eye
    normal = a.T @ weight @ a
    ridge = 1e-6 * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.double)
    inverse: Tensor = torch.linalg.solve(normal + ridge, a.T @ weight)
    return inverse.float()
