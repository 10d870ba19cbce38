"""Agreement of an exported model's exact codec with the float model that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from service.engine.engine import Engine
from service.errors import RankpressError
from service.images.read import read_folder
from service.nets.model import Backbone
from service.picture import Picture
from service.rates.figures import Figures, mean_figures, measure_picture
from service.train.evaluate import CELL, as_tensor, crop_to_cells, psnr_db, rate_and_mse
from service.train.tunes import BASE

MAX_RATE_EXCESS = 0.005
MAX_PSNR_LOSS_DB = 0.02


class ExportFailed(RankpressError):
    """The exported model does not reproduce the float model closely enough."""


@dataclass(frozen=True)
class CodecAgreement:
    """Averages over pictures of the float model and of the exact codec exported from it."""

    pictures: int
    estimated_bpp: float
    real_bpp: float
    float_psnr_db: float
    real_psnr_db: float

    def check(self) -> None:
        """Raise ExportFailed if the codec's averages are outside the limits."""
        excess = self.real_bpp / self.estimated_bpp - 1
        loss = self.float_psnr_db - self.real_psnr_db
        if abs(excess) > MAX_RATE_EXCESS or abs(loss) > MAX_PSNR_LOSS_DB:
            raise ExportFailed(
                f"real size is {excess:+.2%} off the estimate (limit {MAX_RATE_EXCESS:.1%}), "
                f"PSNR {-loss:+.3f} dB (limit {MAX_PSNR_LOSS_DB} dB)"
            )


def measure_agreement(
    engine: Engine, model: Backbone, folder: Path
) -> tuple[CodecAgreement, Figures]:
    """Compress the pictures of a folder, and compare the codec with the float model.

    The float model takes pictures whose sides are multiples of 64. So the agreement is that on
    cropped pictures; the figures are those of the codec on whole ones.

    Raises:
        ExportFailed: the folder has no picture of at least 64x64 pixels, or the engine does not
            check its streams.
    """
    rows, figures = [], []
    for _, picture in read_folder(folder):
        figures.append(_measure(engine, picture))
        if min(picture.height, picture.width) >= CELL:
            cropped = crop_to_cells(picture)
            same = _same_stream(picture, cropped)
            codec = figures[-1] if same else _measure(engine, cropped)
            rows.append((*_estimate(model, cropped), codec.bpp, codec.psnr_db))
    if not rows:
        raise ExportFailed(f"{folder} has no picture of at least {CELL}x{CELL} pixels")
    estimated_bpp, float_psnr_db, real_bpp, real_psnr_db = np.mean(rows, 0).tolist()
    agreement = CodecAgreement(len(rows), estimated_bpp, real_bpp, float_psnr_db, real_psnr_db)
    return agreement, mean_figures(figures)


def _measure(engine: Engine, picture: Picture) -> Figures:
    compressed = engine.compress(picture, BASE)
    if compressed.psnr_db is None:
        raise ExportFailed("the engine must check its streams to measure PSNR")
    return measure_picture(engine, picture, compressed)


def _same_stream(picture: Picture, cropped: Picture) -> bool:
    """Whether a picture and its opaque colour crop compress to the same stream."""
    return picture.alpha is None and not picture.grey and picture.rgb.shape == cropped.rgb.shape


@torch.inference_mode()
def _estimate(model: Backbone, picture: Picture) -> tuple[float, float]:
    """Bits per pixel and PSNR in dB of the float model with real rounding."""
    x = as_tensor(picture)
    bpp, mse = rate_and_mse(model(x, relax=None), x)
    return bpp, psnr_db(mse)
