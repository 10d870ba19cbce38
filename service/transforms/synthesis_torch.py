"""g_a, h_a and g_s in torch, at the precision that is fastest on the device.

Only the products inside blocks, g_a's first layer and h_a run in the working type (bfloat16 where
the device has instructions for it). Sums, and the layers that carry latents of up to ±512 or change
resolution, stay in float32: so Kodak loses less than 0.005 dB at rate 4, and 0.03 dB with bfloat16
everywhere.

Edges are repeated where the input of a block is rounded to the working type anyway: a product of
positions commutes with repeating them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.sizes import conv_sizes
from service.codec.tiles import PATCH, Box, visible_at_eighth
from service.nets.backbone import Block, analysis, synthesis
from service.store.model import StoredModel
from service.transforms.interfaces import AnalysisTransform
from service.transforms.torch_layers import (
    PackedLinear,
    TorchHyperAnalysis,
    byte_input,
    cut,
    fill,
    latents_on,
    packed,
    to_numpy,
    to_pixels,
)


class TorchSynthesis:
    """g_s of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights; `dtype` is the working type of the inner layers, see `best_dtype`."""
        self.device, self.dtype = device, dtype
        s = conv_sizes(model.sizes)
        with torch.device("meta"):
            g_s = synthesis(s)
        fill(g_s, model.transforms, "g_s", device)
        layers, self._blocks, up = _prepared(g_s, dtype), s.nd8, s.nd16 + 1
        self._widths = [s.c16, s.M - s.c16]  # channels of blocks at 1/16; those that skip them
        self._deep, self._up = layers[:up], layers[up]
        self._fine, self._last = layers[up + 1 : -1], layers[-1]

    @torch.inference_mode()
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See SynthesisTransform.

        Samples that are not a number become 0; only a hostile update of the weights causes them.
        """
        y = latents_on(self.device, y_hat)
        window = Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        visible = visible_at_eighth(inner, window, self._blocks)
        deep, straight = y.split(self._widths, -1)
        x = self._up(torch.cat([self._deep(deep), straight], -1))
        x = self._fine(cut(x, visible))
        out = to_pixels(self._last(cut(x, inner.scaled(2).relative(visible))))
        assert out.shape == (inner.height * PATCH, inner.width * PATCH, 3)
        return out


class TorchTransforms(TorchSynthesis, TorchHyperAnalysis):
    """All transforms of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights, see TorchSynthesis."""
        TorchSynthesis.__init__(self, model, device, dtype)
        TorchHyperAnalysis.__init__(self, model, device, dtype)
        s = conv_sizes(model.sizes)
        with torch.device("meta"):
            g_a = analysis(s)
        fill(g_a, model.transforms, "g_a", device)
        self._unshuffle, self._g_a_first = byte_input(g_a[0], dtype)
        layers, down = _prepared(list(g_a)[1:], dtype), s.ne8 + 1
        self._g_a_fine, self._g_a_deep = layers[:down], layers[down:]

    @torch.inference_mode()
    def analyse(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        cells = self._unshuffle(torch.from_numpy(pixels).to(self.device)[None])
        x = self._g_a_fine(self._g_a_first(cells.to(self.dtype)).float())
        deep, straight = x.split(self._widths, -1)
        return to_numpy(torch.cat([self._g_a_deep(deep.contiguous()), straight], -1)[0])


class _Float32Sums(nn.Module):
    """A Block whose products run in the working type and whose sums stay in float32."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        block, self.dtype = block.to(dtype), dtype
        self.pw1, self.dw, self.pw2 = PackedLinear(block.pw1), block.dw, PackedLinear(block.pw2)
        self.f1, self.f2 = PackedLinear(block.f1), PackedLinear(block.f2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] float32 -> the same; changes its argument."""
        t = self.pw1(_with_edges(x, self.dtype), leaky=True)
        # a sum of two types would take twice as long as one of float32
        x.add_(self.pw2(self.dw.convolve(t)).float())
        return x.add_(self.f2(self.f1(x.to(self.dtype), leaky=True)).float())


def _with_edges(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, W, C] in another type, its edges repeated once: [B, H+2, W+2, C]."""
    b, h, w, c = x.shape
    out = x.new_empty(b, h + 2, w + 2, c, dtype=dtype)
    rows = out[:, 1:-1]
    rows[:, :, 1:-1], rows[:, :, 0], rows[:, :, -1] = x, x[:, :, 0], x[:, :, -1]
    out[:, 0], out[:, -1] = out[:, 1], out[:, -2]
    return out


def _prepared(net: Iterable[nn.Module], dtype: torch.dtype) -> nn.Sequential:
    """A net ready to run, with only the products of its blocks in the working type."""
    return nn.Sequential(
        *(_Float32Sums(x, dtype) if isinstance(x, Block) else packed(x) for x in net)
    )


def pick_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is one; otherwise the named device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it, otherwise float32.

    This is a fixed rule and no measurement, so that a machine always writes the same bytes. With
    releases of torch that do not report a CPU's instructions it is float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def device_and_dtype(analysis: AnalysisTransform) -> tuple[torch.device, torch.dtype]:
    """The device and working type for gradients of a loaded model.

    They are those that it runs with, or the CPU and float32 where it does not run in torch.
    """
    if isinstance(analysis, TorchHyperAnalysis):
        return analysis.device, analysis.dtype
    return torch.device("cpu"), torch.float32
