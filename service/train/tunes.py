"""Losses of the ladders of rates: squared error (tune "psnr") or MS-SSIM (tune "ms-ssim").

The loss of a rate is R + lmbda · E, with R in bits per pixel. For "psnr" E = 255² · MSE of pixels
in [0, 1], and lmbda is given. For "ms-ssim" E = 1 - MS-SSIM, and lmbda is adjusted during training
until the rate takes as many bits as the same rate of the PSNR ladder, on the pictures that both are
measured on, so that rates of equal number have equal size. The manifest records that lmbda.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.errors import MissingExtra
from service.nets.lora import RateAdapter
from service.nets.model import Backbone

BASE = 4
"""The rate in the middle of the ladder, which the backbone itself is trained for."""

LADDER: Mapping[int, float] = {
    1: 0.0018,
    2: 0.0035,
    3: 0.0067,
    4: 0.013,
    5: 0.025,
    6: 0.0483,
    7: 0.0932,
    8: 0.18,
}
"""lmbda of each rate of the PSNR ladder."""


@dataclass(frozen=True, eq=False)
class Tune:
    """One ladder's loss.

    Attributes:
        name: in the store, on the command line and in the API.
        error: function E of (x_hat, x), both [B, H, W, 3] float32 in [0, 1].
        lmbdas: of each rate; initial values if `adjusts_lmbda`.
        order: rates in the order of their training, each after its neighbour.
        adjusts_lmbda: whether training adjusts lmbda to the bits of the PSNR ladder.
        head_start: factor of the steps of the rate that starts from the base, which was not trained
            for this loss.
    """

    name: str
    error: Callable[[Tensor, Tensor], Tensor]
    lmbdas: Mapping[int, float]
    order: tuple[int, ...]
    adjusts_lmbda: bool
    head_start: int = 1

    def neighbour(self, rate: int) -> int | None:
        """Return the rate that a rate starts from; None if it starts from the base."""
        if rate == BASE:
            return None
        near = rate - 1 if rate > BASE else rate + 1
        return near if near in self.order else None


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return 255² · MSE."""
    return 255**2 * (x_hat - x).square().mean()


def ms_ssim_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Return 1 - MS-SSIM, mean of the batch; the sides of the crops are over 160 pixels.

    Raises:
        MissingExtra: the package that computes it is not installed.
    """
    try:
        from pytorch_msssim import ms_ssim
    except ModuleNotFoundError as error:
        raise MissingExtra("training for MS-SSIM needs pip install 'rankpress[train]'") from error
    x_hat, x = (t.float().permute(0, 3, 1, 2) for t in (x_hat, x))
    value: Tensor = ms_ssim(x_hat, x, data_range=1.0)
    return 1 - value


PSNR = Tune("psnr", squared_error, LADDER, (5, 6, 7, 8, 3, 2, 1), adjusts_lmbda=False)

MS_SSIM = Tune(
    "ms-ssim",
    ms_ssim_error,
    {1: 4.3, 2: 8.2, 3: 15.7, 4: 30.0, 5: 57.0, 6: 109.0, 7: 208.0, 8: 396.0},
    (4, 5, 6, 7, 8, 3, 2, 1),
    adjusts_lmbda=True,
    head_start=3,
)
"""The initial lmbdas have the ratios of those of CompressAI's MS-SSIM models."""

TUNES: Mapping[str, Tune] = {t.name: t for t in (PSNR, MS_SSIM)}

GAIN = 1.25
"""Change of log(lmbda) per change of log(bpp); in the long run bpp grows as about lmbda^0.45."""


@dataclass(frozen=True, eq=False)
class BppTarget:
    """The bits per pixel that a rate should take.

    The backbone of the rate's adapter is not compiled, because pictures have many sizes.
    """

    bpp: float  # mean bits per pixel of the pictures
    pictures: Sequence[Tensor]  # [1, H, W, 3] each, in [0, 1]
    base: Backbone

    def correction(self, adapter: RateAdapter, /) -> float:
        """Return the correction that should be added to log(lmbda)."""
        return GAIN * math.log(self.bpp / estimated_bpp(self.base, adapter, self.pictures))


@torch.inference_mode()
def estimated_bpp(base: Backbone, adapter: RateAdapter, pictures: Sequence[Tensor]) -> float:
    """Return the mean bits per pixel of an adapter's float model with real rounding."""
    merged, total = adapter.merged(), 0.0
    for x in pictures:
        with torch.autocast(x.device.type, torch.bfloat16):
            e = torch.func.functional_call(base, merged, (x,), {"relax": None})
        total += float(e.bits_y + e.bits_z) / x[..., 0].numel()
    return total / len(pictures)
