"""g_a, h_a and g_s through ONNX Runtime in float32, for servers on which it is faster than torch.

runtime/loading.py has the rule for when that is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codec.sizes import conv_sizes
from service.store.model import StoredModel
from service.transforms.interfaces import whole_cells
from service.transforms.onnx_session import open_session
from service.transforms.synthesis_onnx import (
    CELL,
    INPUT,
    OUTPUT,
    SAMPLES,
    OnnxSynthesis,
    conv_weights,
)

F32 = NDArray[np.float32]


class OnnxHyperAnalysis:
    """h_a of one model, of any family."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open a session with the model's weights; see OnnxSynthesis."""
        self._h_a = open_session(model, "h_a", hyper_analysis_weights(model), threads)

    def hyper_analyse(self, y: F32) -> F32:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]; edges are repeated to whole cells."""
        z: F32 = self._h_a.run([OUTPUT], {INPUT: np.ascontiguousarray(whole_cells(y))})[0]
        return z


class OnnxTransforms(OnnxSynthesis, OnnxHyperAnalysis):
    """All transforms of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open sessions with the model's weights; see OnnxSynthesis."""
        OnnxSynthesis.__init__(self, model, threads)
        OnnxHyperAnalysis.__init__(self, model, threads)
        self._g_a = open_session(model, "g_a", analysis_weights(model), threads)

    def analyse(self, pixels: NDArray[np.uint8]) -> F32:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        height, width, _ = pixels.shape
        rows = pixels.reshape(height // CELL, CELL, width // CELL, CELL * 3).swapaxes(1, 2)
        cells = rows.reshape(1, height // CELL, width // CELL, SAMPLES)
        batch: F32 = self._g_a.run([OUTPUT], {INPUT: cells})[0]
        y: F32 = batch[0]
        return y


def analysis_weights(model: StoredModel) -> dict[str, F32]:
    """The weights of g_a for its graph, which reads samples p of 0–255.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    out = conv_weights(model.transforms, "g_a")
    weight, bias = out["g_a.0.l.weight"], out["g_a.0.l.bias"]
    out["g_a.0.l.bias"] = bias - weight.sum((1, 2, 3)) / np.float32(2)
    out["g_a.0.l.weight"] = weight / np.float32(255)
    down = f"g_a.{1 + conv_sizes(model.sizes).ne8}.l.weight"
    return out | {down: _over_cells(out[down])}


def hyper_analysis_weights(model: StoredModel) -> dict[str, F32]:
    """The weights of h_a for its graph."""
    out = conv_weights(model.transforms, "h_a")
    return out | {name: _over_cells(out[name]) for name in ("h_a.2.l.weight", "h_a.4.l.weight")}


def _over_cells(weight: F32) -> F32:
    """Weights [N, 4·K, 1, 1] that read 2×2 cells row by row, as [N, K, 2, 2]."""
    cells = weight.reshape(len(weight), 2, 2, -1).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(cells)
