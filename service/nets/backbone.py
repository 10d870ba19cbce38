"""The backbone in torch: the transforms g_a (analysis), g_s (synthesis), h_a and h_s (hyperprior).

Arrays have channels last; every layer is a Linear (1×1), a depthwise 3×3 or a pixel (un)shuffle. In
training, `ScaledLinear` keeps weights near orthonormal next to fixed scale vectors; for use,
`folded` multiplies the scales in. Shapes: x [B, H, W, 3] from -0.5 to 0.5, y [B, H/16, W/16, M], z
[B, H/64, W/64, Cz].

Depthwise layers repeat the edge of their input. At 1/16 resolution the blocks work on the first c16
channels; the other M - c16 latents go straight from the features of g_a at 1/8 to those of g_s, and
carry the fine detail of high rates.

A batch may consist of G groups of equal size, each with its own weights: layers then hold weights
[G, N, K] and biases [G, N]. Training uses groups to train several rates in one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.fixed_point import LEAK
from service.codec.sizes import ConvSizes, Sizes


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer: x [B, ..., K], weight [N, K] and bias [N] -> [B, ..., N].

    With weight [G, N, K] and bias [G, N], each of G groups of B/G consecutive items has its own.
    """
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    groups = x.reshape(len(weight), -1, x.shape[-1])
    return torch.baddbmm(bias[:, None], groups, weight.mT).reshape(*x.shape[:-1], -1)


def per_item(vector: Tensor, items: int) -> Tensor:
    """Return a vector [C] unchanged, or vectors [G, C] of groups as [items, 1, 1, C]."""
    if vector.ndim == 1:
        return vector
    return vector[:, None].expand(-1, items // len(vector), -1).reshape(items, 1, 1, -1)


class Linear(nn.Linear):
    """nn.Linear whose weights may be those of groups."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, ..., inputs] -> [B, ..., outputs]."""
        return linear(input, self.weight, self.bias)


class ScaledLinear(nn.Linear):
    """Linear with fixed input scales si [K] and output scales so [N]: W_eff = so · W · si."""

    si: Tensor
    so: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("si", torch.ones(inputs))
        self.register_buffer("so", torch.ones(outputs))

    def forward(self, input: Tensor) -> Tensor:
        """[B, ..., inputs] -> [B, ..., outputs]."""
        return linear(input, self.effective_weight(), self.bias * self.so)

    def effective_weight(self) -> Tensor:
        """The weight [N, K] with both scales folded in."""
        return self.weight * self.so[:, None] * self.si[None]


LinearType = type[nn.Linear]


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU of slope LEAK.

    Compiled code computes it as a sum, because keeping a mask for the gradient doubles the time of
    a block.
    """
    if torch.compiler.is_compiling():
        return x * ((1 + LEAK) / 2) + x.abs() * ((1 - LEAK) / 2)
    return F.leaky_relu(x, LEAK)


class Depthwise(nn.Conv2d):
    """A 3×3 convolution of each channel; positions outside take the nearest sample inside."""

    def __init__(self, c: int) -> None:
        super().__init__(c, c, 3, groups=c)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.mul_(0.3)
            self.weight[:, 0, 1, 1] += 1

    def forward(self, input: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        return self.convolve(repeat_edges(input))

    def convolve(self, padded: Tensor) -> Tensor:
        """[B, H+2, W+2, C], with repeated edges -> [B, H, W, C].

        Training on a GPU computes shifted products: compiled, they are one kernel with the layer
        before, and their sums have a fixed order, which cuDNN does not promise. Elsewhere a
        convolution is faster (a compiled training step on a CPU by 7 %).
        """
        assert self.bias is not None
        if padded.is_cuda and torch.is_grad_enabled():
            return shifted_products(padded, self.weight) + self._bias(padded)
        bias = self.bias if self.bias.ndim == 1 else None
        out = F.conv2d(padded.permute(0, 3, 1, 2), self.weight, bias, groups=len(self.weight))
        out = out.permute(0, 2, 3, 1)
        return out if bias is not None else out + self._bias(padded)

    def _bias(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return per_item(self.bias, len(x)).to(x.dtype)


def repeat_edges(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, H+2, W+2, C]; the gradient of cat is a sum in a fixed order."""
    x = torch.cat([x[:, :1], x, x[:, -1:]], 1)
    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)


