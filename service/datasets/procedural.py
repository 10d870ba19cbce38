"""Procedural pictures for training: kinds of web pictures that are not photographs.

Every picture is drawn from random numbers, with Pillow and its built-in fonts. `KINDS` lists the
kinds, their shares and their reasons. The same seed gives the same pictures with the same releases
of NumPy and Pillow; other releases may draw some pixels differently.
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
from service.datasets.pages import chart, code, page
from service.datasets.primitives import Drawing, Rng, chance, pick, whole


@dataclass(frozen=True)
class PictureKind:
    """A kind of picture.

    Attributes:
        draw: draws a square RGB picture of a side in pixels, at least LEAST_SIDE.
        share: of all pictures; the shares of KINDS sum to 1.
        why: the reason for training on this kind.
    """

    draw: Callable[[Rng, int], Drawing]
    share: float
    why: str


KINDS: Final = (
    PictureKind(page, 0.14, "Most web pictures that are not photographs contain text."),
    PictureKind(interface, 0.14, "Screenshots mix small text, thin edges, icons and plain areas."),
    PictureKind(chart, 0.09, "Charts have thin lines and small numbers on white."),
    PictureKind(shapes, 0.09, "Vector art has plain areas, sharp edges and saturated colours."),
    PictureKind(gradient, 0.09, "Page backgrounds are gradients, which show banding first."),
    PictureKind(plain_cells, 0.08, "A plain area, above all white, must stay plain and exact."),
    PictureKind(product, 0.07, "Shops and logos show one object on pure white with a soft shadow."),
    PictureKind(line_drawing, 0.07, "Ink drawings are curves of every direction on white."),
    PictureKind(code, 0.06, "Listings are coloured text, most of it on dark grounds."),
    PictureKind(comic, 0.05, "Comics have thick outlines, flat colours and halftone dots."),
    PictureKind(pixel_art, 0.04, "Enlarged pixels are exact squares of few colours."),
    PictureKind(patterns, 0.03, "Checks, stripes and QR codes have the sharpest detail there is."),
    PictureKind(scenery, 0.03, "Illustrations layer gradients and flat silhouettes."),
    PictureKind(dithered, 0.02, "Old web pictures and scans are dithered to few colours."),
)

RESAMPLED: Final = 0.12
"""Share of the pictures that are drawn at another size and resampled, as on web pages."""

PARALLEL_COUNT: Final = 128
"""Number of pictures from which several processes are faster than one."""

LEAST_SIDE: Final = 320
"""Smallest side that layouts need; smaller pictures are cut out of pictures of this side."""

NOT_RESAMPLED: Final = (plain_cells, gradient)
"""Kinds that are not resampled: it would not change them, or make them less plain."""


def procedural_tiles(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Draw pictures of all kinds.

    Args:
        count: number of pictures.
        size: side of the pictures in pixels.
        seed: at least 0; picture i is a function of the seed, i and the size.

    Returns:
        RGB, [count, size, size, 3].
    """
    workers = os.cpu_count() or 1
    if workers == 1 or count < PARALLEL_COUNT:
        out = np.empty((count, size, size, 3), np.uint8)
        for i in range(count):
            out[i] = _tile(i, size, seed)
        return out
    # processes, because drawing holds the interpreter's lock; spawned, because CUDA requires it
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        tiles = pool.map(partial(_tile, size=size, seed=seed), range(count), chunksize=8)
        return np.stack(list(tiles))


def _tile(i: int, size: int, seed: int) -> NDArray[np.uint8]:
    return np.asarray(_draw(np.random.default_rng((seed, i)), size))


def _draw(rng: Rng, size: int) -> Drawing:
    """Draw one picture of a random kind."""
    kind = KINDS[int(rng.choice(len(KINDS), p=[kind.share for kind in KINDS]))]
    if kind.draw in NOT_RESAMPLED or not chance(rng, RESAMPLED):
        picture = kind.draw(rng, max(size, LEAST_SIDE))
        x, y = (whole(rng, 0, picture.width - size) for _ in range(2))
        return picture.crop((x, y, x + size, y + size))
    picture = kind.draw(rng, max(LEAST_SIDE, round(size * rng.uniform(0.6, 1.6))))
    resampling = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return picture.resize((size, size), pick(rng, resampling))
