"""g_s of the family swin, written from service/docs/format.md alone, in float64 numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]


def mixed_prompts(parts: Sequence[tuple[Tensors, int]]) -> Tensors:
    """The prompts of a mix of adapters' files and their sixteenths, with log_weight; or nothing."""
    with_prompts = [(file, w) for file, w in parts if any(".prompts." in n for n in file)]
    if not with_prompts:
        return {}
    total = sum(w for _, w in with_prompts)
    names = [n for n in with_prompts[0][0] if ".prompts." in n]
    out = {n: sum(w * f[n].astype(np.float64) for f, w in with_prompts) / total for n in names}
    return out | {"log_weight": np.log(total / 16)}


def synthesise(t: Tensors, y: F64, sizes: dict[str, int]) -> F64:
    """y_hat / 64 [H, W, M] -> what samples are computed from, [16 H, 16 W, 3]."""
    c16, layers = sizes["c16"], sizes["layers"]
    p16 = p8 = p4 = None
    if "log_weight" in t:
        rows, columns = y.shape[0] % 2, y.shape[1] % 2
        p16 = np.pad(y, ((0, rows), (0, columns), (0, 0)), mode="edge")
        p16 = linear(t, "g_s.prompts.stage16.l", unshuffle(p16))
        p8 = shuffle(linear(t, "g_s.prompts.stage8.l", p16), 2)[: y.shape[0], : y.shape[1]]
        p4 = shuffle(linear(t, "g_s.prompts.stage4.l", p8), 2)
    x = stage(t, "g_s.stage16", linear(t, "g_s.first", y[..., :c16]), p16, layers)
    x = np.concatenate([x, y[..., c16:]], -1)
    x = stage(t, "g_s.stage8", shuffle(linear(t, "g_s.up8.l", x), 2), p8, layers)
    x = stage(t, "g_s.stage4", shuffle(linear(t, "g_s.up4.l", x), 2), p4, layers)
    return shuffle(linear(t, "g_s.patch.l", x), 4)


def stage(t: Tensors, name: str, x: F64, prompts: F64 | None, layers: int) -> F64:
    for i in range(layers):
        layer = f"{name}.layers.{i}"
        x = x + linear(t, f"{layer}.out", attention(t, layer, norm(x), prompts, 4 * (i % 2)))
        hidden = linear(t, f"{layer}.f1", norm(x))
        x = x + linear(t, f"{layer}.f2", np.where(hidden > 0, hidden, hidden / 8))
        prompts = None if prompts is None else maximum(prompts)
    return x


def attention(t: Tensors, name: str, x: F64, prompts: F64 | None, before: int) -> F64:
    """The means of values; windows begin `before` rows and columns outside of the picture."""
    out = np.empty_like(x)
    position = t[f"{name}.position"].astype(np.float64)
    for top in range(-before, x.shape[0], 8):
        for left in range(-before, x.shape[1], 8):
            rows = np.arange(max(top, 0), min(top + 8, x.shape[0]))
            columns = np.arange(max(left, 0), min(left + 8, x.shape[1]))
            r, c = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
            q, k, v = np.split(linear(t, f"{name}.qkv", x[r, c]), 3, -1)
            apart = 15 * (r[:, None] - r + 7) + c[:, None] - c + 7
            bias = position[:, apart]
            if prompts is not None:
                under = np.ix_(np.unique(rows // 2), np.unique(columns // 2))
                _, more_k, more_v = np.split(
                    linear(t, f"{name}.qkv", prompts[under].reshape(-1, x.shape[-1])), 3, -1
                )
                k, v = np.concatenate([k, more_k]), np.concatenate([v, more_v])
                weight = np.full((len(bias), len(r), len(more_k)), t["log_weight"])
                bias = np.concatenate([bias, weight], -1)
            result = np.empty_like(q)
            for h in range(x.shape[-1] // 32):
                part = slice(32 * h, 32 * h + 32)
                logits = q[:, part] @ k[:, part].T / np.sqrt(32) + bias[h]
                weights = np.exp(logits - logits.max(1, keepdims=True))
                result[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
            out[r, c] = result
    return out


def maximum(x: F64) -> F64:
    """The maximum of 3×3 around each position, as far as they exist."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    h, w, _ = x.shape
    out: F64 = np.max([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], 0)
    return out


def norm(x: F64) -> F64:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)


def linear(t: Tensors, name: str, x: F64) -> F64:
    out: F64 = x @ t[f"{name}.weight"].astype(np.float64).T + t[f"{name}.bias"].astype(np.float64)
    return out


def shuffle(x: F64, r: int) -> F64:
    """Channel (r·i + j)·C + c moves to position (r·row + i, r·column + j)."""
    h, w, channels = x.shape
    cells = x.reshape(h, w, r, r, channels // r**2).transpose(0, 2, 1, 3, 4)
    return cells.reshape(h * r, w * r, -1)


def unshuffle(x: F64) -> F64:
    h, w, c = x.shape
    cells = x.reshape(h // 2, 2, w // 2, 2, c).transpose(0, 2, 1, 3, 4)
    return cells.reshape(h // 2, w // 2, 4 * c)
