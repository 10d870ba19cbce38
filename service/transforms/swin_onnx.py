"""g_a, h_a and g_s of the Swin family through ONNX Runtime in float32.

One graph serves every rate (export/swin_graphs.py): prompts are always computed. At the base's own
rate, which has none, theirs are weights of zero and a weight in the softmax that underflows to 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import Y_FRAC
from service.codec.sizes import HEAD, WINDOW, swin_sizes
from service.codec.tiles import PATCH, Box
from service.store.model import StoredModel
from service.store.shapes import prompt_shapes
from service.transforms.analysis_onnx import OnnxHyperAnalysis
from service.transforms.onnx_session import open_session
from service.transforms.swin_windows import StageBoxes, has_prompts, weights_of
from service.transforms.synthesis_onnx import INPUT, OUTPUT

F32 = NDArray[np.float32]

KEPT = ("kept16", "kept8", "kept4")
"""Names of StageBoxes that g_s gets: two inputs each, the first row and column and those after the
last, int64."""

CELL = 4
"""Pixels along the side of what one position of g_a's first and g_s's last layer stands for."""

SAMPLES = 3 * CELL * CELL
"""Samples of a cell, in the order row, column, colour."""

UNSEEN = -1e30
"""Added to the logits of what attention does not see: its weight is exp(UNSEEN - largest) = 0."""


class OnnxSwinSynthesis:
    """g_s of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open a session with the model's weights; `threads` of one call, 0 takes all cores.

        Raises:
            StoreError: the graph does not fit the model.
        """
        self._layers = swin_sizes(model.sizes).layers
        self._g_s = open_session(model, "g_s", swin_synthesis_weights(model), threads)

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See SynthesisTransform; the window begins at whole attention windows of the picture."""
        window = Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        boxes = StageBoxes.of(inner, window, self._layers)
        feed = {INPUT: np.ascontiguousarray(y_hat[boxes.read16.slices])}
        for name in KEPT:
            box = getattr(boxes, name)
            feed |= {f"{name}.begin": np.array([box.top, box.left])}
            feed |= {f"{name}.end": np.array([box.bottom, box.right])}
        cells: NDArray[np.uint8] = self._g_s.run([OUTPUT], feed)[0]
        rows = cells.reshape(*cells.shape[:2], CELL, CELL * 3).swapaxes(1, 2)
        out: NDArray[np.uint8] = rows.reshape(inner.height * PATCH, inner.width * PATCH, 3)
        return out


class OnnxSwinTransforms(OnnxSwinSynthesis, OnnxHyperAnalysis):
    """All transforms of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open sessions with the model's weights; see OnnxSwinSynthesis."""
        OnnxSwinSynthesis.__init__(self, model, threads)
        OnnxHyperAnalysis.__init__(self, model, threads)
        self._g_a = open_session(model, "g_a", swin_analysis_weights(model), threads)

    def analyse(self, pixels: NDArray[np.uint8]) -> F32:
        """Pixels [H, W, 3], H and W multiples of 16 -> y [H/16, W/16, M].

        The pixels begin at whole attention windows of the picture.
        """
        height, width, _ = pixels.shape
        rows = pixels.reshape(height // CELL, CELL, width // CELL, CELL * 3).swapaxes(1, 2)
        cells = rows.reshape(height // CELL, width // CELL, SAMPLES)
        y: F32 = self._g_a.run([OUTPUT], {INPUT: cells})[0]
        return y


def swin_analysis_weights(model: StoredModel) -> dict[str, F32]:
    """The weights of g_a for its graph, which reads samples p of 0–255.

    W (p / 255 - 1/2) + b = (W / 255) p + (b - W·1/2).
    """
    out = _weights(model, "g_a")
    for name in ("g_a.patch.l", "g_a.prompts.patch.l"):
        weight = out[f"{name}.weight"]
        out[f"{name}.bias"] = out[f"{name}.bias"] - weight.sum(0) / np.float32(2)
        out[f"{name}.weight"] = weight / np.float32(255)
    return out


def swin_synthesis_weights(model: StoredModel) -> dict[str, F32]:
    """The weights of g_s for its graph, with the scales of input and output folded in."""
    s, unit = swin_sizes(model.sizes), np.float32(2.0**-Y_FRAC)
    out = _weights(model, "g_s")
    for name in ("g_s.first.weight", "g_s.prompts.stage16.l.weight"):
        out[name] = out[name] * unit
    straight = np.arange(s.M)[:, None] >= s.c16  # these latents skip the layers at 1/16
    out["g_s.up8.l.weight"] = out["g_s.up8.l.weight"] * np.where(straight, unit, np.float32(1))
    out["g_s.patch.l.weight"] = out["g_s.patch.l.weight"] * np.float32(255)
    out["g_s.patch.l.bias"] = (out["g_s.patch.l.bias"] + np.float32(0.5)) * np.float32(255)
    return out


def _weights(model: StoredModel, net: str) -> dict[str, F32]:
    """Every tensor of a network and of its prompts in float32, matrices as [inputs, outputs]."""
    s, log_weight, named = swin_sizes(model.sizes), UNSEEN, weights_of(model, net)
    if has_prompts(model, net):
        log_weight = max(UNSEEN, float(named[f"{net}.prompts.log_weight"]))
    else:
        shapes = {n: shape for n, shape in prompt_shapes(s).items() if n.startswith(f"{net}.")}
        named |= {n: np.zeros(shape, np.float32) for n, shape in shapes.items()}
    out: dict[str, F32] = {}
    for name, tensor in named.items():
        layer, _, part = name.rpartition(".")
        if part == "position":
            out[f"{layer}.logits"] = _logits(tensor, log_weight)
        elif part != "log_weight":
            out[name] = np.ascontiguousarray(tensor.T, np.float32)
    for layer in [n.removesuffix(".qkv.weight") for n in out if n.endswith(".qkv.weight")]:
        out |= _queries_keys_values(layer, out)
    return out | {f"ones.{c}": np.ones(c, np.float32) for c in {s.c4, s.c8, s.c16}}


def _queries_keys_values(layer: str, weights: dict[str, F32]) -> dict[str, F32]:
    """The Linear qkv of a layer in three parts, taken out of the weights; queries are scaled."""
    matrix, bias = weights.pop(f"{layer}.qkv.weight"), weights.pop(f"{layer}.qkv.bias")
    out: dict[str, F32] = {}
    for part, scale, w, b in zip(
        ("q", "k", "v"),
        (HEAD**-0.5, 1, 1),
        np.split(matrix, 3, 1),
        np.split(bias, 3),
        strict=True,
    ):
        out[f"{layer}.{part}.weight"] = np.ascontiguousarray(w) * np.float32(scale)
        out[f"{layer}.{part}.bias"] = b * np.float32(scale)
    return out


def _logits(position: NDArray[np.generic], log_weight: float) -> F32:
    """What is added to the logits of a window's tokens, then of its prompts: [heads, 64, 80]."""
    at = np.arange(WINDOW)
    apart = at[:, None] - at + WINDOW - 1
    offsets = apart[:, None, :, None] * (2 * WINDOW - 1) + apart[None, :, None, :]
    tokens = position.astype(np.float32)[:, offsets.reshape(WINDOW**2, WINDOW**2)]
    prompts = np.full((*tokens.shape[:2], WINDOW**2 // 4), log_weight, np.float32)
    return np.concatenate([tokens, prompts], -1)
