"""Size and quality of a model's rates on pictures: the figures in its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from service.engine.engine import Engine
from service.engine.types import Compressed
from service.errors import BadParameter
from service.eval.pictures import decode_on_white
from service.images.read import read_folder
from service.ms_ssim import ms_ssim
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.model import StoredRate
from service.store.read import load_model
from service.store.write import record_figures


@dataclass(frozen=True)
class Figures:
    """Figures of one picture, or means over pictures."""

    bpp: float  # bits per pixel of the real stream
    psnr_db: float
    ms_ssim: float | None  # None if a picture is too small for it

    def entered_in(self, rate: StoredRate) -> StoredRate:
        """Return a rate's entry in a manifest with these figures."""
        return replace(
            rate,
            kodak_bpp=round(self.bpp, 4),
            kodak_psnr_db=round(self.psnr_db, 3),
            kodak_ms_ssim=None if self.ms_ssim is None else round(self.ms_ssim, 5),
        )


def measure_picture(engine: Engine, picture: Picture, compressed: Compressed) -> Figures:
    """Return the figures of a picture that an engine has compressed and checked."""
    assert compressed.psnr_db is not None
    decoded = decode_on_white(engine, compressed.data)
    similarity = ms_ssim(picture.on_white().rgb, decoded)
    return Figures(compressed.bpp, compressed.psnr_db, similarity)


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """Return the means of the figures of at least one picture."""
    similarities = [f.ms_ssim for f in figures if f.ms_ssim is not None]
    return Figures(
        fmean(f.bpp for f in figures),
        fmean(f.psnr_db for f in figures),
        fmean(similarities) if len(similarities) == len(figures) else None,
    )


def measure_rate(engine: Engine, rate: float, tune: str, folder: Path) -> Figures:
    """Compress the pictures of a folder at a rate, and return the mean figures.

    Raises:
        BadParameter: the folder has no pictures.
    """
    figures = [
        measure_picture(engine, picture, engine.compress(picture, rate, tune))
        for _, picture in read_folder(folder)
    ]
    if not figures:
        raise BadParameter(f"{folder} has no pictures to measure on")
    return mean_figures(figures)


def measure_model(folder: Path, pictures: Path, device: str) -> tuple[StoredRate, ...]:
    """Measure every rate of a stored model on a device, and replace the figures in its manifest."""
    stored = load_model(folder)
    engine = Engine(load_models((stored,), device, None))
    measured = tuple(
        measure_rate(engine, rate.rate, rate.tune, pictures).entered_in(rate)
        for rate in stored.rates
    )
    record_figures(folder, measured)
    return measured
