"""g_a, h_a and g_s through ONNX Runtime in float32, for servers on which it is faster than torch.

loading.py has the rule for when that is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.runtime.onnx_graph import (
    CELL,
    INPUT,
    OUTPUT,
    SAMPLES,
    analysis,
    analysis_graph,
    hyper_analysis,
    hyper_analysis_graph,
)
from service.runtime.onnx_session import open_session
from service.runtime.onnx_weights import weights_of
from service.runtime.pipeline import whole_cells
from service.runtime.synthesis_onnx import OnnxSynthesis
from service.store.model import StoredModel

F32 = NDArray[np.float32]


class OnnxTransforms(OnnxSynthesis):
    """All transforms of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open sessions with the model's weights; see OnnxSynthesis."""
        super().__init__(model, threads)
        sizes = model.sizes
        self._g_a_weights = _weights(model)  # the sessions read some of them where they are
        self._h_a_weights = weights_of(model.transforms, "h_a", hyper_analysis(sizes))
        self._g_a = open_session(analysis_graph(sizes), self._g_a_weights, threads)
        self._h_a = open_session(hyper_analysis_graph(sizes), self._h_a_weights, threads)

    def analyse(self, pixels: NDArray[np.uint8]) -> F32:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M]."""
        height, width, _ = pixels.shape
        rows = pixels.reshape(height // CELL, CELL, width // CELL, CELL * 3).swapaxes(1, 2)
        cells = rows.reshape(1, height // CELL, width // CELL, SAMPLES)
        batch: F32 = self._g_a.run([OUTPUT], {INPUT: cells})[0]
        y: F32 = batch[0]
        return y

    def hyper_analyse(self, y: F32) -> F32:
        """y [B, h, w, M] -> z [B, ceil(h/4), ceil(w/4), Cz]; edges are repeated to whole cells."""
        z: F32 = self._h_a.run([OUTPUT], {INPUT: np.ascontiguousarray(whole_cells(y))})[0]
        return z


def _weights(model: StoredModel) -> dict[str, F32]:
    """The tensors of g_a for samples p of 0–255.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    out = weights_of(model.transforms, "g_a", analysis(model.sizes))
    weight, bias = out["g_a.0.l.weight"], out["g_a.0.l.bias"]
    out["g_a.0.l.bias"] = bias - weight.sum((1, 2, 3)) / np.float32(2)
    out["g_a.0.l.weight"] = weight / np.float32(255)
    return out
