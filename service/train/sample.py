"""Random crops of tiles that lie on the device, flipped and transposed at random.

Draws use torch's generator of the device, which the caller seeds for each step: a crop is a
function of (seed, step), on the CPU, in eager CUDA and in a replayed CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.errors import BadParameter


class Sampler:
    """Draws batches of crops from tiles. Makes no decision on the host, so a graph can hold it."""

    def __init__(self, tiles: Tensor, crop: int, batch: int) -> None:
        """Draw from tiles.

        Args:
            tiles: [N, S, S, 3] uint8, on the device.
            crop: side in pixels, a multiple of 64, at most S. batch: crops a draw.

        Raises:
            BadParameter: the crop does not fit.
        """
        self._count, self._side = tiles.shape[:2]
        if crop % 64 or not 64 <= crop <= self._side:
            raise BadParameter(
                f"crops are {crop} pixels wide, expected a multiple of 64 up to the tiles' "
                f"{self._side}"
            )
        self._pixels = tiles.reshape(-1, 3)
        self._crop, self._batch = crop, batch
        self._line = torch.arange(crop, device=tiles.device)

    def draw(self) -> Tensor:
        """[batch, crop, crop, 3] float32 in [0, 1]."""
        device, batch = self._pixels.device, (self._batch, 1, 1)
        tile = torch.randint(self._count, batch, device=device)
        room = self._side - self._crop + 1
        top, left = torch.randint(room, (2, *batch), device=device)
        flip_y, flip_x, transpose = torch.randint(2, (3, *batch), device=device)
        down, along = self._line[:, None], self._line[None]
        row = torch.where(transpose > 0, along, down)
        column = torch.where(transpose > 0, down, along)
        last = self._crop - 1
        row = top + torch.where(flip_y > 0, last - row, row)
        column = left + torch.where(flip_x > 0, last - column, column)
        return self._pixels[(tile * self._side + row) * self._side + column].float() / 255
