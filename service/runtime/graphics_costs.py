"""How many bits a picture's blocks cost without a network: a first look, and an estimate.

Both take little time compared with the networks. They decide only which layers are tried; what is
kept is decided by the bytes of real streams (graphics_search.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.tiles import PATCH, Box, latent_box, tiles
from service.picture import U8

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

REPEATED_BITS = 0.05
"""Bits of a pixel that equals its left or upper neighbour, inside a run of such pixels."""
FLAT_BITS = 0.004
"""Bits of such a pixel that equals both neighbours: plain areas are long runs."""
FIRST_REPEATED_BITS = 0.6
"""Bits of the first pixel of such a run."""
BREAK_BITS = 2.0
"""Bits by which the first pixel after a run costs more than its colour."""
PALETTE_COLOURS = 256
"""Most colours of a palette in WebP."""
LITERAL_BITS = 2.0
"""Bits by which a known colour costs more among predicted pixels than in a palette."""


def predictable_share(rgb: U8) -> F32:
    """The first look: the share of each block's pixels that their neighbours predict exactly.

    A pixel counts if it equals the left or the upper one, or continues a linear gradient. Of
    photographs a fifth of all pixels do so; of text, drawings and screenshots more than
    nine tenths.

    Args:
        rgb: [H, W, 3] uint8.

    Returns:
        [ceil(H/16), ceil(W/16)] in 0–1; pixels beyond the picture's edges count as predictable.
    """
    return 1 - _by_tile(rgb, _unpredictable) / np.float32(PATCH**2)


def block_bits(rgb: U8) -> F32:
    """Estimate the bits of each block as lossless WebP, up to a factor common to all blocks.

    Args:
        rgb: [H, W, 3] uint8.

    Returns:
        [ceil(H/16), ceil(W/16)].
    """
    return _by_tile(rgb, _pixel_bits)


def block_sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over blocks of 16×16, [H, W] -> [ceil(H/16), ceil(W/16)] float64."""
    height, width = values.shape
    rows = np.add.reduceat(values, np.arange(0, height, PATCH), 0, np.float64)
    sums: NDArray[np.float64] = np.add.reduceat(rows, np.arange(0, width, PATCH), 1)
    return sums


def _by_tile(rgb: U8, values: Callable[[U8], NDArray[Any]]) -> F32:
    """Sums over blocks of what a function gives for each pixel.

    It works tile by tile, for memory and because statistics are local.
    """
    height, width = rgb.shape[:2]
    box = latent_box(width, height)
    out = np.empty((box.height, box.width), np.float32)
    for tile in tiles(box):
        pixels = tile.scaled(PATCH).cut(Box(0, 0, height, width))
        out[tile.slices] = block_sums(values(rgb[pixels.slices]))
    return out


def _unpredictable(rgb: U8) -> NDArray[np.bool_]:
    """Pixels that differ from both neighbours and from the gradient's continuation, [H, W]."""
    colours = _packed(rgb)
    across = np.diff(colours, axis=1)
    hit = np.zeros(colours.shape, np.bool_)
    hit[:, 1:] = across == 0
    hit[1:] |= colours[1:] == colours[:-1]
    hit[1:, 1:] |= across[1:] == across[:-1]
    return ~hit


def _packed(rgb: U8) -> I32:
    """Colours as one number each, [H, W] int32."""
    red, green, blue = (rgb[..., i].astype(np.int32) for i in range(3))
    return (red << 16) | (green << 8) | blue


def _buckets(colours: I32) -> NDArray[np.uint32]:
    """Colours hashed to 16 bits (Fibonacci hashing), for counting without sorting."""
    return (colours.astype(np.uint32) * np.uint32(0x9E3779B1)) >> np.uint32(16)


def _pixel_bits(rgb: U8) -> F32:
    """Bits of each pixel: of runs, of a palette's indices, or of differences to a prediction."""
    colours = _packed(rgb)
    as_left, as_upper = np.zeros((2, *colours.shape), np.bool_)
    as_left[:, 1:] = colours[:, 1:] == colours[:, :-1]
    as_upper[1:] = colours[1:] == colours[:-1]
    repeated = as_left | as_upper
    in_run = np.zeros_like(repeated)
    in_run[:, 1:] = repeated[:, :-1]
    buckets = _buckets(colours)
    bits = _entropy(buckets)
    if np.count_nonzero(np.bincount(buckets.reshape(-1))) > PALETTE_COLOURS:
        bits = np.minimum(bits + np.float32(LITERAL_BITS), _difference_bits(rgb))
    single = bits + np.where(in_run, np.float32(BREAK_BITS), np.float32(0))
    run = np.where(in_run, np.float32(REPEATED_BITS), np.float32(FIRST_REPEATED_BITS))
    run[in_run & as_left & as_upper] = FLAT_BITS
    return np.where(repeated, run, single)


def _difference_bits(rgb: U8) -> F32:
    """Bits of each pixel's difference to its left or upper neighbour, [H, W].

    Of the two, the one that is nearer to left + upper - upper left is taken, and green is
    subtracted from the other channels, as WebP does.
    """
    before = np.pad(rgb, ((1, 0), (1, 0), (0, 0)), mode="edge").astype(np.int16)
    left, upper, corner = before[1:, :-1], before[:-1, 1:], before[:-1, :-1]
    takes_left = np.abs(upper - corner).sum(-1) <= np.abs(left - corner).sum(-1)
    difference = rgb - np.where(takes_left[..., None], left, upper)
    red, green, blue = (difference[..., i] for i in range(3))
    channels = (green, red - green, blue - green)
    return sum((_entropy(c & 255) for c in channels), np.zeros(red.shape, np.float32))


def _entropy(values: NDArray[np.integer[Any]]) -> F32:
    """Bits of each value by how often it occurs; values are small and not negative."""
    counts = np.bincount(values.reshape(-1))
    bits = np.log2(values.size / np.maximum(counts, 1)).astype(np.float32)
    out: F32 = bits[values]
    return out
