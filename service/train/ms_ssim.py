"""MS-SSIM for training: the metric of eval/metrics.py, differentiable, on batches in torch.

Wang, Simoncelli and Bovik 2003: 11x11 Gaussian windows where they fit, five scales of 2x2 means,
and each channel separately. The mean of a scale is at least `FLOOR` here, unlike in the metric,
because a fractional power has no finite slope at zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from service.eval.metrics import C1, C2, SIGMA, TAPS, WEIGHTS

FLOOR = 1e-3
"""Least mean of a scale; scales of a picture that resembles its original are far larger."""


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the MS-SSIM of each picture of a batch, averaged over its channels.

    Args:
        x: [B, H, W, 3] float32 in [0, 1]; H and W at least eval.metrics.MS_SSIM_SIDE.
        y: of the same shape; values may lie a little outside [0, 1].

    Returns:
        [B] float32, 1 for equal pictures.
    """
    a, b = (t.float().permute(0, 3, 1, 2).contiguous() - 0.5 for t in (x, y))
    scales = []
    for scale in range(len(WEIGHTS)):
        similar, structure = _maps(a, b)
        last = scale == len(WEIGHTS) - 1
        scales.append((similar if last else structure).mean((2, 3)))
        if not last:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    means = torch.stack(scales).clamp_min(FLOOR)
    weights = torch.tensor(WEIGHTS, device=means.device)[:, None, None]
    return (means.log() * weights).sum(0).exp().mean(1)


def _maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part wherever the window fits; a and b are less 1/2."""
    blurred = _blurred(torch.cat([a, b, a * a + b * b, a * b]))
    mu_a, mu_b, squares, product = blurred.chunk(4)
    c1, c2 = C1 / 255**2, C2 / 255**2
    variances = squares - mu_a * mu_a - mu_b * mu_b
    structure = (2 * (product - mu_a * mu_b) + c2) / (variances + c2)
    mu_a, mu_b = mu_a + 0.5, mu_b + 0.5
    luminance = (2 * mu_a * mu_b + c1) / (mu_a * mu_a + mu_b * mu_b + c1)
    return luminance * structure, structure


def _blurred(x: Tensor) -> Tensor:
    """Gaussian window of TAPS, [N, C, H, W] -> [N, C, H - TAPS + 1, W - TAPS + 1]."""
    return _band(x.shape[-2], x.device) @ (x @ _band(x.shape[-1], x.device).T)


def _band(size: int, device: torch.device) -> Tensor:
    """The window at every place where it fits, [size - TAPS + 1, size].

    On a CPU the matrix product is nine times faster than depthwise convolution, gradient included.
    """
    taps = torch.arange(TAPS, device=device) - TAPS // 2
    window = torch.exp(-(taps**2) / (2 * SIGMA**2))
    band = torch.zeros(size - TAPS + 1, size, device=device)
    for i, weight in enumerate(window / window.sum()):
        band.diagonal(i).fill_(weight)
    return band
