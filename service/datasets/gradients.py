"""Gradients of procedural pictures, as arrays, and pictures of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.datasets.colours import Colour, Rng

Drawing = Image.Image
Floats = NDArray[np.floating]


def ramp(rng: Rng, size: int) -> Floats:
    """A linear or radial gradient, [size, size] from 0 to 1."""
    at = np.arange(size, dtype=np.float32) / size
    y, x = at[:, None], at[None, :]
    if rng.chance(0.35):
        t = np.hypot(x - rng.uniform(-0.2, 1.2), y - rng.uniform(-0.2, 1.2)) * rng.uniform(0.7, 2)
    else:
        angle = rng.pick((0.0, np.pi / 2, rng.uniform(0, 2 * np.pi)))
        t = x * math.cos(angle) + y * math.sin(angle)
        t = (t - t.min()) / (t.max() - t.min()) * rng.pick((1.0, 1.0, 1.5, 0.5))
    clipped: Floats = np.clip(t, 0, 1)
    return clipped


def clouds(rng: Rng, size: int) -> Floats:
    """Blurred noise, [size, size] from 0 to 1."""
    coarse = rng.integers(0, 256, (rng.whole(3, 24),) * 2, np.uint8)
    fine = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / 255


def graded(t: Floats, a: Colour, b: Colour) -> Floats:
    """The colours from `a` to `b` at every place of a gradient: [H, W, 3], 0 to 255."""
    first, last = np.array(a, np.float32), np.array(b, np.float32)
    rgb: Floats = t[..., None] * (last - first)
    rgb += first
    return rgb


def as_picture(rgb: Floats) -> Drawing:
    """An array [H, W, 3] of 0 to 255 as a picture, rounded."""
    return Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))


def ground(rng: Rng, size: int) -> Drawing:
    """A background for shapes: a plain colour or a gradient."""
    if rng.chance(0.7):
        return Image.new("RGB", (size, size), rng.any_colour())
    return as_picture(graded(ramp(rng, size), rng.any_colour(), rng.any_colour()))
