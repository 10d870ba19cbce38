"""Plain colours stay plain with the shipped weights, to their borders and at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.engine.engine import Engine
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.read import load_store

SIZES = ((1, 1), (17, 33), (100, 150))
NEUTRAL = ((255, 255, 255), (0, 0, 0), (128, 128, 128))
SATURATED = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0))


LIMITS = ((1, 3, 8), (2, 3, 6), (3, 4, 4), (4, 3, 5), (5, 3, 3), (6, 2, 2), (7, 2, 3), (8, 3, 2))
"""Rate, and levels that neutral and saturated colours may be off by."""


@pytest.fixture(scope="module")
def shipped() -> Engine:
    return Engine(load_models(load_store(), "cpu", torch.float32), check=False)


def farthest(engine: Engine, colour: tuple[int, int, int], rate: int) -> int:
    """Largest difference of any sample, in 8-bit levels, over all sizes."""
    worst = 0
    for height, width in SIZES:
        rgb = np.full((height, width, 3), colour, np.uint8)
        stream = engine.compress(Picture(rgb), rate).data
        off = np.abs(engine.decompress(stream).picture.rgb.astype(int) - rgb)
        worst = max(worst, int(off.max()))
    return worst


@pytest.mark.parametrize("rate, neutral, saturated", LIMITS)
def test_plain_colours_are_off_by_a_few_levels_at_most(
    shipped: Engine, rate: int, neutral: int, saturated: int
) -> None:
    for colour in NEUTRAL:
        assert farthest(shipped, colour, rate) <= neutral, colour
    for colour in SATURATED:
        assert farthest(shipped, colour, rate) <= saturated, colour
