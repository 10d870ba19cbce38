"""The Swin backbone in torch: g_a and g_s with window attention, in the place of convolutions.

Stages at 1/4, 1/8 and 1/16 resolution each hold pairs of attention layers: the first of a pair has
windows of 8×8 tokens, the second the same windows shifted by half of one. Between stages, 2×2 cells
are moved into channels and back. At 1/16 the layers work on the first c16 channels, as the blocks
of nets/backbone.py do; y, x and the entropy networks are those of that module, too.

Prompts (nets/prompts.py) are further keys and values of every layer, at half the resolution of its
tokens: the only part that differs between the rates.

Windows have their places in the picture, and layers never look over its edge. So a part of the
picture that begins at whole windows gives the same latents as the whole, except for those within
`SwinSizes.halo` of a cut.

Idea: the codec TIC (Lu et al. 2021, "Transformer-based Image Compression"), of Swin layers (Liu et
al. 2021). We differ in patches of 4×4 in the place of the first convolutions, in layers without
overlap between stages, in LeakyReLU, and in norms without weights, which the next layer could hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.sizes import HEAD, SHIFT, WINDOW, SwinSizes
from service.nets.backbone import Down, Linear, LinearType, Up, leaky
from service.nets.prompts import AnalysisPrompts, Prompt, SynthesisPrompts

TOKENS, PROMPTS = WINDOW**2, (WINDOW // 2) ** 2
"""Tokens and prompts of a window."""


@dataclass(frozen=True, eq=False)
class Windows:
    """How the tokens of a grid are cut into windows, shifted or not.

    Attributes:
        rows, columns: of tokens, rounded up to whole windows.
        shift: tokens that the windows are shifted by.
        regions: [windows, TOKENS] int64; tokens see those of the same region. None: all the same.
        prompt_regions: [windows, PROMPTS], likewise for prompts.
    """

    rows: int
    columns: int
    shift: int
    regions: Tensor | None
    prompt_regions: Tensor | None

    @classmethod
    def of(cls, height: int, width: int, shift: int, device: torch.device) -> Windows:
        """The windows of a grid of tokens."""
        rows, columns = (-(-n // WINDOW) * WINDOW for n in (height, width))
        if not shift and (rows, columns) == (height, width):
            return cls(rows, columns, shift, None, None)
        regions = [
            _regions(step, (height, width), (rows, columns), shift, device) for step in (1, 2)
        ]
        return cls(rows, columns, shift, *regions)

    def cut(self, x: Tensor, step: int = 1) -> Tensor:
        """Tokens [B, h, w, C] -> [B · windows, tokens of a window, C]; prompts have step 2."""
        rows, columns = self.rows // step, self.columns // step
        x = F.pad(x, (0, 0, 0, columns - x.shape[2], 0, rows - x.shape[1]))
        if self.shift:
            x = x.roll((-self.shift // step, -self.shift // step), (1, 2))
        return _cells(x, WINDOW // step)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `cut` for tokens: [B · windows, TOKENS, C] -> [B, height, width, C]."""
        down, across = self.rows // WINDOW, self.columns // WINDOW
        x = windows.reshape(-1, down, across, WINDOW, WINDOW, windows.shape[-1])
        x = x.transpose(2, 3).reshape(-1, self.rows, self.columns, windows.shape[-1])
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def visible(self, prompts: bool) -> Tensor | None:
        """Which keys each token sees: [windows, 1, TOKENS, keys] bool; None: all.

        Keys are the window's tokens, then its prompts.
        """
        if self.regions is None or self.prompt_regions is None:
            return None
        keys = torch.cat([self.regions, self.prompt_regions], 1) if prompts else self.regions
        return (self.regions[:, :, None] == keys[:, None])[:, None]


