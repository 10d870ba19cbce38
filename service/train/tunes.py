"""What a ladder of rates is trained for: squared error (PSNR) or likeness (MS-SSIM).

The loss of a rate is R + lmbda · E, R in bits per pixel. For "psnr" E = 255² · MSE on [0, 1]. For
"ms-ssim" E = 1 - MS-SSIM, and lmbda is not given but found: while a rate is trained it is moved
until the rate costs what the first ladder's costs on the pictures that both are measured on, so
that rates of equal number have equal size. lmbda is then what the manifest records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.nets.lora import RateAdapter
from service.nets.model import Backbone
from service.train.ms_ssim import ms_ssim

BASE = 4
"""The rate in the middle of the ladder, at which the backbone is trained."""

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
        name: as the store, the command line and the API call it.
        error: E of (x_hat, x), both [B, H, W, 3] float32 in [0, 1].
        lmbdas: of each rate; where to start where lmbda is `found`.
        order: rates in the order in which they are trained, each after its neighbour.
        head_start: times the steps for the rate that starts from the base: it learns the loss.
    """

    name: str
    error: Callable[[Tensor, Tensor], Tensor]
    lmbdas: Mapping[int, float]
    order: tuple[int, ...]
    found: bool
    head_start: int = 1

    def neighbour(self, rate: int) -> int | None:
        """The rate that a rate starts from, None for the base itself."""
        if rate == BASE:
            return None
        near = rate - 1 if rate > BASE else rate + 1
        return near if near in self.order else None

    def steps(self, rate: int, steps: int) -> int:
        """Steps of a rate where one with a neighbour takes `steps`."""
        return steps if self.neighbour(rate) else steps * self.head_start


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """255² · MSE."""
    return 255**2 * (x_hat - x).square().mean()


def unlikeness(x_hat: Tensor, x: Tensor) -> Tensor:
    """1 - MS-SSIM, mean of the batch."""
    return 1 - ms_ssim(x_hat, x).mean()


PSNR = Tune("psnr", squared_error, LADDER, (5, 6, 7, 8, 3, 2, 1), found=False)

MS_SSIM = Tune(
    "ms-ssim",
    unlikeness,
    {1: 4.3, 2: 8.2, 3: 15.7, 4: 30.0, 5: 57.0, 6: 109.0, 7: 208.0, 8: 396.0},
    (4, 5, 6, 7, 8, 3, 2, 1),
    found=True,
    head_start=3,
)
"""The lmbdas to start from keep the ratios of those of CompressAI's MS-SSIM models."""

TUNES: Mapping[str, Tune] = {t.name: t for t in (PSNR, MS_SSIM)}

EVERY = 50
"""Steps between two corrections of lmbda."""

SETTLED = 0.8
"""Part of a run after which lmbda stays."""

GAIN = 1.25
"""Change of log(lmbda) for a change of log(bpp): bpp goes with lmbda^0.45 or so, in time."""


@dataclass(frozen=True, eq=False)
class Aim:
    """What a rate is to cost.

    Attributes:
        bpp: bits per pixel. pictures: [1, H, W, 3] in [0, 1], on which it is to cost that.
        base: that adapters are merged into; not compiled, pictures are of many sizes.
    """

    bpp: float
    pictures: Sequence[Tensor]
    base: Backbone

    def correction(self, adapter: RateAdapter, /) -> float:
        """What to add to log(lmbda)."""
        return GAIN * math.log(self.bpp / estimated_bpp(self.base, adapter, self.pictures))


@torch.inference_mode()
def estimated_bpp(base: Backbone, adapter: RateAdapter, pictures: Sequence[Tensor]) -> float:
    """Mean bits per pixel that an adapter's float model predicts with real rounding."""
    merged, total = adapter.merged(), 0.0
    for x in pictures:
        with torch.autocast(x.device.type, torch.bfloat16):
            e = torch.func.functional_call(base, merged, (x,), {"relax": None})
        total += float(e.bits_y + e.bits_z) / x[..., 0].numel()
    return total / len(pictures)
