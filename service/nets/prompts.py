"""Prompts of the Swin backbone: small networks that steer it to a rate, the backbone being frozen.

A prompt generator turns the picture (for g_a) or y_hat (for g_s) into prompts for each stage, at
half the resolution of the stage's tokens. A window of 8×8 tokens gets the 4×4 prompts under it as
further keys and values. A stage has one layer of its own; between the attention layers of a stage
prompts are only pooled (maximum of 3×3).

`log_weight` is added to the attention's logits of prompts. It is 0 for the prompts of a whole rate.
At minus infinity they have no effect, and the backbone computes what it does without them; so a
rate between the base and another can weigh them by its distance from the base.

Idea: "Progressive Learning with Visual Prompt Tuning for Variable-Rate Image Compression". We
differ in layers of 2×2 cells without overlap, and in that weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.sizes import FEATURES, SwinSizes
from service.nets.backbone import Down, Up, leaky


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompts of the tokens of a layer.

    Attributes:
        values: [B, ceil(h/2), ceil(w/2), C] for tokens [B, h, w, C].
        log_weight: a number, logarithm of their weight.
    """

    values: Tensor
    log_weight: Tensor

    def pooled(self) -> Prompt:
        """The prompts of the next layer: the maximum of 3×3 of these."""
        pooled = F.max_pool2d(self.values.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
        return replace(self, values=pooled)


class AnalysisPrompts(nn.Module):
    """The prompt generator of g_a."""

    log_weight: Tensor

    def __init__(self, s: SwinSizes) -> None:
        super().__init__()
        self.patch = Down(nn.Linear, 3, FEATURES, 4)
        self.up = Up(nn.Linear, FEATURES, 1, 2)
        self.stage4 = Down(nn.Linear, 1, s.c4, 2)
        self.stage8 = Down(nn.Linear, s.c4, s.c8, 2)
        self.stage16 = Down(nn.Linear, s.c8, s.c16, 2)
        self.register_buffer("log_weight", torch.zeros(()))

    def forward(self, x: Tensor) -> list[Prompt]:
        """x - 0.5 [B, H, W, 3], sides multiples of 16 -> prompts at 1/4, 1/8 and 1/16."""
        features = leaky(self.patch(x)).permute(0, 3, 1, 2)
        features = F.max_pool2d(features, 2).permute(0, 2, 3, 1)
        p4 = self.stage4(self.up(features))
        p8 = self.stage8(p4)
        p16 = self.stage16(whole_cells(p8))
        return [Prompt(p, self.log_weight) for p in (p4, p8, p16)]


class SynthesisPrompts(nn.Module):
    """The prompt generator of g_s."""

    log_weight: Tensor

    def __init__(self, s: SwinSizes) -> None:
        super().__init__()
        self.stage16 = Down(nn.Linear, s.M, s.c16, 2)
        self.stage8 = Up(nn.Linear, s.c16, s.c8, 2)
        self.stage4 = Up(nn.Linear, s.c8, s.c4, 2)
        self.register_buffer("log_weight", torch.zeros(()))

    def forward(self, y_hat: Tensor) -> list[Prompt]:
        """y_hat [B, h, w, M] -> prompts at 1/4, 1/8 and 1/16."""
        h, w = y_hat.shape[1:3]
        p16 = self.stage16(whole_cells(y_hat))
        p8 = self.stage8(p16)[:, :h, :w]
        p4 = self.stage4(p8)
        return [Prompt(p, self.log_weight) for p in (p4, p8, p16)]


def whole_cells(x: Tensor) -> Tensor:
    """x [B, h, w, C] with its last row and column repeated where h or w is odd."""
    bottom, right = x.shape[1] % 2, x.shape[2] % 2
    if bottom:
        x = torch.cat([x, x[:, -1:]], 1)
    return torch.cat([x, x[:, :, -1:]], 2) if right else x
