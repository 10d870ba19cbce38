"""The backbone in torch: g_a, g_s, h_a and h_s, and the step networks as they are trained.

Channels last; every layer is a Linear (1×1), a depthwise 3×3 or a pixel (un)shuffle. For training,
`ScaledLinear` keeps weights near orthonormal beside fixed scale vectors; for use, `folded`
multiplies the scales in. Shapes: x [B, H, W, 3] in [-0.5, 0.5], y [B, H/16, W/16, M], z [B, H/64,
W/64, Cz].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.fixed_point import LEAK
from service.codec.sizes import Sizes


class ScaledLinear(nn.Linear):
    """Linear with fixed input and output scales (`si`, `so`), W_eff = so · W · si."""

    si: Tensor
    so: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("si", torch.ones(inputs))
        self.register_buffer("so", torch.ones(outputs))

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(input, self.effective_weight(), self.bias * self.so)

    def effective_weight(self) -> Tensor:
        """The weight with both scales folded in."""
        return self.weight * self.so[:, None] * self.si[None]


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU. Compiled, as a sum: keeping a mask for the gradient doubles a block's time."""
    if torch.compiler.is_compiling():
        return x * ((1 + LEAK) / 2) + x.abs() * ((1 - LEAK) / 2)
    return F.leaky_relu(x, LEAK)


LinearType = type[nn.Linear]


class Block(nn.Module):
    """x + pw2(dw(act(pw1 x))), then x + f2(act(f1 x)). Residual branches start at zero."""

    def __init__(self, c: int, linear: LinearType = nn.Linear) -> None:
        super().__init__()
        self.pw1, self.pw2 = linear(c, c), linear(c, c)
        self.dw = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.f1, self.f2 = linear(c, 2 * c), linear(2 * c, c)
        for layer in (self.pw1, self.f1):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.pw2, self.f2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.dw.weight.mul_(0.3)
            self.dw.weight[:, 0, 1, 1] += 1
        assert self.dw.bias is not None
        nn.init.zeros_(self.dw.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> the same."""
        x = x + self.pw2(self.depthwise(leaky(self.pw1(x))))
        out: Tensor = x + self.f2(leaky(self.f1(x)))
        return out

    def depthwise(self, x: Tensor) -> Tensor:
        """3×3 by channel, [B, H, W, C] -> the same.

        Trained on a GPU as shifted products: one kernel with what comes before, once compiled, and
        sums in a fixed order, which cuDNN does not promise. Elsewhere a convolution is quicker (a
        compiled training step on the CPU by 7 %).
        """
        if x.is_cuda and torch.is_grad_enabled():
            assert self.dw.bias is not None
            return shifted_products(x, self.dw.weight, self.dw.bias)
        out: Tensor = self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


def shifted_products(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 3×3 convolution of x [B, H, W, C] by weight [C, 1, 3, 3], as nine products."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    total = bias.to(x.dtype)
    for place, tap in enumerate(weight.to(x.dtype).reshape(-1, 9).unbind(1)):
        row, column = divmod(place, 3)
        total = total + padded[:, row : row + height, column : column + width] * tap
    return total


class Unshuffle(nn.Module):
    """r×r cells into channels."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H/r, W/r, r·r·C]."""
        b, h, w, c = x.shape
        r = self.r
        cells = x.reshape(b, h // r, r, w // r, r, c).permute(0, 1, 3, 2, 4, 5)
        return cells.reshape(b, h // r, w // r, r * r * c)


class Down(nn.Module):
    """Unshuffle r×r cells into channels, then a Linear."""

    def __init__(self, linear: LinearType, inputs: int, outputs: int, r: int) -> None:
        super().__init__()
        self.unshuffle, self.l = Unshuffle(r), linear(inputs * r * r, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H/r, W/r, outputs]."""
        out: Tensor = self.l(self.unshuffle(x))
        return out


class Up(nn.Module):
    """A Linear, then shuffle channels into r×r cells."""

    def __init__(self, linear: LinearType, inputs: int, outputs: int, r: int) -> None:
        super().__init__()
        self.l, self.r = linear(inputs, outputs * r * r), r

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, inputs] -> [B, rH, rW, outputs]."""
        x = self.l(x)
        b, h, w, c = x.shape
        r = self.r
        cells = x.reshape(b, h, w, r, r, c // (r * r)).permute(0, 1, 3, 2, 4, 5)
        return cells.reshape(b, h * r, w * r, c // (r * r))


def analysis(s: Sizes, linear: LinearType = nn.Linear) -> nn.Sequential:
    """g_a: x - 0.5 [B, H, W, 3] -> y [B, H/16, W/16, M]; H and W multiples of 16."""
    return nn.Sequential(
        Down(linear, 3, s.c8, 8),
        *[Block(s.c8) for _ in range(s.ne8)],
        Down(linear, s.c8, s.M, 2),
        *[Block(s.M) for _ in range(s.ne16)],
        linear(s.M, s.M),
    )


def synthesis(
    s: Sizes, linear: LinearType = nn.Linear, inner: LinearType = nn.Linear
) -> nn.Sequential:
    """g_s: y_hat [B, h, w, M] -> x_hat - 0.5 [B, 16h, 16w, 3]; `inner` is of the blocks."""
    return nn.Sequential(
        linear(s.M, s.M),
        *[Block(s.M, inner) for _ in range(s.nd16)],
        Up(linear, s.M, s.c8, 2),
        *[Block(s.c8, inner) for _ in range(s.nd8)],
        Up(linear, s.c8, 3, 8),
    )


def hyper_analysis(s: Sizes, linear: LinearType = nn.Linear) -> nn.Sequential:
    """h_a: y [B, h, w, M] -> z [B, h/4, w/4, Cz]; h and w multiples of 4."""
    return nn.Sequential(
        linear(s.M, s.cp),
        Block(s.cp),
        Down(linear, s.cp, s.Cz, 2),
        Block(s.Cz),
        Down(linear, s.Cz, s.Cz, 2),
        nn.Linear(s.Cz, s.Cz),
    )


def hyper_synthesis(s: Sizes, linear: LinearType = nn.Linear) -> nn.Sequential:
    """h_s: z_hat [B, h, w, Cz] -> P [B, 4h, 4w, cp]."""
    return nn.Sequential(
        Up(linear, s.Cz, s.Cz, 2), Block(s.Cz), Up(linear, s.Cz, s.cp, 2), Block(s.cp)
    )


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trained state dict with every ScaledLinear's scales multiplied in, in float32.

    Returns:
        The same names without `si` and `so`, ready for modules built with nn.Linear.
    """
    out = {}
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".")
        if part in ("si", "so"):
            continue
        value = tensor.double()
        if f"{stem}.so" in state and part == "weight":
            value = value * state[f"{stem}.so"].double()[:, None] * state[f"{stem}.si"].double()
        elif f"{stem}.so" in state and part == "bias":
            value = value * state[f"{stem}.so"].double()
        out[name] = value.float()
    return out
