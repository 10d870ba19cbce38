"""Latent streams: grids of integers and small networks, fitted to the latents of one picture.

A stream of this kind holds no latents of a rate model, but what makes the latents [h, w, C] of an
autoencoder (autoencoders/). Pyramids of grids, at 1:1, 1:2, 1:4, ... of the latents, are coded with
a small autoregressive network; learned upsampling and a synthesis network make the latents of them.

    used grids | gain | step and level of each tensor | coded symbols

A stream names the grids that it uses by the gaps between them, so that an autoencoder of hundreds
of channels can have a grid for each.

Networks. Streams store how the networks differ from the autoencoder's default ones
(`LatentNetworks`), which are fitted to many pictures; a tensor that does not differ costs a byte.
All weights are integers in units of 2^-10.

    ar.w1 [N, 11]  ar.b1 [F, N]  ar.w2 [N, N]  ar.b2 [N]  ar.w3 [2, N]  ar.skip [11]  ar.b3 [F, 2]
    up [4]  syn.skip [C, F]  syn.w1 [H, F]  syn.b1 [H]  syn.dw1, syn.dw2 [H, 3, 3]
    syn.w2 [C, H]  syn.b2 [C]  gain [F]

F grids in all, N channels of the autoregressive network, H of the synthesis network.

The autoregressive network is exact, so that any machine decodes any stream. It predicts each value
from 8 values of its grid that are known, the values of the two grids before it at the same
position, and that of the next coarser pyramid level (CONTEXT): the mean follows their signs, the
scale their magnitudes. Its sums are integers in float64:

    a1 = max(0, floor((w1 |c| + b1) / 4))            c in ±255, a1 in units of 2^-8 up to 2^16
    a2 = max(0, floor((w2 a1 + 2^8 b2) / 2^10))      likewise
    mean, scale = floor((w3 a2 + 2^8 (b3 + skip c)) / 2^10)    skip for the mean only; units of 2^-8

Weights are at most 2^15, so every sum is an integer below 2^53. The scale is the logarithm to base
2 of the Laplace distribution's; the grid's step (`gain`, in quarter octaves) is taken off it.
Positions are decoded in wavefronts: all grids of a level at once, position (r, c) of grid g at time
c + 2r + g, by which everything that it depends on is known.

The synthesis is not exact: it makes float32 latents, as the networks of rate models do.

Idea: Ladune et al., "COOL-CHIC: Coordinate-based Low Complexity Hierarchical Image Codec", and Kim
et al., "C3: High-performance and low-complexity neural compression from a single image or video",
for the latents of a frozen autoencoder. Ours differs: networks have defaults, steps are stored, the
context reaches over grids, and 3×3 layers are depthwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.byte_reader import ByteReader, varint
from service.codec.coder import (
    LAPLACE_LEVELS,
    LAPLACE_SHIFTS,
    TOTAL_BITS,
    Decoder,
    Encoder,
    LaplaceTables,
    laplace_masses,
)
from service.codec.entropy_model import SYMBOL_MAX
from service.codec.fixed_point import LEAK
from service.errors import BadStream

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

VALUE_MAX = 255
"""Largest absolute value of a grid."""
WEIGHT_FRAC = 10
"""Weights are integers in units of 2^-WEIGHT_FRAC."""
WEIGHT_MAX = 2**15
"""Largest absolute weight, in these units."""
ACTIVATION_FRAC = 8
ACTIVATION_MAX = 2.0**16
"""Largest activation, in units of 2^-ACTIVATION_FRAC."""
CONTEXT = ((0, -1), (0, -2), (-1, -1), (-1, 0), (-1, 1), (-1, -2), (-2, 0), (-2, 1))
"""(rows, columns) to the values of the same grid that predict one."""
INPUTS = len(CONTEXT) + 3
"""Inputs of the autoregressive network: CONTEXT, two grids before, and the coarser level."""
MARGIN = 2
"""Zeros around a grid."""
GAIN_MAX = 128
"""Largest absolute gain of a grid, in quarter octaves: steps are 2^-32 ... 2^32."""
FEATURE_MAX = 2.0**40
"""Largest absolute value of an upsampled grid, so that no damaged stream makes infinities."""
PARAMETER_STEPS = 5
"""A tensor differs from its default by multiples of 2^(2 + e) units, e < PARAMETER_STEPS."""
COARSE_GAIN = -1
"""Quarter octaves by which the steps of a level are finer than those of the next finer level."""
MAX_GRIDS = SYMBOL_MAX
MAX_WIDTH = 64
"""Most grids, and most channels of the small networks."""

TENSORS = (
    "gain", "ar.w1", "ar.b1", "ar.w2", "ar.b2", "ar.w3", "ar.skip", "ar.b3", "up",
    "syn.skip", "syn.w1", "syn.b1", "syn.dw1", "syn.dw2", "syn.w2", "syn.b2",
)  # fmt: skip
"""Tensors of the networks, in stored order."""


@dataclass(frozen=True, eq=False)
class LatentNetworks:
    """The small networks of a picture, or the default ones of an autoencoder.

    Attributes:
        levels: number of grids at 1:1, 1:2, 1:4, ...
        tensors: int32 by the names of TENSORS, in units of 2^-10; `gain` [F] in quarter octaves.
    """

    levels: tuple[int, ...]
    tensors: Mapping[str, I32]

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return len(self.tensors["syn.b2"])

    @property
    def grids(self) -> int:
        """Grids of all levels."""
        return sum(self.levels)

    def weight(self, name: str) -> F32:
        """A tensor as float32."""
        return self.tensors[name].astype(np.float32) * np.float32(2.0**-WEIGHT_FRAC)


@dataclass(frozen=True, eq=False)
class FittedLatents:
    """What a latent stream holds.

    Attributes:
        networks: with `gain` as it applies: the stream's own and the default one added.
        values: of each grid [rows, columns] int32, finest level first; None for unused grids, which
            are 0.
    """

    networks: LatentNetworks
    values: tuple[I32 | None, ...]


def expected_shapes(
    levels: tuple[int, ...], channels: int, n: int, h: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors for some grids, latents, and widths of the networks."""
    f = sum(levels)
    return {
        "gain": (f,), "ar.w1": (n, INPUTS), "ar.b1": (f, n), "ar.w2": (n, n), "ar.b2": (n,),
        "ar.w3": (2, n), "ar.skip": (INPUTS,), "ar.b3": (f, 2), "up": (4,),
        "syn.skip": (channels, f), "syn.w1": (h, f), "syn.b1": (h,), "syn.dw1": (h, 3, 3),
        "syn.dw2": (h, 3, 3), "syn.w2": (channels, h), "syn.b2": (channels,),
    }  # fmt: skip