def _regions(
    step: int, size: tuple[int, int], whole: tuple[int, int], shift: int, device: torch.device
) -> Tensor:
    """Region of each token (step 1) or prompt (step 2), in windows: [windows, tokens] int64.

    Shifting wraps around, and grids are padded to whole windows: what has wrapped around, or is
    padding, is in another region along that axis.
    """
    axes = []
    for n, padded in zip(size, whole, strict=True):
        at = torch.arange(padded // step, device=device) + shift // step
        wrapped = at >= padded // step
        axes.append(2 * (at % (padded // step) >= -(-n // step)).long() + wrapped.long())
    grid = 4 * axes[0][:, None] + axes[1][None]
    return _cells(grid[None, ..., None], WINDOW // step)[..., 0]


def _cells(x: Tensor, side: int) -> Tensor:
    """[B, h, w, C] -> [B · cells, side², C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(2, 3)
    return x.reshape(-1, side * side, c)


class SwinLayer(nn.Module):
    """x + attention(norm x), then x + f2(leaky(f1(norm x))); both branches start at zero."""

    offsets: Tensor

    def __init__(self, c: int, shift: int) -> None:
        super().__init__()
        self.c, self.shift = c, shift
        self.qkv, self.out = Linear(c, 3 * c), Linear(c, c)
        self.f1, self.f2 = Linear(c, 4 * c), Linear(4 * c, c)
        self.position = nn.Parameter(torch.zeros(c // HEAD, (2 * WINDOW - 1) ** 2))
        for layer in (self.qkv, self.f1):
            nn.init.orthogonal_(layer.weight)
        for layer in (self.out, self.f2):
            nn.init.zeros_(layer.weight)
        for layer in (self.qkv, self.out, self.f1, self.f2):
            nn.init.zeros_(layer.bias)
        self.register_buffer("offsets", position_offsets(), persistent=False)

    def forward(self, x: Tensor, windows: Windows, prompt: Prompt | None = None) -> Tensor:
        """[B, h, w, C] -> the same shape."""
        x = x + self.attend(normed(x), windows, prompt)
        out: Tensor = x + self.f2(leaky(self.f1(normed(x))))
        return out

    def attend(self, x: Tensor, windows: Windows, prompt: Prompt | None) -> Tensor:
        """The attention of normed tokens [B, h, w, C], before it is added to them."""
        weights, v = self.weights(x, windows, prompt)
        joined = windows.join((weights @ v).transpose(1, 2).flatten(2), *x.shape[1:3])
        result: Tensor = self.out(joined)
        return result

    def weights(self, x: Tensor, windows: Windows, prompt: Prompt | None) -> tuple[Tensor, Tensor]:
        """The weights of the attention of normed tokens [B, h, w, C], and the values weighed.

        They are [n, heads, TOKENS, keys] and [n, heads, keys, HEAD] for n windows. Keys are the
        window's tokens, then its prompts.
        """
        q, k, v = self.heads(windows.cut(x), prompt, windows)
        logits = (q * HEAD**-0.5) @ k.transpose(2, 3)
        bias = self.bias(windows, prompt)
        n = len(bias)  # windows of one picture, if they differ
        weights = (logits.unflatten(0, (-1, n)) + bias).softmax(-1).flatten(0, 1).to(v.dtype)
        return weights, v

    def heads(
        self, tokens: Tensor, prompt: Prompt | None, windows: Windows
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of windows [n, TOKENS, C]: [n, heads, ..., HEAD] each."""
        q, k, v = self.qkv(tokens).chunk(3, -1)
        if prompt is not None:
            cells = windows.cut(prompt.values, 2).to(q.dtype)
            weight, bias = self.qkv.weight[self.c :], self.qkv.bias[self.c :]
            more = F.linear(cells, weight, bias).chunk(2, -1)
            k, v = (torch.cat(pair, 1) for pair in zip((k, v), more, strict=True))
        q, k, v = (t.unflatten(2, (-1, HEAD)).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def bias(self, windows: Windows, prompt: Prompt | None) -> Tensor:
        """What is added to the attention's logits: [windows or 1, heads, TOKENS, keys].

        Prompts have no position: theirs is the logarithm of their weight (prompts.py).
        """
        bias = self.position[:, self.offsets]
        if prompt is not None:
            log_weight = prompt.log_weight.expand(*bias.shape[:2], PROMPTS)
            bias = torch.cat([bias, log_weight], -1)
        visible = windows.visible(prompt is not None)
        return bias[None] if visible is None else torch.where(visible, bias, -torch.inf)


def position_offsets() -> Tensor:
    """Place in `position` of each query and key: [TOKENS, TOKENS] int64, by rows and columns."""
    at = torch.arange(WINDOW)
    apart = at[:, None] - at[None] + WINDOW - 1
    rows, columns = apart[:, None, :, None], apart[None, :, None, :]
    return (rows * (2 * WINDOW - 1) + columns).reshape(TOKENS, TOKENS)


def normed(x: Tensor) -> Tensor:
    """Tokens with mean 0 and variance 1 over their channels."""
    return F.layer_norm(x, x.shape[-1:])


class Stage(nn.Module):
    """Attention layers at one resolution."""

    def __init__(self, c: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SwinLayer(c, SHIFT * (i % 2)) for i in range(layers))

    def forward(self, x: Tensor, prompt: Prompt | None = None) -> Tensor:
        """[B, h, w, C] -> the same shape; each layer's prompts are those before it, pooled."""
        for layer in self.layers:
            assert isinstance(layer, SwinLayer)
            windows = Windows.of(x.shape[1], x.shape[2], layer.shift, x.device)
            x = layer(x, windows, prompt)
            prompt = None if prompt is None else prompt.pooled()
        return x


class SwinAnalysis(nn.Module):
    """g_a: x - 0.5 [B, H, W, 3] -> y [B, H/16, W/16, M]; H and W are multiples of 16."""

    def __init__(self, s: SwinSizes, linear: LinearType) -> None:
        super().__init__()
        self.c16 = s.c16
        self.patch = Down(linear, 3, s.c4, 4)
        self.stage4 = Stage(s.c4, s.layers)
        self.down8 = Down(linear, s.c4, s.c8, 2)
        self.stage8 = Stage(s.c8, s.layers)
        self.down16 = Down(linear, s.c8, s.M, 2)
        self.stage16 = Stage(s.c16, s.layers)
        self.last = linear(s.c16, s.c16)
        self.prompts: AnalysisPrompts | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, 3] -> [B, H/16, W/16, M]."""
        prompts = [None] * 3 if self.prompts is None else self.prompts(x)
        features = self.stage4(self.patch(x), prompts[0])
        features = self.stage8(self.down8(features), prompts[1])
        features = self.down16(features)
        deep = self.last(self.stage16(features[..., : self.c16], prompts[2]))
        return torch.cat([deep, features[..., self.c16 :].to(deep.dtype)], -1)


class SwinSynthesis(nn.Module):
    """g_s: y_hat [B, h, w, M] -> x_hat - 0.5 [B, 16h, 16w, 3]."""

    def __init__(self, s: SwinSizes, linear: LinearType) -> None:
        super().__init__()
        self.c16 = s.c16
        self.first = linear(s.c16, s.c16)
        self.stage16 = Stage(s.c16, s.layers)
        self.up8 = Up(linear, s.M, s.c8, 2)
        self.stage8 = Stage(s.c8, s.layers)
        self.up4 = Up(linear, s.c8, s.c4, 2)
        self.stage4 = Stage(s.c4, s.layers)
        self.patch = Up(linear, s.c4, 3, 4)
        self.prompts: SynthesisPrompts | None = None

    def forward(self, y_hat: Tensor) -> Tensor:
        """[B, h, w, M] -> [B, 16h, 16w, 3]."""
        prompts: Sequence[Prompt | None] = [None] * 3
        if self.prompts is not None:
            prompts = self.prompts(y_hat)
        deep = self.stage16(self.first(y_hat[..., : self.c16]), prompts[2])
        features = self.up8(torch.cat([deep, y_hat[..., self.c16 :].to(deep.dtype)], -1))
        features = self.up4(self.stage8(features, prompts[1]))
        out: Tensor = self.patch(self.stage4(features, prompts[0]))
        return out
