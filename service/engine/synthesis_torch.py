"""g_a, h_a and g_s in torch, at the precision that is fastest where it runs.

The first layer of g_s and the last of g_a stay in float32: they carry latents of up to ±512, which
bfloat16 would round to whole steps. Everything between runs in the working type. Costs against
float32 on Kodak at rate 4: 0.01 dB.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.entropy_model import Y_FRAC
from service.codec.tiles import PATCH, Z_CELL
from service.errors import StoreError
from service.nets.backbone import Down, Unshuffle, analysis, hyper_analysis, synthesis
from service.store import StoredModel


class TorchTransforms:
    """The transforms of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights.

        Args:
            model: from the store.
            device: where to run.
            dtype: working type of the inner layers, see `best_dtype`.
        """
        self.device, self.dtype = device, dtype
        with torch.device("meta"):
            g_a, g_s = analysis(model.sizes), synthesis(model.sizes)
            h_a = hyper_analysis(model.sizes)
        for name, net in (("g_a", g_a), ("g_s", g_s), ("h_a", h_a)):
            _fill(net, model.transforms, name, device)
        self._unshuffle, self._g_a_first = _byte_input(g_a[0], dtype)
        self._g_a_body, self._g_a_last = g_a[1:-1].to(dtype), g_a[-1]
        self._g_s_first, self._g_s_body = g_s[0], g_s[1:].to(dtype)
        self._h_a_body, self._h_a_last = h_a[:-1].to(dtype), h_a[-1]

    @torch.inference_mode()
    def analyse(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        cells = self._unshuffle(torch.from_numpy(pixels).to(self.device)[None])
        x = self._g_a_first(cells.to(self.dtype))
        y: Tensor = self._g_a_last(self._g_a_body(x).float())
        return _numpy(y[0])

    @torch.inference_mode()
    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]; edges are repeated to whole cells."""
        pad = [(0, 0), (0, -y.shape[1] % Z_CELL), (0, -y.shape[2] % Z_CELL), (0, 0)]
        padded = np.pad(y, pad, mode="edge")
        body = self._h_a_body(torch.from_numpy(padded).to(self.device).to(self.dtype))
        return _numpy(self._h_a_last(body.float()))

    @torch.inference_mode()
    def synthesise(self, y_hat: NDArray[np.int16]) -> NDArray[np.uint8]:
        """y_hat [h, w, M] in units of 2^-Y_FRAC -> pixels [16h, 16w, 3]."""
        y = torch.from_numpy(y_hat).to(self.device).to(torch.float32) * 2.0**-Y_FRAC
        x = self._g_s_body(self._g_s_first(y[None]).to(self.dtype)).float()
        pixels = x[0].add_(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        out: NDArray[np.uint8] = pixels.cpu().numpy()
        assert out.shape == (y_hat.shape[0] * PATCH, y_hat.shape[1] * PATCH, 3)
        return out


def pick_device(name: str) -> torch.device:
    """ "auto" takes CUDA where there is one; otherwise the named device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, found by timing both."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return min((torch.bfloat16, torch.float32), key=_gemm_seconds)


def _gemm_seconds(dtype: torch.dtype) -> float:
    """Best of a few 1536×256×512 products on the CPU."""
    a, b = torch.ones(1536, 256, dtype=dtype), torch.ones(512, 256, dtype=dtype)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
    return min(times)


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
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise StoreError(f"the stored tensors {prefix}.* do not fit the sizes: {error}") from error
    net.requires_grad_(False).eval()


def _numpy(x: Tensor) -> NDArray[np.float32]:
    out: NDArray[np.float32] = x.cpu().numpy()
    return out
