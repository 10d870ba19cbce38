"""g_a and g_s of the Swin family in torch, with the prompts of a rate where it has them.

Only the products inside attention layers and g_a's first layer run in the working type, as in
synthesis_torch.py. Sums, norms and softmax, prompt generators, and the layers that carry latents or
change resolution, stay in float32.

A layer works on its own windows and on no others, so it takes some rows of windows at a time:
memory beyond the tokens is that of one band, which stays in the cache. Windows at the edge of the
picture are cut off there: that is what masks do in nets/swin.py, where all windows are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from service.codec.sizes import HEAD, WINDOW, swin_sizes
from service.codec.tiles import PATCH, Box
from service.nets.prompts import AnalysisPrompts, Prompt, SynthesisPrompts
from service.nets.swin import (
    Stage,
    SwinAnalysis,
    SwinLayer,
    SwinSynthesis,
    normed,
    position_offsets,
)
from service.store.model import StoredModel
from service.transforms.swin_windows import StageBoxes, has_prompts, spans, weights_of
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

BAND_TOKENS = 2**13
"""Tokens of a layer that are worked on at a time, at least a row of windows."""


class TorchSwinSynthesis:
    """g_s of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights; `dtype` is the working type of the inner layers."""
        self.device, self.dtype = device, dtype
        s = self._sizes = swin_sizes(model.sizes)
        with torch.device("meta"):
            g_s = SwinSynthesis(s, nn.Linear)
            if has_prompts(model, "g_s"):
                g_s.prompts = SynthesisPrompts(s)
        fill(g_s, weights_of(model, "g_s"), "g_s", device)
        self._prompts = None if g_s.prompts is None else packed(g_s.prompts)
        self._first, self._up8, self._up4 = packed(g_s.first), packed(g_s.up8), packed(g_s.up4)
        self._patch = packed(g_s.patch)
        self._stage16, self._stage8, self._stage4 = (
            _PreparedStage(stage, dtype) for stage in (g_s.stage16, g_s.stage8, g_s.stage4)
        )

    @torch.inference_mode()
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See SynthesisTransform; the window begins at whole attention windows of the picture."""
        s, window = self._sizes, Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        boxes = StageBoxes.of(inner, window, s.layers)
        y = cut(latents_on(self.device, y_hat), boxes.read16)
        p4, p8, p16 = _prompts_of(self._prompts, y)
        deep, straight = y.split([s.c16, s.M - s.c16], -1)
        x = torch.cat([self._stage16(self._first(deep), p16), straight], -1)
        x = self._up8(cut(x, boxes.kept16))
        x = self._stage8(x, _cut_prompt(p8, boxes.kept16))
        x = self._up4(cut(x, boxes.kept8))
        p4 = _cut_prompt(_cut_prompt(p4, boxes.kept16.scaled(2)), boxes.kept8)
        x = self._patch(cut(self._stage4(x, p4), boxes.kept4))
        out = to_pixels(x)
        assert out.shape == (inner.height * PATCH, inner.width * PATCH, 3)
        return out


class TorchSwinTransforms(TorchSwinSynthesis, TorchHyperAnalysis):
    """All transforms of one model on one device. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, device: torch.device, dtype: torch.dtype) -> None:
        """Load weights, see TorchSwinSynthesis."""
        TorchSwinSynthesis.__init__(self, model, device, dtype)
        TorchHyperAnalysis.__init__(self, model, device, dtype)
        with torch.device("meta"):
            g_a = SwinAnalysis(self._sizes, nn.Linear)
            if has_prompts(model, "g_a"):
                g_a.prompts = AnalysisPrompts(self._sizes)
        fill(g_a, weights_of(model, "g_a"), "g_a", device)
        self._g_a_prompts = None if g_a.prompts is None else packed(g_a.prompts)
        self._unshuffle, self._g_a_patch = byte_input(g_a.patch, dtype)
        self._down8, self._down16 = packed(g_a.down8), packed(g_a.down16)
        self._last = packed(g_a.last)
        self._g_a_stages = [
            _PreparedStage(stage, dtype) for stage in (g_a.stage4, g_a.stage8, g_a.stage16)
        ]

    @torch.inference_mode()
    def analyse(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M].

        The pixels begin at whole attention windows of the picture.
        """
        s, x = self._sizes, torch.from_numpy(pixels).to(self.device)[None]
        p4, p8, p16 = _prompts_of(self._g_a_prompts, x.float().div_(255).sub_(0.5))
        stage4, stage8, stage16 = self._g_a_stages
        cells = self._unshuffle(x).to(self.dtype)
        x = self._down8(stage4(self._g_a_patch(cells).float(), p4))
        x = self._down16(stage8(x, p8))
        deep, straight = x.split([s.c16, s.M - s.c16], -1)
        deep = self._last(stage16(deep.contiguous(), p16))
        return to_numpy(torch.cat([deep, straight], -1)[0])


