"""A slow decoder of latent streams, written from service/docs/format.md alone.

It imports nothing from service. Names follow the page; all arithmetic of grids and networks is in
Python's integers, one value at a time.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from math import ceil, floor

import constriction
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Grid = list[list[int]]

ORDER = (
    "gain", "ar.w1", "ar.b1", "ar.w2", "ar.b2", "ar.w3", "ar.skip", "ar.b3", "up",
    "syn.skip", "syn.w1", "syn.b1", "syn.dw1", "syn.dw2", "syn.w2", "syn.b2",
)  # fmt: skip
NEIGHBOURS = ((0, -1), (0, -2), (-1, -1), (-1, 0), (-1, 1), (-1, -2), (-2, 0), (-2, 1))


class Malformed(Exception):
    """The bytes break a rule of the page."""


def table(number: int) -> list[int]:
    """Frequencies of -511 ... 511."""
    level, shift = divmod(number - 1, 5)
    scale = Decimal(2) ** (Decimal(level) / 4 - 4)
    ratio = float((-1 / scale).exp())
    sides = []
    for eighths in (4 + shift, 4 - shift):
        tail = 0.5 * float((-Decimal(eighths) / 8 / scale).exp())
        power, side = 1.0, []
        for _ in range(511):
            side.append(1 + floor(tail * (1 - ratio) * power * (2**24 - 1023)))
            power *= ratio
        sides.append(side)
    below, above = sides
    return [*below[::-1], 2**24 - sum(below) - sum(above), *above]


class Symbols:
    """An ANS stack from which groups of symbols are taken."""

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise Malformed("last byte")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._ans = constriction.stream.stack.AnsCoder(words)

    def group(self, tables: list[int]) -> list[int]:
        """Symbols of a group, each with its own table; the stack holds them sorted by table."""
        symbols = [0] * len(tables)
        for i in sorted(range(len(tables)), key=lambda i: tables[i]):
            p = np.array(table(tables[i]), np.float64) - 1
            model = constriction.stream.model.Categorical(p, perfect=False)
            symbols[i] = int(self._ans.decode(model)) - 511
        return symbols

    def finish(self) -> None:
        if not self._ans.is_empty():
            raise Malformed("bytes are left")


def read_tensors(
    heads: bytes, gain: int, defaults: dict[str, Ints], symbols: Symbols
) -> dict[str, Ints]:
    """The tensors of the stream, from their default ones."""
    out = {}
    for name, byte in zip(ORDER, heads, strict=True):
        tensor = defaults[name].astype(np.int64) + (gain if name == "gain" else 0)
        if byte:
            exponent, level = divmod(byte - 1, 48)
            if exponent > (0 if name == "gain" else 4):
                raise Malformed(name)
            unit = 1 if name == "gain" else 2 ** (2 + exponent)
            drawn = symbols.group([1 + 5 * level] * tensor.size)
            tensor = tensor + unit * np.array(drawn).reshape(tensor.shape)
        out[name] = tensor
    return out


def predict(inputs: list[int], grid: int, t: dict[str, list]) -> tuple[int, int, int]:
    """Nearest integer to the mean, its distance in eighths, and level, of a value of a grid."""
    w1, b1, w2, b2, w3, skip, b3 = (t[name] for name in ORDER[1:8])

    def dot(row: list[int], values: list[int]) -> int:
        return sum(a * b for a, b in zip(row, values, strict=True))

    sizes = [abs(x) for x in inputs]
    a1 = [min(max((dot(w, sizes) + b) >> 2, 0), 65536) for w, b in zip(w1, b1[grid], strict=True)]
    a2 = [min(max((dot(w, a1) + 256 * b) >> 10, 0), 65536) for w, b in zip(w2, b2, strict=True)]
    mean = (dot(w3[0], a2) + 256 * (b3[grid][0] + dot(skip, inputs))) >> 10
    log_scale = ((dot(w3[1], a2) + 256 * b3[grid][1]) >> 10) - 64 * t["gain"][grid]
    eighths = min(max((mean + 16) >> 5, -2040), 2040)
    nearest = (eighths + 4) >> 3
    return nearest, eighths - 8 * nearest, min(max(((log_scale + 32) >> 6) + 16, 0), 47)


def decode_level(
    places: list[int], h: int, w: int, coarser: list[Grid], t: dict[str, list], symbols: Symbols
) -> list[Grid]:
    """The used grids of a pyramid level."""
    grids: list[Grid] = [[[0] * w for _ in range(h)] for _ in places]

    def value(i: int, r: int, c: int) -> int:
        return grids[i][r][c] if i >= 0 and r >= 0 and 0 <= c < w else 0

    positions = list(product(range(len(places)), range(h), range(w)))
    for time in range(w + 2 * h + len(places)):
        front = [(i, r, c) for i, r, c in positions if c + 2 * r + i == time]
        predictions = []
        for i, r, c in front:
            inputs = [value(i, r + dr, c + dc) for dr, dc in NEIGHBOURS]
            inputs += [value(i - 1, r, c), value(i - 2, r, c)]
            parent = coarser[min(i, len(coarser) - 1)][r // 2][c // 2] if coarser else 0
            predictions.append(predict([*inputs, parent], places[i], t))
        drawn = symbols.group([1 + 5 * level + abs(shift) for _, shift, level in predictions])
        for (i, r, c), (nearest, shift, _), s in zip(front, predictions, drawn, strict=True):
            grids[i][r][c] = nearest - s if shift < 0 else nearest + s
            if abs(grids[i][r][c]) > 255:
                raise Malformed("value")
    return grids


def decode(
    payload: bytes, rows: int, columns: int, levels: list[int], defaults: dict[str, Ints]
) -> tuple[dict[str, Ints], dict[int, Grid]]:
    """The networks, and the used grids by their numbers."""
    count, at = payload[0] & 127, 1
    if payload[0] > 127:
        count, at = count + 128 * payload[1], 2
    level, gain, heads = payload[at], payload[at + 1], payload[at + 2 : at + 2 + len(ORDER)]
    if not 1 <= count <= sum(levels) or level > 47:
        raise Malformed("used grids")
    symbols = Symbols(payload[at + 2 + len(ORDER) :])
    used = [0]
    for gap in symbols.group([1 + 5 * level] * (count - 1)):
        used.append(used[-1] + 1 + gap)
        if gap < 0 or used[-1] >= sum(levels):
            raise Malformed("gap")
    tensors = read_tensors(heads, gain - 128, defaults, symbols)
    plain = {name: tensor.tolist() for name, tensor in tensors.items()}
    grids: dict[int, Grid] = {}
    coarser: list[Grid] = []
    for level in reversed(range(len(levels))):
        first = sum(levels[:level])
        places = [g for g in range(first, first + levels[level]) if g in used]
        h, w = ceil(rows / 2**level), ceil(columns / 2**level)
        coarser = decode_level(places, h, w, coarser, plain, symbols)
        grids |= dict(zip(places, coarser, strict=True))
    symbols.finish()
    return tensors, grids


def upsample(grid: NDArray[np.float64], taps: list[float], h: int, w: int) -> NDArray[np.float64]:
    """A grid at twice the size, rows and then columns, cut to h × w."""

    def doubled(line: NDArray[np.float64], length: int) -> list[NDArray[np.float64]]:
        n = len(line)
        out = []
        for k in range(length):
            reach = (
                range(k // 2 - 2, k // 2 + 2) if k % 2 == 0 else range(k // 2 + 2, k // 2 - 2, -1)
            )
            out.append(
                sum(t * line[min(max(i, 0), n - 1)] for t, i in zip(taps, reach, strict=True))
            )
        return out

    tall = np.array(doubled(grid, h))
    return np.array(doubled(tall.T, w)).T


def synthesise(
    tensors: dict[str, Ints], grids: dict[int, Grid], levels: list[int], rows: int, columns: int
) -> NDArray[np.float64]:
    """The latents [rows, columns, C]."""
    t = {name: tensor / 1024 for name, tensor in tensors.items()}
    places = sorted(grids)
    features = []
    for g in places:
        level = next(i for i in range(len(levels)) if g < sum(levels[: i + 1]))
        u = np.array(grids[g]) * 2.0 ** (tensors["gain"][g] / 4)
        for i in reversed(range(level)):
            u = upsample(u, t["up"].tolist(), ceil(rows / 2**i), ceil(columns / 2**i))
        features.append(u)

    def leaky(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(x < 0, x / 8, x)

    u = np.stack(features, -1)
    x = leaky(u @ t["syn.w1"][:, places].T + t["syn.b1"])
    for name in ("syn.dw1", "syn.dw2"):
        filtered = np.zeros_like(x)
        for r, c, i, j in product(range(rows), range(columns), range(3), range(3)):
            at = min(max(r + i - 1, 0), rows - 1), min(max(c + j - 1, 0), columns - 1)
            filtered[r, c] += t[name][:, i, j] * x[at]
        x = x + leaky(filtered)
    return u @ t["syn.skip"][:, places].T + x @ t["syn.w2"].T + t["syn.b2"]