def plain_networks(
    channels: int, levels: tuple[int, ...] | None = None, n: int = 8, h: int = 8
) -> LatentNetworks:
    """Networks to start from for latents of unit variance, where nothing was fitted.

    Each grid at 1:1 stands for one channel; the prediction is the mean of three neighbours.
    """
    levels = levels or (min(channels, 16), *(min(channels, 4),) * 3)
    shapes = expected_shapes(levels, channels, n, h)
    one = 2**WEIGHT_FRAC
    tensors = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    draw = np.random.default_rng(0)
    for name, fan in (("ar.w1", INPUTS), ("ar.w2", n), ("syn.w1", sum(levels))):
        tensors[name] = np.rint(draw.normal(0, fan**-0.5, shapes[name]) * one).astype(np.int32)
    tensors["ar.skip"][[0, 3]] = one // 3
    tensors["up"][:] = 0, one // 4, 3 * one // 4, 0
    place = 0
    for level, count in enumerate(levels):
        for i in range(count):
            tensors["syn.skip"][i % channels, place + i] = one
        tensors["gain"][place : place + count] = COARSE_GAIN * level
        place += count
    return LatentNetworks(levels, tensors)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the autoregressive network says of values [m].

    Attributes:
        nearest: integer nearest to the mean, float64.
        mirrored: bool, whether the mean lies below it; symbols then change their sign.
        tables: uint8, see LaplaceTables.
    """

    nearest: F64
    mirrored: NDArray[np.bool_]
    tables: NDArray[np.uint8]


class Predictor:
    """The autoregressive network of a picture, in exact arithmetic."""

    def __init__(self, networks: LatentNetworks) -> None:
        t = {name: networks.tensors[name].astype(np.float64) for name in TENSORS}
        unit = 2.0**ACTIVATION_FRAC
        self._w1, self._b1, self._w2 = t["ar.w1"].T, t["ar.b1"], t["ar.w2"].T
        self._b2, self._w3, self._skip = unit * t["ar.b2"], t["ar.w3"].T, unit * t["ar.skip"]
        self._b3, self._gain = unit * t["ar.b3"], t["gain"] * 64

    def __call__(self, inputs: F64, grids: NDArray[np.int16]) -> Prediction:
        """Predict values of grids [m] from their inputs [m, INPUTS]."""
        to_activation = 2.0 ** (ACTIVATION_FRAC - WEIGHT_FRAC)
        a = np.floor((np.abs(inputs) @ self._w1 + self._b1[grids]) * to_activation)
        a = np.clip(a, 0, ACTIVATION_MAX)
        a = np.floor((a @ self._w2 + self._b2) * 2.0**-WEIGHT_FRAC)
        a = np.clip(a, 0, ACTIVATION_MAX)
        out = a @ self._w3 + self._b3[grids]
        out[:, 0] += inputs @ self._skip
        out = np.floor(out * 2.0**-WEIGHT_FRAC)
        eighths = np.clip(np.floor((out[:, 0] + 16) / 32), -8 * VALUE_MAX, 8 * VALUE_MAX)
        nearest = np.floor((eighths + 4) / 8)
        shift = eighths - 8 * nearest
        log_scale = out[:, 1] - self._gain[grids]
        level = np.clip(np.floor((log_scale + 32) / 64) + 16, 0, LAPLACE_LEVELS - 1)
        tables = 1 + LAPLACE_SHIFTS * level + np.abs(shift)
        return Prediction(nearest, shift < 0, tables.astype(np.uint8))


class PyramidLevel:
    """The used grids of one pyramid level while they are coded.

    Attributes:
        groups: flat positions in wavefronts, in coding order.
    """

    def __init__(self, places: list[int], rows: int, columns: int, coarser: I32) -> None:
        """Prepare grids of zeros.

        Args:
            coarser: values of the next coarser level [n, ceil(rows / 2), ceil(columns / 2)]; n is 0
                where there is none.
        """
        count, m = len(places), MARGIN
        self._stack = np.zeros((count + 2, rows + m, columns + 2 * m), np.int16)
        kind = np.int32 if self._stack.size < 2**31 else np.int64
        cells: NDArray[Any] = np.indices((count, rows, columns), kind)
        grid, row, column = cells.reshape(3, -1)
        time = column + 2 * row + grid
        order = np.argsort(time, kind="stable")
        grid, row, column = grid[order], row[order], column[order]
        plane, width = (rows + m) * (columns + 2 * m), columns + 2 * m
        self._at = (grid + 2) * plane + (row + m) * width + column + m
        offsets = [r * width + c for r, c in CONTEXT] + [-plane, -2 * plane]
        self._offsets = np.array(offsets)
        self._parent = np.zeros(len(order), np.int16)
        if len(coarser):
            parent = np.minimum(grid, len(coarser) - 1)
            self._parent = coarser.astype(np.int16)[parent, row // 2, column // 2]
        self._numbers = np.array(places, np.int16)[grid]
        ends = np.cumsum(np.bincount(time, minlength=1))
        self.groups = [slice(a, b) for a, b in pairwise([0, *ends.tolist()]) if b > a]

    def predict(self, predictor: Predictor, group: slice) -> Prediction:
        """Predict the values of a group from those before it."""
        at = self._at[group]
        inputs = np.empty((len(at), INPUTS))
        inputs[:, :-1] = self._stack.reshape(-1)[at[:, None] + self._offsets]
        inputs[:, -1] = self._parent[group]
        return predictor(inputs, self._numbers[group])

    def put(self, group: slice, values: F64) -> None:
        """Set the values of a group."""
        self._stack.reshape(-1)[self._at[group]] = values

    def get(self, group: slice) -> F64:
        """The values of a group."""
        out: F64 = self._stack.reshape(-1)[self._at[group]].astype(np.float64)
        return out

    def fill(self, values: I32) -> None:
        """Set all values, [n, rows, columns]."""
        m = MARGIN
        self._stack[2:, m:, m:-m] = values

    def values(self) -> I32:
        """All values, [n, rows, columns]."""
        m = MARGIN
        return self._stack[2:, m:, m:-m].astype(np.int32)


def level_shapes(levels: tuple[int, ...], rows: int, columns: int) -> list[tuple[int, int]]:
    """Rows and columns of the grids of each level."""
    return [(-(-rows // 2**i), -(-columns // 2**i)) for i in range(len(levels))]


def _levels(
    networks: LatentNetworks, used: NDArray[np.bool_], rows: int, columns: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Levels in coding order, the coarsest first: used grids, rows and columns."""
    starts = np.cumsum([0, *networks.levels]).tolist()
    shapes = level_shapes(networks.levels, rows, columns)
    for level in reversed(range(len(networks.levels))):
        places = [i for i in range(starts[level], starts[level + 1]) if used[i]]
        yield places, shapes[level]


