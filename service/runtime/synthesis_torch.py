"""g_a, h_a and g_s in torch, at the precision that is fastest on the device.

Only the products inside blocks, g_a's first layer and h_a run in the working type (bfloat16 where
the device has instructions for it). Sums, and the layers that carry latents of up to ±512 or change
resolution, stay in float32: so Kodak loses less than 0.005 dB at rate 4, and 0.03 dB with bfloat16
everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.entropy_model import Y_FRAC
from service.codec.fixed_point import LEAK
from service.codec.tiles import PATCH, Box, visible_at_eighth
from service.nets.backbone import Block, Down, Unshuffle, analysis, hyper_analysis, synthesis
from service.runtime.pipeline import AnalysisTransform, whole_cells
from service.store.model import StoredModel


class TorchSynthesis:
    """g_s of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights; `dtype` is the working type of the inner layers, see `best_dtype`."""
        self.device, self.dtype = device, dtype
        with torch.device("meta"):
            g_s = synthesis(model.sizes)
        _fill(g_s, model.transforms, "g_s", device)
        s = model.sizes
        layers, self._blocks, up = _float32_sums(g_s, dtype), s.nd8, s.nd16 + 1
        self._widths = [s.c16, s.M - s.c16]  # channels of blocks at 1/16; those that skip them
        self._deep, self._up = layers[:up], layers[up]
        self._fine, self._last = layers[up + 1 : -1], layers[-1]

    @torch.inference_mode()
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See pipeline.SynthesisTransform.

        Samples that are not a number become 0; only a hostile update of the weights causes them.
        """
        y = torch.from_numpy(y_hat).to(self.device)[None].to(torch.float32) * 2.0**-Y_FRAC
        window = Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        visible = visible_at_eighth(inner, window, self._blocks)
        deep, straight = y.split(self._widths, -1)
        x = self._up(torch.cat([self._deep(deep), straight], -1))
        x = self._fine(_cut(x, visible))
        x = self._last(_cut(x, inner.scaled(2).relative(visible)))[0].add_(0.5).mul_(255).round_()
        # fmax, not clamp: it takes the number where the other is none
        pixels = torch.fmax(x, x.new_zeros(())).clamp_(max=255).to(torch.uint8)
        out: NDArray[np.uint8] = pixels.cpu().numpy()
        assert out.shape == (inner.height * PATCH, inner.width * PATCH, 3)
        return out


class TorchTransforms(TorchSynthesis):
    """All transforms of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights, see TorchSynthesis."""
        super().__init__(model, device, dtype)
        with torch.device("meta"):
            g_a, h_a = analysis(model.sizes), hyper_analysis(model.sizes)
        for name, net in (("g_a", g_a), ("h_a", h_a)):
            _fill(net, model.transforms, name, device)
        self._unshuffle, self._g_a_first = _byte_input(g_a[0], dtype)
        layers, down = _float32_sums(g_a, dtype), model.sizes.ne8 + 1
        self._g_a_fine, self._g_a_deep = layers[1 : down + 1], layers[down + 1 :]
        self._h_a_body, self._h_a_last = h_a[:-1].to(dtype), h_a[-1]

    @torch.inference_mode()
    def analyse(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        cells = self._unshuffle(torch.from_numpy(pixels).to(self.device)[None])
        x = self._g_a_fine(self._g_a_first(cells.to(self.dtype)).float())
        deep, straight = x.split(self._widths, -1)
        return _numpy(torch.cat([self._g_a_deep(deep.contiguous()), straight], -1)[0])

    @torch.inference_mode()
    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]; edges are repeated to whole cells."""
        cells = np.ascontiguousarray(whole_cells(y))
        body = self._h_a_body(torch.from_numpy(cells).to(self.device).to(self.dtype))
        return _numpy(self._h_a_last(body.float()))


class _Float32Sums(nn.Module):
    """A Block whose products run in the working type and whose sums stay in float32."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.block, self.dtype = block.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] float32 -> the same; changes its argument."""
        b = self.block
        t = nn.functional.leaky_relu_(b.pw1(x.to(self.dtype)), LEAK)
        x.add_(b.pw2(b.dw(t)))
        return x.add_(b.f2(nn.functional.leaky_relu_(b.f1(x.to(self.dtype)), LEAK)))


def _cut(x: Tensor, box: Box) -> Tensor:
    """The positions of [B, H, W, C] in a box."""
    return x[:, *box.slices].contiguous()


def _float32_sums(net: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    """A net with only the products of its blocks in the working type."""
    layers = net.children()
    return nn.Sequential(*(_Float32Sums(x, dtype) if isinstance(x, Block) else x for x in layers))


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
    if isinstance(analysis, TorchTransforms):
        return analysis.device, analysis.dtype
    return torch.device("cpu"), torch.float32


def _byte_input(down: nn.Module, dtype: torch.dtype) -> tuple[Unshuffle, nn.Linear]:
    """g_a's first layer for pixels 0–255, which every working type holds exactly.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    assert isinstance(down, Down)
    down.l.bias = nn.Parameter(down.l.bias - down.l.weight.sum(1) / 2, requires_grad=False)
    down.l.weight = nn.Parameter(down.l.weight / 255, requires_grad=False)
    return down.unshuffle, down.l.to(dtype)


def _fill(
    net: nn.Module, tensors: dict[str, NDArray[np.generic]], prefix: str, device: torch.device
) -> None:
    """Give a net built on the meta device its stored weights, as float32."""
    stem = prefix + "."
    state = {
        name.removeprefix(stem): torch.from_numpy(t.astype(np.float32)).to(device)
        for name, t in tensors.items()
        if name.startswith(stem)
    }
    net.load_state_dict(state, assign=True)
    net.requires_grad_(False).eval()


def _numpy(x: Tensor) -> NDArray[np.float32]:
    out: NDArray[np.float32] = x.cpu().numpy()
    return out
