"""What a model's transforms g_a, h_a and g_s offer, whichever library runs them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec.tiles import Z_CELL, Box
from service.picture import U8


class SynthesisTransform(Protocol):
    """g_s of one model."""

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> U8:
        """A window of latents [h, w, M], in units of 2^-Y_FRAC, as pixels.

        Only those under `inner`, a part of the window, are returned, or all:
        [16 inner.height, 16 inner.width, 3].
        """


class AnalysisTransform(Protocol):
    """g_a and h_a of one model."""

    def analyse(self, pixels: U8) -> NDArray[np.float32]:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""

    def hyper_analyse(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]."""


class BothTransforms(AnalysisTransform, SynthesisTransform, Protocol):
    """g_a, h_a and g_s of one model."""


def whole_cells(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """y [B, h, w, M] padded to whole hyper-latents by repeating its last row and column."""
    pad = [(0, 0), (0, -y.shape[1] % Z_CELL), (0, -y.shape[2] % Z_CELL), (0, 0)]
    return np.pad(y, pad, mode="edge") if any(after for _, after in pad) else y