def encode_latents(
    networks: LatentNetworks, defaults: LatentNetworks, values: tuple[I32 | None, ...]
) -> bytes:
    """Code fitted networks and grids, as `decode_latents` reads them.

    Args:
        networks: whose tensors differ from the defaults by whole steps, at most SYMBOL_MAX.
        values: see FittedLatents; at least one grid is used.
    """
    places = np.flatnonzero([v is not None for v in values])
    gaps = np.diff(places) - 1
    level, _ = best_level(gaps)
    gain = int((networks.tensors["gain"] - defaults.tensors["gain"])[0])
    head = [varint(len(places)), bytes([level, gain + 128])]
    encoder = Encoder(LaplaceTables())
    encoder.push(gaps.astype(np.int32), _tables_of(level, len(gaps)))
    for name in TENSORS:
        byte, symbols = _coded_tensor(name, networks, defaults, gain)
        head.append(bytes([byte]))
        if byte:
            encoder.push(symbols, _tables_of((byte - 1) % LAPLACE_LEVELS, len(symbols)))
    _push_grids(encoder, networks, values)
    return b"".join(head) + encoder.finish()


def _push_grids(encoder: Encoder, networks: LatentNetworks, values: tuple[I32 | None, ...]) -> None:
    predictor = Predictor(networks)
    used = np.array([v is not None for v in values])
    rows, columns = values_shape(networks.levels, values)
    coarser = np.zeros((0, 1, 1), np.int32)
    for places, shape in _levels(networks, used, rows, columns):
        level = PyramidLevel(places, *shape, coarser)
        own = [v for i in places if (v := values[i]) is not None]
        coarser = np.stack(own) if own else coarser[:0]
        level.fill(coarser if own else np.zeros((0, *shape), np.int32))
        for group in level.groups:
            p = level.predict(predictor, group)
            difference = level.get(group) - p.nearest
            symbols = np.where(p.mirrored, -difference, difference)
            encoder.push(symbols.astype(np.int32), p.tables)


