"""A float model over a folder of pictures, with real rounding: what its exported codec will do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.errors import BadParameter
from service.images.folder import read_folder
from service.picture import Picture
from service.train.ladder import RateLadder
from service.train.tunes import LADDER


@dataclass(frozen=True)
class Quality:
    """Averages over pictures: bits per pixel, PSNR of 8-bit pixels in dB, and the loss."""

    pictures: int
    bpp: float
    psnr_db: float
    loss: float


@torch.inference_mode()
def evaluate(ladder: RateLadder, folder: Path) -> dict[int, Quality]:
    """Average each rate over the pictures of a folder, in float32 where the model lies.

    Raises:
        BadParameter: no picture of at least 64x64 pixels.
    """
    device = ladder.base.z_idx.device
    pictures = [p for _, p in pictures_in(folder)]
    if not pictures:
        raise BadParameter(f"{folder} has no picture of at least 64x64 pixels to measure on")
    alone = len(ladder.rates) == 1
    out = {}
    for place, rate in enumerate(ladder.rates):
        index = None if alone else torch.tensor([place], device=device)
        rows = []
        for picture in pictures:
            x = as_tensor(picture).to(device)
            e = ladder(x, index, None)
            bpp = float(e.bits_y + e.bits_z) / (picture.width * picture.height)
            shown = (e.x_hat.clamp(0, 1) * 255).round() / 255
            mse = float((shown - x).square().mean())
            psnr_db = -10 * math.log10(max(mse, 1e-10))
            rows.append((bpp, psnr_db, bpp + LADDER[rate] * 255**2 * mse))
        out[rate] = Quality(len(rows), *np.mean(rows, 0).tolist())
    return out


def pictures_in(folder: Path) -> Iterator[tuple[Path, Picture]]:
    """Every picture of a folder, cut to sides that are multiples of 64; see images/folder.py."""
    for path, whole in read_folder(folder):
        picture = whole.on_white()
        height, width = picture.height // 64 * 64, picture.width // 64 * 64
        if height and width:
            yield path, Picture(np.ascontiguousarray(picture.rgb[:height, :width]))


def as_tensor(picture: Picture) -> Tensor:
    """[1, H, W, 3] float32 in [0, 1]."""
    return torch.from_numpy(picture.rgb).float()[None] / 255
