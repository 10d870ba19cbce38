"""How far a picture is from its original: PSNR, MS-SSIM and, where installed, SSIMULACRA 2.

All of them take [H, W, 3] uint8 arrays of equal shape; pictures with alpha are laid on white. PSNR
is over the three channels of 8-bit RGB together, of what alpha shows. MS-SSIM is Wang, Simoncelli
and Bovik 2003 with the reference constants, each channel on its own, averaged; where a side is odd
the last row or column is left out on the way down.
"""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import MissingExtra
from service.picture import U8, Picture, squared_error

F32 = NDArray[np.float32]

WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales."""

TAPS: Final = 11
SIGMA: Final = 1.5
MIDDLE: Final = np.float32(128)
C1: Final = (0.01 * 255) ** 2
C2: Final = (0.03 * 255) ** 2

MS_SSIM_SIDE: Final = TAPS * 2 ** (len(WEIGHTS) - 1)
"""Pixels of the shortest side that MS-SSIM the window fits on at every scale: 176."""


def psnr_db(original: Picture, other: U8) -> float:
    """PSNR in dB, inf when the pictures are equal.

    Args:
        original: with its alpha: the error is divided by what is visible of it.
        other: what is seen of the decoded picture on white.
    """
    return original.psnr_db(squared_error(original.on_white().rgb, other))


def ms_ssim(original: U8, other: U8) -> float | None:
    """MS-SSIM, 1 when equal; None where a side is below MS_SSIM_SIDE."""
    if min(original.shape[:2]) < MS_SSIM_SIDE:
        return None
    values = [_channel(original[..., c], other[..., c]) for c in range(3)]
    return sum(values) / len(values)


def ms_ssim_db(value: float) -> float:
    """-10 log10(1 - MS-SSIM): 20 dB is 0.99."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def ssimulacra2(original: U8, other: U8) -> float:
    """SSIMULACRA 2 score: 100 equal, 90 visually lossless, 50 low quality.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ModuleNotFoundError as error:
        raise MissingExtra("SSIMULACRA 2 needs pip install 'rankpress[eval]'") from error
    return float(compute_ssimulacra2(_file(original), _file(other)))


def _file(rgb: U8) -> io.BytesIO:
    """The pixels as a file, which is what the package reads."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="BMP")
    return out


def _channel(x: U8, y: U8) -> float:
    """MS-SSIM of one channel: contrast and structure at every scale, luminance at the last."""
    # About the middle, squares are small enough for float32 to subtract their means.
    a, b = x.astype(np.float32) - MIDDLE, y.astype(np.float32) - MIDDLE
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        luminance, structure = _means(a, b)
        last = scale == len(WEIGHTS) - 1
        product *= max(luminance if last else structure, 0.0) ** weight
        a, b = _halved(a), _halved(b)
    return product


def _means(a: F32, b: F32) -> tuple[float, float]:
    """Means over the picture of SSIM and of its contrast-structure part."""
    mu_a, mu_b = _blurred(a), _blurred(b)
    variances = _blurred(a * a + b * b) - mu_a * mu_a - mu_b * mu_b
    structure = (2 * (_blurred(a * b) - mu_a * mu_b) + C2) / (variances + C2)
    mu_a, mu_b = mu_a + MIDDLE, mu_b + MIDDLE
    luminance = (2 * mu_a * mu_b + C1) / (mu_a * mu_a + mu_b * mu_b + C1)
    similar = float((luminance * structure).mean(dtype=np.float64))
    return similar, float(structure.mean(dtype=np.float64))


def _blurred(a: F32) -> F32:
    """Gaussian window of TAPS at every place where it fits."""
    offsets = np.arange(TAPS) - TAPS // 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).astype(np.float32)
    out: F32 = _convolved(np.ascontiguousarray(_convolved(a, window).T), window).T
    return out


def _convolved(a: F32, window: F32) -> F32:
    """Down the columns, where the symmetric window fits."""
    height, centre = a.shape[0] - TAPS + 1, TAPS // 2
    out: F32 = window[centre] * a[centre : centre + height]
    for i in range(centre):
        j = TAPS - 1 - i
        out += window[i] * (a[i : i + height] + a[j : j + height])
    return out


def _halved(a: F32) -> F32:
    """Means of 2x2 pixels."""
    a = a[: a.shape[0] // 2 * 2, : a.shape[1] // 2 * 2]
    quarter = np.float32(0.25)
    return (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) * quarter