def values_shape(levels: tuple[int, ...], values: tuple[I32 | None, ...]) -> tuple[int, int]:
    """Rows and columns of the finest level."""
    for value in values[: levels[0]]:
        if value is not None:
            return value.shape[0], value.shape[1]
    raise AssertionError("the first grid at 1:1 is always used")


def decode_fitted(
    payload: bytes, rows: int, columns: int, defaults: LatentNetworks
) -> FittedLatents:
    """Decode the networks and the grids of a latent stream.

    Args:
        payload: from `encode_latents`. rows, columns: of the latents.
        defaults: of the autoencoder that the stream names.

    Raises:
        BadStream: the payload is damaged.
    """
    reader = ByteReader(payload)
    count = reader.varint("number of used grids")
    if not 1 <= count <= defaults.grids:
        raise BadStream(f"{count} grids are used, expected 1 to {defaults.grids}")
    level, gain = reader.take(2, "level of gaps and gain")
    if level >= LAPLACE_LEVELS:
        raise BadStream(f"level of gaps is {level}, expected 0 to {LAPLACE_LEVELS - 1}")
    heads = reader.take(len(TENSORS), "steps and levels of tensors")
    decoder = Decoder(LaplaceTables(), payload[reader.at :])
    used = _pull_used(decoder, level, count, defaults.grids)
    networks = _pull_networks(decoder, heads, gain - 128, defaults)
    values = _pull_grids(decoder, networks, used, rows, columns)
    decoder.finish()
    return FittedLatents(networks, values)


