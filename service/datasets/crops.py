"""Training pictures in memory, and random crops of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.errors import BadParameter
from service.images.read import read_folder


class Crops:
    """Draws crops at random, flipped and transposed at random, more often from larger pictures.

    The crops are a function of (seed, step), so that a resumed run gets the same ones.

    Attributes:
        pixels: total pixels of the pictures.
        left_out: number of files that are too small or not pictures.
    """

    def __init__(self, folder: Path, size: int, seed: int) -> None:
        """Read the pictures of a folder whose sides are at least `size` pixels, that of the crops.

        Raises:
            BadParameter: the folder has no such picture.
            OSError: a folder or file cannot be read.
        """
        self._size, self._seed = size, seed
        no_pictures: list[Path] = []
        read = [picture.on_white().rgb for _, picture in read_folder(folder, no_pictures.append)]
        self._pictures = [rgb for rgb in read if min(rgb.shape[:2]) >= size]
        self.left_out = len(no_pictures) + len(read) - len(self._pictures)
        if not self._pictures:
            raise BadParameter(f"{folder} has no picture of at least {size}x{size} pixels")
        areas = np.array([p.shape[0] * p.shape[1] for p in self._pictures], np.float64)
        self._weights = areas / areas.sum()
        self.pixels = int(areas.sum())

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def batch(self, step: int, count: int) -> Tensor:
        """Return the crops of one step, [count, size, size, 3] float32 in [0, 1]."""
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
