"""MS-SSIM: how similar the local structure of two pictures is, at five scales.

The measure is that of Wang, Simoncelli and Bovik 2003 with the reference constants, and the mean of
the three channels. Where a side is odd, halving leaves out the last row or column.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.picture import U8

F32 = NDArray[np.float32]

WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales."""

TAPS: Final = 11
"""Side of the Gaussian window in pixels."""
SIGMA: Final = 1.5
"""Standard deviation of the Gaussian window in pixels."""
MIDDLE: Final = np.float32(128)
"""Level that is subtracted from samples, so that float32 is precise enough for their variances."""
C1: Final = (0.01 * 255) ** 2
C2: Final = (0.03 * 255) ** 2

MS_SSIM_SIDE: Final = TAPS * 2 ** (len(WEIGHTS) - 1)
"""Pixels of the shortest side on which the window fits at every scale: 176."""


def ms_ssim(original: U8, other: U8) -> float | None:
    """Return MS-SSIM, 1 when equal; None where a side is below MS_SSIM_SIDE.

    Args:
        original, other: [H, W, 3] uint8.
    """
    if min(original.shape[:2]) < MS_SSIM_SIDE:
        return None
    values = [_channel(original[..., c], other[..., c]) for c in range(3)]
    return sum(values) / len(values)


def _channel(x: U8, y: U8) -> float:
    """Return MS-SSIM of a channel: contrast and structure at every scale, luminance at the last."""
    a, b = x.astype(np.float32) - MIDDLE, y.astype(np.float32) - MIDDLE
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        luminance, structure = _means(a, b)
        last = scale == len(WEIGHTS) - 1
        product *= max(luminance if last else structure, 0.0) ** weight
        a, b = _halve(a), _halve(b)
    return product


def _means(a: F32, b: F32) -> tuple[float, float]:
    """Return the means over the picture of SSIM and of its contrast-structure part."""
    mu_a, mu_b = _blur(a), _blur(b)
    variances = _blur(a * a + b * b) - mu_a * mu_a - mu_b * mu_b
    structure = (2 * (_blur(a * b) - mu_a * mu_b) + C2) / (variances + C2)
    mu_a, mu_b = mu_a + MIDDLE, mu_b + MIDDLE
    luminance = (2 * mu_a * mu_b + C1) / (mu_a * mu_a + mu_b * mu_b + C1)
    similar = float((luminance * structure).mean(dtype=np.float64))
    return similar, float(structure.mean(dtype=np.float64))


def _blur(a: F32) -> F32:
    """Return the Gaussian window applied at every place where it fits."""
    window = np.exp(-((np.arange(TAPS) - TAPS // 2) ** 2) / (2 * SIGMA**2))
    window = (window / window.sum()).astype(np.float32)
    return _convolve(np.ascontiguousarray(_convolve(a, window).T), window).T


def _convolve(a: F32, window: F32) -> F32:
    """Return the columns convolved with a symmetric window, where it fits."""
    height, centre = a.shape[0] - TAPS + 1, TAPS // 2
    out: F32 = window[centre] * a[centre : centre + height]
    for i in range(centre):
        j = TAPS - 1 - i
        out += window[i] * (a[i : i + height] + a[j : j + height])
    return out


def _halve(a: F32) -> F32:
    """Return the means of 2x2 pixels."""
    a = a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2]
    quarter = np.float32(0.25)
    return (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) * quarter