def _pull_used(decoder: Decoder, level: int, count: int, grids: int) -> NDArray[np.bool_]:
    """Which of some grids are used: the first, and those behind the gaps."""
    gaps = decoder.pull(_tables_of(level, count - 1))
    places = np.cumsum([0, *(gaps + 1)])
    if gaps.min(initial=0) < 0 or places[-1] >= grids:
        raise BadStream(f"gaps between used grids are {gaps.tolist()}, of {grids} grids")
    used = np.zeros(grids, bool)
    used[places] = True
    return used


def _pull_networks(
    decoder: Decoder, heads: bytes, gain: int, defaults: LatentNetworks
) -> LatentNetworks:
    tensors = {}
    for name, byte in zip(TENSORS, heads, strict=True):
        default = defaults.tensors[name]
        tensor = default + np.int32(gain) if name == "gain" else default
        if byte:
            tensor = tensor + _decoded_tensor(name, byte, default.shape, decoder)
        limit = GAIN_MAX if name == "gain" else WEIGHT_MAX
        if np.abs(tensor).max() > limit:
            raise BadStream(f"tensor {name} of a latent stream has values over {limit}")
        tensors[name] = tensor
    return LatentNetworks(defaults.levels, tensors)


def _pull_grids(
    decoder: Decoder,
    networks: LatentNetworks,
    used: NDArray[np.bool_],
    rows: int,
    columns: int,
) -> tuple[I32 | None, ...]:
    predictor = Predictor(networks)
    values: list[I32 | None] = [None] * len(used)
    coarser = np.zeros((0, 1, 1), np.int32)
    for places, shape in _levels(networks, used, rows, columns):
        level = PyramidLevel(places, *shape, coarser)
        for group in level.groups:
            p = level.predict(predictor, group)
            symbols = decoder.pull(p.tables)
            decoded = p.nearest + np.where(p.mirrored, -symbols, symbols)
            if np.abs(decoded).max() > VALUE_MAX:
                raise BadStream(f"a grid of a latent stream has values over {VALUE_MAX}")
            level.put(group, decoded)
        coarser = level.values()
        for place, value in zip(places, coarser, strict=True):
            values[place] = value
    return tuple(values)


def decode_latents(
    payload: bytes, rows: int, columns: int, channels: int, networks: LatentNetworks
) -> F32:
    """The latents of a stream, [rows, columns, channels]; see `decode_fitted`."""
    latents = synthesise(decode_fitted(payload, rows, columns, networks), rows, columns)
    assert latents.shape[-1] == channels
    return latents


def synthesise(fitted: FittedLatents, rows: int, columns: int) -> F32:
    """Latents [rows, columns, C] of grids, by upsampling and the synthesis network."""
    networks = fitted.networks
    step = np.exp2(networks.tensors["gain"] / 4).astype(np.float32)
    taps = networks.weight("up")
    features, places = [], []
    starts = np.cumsum([0, *networks.levels]).tolist()
    shapes = level_shapes(networks.levels, rows, columns)
    for place, value in enumerate(fitted.values):
        if value is None:
            continue
        level = int(np.searchsorted(starts, place, side="right")) - 1
        grid = value.astype(np.float32) * step[place]
        for finer in reversed(range(level)):
            grid = upsample(grid, taps, shapes[finer])
        features.append(np.clip(grid, -FEATURE_MAX, FEATURE_MAX))
        places.append(place)
    u = np.stack(features, -1)
    hidden = u @ networks.weight("syn.w1")[:, places].T + networks.weight("syn.b1")
    hidden = _leaky(hidden)
    for name in ("syn.dw1", "syn.dw2"):
        hidden = hidden + _leaky(_depthwise(hidden, networks.weight(name)))
    latents: F32 = u @ networks.weight("syn.skip")[:, places].T
    latents += hidden @ networks.weight("syn.w2").T + networks.weight("syn.b2")
    return latents


