"""What a token of a Swin backbone attends to in its window: tokens of the picture, and prompts.

Only the part of the picture is analysed that the window depends on, so any picture takes the same
time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from service.codec.sizes import WINDOW, swin_sizes
from service.codec.tiles import PATCH, Box, latent_box, latents_under
from service.maps.attention import WindowAttention
from service.maps.request import Position
from service.nets.model import Backbone
from service.nets.prompts import Prompt
from service.nets.swin import TOKENS, Stage, SwinAnalysis, SwinLayer, Windows, normed
from service.picture import Picture
from service.runtime.pipeline import pixels_under

TOKEN_PIXELS: Final = {"stage4": 4, "stage8": 8, "stage16": 16}
"""Pixels along the side of a token, for each stage of g_a."""

STAGE: Final = "stage8"
"""The stage whose attention is shown, by default."""


def window_attention(
    backbone: Backbone, picture: Picture, at: Position, stage: str = STAGE
) -> WindowAttention:
    """The attention of the token under a pixel, in the last layer of a stage of g_a.

    Args:
        backbone: of the family swin. at: a pixel of the picture. stage: one of TOKEN_PIXELS.

    Raises:
        BadParameter: the backbone is of another family.
    """
    sizes, (column, row) = swin_sizes(backbone.sizes), at
    assert isinstance(backbone.g_a, SwinAnalysis)
    box = latent_box(picture.width, picture.height)
    read = sizes.read_by(latents_under(Box(row, column, row + 1, column + 1)), box)
    layer = _last_layer(backbone.g_a, stage)
    grid, weights = _weights(backbone.g_a, layer, pixels_under(picture, read))
    side = TOKEN_PIXELS[stage]
    step = PATCH // side
    token = row // side - read.top * step, column // side - read.left * step
    windows = [(t - layer.shift) // WINDOW for t in token]
    # windows that a shift has moved over the edge come last
    down, across = grid.rows // WINDOW, grid.columns // WINDOW
    window = windows[0] % down * across + windows[1] % across
    top, left = (w * WINDOW + layer.shift for w in windows)
    query = token[0] - top, token[1] - left
    of_query = weights[window, :, query[0] * WINDOW + query[1]].mean(0).numpy()
    top, left = top + read.top * step, left + read.left * step
    inside = _inside(top, box.height * step)[:, None] & _inside(left, box.width * step)
    tokens = np.where(inside, of_query[:TOKENS].reshape(inside.shape), np.nan)
    prompts = None
    if len(of_query) > TOKENS:
        inside = inside[::2, ::2]
        prompts = np.where(inside, of_query[TOKENS:].reshape(inside.shape), np.nan)
    pixels = Box(top, left, top + WINDOW, left + WINDOW).scaled(side)
    return WindowAttention(tokens, prompts, pixels, query)


def _inside(begin: int, end: int) -> Any:
    """Which of the tokens of a window from `begin` are in a picture of `end` tokens."""
    at = begin + np.arange(WINDOW)
    return (at >= 0) & (at < end)


def _last_layer(network: SwinAnalysis, stage: str) -> SwinLayer:
    module = getattr(network, stage)
    assert isinstance(module, Stage)
    layer = module.layers[-1]
    assert isinstance(layer, SwinLayer)
    return layer


@torch.inference_mode()
def _weights(network: SwinAnalysis, layer: SwinLayer, rgb: Any) -> tuple[Windows, Tensor]:
    """The attention's weights in a layer when pixels [H, W, 3] are analysed, see SwinLayer."""
    inputs: list[tuple[Tensor, Windows, Prompt | None]] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args))
    try:
        network(torch.from_numpy(rgb).float()[None] / 255 - 0.5)
    finally:
        hook.remove()
    ((x, windows, prompt),) = inputs
    return windows, layer.weights(normed(x), windows, prompt)[0].float()
