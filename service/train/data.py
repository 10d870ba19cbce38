"""Training pictures in memory, and random crops of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.errors import BadImage, BadParameter
from service.images import read_image


class Crops:
    """Draws random crops, flipped and transposed at random, larger pictures more often.

    The draw is a pure function of (seed, step), so a resumed run sees what it would have seen.
    """

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        """Read every picture of a folder whose sides are at least `size`.

        Raises:
            BadParameter: there is none.
        """
        self._size, self._seed = size, seed
        self._pictures = [p for p in map(_pixels, sorted(folder.iterdir())) if p is not None]
        self._pictures = [p for p in self._pictures if min(p.shape[:2]) >= size]
        if not self._pictures:
            raise BadParameter(f"{folder} has no picture of at least {size}x{size} pixels")
        areas = np.array([p.shape[0] * p.shape[1] for p in self._pictures], np.float64)
        self._weights = areas / areas.sum()
        self.pixels = int(areas.sum())

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def batch(self, step: int, count: int) -> Tensor:
        """Crops [count, size, size, 3] float32 in [0, 1] of one step."""
        rng = np.random.default_rng((self._seed, step))
        out = np.empty((count, self._size, self._size, 3), np.uint8)
        for crop, k in zip(out, rng.choice(len(self), count, p=self._weights), strict=True):
            picture = self._pictures[k]
            top = rng.integers(picture.shape[0] - self._size + 1)
            left = rng.integers(picture.shape[1] - self._size + 1)
            part = picture[top : top + self._size, left : left + self._size]
            if rng.random() < 0.5:
                part = part[:, ::-1]
            if rng.random() < 0.5:
                part = part.swapaxes(0, 1)
            crop[:] = part
        return torch.from_numpy(out).float() / 255


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    """The pixels of a picture file, None for anything else."""
    try:
        return read_image(path.read_bytes(), max_pixels=10**8, metadata="none").on_white().rgb
    except (BadImage, IsADirectoryError):
        return None