def upsample(grid: F32, taps: F32, shape: tuple[int, int]) -> F32:
    """A grid at twice the size, cut to a shape; edges are repeated.

    Sample 2i reads samples i-2 ... i+1 with the taps, sample 2i+1 reads i+2 ... i-1.
    """
    for axis in (0, 1):
        padded = np.pad(grid, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        count = grid.shape[axis]
        parts = [padded.take(range(k, k + count), axis) for k in range(5)]
        even = sum(taps[k] * parts[k] for k in range(4))
        odd = sum(taps[k] * parts[4 - k] for k in range(4))
        both = np.stack([even, odd], axis + 1)
        grid = both.reshape(*(2 * n if a == axis else n for a, n in enumerate(grid.shape)))
        grid = grid.take(range(shape[axis]), axis)
    return grid


def _leaky(x: F32) -> F32:
    out: F32 = np.maximum(x, np.float32(LEAK) * x)
    return out


def _depthwise(x: F32, taps: F32) -> F32:
    """A 3×3 convolution of each channel of [rows, columns, H]; edges are repeated."""
    rows, columns, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    out = np.zeros_like(x)
    for r in range(3):
        for c in range(3):
            out += padded[r : r + rows, c : c + columns] * taps[:, r, c]
    return out


def quantised_difference(difference: NDArray[np.float64], exponent: int) -> NDArray[np.int64]:
    """Symbols of a tensor's difference from its default, in units of 2^-10, at a step."""
    step = 2.0 ** (2 + exponent)
    return np.clip(np.rint(difference / step), -SYMBOL_MAX, SYMBOL_MAX).astype(np.int64)


def best_level(symbols: NDArray[np.int64]) -> tuple[int, float]:
    """The level that codes symbols with the fewest bits, and these bits."""
    values, counts = np.unique(symbols, return_counts=True)
    bits = [
        float(
            (
                (
                    TOTAL_BITS
                    - np.log2(laplace_masses(1 + LAPLACE_SHIFTS * level)[values + SYMBOL_MAX])
                )
                * counts
            ).sum()
        )
        for level in range(LAPLACE_LEVELS)
    ]
    level = int(np.argmin(bits))
    return level, bits[level]


def _coded_tensor(
    name: str, networks: LatentNetworks, defaults: LatentNetworks, gain: int
) -> tuple[int, NDArray[np.int32]]:
    """The byte of a tensor, 0 where it is the default one, and its symbols."""
    difference = (networks.tensors[name] - defaults.tensors[name]).reshape(-1)
    if name == "gain":
        difference = difference - gain
    if not difference.any():
        return 0, difference
    unit = 1 if name == "gain" else 4
    exponent = 0
    while name != "gain" and exponent < PARAMETER_STEPS - 1 and not (difference % (2 * unit)).any():
        unit, exponent = 2 * unit, exponent + 1
    symbols = difference // unit
    assert not (difference % unit).any() and np.abs(symbols).max() <= SYMBOL_MAX
    level, _ = best_level(symbols)
    return 1 + LAPLACE_LEVELS * exponent + level, symbols


def _decoded_tensor(name: str, byte: int, shape: tuple[int, ...], decoder: Decoder) -> I32:
    """A tensor's difference from its default."""
    exponent, level = divmod(byte - 1, LAPLACE_LEVELS)
    if exponent >= PARAMETER_STEPS or (name == "gain" and exponent):
        raise BadStream(f"tensor {name} of a latent stream has step and level {byte}")
    count = int(np.prod(shape))
    symbols = decoder.pull(_tables_of(level, count))
    unit = 1 if name == "gain" else 2 ** (2 + exponent)
    return (symbols * unit).reshape(shape)


def _tables_of(level: int, count: int) -> NDArray[np.uint8]:
    """The tables of symbols of one level about 0."""
    return np.full(count, 1 + LAPLACE_SHIFTS * level, np.uint8)


def multiply_adds(networks: LatentNetworks, used: int, used_cells: float, cell: int) -> float:
    """Multiply-adds per pixel of decoding a latent stream, without the autoencoder.

    Those by weights of `syn.skip` that are 0 are not counted: where a grid stands for a channel,
    there is one other for each grid.

    Args:
        used: grids that are used. used_cells: values of these grids per latent position.
        cell: pixels along the side of a latent.
    """
    n, h, c = (len(networks.tensors[name]) for name in ("ar.b2", "syn.b1", "syn.b2"))
    autoregressive = INPUTS * n + n * n + 2 * n + INPUTS
    straight = np.count_nonzero(networks.tensors["syn.skip"]) / networks.grids
    synthesis = used * (h + straight) + 18 * h + h * c
    upsampling = 16 * (used - networks.levels[0]) if used > networks.levels[0] else 0
    return (autoregressive * used_cells + synthesis + upsampling) / cell**2
