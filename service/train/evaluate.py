"""Rate and PSNR of a float model with real rounding: an estimate of the codec exported from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from service.errors import BadParameter
from service.images.read import read_folder
from service.nets.model import Estimate
from service.picture import Picture
from service.train.ladder import RateLadder
from service.train.tunes import LADDER

CELL: Final = 64
"""Sides of the pictures that Backbone takes are multiples of this number of pixels."""


@dataclass(frozen=True)
class Quality:
    """Averages over pictures: bits per pixel, PSNR of 8-bit pixels in dB, and the loss."""

    pictures: int
    bpp: float
    psnr_db: float
    loss: float


@torch.inference_mode()
def evaluate(ladder: RateLadder, folder: Path) -> dict[int, Quality]:
    """Average each rate over the pictures of a folder, in float32 on the model's device.

    Raises:
        BadParameter: the folder has no picture of at least 64x64 pixels.
    """
    device = ladder.base.z_idx.device
    pictures = list(pictures_in(folder))
    if not pictures:
        raise BadParameter(f"{folder} has no picture of at least 64x64 pixels to measure on")
    out = {}
    for place, rate in enumerate(ladder.rates):
        index = torch.tensor([place], device=device)
        rows = []
        for picture in pictures:
            x = as_tensor(picture).to(device)
            bpp, mse = rate_and_mse(ladder(x, index, None), x)
            rows.append((bpp, psnr_db(mse), bpp + LADDER[rate] * 255**2 * mse))
        out[rate] = Quality(len(rows), *np.mean(rows, 0).tolist())
    return out


def rate_and_mse(estimate: Estimate, x: Tensor) -> tuple[float, float]:
    """Return bits per pixel of x [1, H, W, 3], and the MSE of its pixels, rounded to 8 bits."""
    rounded = (estimate.x_hat.clamp(0, 1) * 255).round() / 255
    bits = float(estimate.bits_y + estimate.bits_z)
    return bits / x[..., 0].numel(), float((rounded - x).square().mean())


def psnr_db(mse: float) -> float:
    """Return the PSNR in dB of an MSE of pixels in [0, 1], at most 100 dB."""
    return -10 * math.log10(max(mse, 1e-10))


def pictures_in(folder: Path) -> Iterator[Picture]:
    """Yield the pictures of a folder, opaque and cropped; see images/read.py and `crop_to_cells`.

    Pictures with a side under 64 pixels are left out.
    """
    for _, picture in read_folder(folder):
        if min(picture.height, picture.width) >= CELL:
            yield crop_to_cells(picture)


def crop_to_cells(picture: Picture) -> Picture:
    """Return a picture on white, its sides cropped to multiples of 64 as Backbone needs them."""
    height, width = picture.height // CELL * CELL, picture.width // CELL * CELL
    return Picture(np.ascontiguousarray(picture.on_white().rgb[:height, :width]))


def as_tensor(picture: Picture) -> Tensor:
    """Return the pixels as [1, H, W, 3] float32 in [0, 1]."""
    return torch.from_numpy(picture.rgb).float()[None] / 255
