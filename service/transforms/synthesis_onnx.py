"""g_s through ONNX Runtime in float32, which the base install decodes with.

The graph is the same for every rate (export/transform_graphs.py); a session is that graph with one
set of weights, opened in about 20 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import Y_FRAC
from service.codec.sizes import conv_sizes
from service.codec.tiles import PATCH, Box, visible_at_eighth
from service.store.model import StoredModel, Tensors
from service.transforms.onnx_session import open_session

F32 = NDArray[np.float32]

INPUT, OUTPUT = "input", "output"

BEGIN, END = "begin", "end"
"""First row and column, and those after the last, int64 each, of what is kept at 1/8 in g_s."""

CELL = 8
"""Pixels along the side of what one position of g_a's first and g_s's last layer stands for."""

SAMPLES = 3 * CELL * CELL
"""Samples of a cell, in the order row, column, colour."""


class OnnxSynthesis:
    """g_s of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open a session with the model's weights; `threads` of one call, 0 takes all cores.

        Raises:
            StoreError: the graph does not fit the model.
        """
        self._blocks = conv_sizes(model.sizes).nd8
        self._session = open_session(model, "g_s", synthesis_weights(model), threads)

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See SynthesisTransform."""
        window = Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        visible = visible_at_eighth(inner, window, self._blocks)
        feed = {
            INPUT: np.ascontiguousarray(y_hat)[None],
            BEGIN: np.array([visible.top, visible.left]),
            END: np.array([visible.bottom, visible.right]),
        }
        cells: NDArray[np.uint8] = self._session.run([OUTPUT], feed)[0]
        kept = cells[0][inner.scaled(2).relative(visible).slices]
        rows = kept.reshape(*kept.shape[:2], CELL, CELL * 3).swapaxes(1, 2)
        out: NDArray[np.uint8] = rows.reshape(inner.height * PATCH, inner.width * PATCH, 3)
        return out


def synthesis_weights(model: StoredModel) -> dict[str, F32]:
    """The weights of g_s for its graph, with the scales of input and output folded in."""
    s = conv_sizes(model.sizes)
    out = conv_weights(model.transforms, "g_s")
    up, last = f"g_s.{1 + s.nd16}.l", f"g_s.{2 + s.nd16 + s.nd8}.l"
    out["g_s.0.weight"] = out["g_s.0.weight"] * np.float32(2.0**-Y_FRAC)
    if s.M > s.c16:  # these latents skip the blocks at 1/16
        unit = np.where(np.arange(s.M) < s.c16, 1, 2.0**-Y_FRAC).astype(np.float32)
        out[f"{up}.weight"] = out[f"{up}.weight"] * unit[:, None, None]
    out[f"{last}.weight"] = out[f"{last}.weight"] * np.float32(255)
    out[f"{last}.bias"] = (out[f"{last}.bias"] + np.float32(0.5)) * np.float32(255)
    return out


def conv_weights(transforms: Tensors, net: str) -> dict[str, F32]:
    """Every tensor of a network in float32, weights of Linears as those of a 1×1 Conv."""
    out = {}
    for name, tensor in transforms.items():
        if name.startswith(f"{net}."):
            values = np.ascontiguousarray(tensor, np.float32)
            out[name] = values[:, :, None, None] if values.ndim == 2 else values
    return out
