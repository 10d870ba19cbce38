"""g_s in numpy: the reference for the other two, and the decoder where there is no ONNX Runtime.

All of it is in float32. A window is processed as a whole: the caller bounds memory by its size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import Y_FRAC
from service.codec.fixed_point import LEAK
from service.codec.tiles import Box, visible_at_eighth
from service.store.model import StoredModel

F32 = NDArray[np.float32]


class NumpySynthesis:
    """g_s of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel) -> None:
        """Load weights."""
        self._tensors = {
            name.removeprefix("g_s."): np.ascontiguousarray(t.T.squeeze(), np.float32)
            for name, t in model.synthesis.items()
        }
        self._sizes = model.sizes

    @np.errstate(over="ignore", invalid="ignore")  # a hostile update of the weights can cause both
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See pipeline.SynthesisTransform."""
        s, window = self._sizes, Box(0, 0, *y_hat.shape[:2])
        inner = inner or window
        visible = visible_at_eighth(inner, window, s.nd8)
        y = y_hat.astype(np.float32) * np.float32(2.0**-Y_FRAC)
        x = self._linear("0", y[..., : s.c16])
        for i in range(s.nd16):
            x = self._block(f"{1 + i}", x)
        x = np.concatenate([x, y[..., s.c16 :]], -1)
        x = _shuffle(self._linear(f"{1 + s.nd16}.l", x), 2)
        x = x[visible.slices]
        for i in range(s.nd8):
            x = self._block(f"{2 + s.nd16 + i}", x)
        x = x[inner.scaled(2).relative(visible).slices]
        x = _shuffle(self._linear(f"{2 + s.nd16 + s.nd8}.l", x), 8)
        x += np.float32(0.5)
        x *= np.float32(255)
        return np.fmin(np.fmax(np.rint(x, out=x), 0, out=x), 255, out=x).astype(np.uint8)

    def _linear(self, name: str, x: F32) -> F32:
        weight = self._tensors[f"{name}.weight"]
        out: F32 = x.reshape(-1, x.shape[-1]) @ weight  # one product: numpy would take row by row
        out += self._tensors[f"{name}.bias"]
        return out.reshape(*x.shape[:-1], -1)

    def _block(self, name: str, x: F32) -> F32:
        t = self._depthwise(f"{name}.dw", _leaky(self._linear(f"{name}.pw1", x)))
        x = x + self._linear(f"{name}.pw2", t)
        x += self._linear(f"{name}.f2", _leaky(self._linear(f"{name}.f1", x)))
        return x

    def _depthwise(self, name: str, x: F32) -> F32:
        """3×3 with edges repeated; taps are stored as [C, 1, 3, 3], here [3 (x), 3 (y), C]."""
        taps = self._tensors[f"{name}.weight"]
        height, width, _ = x.shape
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
        out = np.empty_like(x)
        out[:] = self._tensors[f"{name}.bias"]
        for dy in range(3):
            for dx in range(3):
                out += padded[dy : dy + height, dx : dx + width] * taps[dx, dy]
        return out


def _leaky(x: F32) -> F32:
    out: F32 = np.maximum(x, x * np.float32(LEAK), out=x)
    return out


def _shuffle(x: Any, r: int) -> F32:
    h, w, c = x.shape
    cells = x.reshape(h, w, r, r, c // (r * r)).swapaxes(1, 2)
    out: F32 = cells.reshape(h * r, w * r, c // (r * r))
    return out
