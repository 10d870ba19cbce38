"""g_a, h_a and g_s in torch, at the precision that is fastest on the device.

Only the products inside blocks, g_a's first layer and h_a run in the working type (bfloat16 where
the device has instructions for it). Sums, and the layers that carry latents of up to ±512 or change
resolution, stay in float32: so Kodak loses less than 0.005 dB at rate 4, and 0.03 dB with bfloat16
everywhere.

On CPUs that oneDNN serves, it computes all products. Weights are laid out for it once, LeakyReLU is
part of the product before it, and edges are repeated where the input of a block is rounded to the
working type anyway: a product of positions commutes with repeating them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable

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
        layers, self._blocks, up = _prepared(g_s, dtype), s.nd8, s.nd16 + 1
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
        pixels = x.nan_to_num_(0).clamp_(0, 255).to(torch.uint8)
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
        layers, down = _prepared(list(g_a)[1:], dtype), model.sizes.ne8 + 1
        self._g_a_fine, self._g_a_deep = layers[:down], layers[down:]
        self._h_a_body = _packed(h_a[:-1].to(dtype))
        self._h_a_last = _packed(h_a[-1:])

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


class _PackedLinear(nn.Module):
    """A Linear whose weight oneDNN has laid out for its products, where it serves the device."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        if _has_onednn(weight.device):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, leaky: bool = False) -> Tensor:
        """[B, ..., inputs] -> [B, ..., outputs], followed by a LeakyReLU where `leaky`."""
        if not self.weight.is_mkldnn:
            out = nn.functional.linear(x, self.weight, self.bias)
            return nn.functional.leaky_relu_(out, LEAK) if leaky else out
        activation = ("leaky_relu", [LEAK]) if leaky else ("none", [])
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, *activation, ""
        )
        return fused


class _Float32Sums(nn.Module):
    """A Block whose products run in the working type and whose sums stay in float32."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        block, self.dtype = block.to(dtype), dtype
        self.pw1, self.dw, self.pw2 = _PackedLinear(block.pw1), block.dw, _PackedLinear(block.pw2)
        self.f1, self.f2 = _PackedLinear(block.f1), _PackedLinear(block.f2)

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


def _cut(x: Tensor, box: Box) -> Tensor:
    """The positions of [B, H, W, C] in a box."""
    return x[:, *box.slices].contiguous()


def _prepared(net: Iterable[nn.Module], dtype: torch.dtype) -> nn.Sequential:
    """A net ready to run, with only the products of its blocks in the working type."""
    return nn.Sequential(
        *(_Float32Sums(x, dtype) if isinstance(x, Block) else _packed(x) for x in net)
    )


def _packed(module: nn.Module) -> nn.Module:
    """A module with every Linear in it replaced by its packed form."""
    if isinstance(module, nn.Linear):
        return _PackedLinear(module)
    for name, child in module.named_children():
        setattr(module, name, _packed(child))
    return module


def _has_onednn(device: torch.device) -> bool:
    """Whether oneDNN serves a device; with releases for other CPUs than x86 this was not tried."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type == "cpu" and is_x86 and torch.backends.mkldnn.is_available()


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


def _byte_input(down: nn.Module, dtype: torch.dtype) -> tuple[Unshuffle, _PackedLinear]:
    """g_a's first layer for pixels 0–255, which every working type holds exactly.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    assert isinstance(down, Down)
    down.l.bias = nn.Parameter(down.l.bias - down.l.weight.sum(1) / 2, requires_grad=False)
    down.l.weight = nn.Parameter(down.l.weight / 255, requires_grad=False)
    return down.unshuffle, _PackedLinear(down.l.to(dtype))


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
