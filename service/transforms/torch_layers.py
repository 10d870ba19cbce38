"""What the transforms of every family in torch are made of: packed layers, weights, and h_a.

On CPUs that oneDNN serves, it computes all products. Weights are laid out for it once, and
LeakyReLU is part of the product before it.
"""

from __future__ import annotations

import platform

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.entropy_model import Y_FRAC
from service.codec.fixed_point import LEAK
from service.codec.tiles import Box
from service.nets.backbone import Down, Unshuffle, hyper_analysis
from service.store.model import StoredModel
from service.transforms.interfaces import whole_cells


class PackedLinear(nn.Module):
    """A Linear whose weight oneDNN has laid out for its products, where it serves the device."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        if has_onednn(weight.device):
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


def packed(module: nn.Module) -> nn.Module:
    """A module with every Linear in it replaced by its packed form."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    for name, child in module.named_children():
        setattr(module, name, packed(child))
    return module


def byte_input(down: nn.Module, dtype: torch.dtype) -> tuple[Unshuffle, PackedLinear]:
    """g_a's first layer for pixels 0–255, which every working type holds exactly.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    assert isinstance(down, Down)
    down.l.bias = nn.Parameter(down.l.bias - down.l.weight.sum(1) / 2, requires_grad=False)
    down.l.weight = nn.Parameter(down.l.weight / 255, requires_grad=False)
    return down.unshuffle, PackedLinear(down.l.to(dtype))


def fill(
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


def cut(x: Tensor, box: Box) -> Tensor:
    """The positions of [B, H, W, C] in a box."""
    return x[:, *box.slices].contiguous()


def to_numpy(x: Tensor) -> NDArray[np.float32]:
    """A float32 tensor as an array."""
    out: NDArray[np.float32] = x.cpu().numpy()
    return out


def latents_on(device: torch.device, y_hat: NDArray[np.int16]) -> Tensor:
    """Latents [h, w, M] in units of 2^-Y_FRAC as [1, h, w, M] float32 in their own unit."""
    return torch.from_numpy(y_hat).to(device)[None].to(torch.float32) * 2.0**-Y_FRAC


def to_pixels(x: Tensor) -> NDArray[np.uint8]:
    """Samples [1, H, W, 3] from -0.5 to 0.5 as 0 to 255, NaN as 0; changes its argument."""
    rounded = x[0].add_(0.5).mul_(255).round_()
    pixels: NDArray[np.uint8] = rounded.nan_to_num_(0).clamp_(0, 255).to(torch.uint8).cpu().numpy()
    return pixels


class TorchHyperAnalysis:
    """h_a of one model on one device."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights; `dtype` is the working type of all layers but the last."""
        self.device, self.dtype = device, dtype
        with torch.device("meta"):
            h_a = hyper_analysis(model.sizes)
        fill(h_a, model.transforms, "h_a", device)
        self._h_a_body = packed(h_a[:-1].to(dtype))
        self._h_a_last = packed(h_a[-1:])

    @torch.inference_mode()
    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]; edges are repeated to whole cells."""
        cells = np.ascontiguousarray(whole_cells(y))
        body = self._h_a_body(torch.from_numpy(cells).to(self.device).to(self.dtype))
        return to_numpy(self._h_a_last(body.float()))


def has_onednn(device: torch.device) -> bool:
    """Whether oneDNN serves a device; with releases for other CPUs than x86 this was not tried."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type == "cpu" and is_x86 and torch.backends.mkldnn.is_available()