def shifted_products(padded: Tensor, weight: Tensor) -> Tensor:
    """Convolve [B, H+2, W+2, C] with 3×3 taps [C, 1, 3, 3] by channel: [B, H, W, C]."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    taps = weight.to(padded.dtype).reshape(-1, 9).unbind(1)
    total = padded[:, :height, :width] * taps[0]
    for place in range(1, 9):
        row, column = divmod(place, 3)
        total = total + padded[:, row : row + height, column : column + width] * taps[place]
    return total


class Block(nn.Module):
    """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)); both branches start at zero."""

    def __init__(self, c: int, linear: LinearType = Linear) -> None:
        super().__init__()
        self.pw1, self.pw2 = linear(c, c), linear(c, c)
        self.dw = Depthwise(c)
        self.f1, self.f2 = linear(c, 2 * c), linear(2 * c, c)
        for layer in (self.pw1, self.f1):
            nn.init.orthogonal_(layer.weight)
        for layer in (self.pw2, self.f2):
            nn.init.zeros_(layer.weight)
        for layer in (self.pw1, self.f1, self.pw2, self.f2):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        x = x + self.pw2(self.dw(leaky(self.pw1(x))))
        out: Tensor = x + self.f2(leaky(self.f1(x)))
        return out


class Unshuffle(nn.Module):
    """Moves r×r cells into channels."""

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
    """Unshuffle by r, then a Linear."""

    def __init__(self, linear: LinearType, inputs: int, outputs: int, r: int) -> None:
        super().__init__()
        self.unshuffle, self.l = Unshuffle(r), linear(inputs * r * r, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H/r, W/r, outputs]."""
        out: Tensor = self.l(self.unshuffle(x))
        return out


class Up(nn.Module):
    """A Linear, then a shuffle of channels into r×r cells."""

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


class Transform(nn.Sequential):
    """g_a or g_s: the layers at places `deep` work on the first `channels` only."""

    def __init__(self, deep: range, channels: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._deep, self._channels = deep, channels

    def forward(self, input: Tensor) -> Tensor:
        """[B, H, W, inputs] -> [B, H', W', outputs]."""
        layers = list(self)
        x = in_turn(layers[: self._deep.start], input)
        deep = in_turn(layers[self._deep.start : self._deep.stop], x[..., : self._channels])
        x = torch.cat([deep, x[..., self._channels :].to(deep.dtype)], -1)
        return in_turn(layers[self._deep.stop :], x)


def in_turn(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


def analysis(s: ConvSizes, linear: LinearType = nn.Linear) -> Transform:
    """Build g_a: x - 0.5 [B, H, W, 3] -> y [B, H/16, W/16, M]; H and W are multiples of 16."""
    return Transform(
        range(s.ne8 + 2, s.ne8 + s.ne16 + 3),
        s.c16,
        Down(linear, 3, s.c8, 8),
        *[Block(s.c8) for _ in range(s.ne8)],
        Down(linear, s.c8, s.M, 2),
        *[Block(s.c16) for _ in range(s.ne16)],
        linear(s.c16, s.c16),
    )


def synthesis(
    s: ConvSizes, linear: LinearType = nn.Linear, inner: LinearType = Linear
) -> Transform:
    """Build g_s: y_hat [B, h, w, M] -> x_hat - 0.5 [B, 16h, 16w, 3]; blocks are of `inner`."""
    return Transform(
        range(s.nd16 + 1),
        s.c16,
        linear(s.c16, s.c16),
        *[Block(s.c16, inner) for _ in range(s.nd16)],
        Up(linear, s.M, s.c8, 2),
        *[Block(s.c8, inner) for _ in range(s.nd8)],
        Up(linear, s.c8, 3, 8),
    )


def hyper_analysis(s: Sizes, linear: LinearType = nn.Linear) -> nn.Sequential:
    """Build h_a: y [B, h, w, M] -> z [B, h/4, w/4, Cz]; h and w are multiples of 4."""
    return nn.Sequential(
        linear(s.M, s.cp),
        Block(s.cp),
        Down(linear, s.cp, s.Cz, 2),
        Block(s.Cz),
        Down(linear, s.Cz, s.Cz, 2),
        Linear(s.Cz, s.Cz),
    )


def hyper_synthesis(s: Sizes, linear: LinearType = nn.Linear) -> nn.Sequential:
    """Build h_s: z_hat [B, h, w, Cz] -> features P [B, 4h, 4w, cp]."""
    return nn.Sequential(
        Up(linear, s.Cz, s.Cz, 2), Block(s.Cz), Up(linear, s.Cz, s.cp, 2), Block(s.cp)
    )


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trained state dict with the scales of every ScaledLinear multiplied in.

    The tensors are float32, for modules of nn.Linear, so there are no `si` and `so`.
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
