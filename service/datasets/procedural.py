"""Procedural pictures for training: kinds of web pictures that are not photographs.

Every picture is drawn from random numbers, with Pillow and its built-in fonts. `KINDS` lists the
kinds, their shares and their reasons. The same seed gives the same pictures with the same releases
of NumPy and Pillow; other releases may draw some pixels differently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Final

import numpy as np
from PIL import Image

from service.datasets.colours import Rng
from service.datasets.drawings import comic, line_drawing, product, scenery, shapes
from service.datasets.fields import dithered, gradient, patterns, pixel_art, plain_cells
from service.datasets.gradients import Drawing
from service.datasets.interfaces import interface
from service.datasets.pages import chart, code, page
from service.picture import U8

KINDS: Final[Mapping[Callable[[Rng, int], Drawing], float]] = {
    page: 0.14,  # Most web pictures that are not photographs contain text.
    interface: 0.14,  # Screenshots mix small text, thin edges, icons and plain areas.
    chart: 0.09,  # Charts have thin lines and small numbers on white.
    shapes: 0.09,  # Vector art has plain areas, sharp edges and saturated colours.
    gradient: 0.09,  # Page backgrounds are gradients, which show banding first.
    plain_cells: 0.08,  # A plain area, above all white, must stay plain and exact.
    product: 0.07,  # Shops and logos show one object on pure white with a soft shadow.
    line_drawing: 0.07,  # Ink drawings are curves of every direction on white.
    code: 0.06,  # Listings are coloured text, most of it on dark grounds.
    comic: 0.05,  # Comics have thick outlines, flat colours and halftone dots.
    pixel_art: 0.04,  # Enlarged pixels are exact squares of few colours.
    patterns: 0.03,  # Checks, stripes and QR codes have the sharpest detail there is.
    scenery: 0.03,  # Illustrations layer gradients and flat silhouettes.
    dithered: 0.02,  # Old web pictures and scans are dithered to few colours.
}
"""Functions that draw a square RGB picture of a side of at least LEAST_SIDE, and their shares."""

RESAMPLED: Final = 0.12
"""Share of the pictures that are drawn at another size and resampled, as on web pages."""

PARALLEL_COUNT: Final = 128
"""Number of pictures from which several processes are faster than one."""

LEAST_SIDE: Final = 320
"""Smallest side that layouts need; smaller pictures are cut out of pictures of this side."""

NOT_RESAMPLED: Final = (plain_cells, gradient)
"""Kinds that are not resampled: it would not change them, or make them less plain."""


def procedural_tiles(count: int, size: int, seed: int) -> U8:
    """Draw pictures of all kinds.

    Args:
        count: number of pictures.
        size: side of the pictures in pixels.
        seed: at least 0; picture i is a function of the seed, i and the size.

    Returns:
        RGB, [count, size, size, 3].
    """
    workers, draw = os.cpu_count() or 1, partial(_draw, size=size, seed=seed)
    if workers == 1 or count < PARALLEL_COUNT:
        tiles = [draw(i) for i in range(count)]
    else:
        # processes, because drawing holds the interpreter's lock; spawned, because CUDA requires it
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            tiles = list(pool.map(draw, range(count), chunksize=8))
    return np.array(tiles, np.uint8).reshape(count, size, size, 3)


def _draw(number: int, size: int, seed: int) -> U8:
    """Draw one picture of a random kind."""
    rng = Rng(np.random.PCG64((seed, number)))
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=list(KINDS.values())))]
    if kind in NOT_RESAMPLED or not rng.chance(RESAMPLED):
        picture = kind(rng, max(size, LEAST_SIDE))
        x, y = (rng.whole(0, picture.width - size) for _ in range(2))
        return np.asarray(picture.crop((x, y, x + size, y + size)))
    picture = kind(rng, max(LEAST_SIDE, round(size * rng.uniform(0.6, 1.6))))
    resampling = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return np.asarray(picture.resize((size, size), rng.pick(resampling)))
