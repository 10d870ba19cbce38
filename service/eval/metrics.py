"""Differences of a picture from its original: PSNR, MS-SSIM and, where installed, SSIMULACRA 2.

All of them take [H, W, 3] uint8 arrays of equal shape; pictures with alpha are laid on white. PSNR
is over the three channels of 8-bit RGB together, weighted by alpha. MS-SSIM itself is computed in
service/ms_ssim.py.
"""

from __future__ import annotations

import io
import math

from PIL import Image

from service.errors import MissingExtra
from service.picture import U8, Picture, squared_error


def psnr_db(original: Picture, other: U8) -> float:
    """Return the PSNR in dB, inf when the pictures are equal.

    Args:
        original: with its alpha; only visible samples count, see `Picture.psnr_db`.
        other: the decoded picture laid on white, [H, W, 3] uint8.
    """
    return original.psnr_db(squared_error(original.on_white().rgb, other))


def ms_ssim_db(value: float) -> float:
    """Return MS-SSIM in dB, -10 log10(1 - MS-SSIM): 0.99 is 20 dB."""
    return -10 * math.log10(1 - value) if value < 1 else math.inf


def loss(bpp: float, psnr_db: float, lmbda: float) -> float:
    """Return R + lmbda·D in bits per pixel, with D the mean squared error in 8-bit steps."""
    return float(bpp + lmbda * 255**2 / 10 ** (psnr_db / 10))


def ssimulacra2(original: U8, other: U8) -> float:
    """Return the SSIMULACRA 2 score: 100 equal, 90 visually lossless, 50 low quality.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ModuleNotFoundError as error:
        raise MissingExtra("SSIMULACRA 2 needs pip install 'rankpress[eval]'") from error
    files = io.BytesIO(), io.BytesIO()
    for file, rgb in zip(files, (original, other), strict=True):
        Image.fromarray(rgb).save(file, format="BMP")
    return float(compute_ssimulacra2(*files))
