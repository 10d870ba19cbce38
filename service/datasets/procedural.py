"""Procedural pictures for training: what the web serves beside photographs.

Every picture is drawn from random numbers alone, with Pillow and the fonts that it carries. `KINDS`
says what is drawn, how often and why. The same seed gives the same pictures with the same releases
of NumPy and Pillow; other releases may draw some pixels otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.datasets.drawings import comic, line_drawing, product, scenery, shapes
from service.datasets.fields import dithered, gradient, patterns, pixel_art, plain_cells
from service.datasets.interfaces import interface
from service.datasets.marks import Picture, Rng, chance, pick, whole
from service.datasets.pages import chart, code, page


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        draw: makes a square RGB picture of a side in pixels, at least LEAST_SIDE.
        share: of all pictures; the shares of KINDS sum to 1.
        why: what it stands for.
    """

    draw: Callable[[Rng, int], Picture]
    share: float
    why: str


KINDS: Final = (
    Kind(page, 0.14, "Text is the commonest thing in pictures on the web that are no photographs."),
    Kind(interface, 0.14, "Screenshots mix small text, thin edges, icons and large plain areas."),
    Kind(chart, 0.09, "Charts have thin lines and small numbers on white."),
    Kind(shapes, 0.09, "Vector art has plain areas, sharp edges and saturated colours."),
    Kind(gradient, 0.09, "Grounds of web pages are graded, and banding shows in them first."),
    Kind(plain_cells, 0.08, "A plain area must stay plain, and its colour exact, white above all."),
    Kind(product, 0.07, "Shops and logos show one thing on pure white with a soft shadow."),
    Kind(line_drawing, 0.07, "Drawings in ink are curves of every direction on white."),
    Kind(code, 0.06, "Listings are coloured text, most of it on dark grounds."),
    Kind(comic, 0.05, "Comics have thick outlines, flat colours and halftone dots."),
    Kind(pixel_art, 0.04, "Enlarged pixels are exact squares of few colours."),
    Kind(patterns, 0.03, "Checks, stripes and QR codes have the sharpest detail there is."),
    Kind(scenery, 0.03, "Illustrations layer gradients and flat silhouettes."),
    Kind(dithered, 0.02, "Old web pictures and scans are dithered to few colours."),
)

RESAMPLED: Final = 0.12
"""Share of the pictures that are drawn at another size and resampled, as web pages do."""

WORTH_PROCESSES: Final = 128
"""Pictures from which on several processes are quicker than one."""

LEAST_SIDE: Final = 320
"""Layouts have room from this side on; smaller pictures are cut from ones of this side."""

KEPT: Final = (plain_cells, gradient)
"""What resampling would not change, or would make less plain."""


def procedural_tiles(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Draw pictures of all kinds.

    Args:
        count: of the pictures. size: their side in pixels.
        seed: from 0; picture i is a function of the seed, of i and of the size alone.

    Returns:
        RGB, [count, size, size, 3].
    """
    workers = os.cpu_count() or 1
    if workers == 1 or count < WORTH_PROCESSES:
        out = np.empty((count, size, size, 3), np.uint8)
        for i in range(count):
            out[i] = _tile(i, size, seed)
        return out
    # processes, as drawing holds the interpreter's lock; started afresh, as CUDA wants it
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        tiles = pool.map(partial(_tile, size=size, seed=seed), range(count), chunksize=8)
        return np.stack(list(tiles))


def _tile(i: int, size: int, seed: int) -> NDArray[np.uint8]:
    return np.asarray(_draw(np.random.default_rng((seed, i)), size))


def _draw(rng: Rng, size: int) -> Picture:
    """Draw one picture of a random kind."""
    kind = KINDS[int(rng.choice(len(KINDS), p=[kind.share for kind in KINDS]))]
    if kind.draw in KEPT or not chance(rng, RESAMPLED):
        picture = kind.draw(rng, max(size, LEAST_SIDE))
        x, y = (whole(rng, 0, picture.width - size) for _ in range(2))
        return picture.crop((x, y, x + size, y + size))
    picture = kind.draw(rng, max(LEAST_SIDE, round(size * rng.uniform(0.6, 1.6))))
    resampling = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return picture.resize((size, size), pick(rng, resampling))