class _PreparedStage:
    """The attention layers of a stage."""

    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        self._layers = [_PreparedLayer(layer, dtype) for layer in stage.layers]

    def __call__(self, x: Tensor, prompt: Prompt | None) -> Tensor:
        """[1, H, W, C] float32 -> the same; changes its argument."""
        for layer in self._layers:
            layer.apply(x[0], prompt)
            prompt = None if prompt is None else prompt.pooled()
        return x


class _PreparedLayer:
    """A layer of nets/swin.py whose products run in the working type, its sums in float32."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        assert isinstance(layer, SwinLayer)
        self._dtype, self._shift = dtype, layer.shift
        logits = layer.position.detach()[:, position_offsets().to(layer.position.device)]
        self._logits = logits.reshape(-1, *(WINDOW,) * 4)  # by rows and columns of query and key
        layer = layer.to(dtype)
        self._qkv, self._out = PackedLinear(layer.qkv), PackedLinear(layer.out)
        self._f1, self._f2 = PackedLinear(layer.f1), PackedLinear(layer.f2)
        self._kv = PackedLinear(_keys_and_values(layer.qkv))

    def apply(self, x: Tensor, prompt: Prompt | None) -> None:
        """Change tokens [H, W, C] float32."""
        for rows in self._bands(x):
            band = x[rows]
            band += self._out(self._attend(band, rows, prompt)).float()
            band += self._f2(self._f1(normed(band).to(self._dtype), leaky=True)).float()

    def _bands(self, x: Tensor) -> Iterator[slice]:
        """Rows to work on at a time, all of them of windows of one height; on a GPU, all such."""
        tokens = BAND_TOKENS if x.device.type == "cpu" else x.shape[0] * x.shape[1]
        step = max(tokens // x.shape[1], WINDOW) // WINDOW * WINDOW
        for rows in spans(x.shape[0], self._shift):
            for top in range(rows.start, rows.stop, step):
                yield slice(top, min(top + step, rows.stop))

    def _attend(self, band: Tensor, rows: slice, prompt: Prompt | None) -> Tensor:
        """What tokens take from one another and from prompts, in the working type."""
        qkv: Tensor = self._qkv(normed(band).to(self._dtype))
        more = None
        if prompt is not None:
            more = self._kv(prompt.values[0, _halved(rows)].to(self._dtype))
        out = qkv.new_empty(band.shape)
        height = min(WINDOW, len(band))
        for columns in spans(band.shape[1], self._shift):
            width = min(WINDOW, columns.stop - columns.start)
            q, k, v = _windows(qkv[:, columns], height, width, 3)
            bias = self._bias(height, width)
            if prompt is not None and more is not None:
                cells = more[:, _halved(columns)]
                pk, pv = _windows(cells, -(-height // 2), -(-width // 2), 2)
                k, v = torch.cat([k, pk], 2), torch.cat([v, pv], 2)
                log_weight = prompt.log_weight.expand(*bias.shape[:2], pk.shape[2])
                bias = torch.cat([bias, log_weight], -1)
            if not bias.is_cpu:  # only there may it have another type than the others
                bias = bias.to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, bias[None])
            out[:, columns] = _joined(mixed, len(band), height, width)
        return out

    def _bias(self, height: int, width: int) -> Tensor:
        """What is added to the attention's logits in windows of a size: [heads, tokens, tokens]."""
        tokens = height * width
        return self._logits[:, :height, :width, :height, :width].reshape(-1, tokens, tokens)


def _prompts_of(generator: nn.Module | None, x: Tensor) -> Sequence[Prompt | None]:
    """Prompts at 1/4, 1/8 and 1/16."""
    if generator is None:
        return [None] * 3
    prompts: list[Prompt] = generator(x)
    return prompts


def _halved(tokens: slice) -> slice:
    """The prompts of a range of tokens."""
    return slice(tokens.start // 2, -(-tokens.stop // 2))


def _windows(x: Tensor, height: int, width: int, parts: int) -> Tensor:
    """[h, w, parts · C] -> [parts, windows, heads, height · width, HEAD]."""
    h, w, c = x.shape
    x = x.reshape(h // height, height, w // width, width, parts, c // parts // HEAD, HEAD)
    x = x.permute(4, 0, 2, 5, 1, 3, 6)
    return x.reshape(parts, -1, x.shape[3], height * width, HEAD)


def _joined(x: Tensor, rows: int, height: int, width: int) -> Tensor:
    """The inverse of `_windows`: [windows, heads, height · width, HEAD] -> [rows, w, C]."""
    x = x.reshape(rows // height, -1, x.shape[1], height, width, HEAD).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(rows, -1, x.shape[4] * HEAD)


def _keys_and_values(qkv: nn.Linear) -> nn.Linear:
    """The part of a layer's Linear that prompts go through."""
    c = qkv.in_features
    out = nn.Linear(c, 2 * c, device="meta")
    out.weight = nn.Parameter(qkv.weight.detach()[c:], requires_grad=False)
    out.bias = nn.Parameter(qkv.bias.detach()[c:], requires_grad=False)
    return out


def _cut_prompt(prompt: Prompt | None, box: Box) -> Prompt | None:
    """The prompts in a box."""
    return None if prompt is None else replace(prompt, values=cut(prompt.values, box))
