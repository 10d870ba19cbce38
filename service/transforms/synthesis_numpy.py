"""g_s and the preview network in numpy.

g_s here is the reference for the other two, and the decoder where there is no ONNX Runtime; the
preview network runs in numpy everywhere, because it is small. All of it is in float32. A window is
processed as a whole: the caller bounds memory by its size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import Y_FRAC
from service.codec.fixed_point import LEAK
from service.codec.sizes import conv_sizes
from service.codec.tiles import PATCH, Box, visible_at_eighth
from service.store.model import StoredModel, Tensors
from service.store.shapes import preview_blocks

F32 = NDArray[np.float32]


class NumpySynthesis:
    """g_s of one model. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel) -> None:
        """Load weights."""
        self._layers = NumpyLayers({n.removeprefix("g_s."): t for n, t in model.synthesis.items()})
        self._sizes = conv_sizes(model.sizes)

    @np.errstate(over="ignore", invalid="ignore")  # a hostile update of the weights can cause both
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> NDArray[np.uint8]:
        """See SynthesisTransform."""
        s, window, layers = self._sizes, Box(0, 0, *y_hat.shape[:2]), self._layers
        inner = inner or window
        visible = visible_at_eighth(inner, window, s.nd8)
        y = _real(y_hat)
        x = layers.linear("0", y[..., : s.c16])
        for i in range(s.nd16):
            x = layers.block(f"{1 + i}", x)
        x = np.concatenate([x, y[..., s.c16 :]], -1)
        x = shuffle(layers.linear(f"{1 + s.nd16}.l", x), 2)
        x = x[visible.slices]
        for i in range(s.nd8):
            x = layers.block(f"{2 + s.nd16 + i}", x)
        x = x[inner.scaled(2).relative(visible).slices]
        return pixels_of(shuffle(layers.linear(f"{2 + s.nd16 + s.nd8}.l", x), 8))


class NumpyPreviews:
    """The preview network of one model. Immutable; safe to share between threads.

    Attributes:
        halo: latents around a window that the network reads.
    """

    def __init__(self, tensors: Tensors) -> None:
        """Load weights that `store.shapes.check_previews` has accepted."""
        self._layers = NumpyLayers(tensors)
        self.halo = preview_blocks(tensors)

    @np.errstate(over="ignore", invalid="ignore")  # hostile weights can cause both
    def synthesise(self, y_hat: NDArray[np.int16], inner: Box, scale: int) -> NDArray[np.uint8]:
        """A window of latents [h, w, M], in units of 2^-Y_FRAC, as pixels at 1/scale.

        Only those under `inner`, a part of the window, are returned:
        [16 / scale · inner.height, 16 / scale · inner.width, 3].
        """
        x = self._layers.linear("trunk.0", _real(y_hat))
        for i in range(self.halo):
            x = self._layers.block(f"trunk.{1 + i}", x)
        return pixels_of(
            shuffle(self._layers.linear(f"head.{scale}.l", x[inner.slices]), PATCH // scale)
        )


class NumpyLayers:
    """Layers of networks by name."""

    def __init__(self, tensors: Tensors) -> None:
        """Load weights; those of matrices are kept [inputs, outputs], taps [3 (x), 3 (y), C]."""
        self._tensors = {
            name: np.ascontiguousarray((t[:, 0] if t.ndim == 4 else t).T, np.float32)
            for name, t in tensors.items()
        }

    def linear(self, name: str, x: F32) -> F32:
        """[..., inputs] -> [..., outputs]."""
        weight = self._tensors[f"{name}.weight"]
        out: F32 = x.reshape(-1, x.shape[-1]) @ weight  # one product: numpy would take row by row
        out += self._tensors[f"{name}.bias"]
        return out.reshape(*x.shape[:-1], -1)

    def block(self, name: str, x: F32) -> F32:
        """A residual block (nets/backbone.py), [H, W, C] -> [H, W, C]."""
        t = self._depthwise(f"{name}.dw", _leaky(self.linear(f"{name}.pw1", x)))
        x = x + self.linear(f"{name}.pw2", t)
        x += self.linear(f"{name}.f2", _leaky(self.linear(f"{name}.f1", x)))
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


def _real(y_hat: NDArray[np.int16]) -> F32:
    """Latents in their own unit."""
    return y_hat.astype(np.float32) * np.float32(2.0**-Y_FRAC)


def pixels_of(x: F32) -> NDArray[np.uint8]:
    """Samples from -0.5 to 0.5 as 0 to 255, NaN as 0; changes its argument."""
    x += np.float32(0.5)
    x *= np.float32(255)
    return np.fmin(np.fmax(np.rint(x, out=x), 0, out=x), 255, out=x).astype(np.uint8)


def _leaky(x: F32) -> F32:
    out: F32 = np.maximum(x, x * np.float32(LEAK), out=x)
    return out


def shuffle(x: Any, r: int) -> F32:
    """Channels of [H, W, r·r·C] as cells of r×r, [rH, rW, C]."""
    h, w, c = x.shape
    cells = x.reshape(h, w, r, r, c // (r * r)).swapaxes(1, 2)
    out: F32 = cells.reshape(h * r, w * r, c // (r * r))
    return out
