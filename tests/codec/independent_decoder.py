"""A slow decoder written from service/docs/format.md alone: it imports nothing from service.

Names follow the page. All arithmetic before g_s is in Python or int64 integers, so that it shares
neither the carrier (float32) nor the entropy coder (constriction) with the decoder that is tested.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from codec import independent_attention

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]


class Malformed(Exception):
    """The bytes break a rule of the page: a decoder reports "bad stream"."""


class Unsupported(Malformed):
    """The stream needs a newer decoder."""


# Container


@dataclass(frozen=True, eq=False)
class Layer:
    """A graphics layer: its blocks [h, w], and each piece with its place and bytes."""

    flags: int
    marked: NDArray[np.bool_]
    pieces: tuple[tuple[int, int, int, int, bytes], ...]


@dataclass(frozen=True)
class Parsed:
    """Header fields and section payloads (`metadata` inflated), as the page names them."""

    model: bytes
    rate16: int
    flags: int
    width: int
    height: int
    sections: dict[int, bytes]
    tiles: tuple[tuple[bytes, ...], ...]
    metadata: dict[int, bytes]
    layer: Layer | None

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return -(-self.height // 16), -(-self.width // 16)


def crc32c(data: bytes) -> int:
    """CRC-32C, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint and the offset behind it."""
    value = 0
    for i in range(5):
        if at + i >= len(data):
            raise Malformed("cut varint")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            if i and not data[at + i]:
                raise Malformed("padded varint")
            return value, at + i + 1
    raise Malformed("long varint")


ORDER = [1, 6, 8, 4, 10, 2, 12, 3]
"""Sections, as they stand."""


def parse(data: bytes) -> Parsed:
    """Read header, checksum, sections and tiles."""
    if len(data) < 4 or data[:3] != b"RKP":
        raise Malformed("magic")
    if data[3] != 1:
        raise Unsupported("version")
    if len(data) < 10 or data[8] > 128:
        raise Malformed("rate")
    if data[9] > 7:
        raise Unsupported("flags")
    width, at = varint(data, 10)
    height, at = varint(data, at)
    if not (1 <= width < 2**18 and 1 <= height < 2**18):
        raise Malformed("size")
    body = data[:-4]
    if len(body) < at or crc32c(body) != int.from_bytes(data[-4:], "little"):
        raise Malformed("checksum")
    sections: dict[int, bytes] = {}
    while at < len(body):
        kind, at = varint(body, at)
        length, at = varint(body, at)
        if len(sections) == 16 or length > len(body) - at or kind in sections:
            raise Malformed("section")
        if kind % 2 == 0 and kind not in ORDER:
            raise Unsupported("critical section")
        if kind in ORDER and any(k in sections for k in ORDER[ORDER.index(kind) :]):
            raise Malformed("order")
        sections[kind] = body[at : at + length]
        at += length
    if len(sections.get(8, b"four")) != 4:
        raise Malformed("ready update")
    layer = read_layer(sections[10], width, height) if 10 in sections else None
    if layer is not None and layer.marked.all():
        if {2, 4, 6, 8, 12} & sections.keys() or any(data[4:9]):
            raise Malformed("not lossless")
    elif 12 in sections:
        if {2, 6, 8, 10} & sections.keys() or data[8] < 16 or data[9] > 1:
            raise Malformed("not a latent stream")
    elif 2 not in sections or data[8] < 16:
        raise Malformed("latents or rate")
    metadata = {kind: inflate_metadata(sections[kind]) for kind in (1, 3) if kind in sections}
    same_machine = data[9] & 4
    tiles: tuple[tuple[bytes, ...], ...] = ()
    if 2 in sections:
        tiles = ((sections[2],),) if same_machine else split(sections[2], width, height)
    return Parsed(data[4:8], data[8], data[9], width, height, sections, tiles, metadata, layer)


def split(payload: bytes, width: int, height: int) -> tuple[tuple[bytes, ...], ...]:
    """The pieces of each tile of a latents section."""
    rows, columns = -(-height // 16), -(-width // 16)
    areas = [
        min(64, rows - top) * min(64, columns - left)
        for top in range(0, rows, 64)
        for left in range(0, columns, 64)
    ]
    if len(payload) < len(areas) - 1:
        raise Malformed("index")
    owners = [
        tile
        for segment in range(6)
        for tile, area in enumerate(areas)
        if segment == 0 or area > 1024
    ]
    at, lengths = 0, []
    for _ in owners[1:]:
        length, at = varint(payload, at)
        lengths.append(length)
    if sum(lengths) > len(payload) - at:
        raise Malformed("pieces")
    edges = [*accumulate(lengths, initial=at), len(payload)]
    tiles: list[list[bytes]] = [[] for _ in areas]
    for tile, low, high in zip(owners, edges, edges[1:], strict=False):
        tiles[tile].append(payload[low:high])
    return tuple(map(tuple, tiles))


def inflate_metadata(payload: bytes) -> bytes:
    """An ICC profile or Exif block of at most 4 MiB."""
    if len(payload) > 2**22 + 2**16:
        raise Malformed("metadata")
    return inflate(payload, 2**22)


def inflate(payload: bytes, limit: int) -> bytes:
    """One whole zlib stream and nothing behind it."""
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(payload, limit)
    except zlib.error as error:
        raise Malformed("zlib") from error
    if not inflater.eof or inflater.unused_data:
        raise Malformed("zlib")
    return out


# Lossless pictures

Piece = tuple[int, int, int, int, bytes]
"""Top, left, height, width and bytes."""


def read_pieces(payload: bytes, at: int, width: int, height: int) -> tuple[Piece, ...]:
    """The pieces of a picture, from an offset on; they are not decoded."""
    places = [
        (top, left, min(4096, height - top), min(4096, width - left))
        for top in range(0, height, 4096)
        for left in range(0, width, 4096)
    ]
    lengths = []
    for _ in places[1:]:
        length, at = varint(payload, at)
        lengths.append(length)
    edges = [*accumulate(lengths, initial=at), len(payload)]
    if edges[-2] > edges[-1]:
        raise Malformed("pieces")
    cuts = zip(edges, edges[1:], strict=False)
    return tuple(
        (*place, payload[low:high]) for place, (low, high) in zip(places, cuts, strict=True)
    )


def decode_piece(piece: Piece, with_alpha: bool) -> NDArray[np.uint8]:
    """Pixels of a piece, [height, width, 4], by Pillow from a whole WebP file."""
    _, _, h, w, data = piece
    head = 0x2F | (w - 1) << 8 | (h - 1) << 22 | with_alpha << 36
    chunk = head.to_bytes(5, "little") + data
    chunk += b"\0" * (len(chunk) % 2)
    body = b"WEBPVP8L" + len(chunk).to_bytes(4, "little") + chunk
    file = b"RIFF" + len(body).to_bytes(4, "little") + body
    try:
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))
    except (OSError, EOFError) as error:
        raise Malformed("piece") from error


def alpha(stream: Parsed) -> NDArray[np.uint8] | None:
    """The alpha plane, [height, width]."""
    if 4 not in stream.sections:
        return None
    payload = stream.sections[4]
    if not payload or payload[0] > 2:
        raise Malformed("filter")
    out = np.empty((stream.height, stream.width), np.uint8)
    for piece in read_pieces(payload, 1, stream.width, stream.height):
        top, left, h, w, _ = piece
        plane = decode_piece(piece, False)[..., 1].astype(np.int64)
        if payload[0]:
            plane = plane.cumsum(2 - payload[0]) % 256
        out[top : top + h, left : left + w] = plane
    return out


# Graphics layer


def read_layer(payload: bytes, width: int, height: int) -> Layer:
    """Read a layer; its pieces are not decoded."""
    if not payload or payload[0] not in (0, 1, 3):
        raise Malformed("layer flags")
    rows, columns, at = -(-height // 16), -(-width // 16), 1
    marked = np.ones((rows, columns), bool)
    if not payload[0]:
        length, at = varint(payload, at)
        size = -(-rows * columns // 8)
        if length > len(payload) - at or length > size + size // 16 + 64:
            raise Malformed("map length")
        raw = inflate(payload[at : at + length], size + 1)
        bits = [byte >> 7 - i & 1 for byte in raw for i in range(8)]
        if len(raw) != size or any(bits[rows * columns :]):
            raise Malformed("map")
        marked = np.array(bits[: rows * columns]).reshape(rows, columns).cumsum(0) % 2 == 1
        at += length
    pieces = read_pieces(payload, at, width, height)
    for top, left, h, w, data in pieces:
        used = marked[top // 16 : -(-(top + h) // 16), left // 16 : -(-(left + w) // 16)].any()
        if used != (len(data) > 0):
            raise Malformed("empty piece")
    return Layer(payload[0], marked, pieces)


def lay_over(layer: Layer, rgba: NDArray[np.uint8]) -> None:
    """Put the layer's pixels over a picture, [height, width, 4]."""
    for piece in layer.pieces:
        top, left, h, w, data = piece
        if not data:
            continue
        pixels = decode_piece(piece, layer.flags == 3)
        for row in range(top, top + h):
            for block in range(left // 16, -(-(left + w) // 16)):
                if layer.marked[row // 16, block]:
                    part = slice(16 * block, min(16 * block + 16, left + w))
                    rgba[row, part] = pixels[row - top, part.start - left : part.stop - left]


# Store


def load_base(folder: Path) -> Tensors:
    """Tensors of base.safetensors, "entropy." taken off."""
    tensors = load_file(folder / "base.safetensors")
    return {name.removeprefix("entropy."): tensor for name, tensor in tensors.items()}


def mix(stream: Parsed, folder: Path) -> list[tuple[str | None, int]]:
    """(adapter file or None, sixteenths) of the rates that a stream's rate is mixed from."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tune = "ms-ssim" if stream.flags & 2 else "psnr"
    files = {r["rate"]: r["file"] for r in manifest["rates"] if r["tune"] == tune}
    whole, part = divmod(stream.rate16, 16)
    return [(files[whole], 16 - part)] + ([(files[whole + 1], part)] if part else [])


def identity(names: Iterable[str | None], folder: Path) -> bytes:
    """What the header's model field is the start of."""
    files = ["base.safetensors", *(name for name in names if name is not None)]
    digests = [hashlib.sha256((folder / name).read_bytes()).digest() for name in files]
    return hashlib.sha256(b"".join(digests)).digest()


@dataclass(frozen=True, eq=False)
class LayerDelta:
    """delta W in units of 2^-28 ([N, K]); bias deltas and their exponents ([N])."""

    weight: I64 | None
    bias: I64
    bias_exponent: I64


Deltas = list[tuple[dict[str, LayerDelta], int]]
"""What is added to each layer by each part of a mix, and its weight in sixteenths."""


def layer_delta(b: Any, a: Any, e: Any, bias: Any, bias_exponent: Any) -> LayerDelta:
    """One layer's factors as a delta."""
    exponents = np.repeat(np.asarray(bias_exponent, np.int64), len(bias) // len(bias_exponent))
    bias = np.asarray(bias, np.int64)
    if not len(e):
        return LayerDelta(None, bias, exponents)
    left = np.asarray(b, np.int64) * (1 << (np.asarray(e, np.int64) + 28))
    return LayerDelta(left @ np.asarray(a, np.int64), bias, exponents)


def read_adapter(adapter: Tensors, base: Tensors) -> dict[str, LayerDelta]:
    """The layers of an adapter's file."""
    names = sorted(n.removesuffix(".weight") for n in base if n.endswith(".weight"))
    at = dict.fromkeys(("factors", "exponents", "biases", "bias_exponents"), 0)

    def take(name: str, count: int) -> Any:
        at[name] += count
        return adapter[name][at[name] - count : at[name]]

    groups, out = iter(adapter["groups"].tolist()), {}
    for name, r in zip(names, adapter["ranks"].tolist(), strict=True):
        if r < 0:
            continue
        shape = base[f"{name}.weight"].shape
        n, k = shape[0], int(np.prod(shape[1:]))
        b, a = take("factors", n * r).reshape(n, r), take("factors", r * k).reshape(r, k)
        e, bias = take("exponents", r), take("biases", n)
        out[name] = layer_delta(b, a, e, bias, take("bias_exponents", next(groups)))
    assert all(at[name] == len(adapter[name]) for name in at)
    return out


def merged_model(stream: Parsed, folder: Path) -> Tensors:
    """The base's tensors with the rate of a stream merged in."""
    base, parts = load_base(folder), mix(stream, folder)
    if [name for name, _ in parts] == [None]:
        return base
    files = [({} if name is None else load_file(folder / name), w) for name, w in parts]
    deltas = [({} if not file else read_adapter(file, base), w) for file, w in files]
    out = dict(base) | independent_attention.mixed_prompts(files)
    vectors = {
        name: sum(
            w * file.get(name, base.get(name, np.int64(0))).astype(np.int64) for file, w in files
        )
        for name in ("y.step", "z.step", "z.level", "level.offset")
    }
    for name in [n.removesuffix(".weight") for n in base if n.endswith(".weight")]:
        if f"{name}.shift" in base:
            merge_integers(out, name, deltas, vectors["level.offset"])
        else:
            merge_floats(out, name, deltas)
    for name in ("y.step", "z.step", "z.level"):
        out[name] = (vectors[name] + 8) // 16
    return out


def merge_integers(out: Tensors, name: str, deltas: Deltas, offset: Any) -> None:
    """Merge a layer of the entropy networks."""
    shift = out[f"{name}.shift"].astype(np.int64)
    weight, bias = out[f"{name}.weight"].astype(np.int64), out[f"{name}.bias"].astype(np.int64)
    shares = [(layers[name], w) for layers, w in deltas if name in layers]
    total = sum(w * d.weight for d, w in shares if d.weight is not None)
    weight = weight + (total + 2**31 >> 32)
    total = sum(w * (d.bias << d.bias_exponent + shift + 28) for d, w in shares)
    bias = bias + (total + 2**31 >> 32)
    if name.endswith(".head"):
        half = len(bias) // 2
        bias[half:] += (offset << shift[half:]) >> 12
    out[f"{name}.weight"], out[f"{name}.bias"] = weight, bias


def merge_floats(out: Tensors, name: str, deltas: Deltas) -> None:
    """Merge a layer of a transform, in units of its own rows and columns."""
    weight = out[f"{name}.weight"].astype(np.float64)
    w2 = weight.reshape(len(weight), -1)
    rows = np.sqrt((w2**2).mean(1)).clip(1e-8)
    columns = np.sqrt(((w2 / rows[:, None]) ** 2).mean(0)).clip(1e-4)
    bias = out[f"{name}.bias"].astype(np.float64)
    for layers, w in deltas:
        if name in layers:
            delta = layers[name]
            if delta.weight is not None:
                w2 = w2 + rows[:, None] * (delta.weight * w / 2**32) * columns
            bias = bias + rows * delta.bias * np.exp2(delta.bias_exponent) * w / 16
    out[f"{name}.weight"], out[f"{name}.bias"] = w2.reshape(weight.shape), bias


# Entropy coding


class Ans:
    """A piece's stack of 32-bit words."""

    def __init__(self, data: bytes, tables: NDArray[np.integer[Any]]) -> None:
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        if data and not data[-1]:
            raise Malformed("zero byte")
        self.state = 0
        self._refill()
        half = tables.astype(int).tolist()
        mass = [row[:0:-1] + row for row in half]
        self.cumulative = [list(accumulate(row, initial=0)) for row in mass]

    def _refill(self) -> None:
        while self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def symbol(self, level: int) -> int:
        """Decode one symbol of a level above 0."""
        q = self.state & 0xFFFFFF
        edges = self.cumulative[level]
        i = bisect_right(edges, q) - 1
        self.state = (self.state >> 24) * (edges[i + 1] - edges[i]) + q - edges[i]
        self._refill()
        return i - 511

    def group(self, levels: Sequence[int]) -> list[int]:
        """Decode a group: by level, then by place."""
        out = [0] * len(levels)
        for place in sorted(range(len(levels)), key=levels.__getitem__):
            if levels[place]:
                out[place] = self.symbol(levels[place])
        return out

    def finish(self) -> None:
        """Everything must have been read."""
        if self.state or self.words:
            raise Malformed("symbols left")


# Entropy networks

GROUP = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]]


def clip(x: I64) -> I64:
    """Activations."""
    return x.clip(-1023, 1023)


def accumulators(t: Tensors, name: str, x: I64) -> tuple[I64, I64]:
    """W x + bias of a layer and its shifts."""
    total = x @ t[f"{name}.weight"].astype(np.int64).T + t[f"{name}.bias"].astype(np.int64)
    assert np.abs(total).max(initial=0) < 2**24
    return total, t[f"{name}.shift"].astype(np.int64)


def plain(t: Tensors, name: str, x: I64) -> I64:
    """A layer, rounded down."""
    total, shift = accumulators(t, name, x)
    return total >> shift


def leaky(t: Tensors, name: str, x: I64) -> I64:
    """A layer through LeakyReLU(1/8)."""
    total, shift = accumulators(t, name, x)
    return clip(np.where(total < 0, total >> shift + 3, total >> shift))


def depthwise(t: Tensors, name: str, x: I64) -> I64:
    """A 3×3 layer by channel."""
    h, w, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    taps = t[f"{name}.weight"].astype(np.int64)
    total = t[f"{name}.bias"].astype(np.int64) + sum(
        padded[r : r + h, c : c + w] * taps[:, 3 * r + c] for r in range(3) for c in range(3)
    )
    return clip(total >> t[f"{name}.shift"].astype(np.int64))


def block(t: Tensors, name: str, x: I64) -> I64:
    """A residual block."""
    hidden = depthwise(t, f"{name}.dw", leaky(t, f"{name}.pw1", x))
    x = clip(plain(t, f"{name}.pw2", hidden) + x)
    return clip(plain(t, f"{name}.f2", leaky(t, f"{name}.f1", x)) + x)


def shuffle(x: Any, r: int) -> Any:
    """[h, w, r·r·C] -> [rh, rw, C]."""
    h, w, c = x.shape
    x = x.reshape(h, w, r, r, c // r**2).transpose(0, 2, 1, 3, 4)
    return x.reshape(h * r, w * r, -1)


def decode_tile(t: Tensors, pieces: Sequence[bytes], marked: NDArray[np.bool_]) -> I64:
    """y_hat of a tile, [height, width, M] in units of 1/64; what is `marked` is not coded."""
    stacks = [Ans(data, t["tables"]) for data in pieces]
    segments = iter(stacks if len(stacks) == 6 else stacks * 6)
    height, width = marked.shape
    rows, columns = -(-height // 4), -(-width // 4)
    z_levels = [
        0 if marked[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].all() else level
        for row in range(rows)
        for column in range(columns)
        for level in t["z.level"].tolist()
    ]
    z = next(segments).group(z_levels)
    z_step, y_step = t["z.step"].astype(np.int64), t["y.step"].astype(np.int64)
    z_hat = clip((np.array(z, np.int64).reshape(rows, columns, -1) * z_step + 128) >> 8)
    p = block(t, "h_s.1", clip(shuffle(plain(t, "h_s.0", z_hat), 2)))
    p = block(t, "h_s.3", clip(shuffle(plain(t, "h_s.2", p), 2)))[:height, :width]
    M = len(y_step)
    y_hat, context = np.zeros((2, height, width, M), np.int64)
    frac = t["context.frac"].astype(np.int64)
    for step in range(4):
        hidden = p
        if step:
            first = plain(t, f"step.{step}.first", np.concatenate([p, context], -1))
            hidden = block(t, f"step.{step}.block", clip(first))
        head = plain(t, f"step.{step}.head", hidden)
        mu, level = head[..., :M].clip(-(2**14) + 1, 2**14 - 1), head[..., M:].clip(0, 63)
        level[marked] = 0
        places = [
            (row, column, slice(GROUP[step][2 * r + c], None, 4))
            for r in range(2)
            for c in range(2)
            for row in range(r, height, 2)
            for column in range(c, width, 2)
        ]
        parts = [slice(0, 4), slice(4, None)] if step == 0 else [slice(None)]
        decoded = []
        for part in parts:
            group = [v for place in places for v in level[place][part].tolist()]
            symbols = np.array(next(segments).group(group), np.int64)
            decoded.append(symbols.reshape(len(places), -1))
        for place, s in zip(places, np.concatenate(decoded, 1), strict=True):
            value = mu[place] + (s * y_step[place[2]] + 128 >> 8)
            y_hat[place] = value.clip(-(2**15) + 1, 2**15 - 1)
        scaled = np.floor(y_hat * np.exp2(frac - 6) + 0.5).astype(np.int64)
        coded = np.zeros((height, width, M), bool)
        for place in places:
            coded[place] = True
        context = np.where(coded, clip(scaled), context)
    for stack in stacks:
        stack.finish()
    return y_hat


def decode_latents(stream: Parsed, t: Tensors) -> I64:
    """y_hat of a picture, [h, w, M] in units of 1/64."""
    height, width = stream.latent_size
    y_hat = np.empty((height, width, len(t["y.step"])), np.int64)
    marked = np.zeros((height, width), bool) if stream.layer is None else stream.layer.marked
    corners = [(top, left) for top in range(0, height, 64) for left in range(0, width, 64)]
    for (top, left), pieces in zip(corners, stream.tiles, strict=True):
        tile = y_hat[top : top + 64, left : left + 64]
        tile[:] = decode_tile(t, pieces, marked[top : top + 64, left : left + 64])
    return y_hat


# Updates of g_s and synthesis


def read_update(data: bytes, t: Tensors) -> dict[str, LayerDelta]:
    """The layers of an update of g_s (section 6, or a file *.rku of the store)."""
    ans = Ans(data, t["tables"])

    def take(count: int, level: int, low: int, high: int) -> list[int]:
        values = ans.group([level] * count)
        if any(not low <= v <= high for v in values):
            raise Malformed("update")
        return values

    (rank,) = take(1, 20, 0, 8)
    names = sorted(
        n.removesuffix(".weight") for n in t if n.startswith("g_s.") and n.endswith(".weight")
    )
    shapes = {name: t[f"{name}.weight"].shape for name in names}
    slots = [
        (name, kind) for name in names for kind in range(-1, rank if len(shapes[name]) == 2 else 0)
    ]
    gates = take(len(slots), 14, 0, 1)
    chosen = [slot for slot, gate in zip(slots, gates, strict=True) if gate]
    exponents = [v - 8 for v in take(len(chosen), 30, -12, 8)]
    sizes = [n for name, kind in chosen for n in (shapes[name][:1] if kind < 0 else shapes[name])]
    levels = [v + 16 for v in take(len(sizes), 40, -15, 47)]
    vectors = iter([take(n, v, -127, 127) for n, v in zip(sizes, levels, strict=True)])
    ans.finish()
    layers: dict[str, Any] = {}
    for (name, kind), e in zip(chosen, exponents, strict=True):
        layer = layers.setdefault(name, {"b": [], "a": [], "e": [], "bias": None})
        if kind < 0:
            layer["bias"] = (next(vectors), [e])
        else:
            layer["b"].append(next(vectors))
            layer["a"].append(next(vectors))
            layer["e"].append(e)
    return {
        name: layer_delta(
            np.array(v["b"]).T, v["a"], v["e"], *(v["bias"] or ([0] * shapes[name][0], [0]))
        )
        for name, v in layers.items()
    }


def synthesise(t: Tensors, y_hat: I64, manifest: dict[str, Any]) -> NDArray[np.uint8]:
    """g_s in float64, [16 h, 16 w, 3]."""
    swin = manifest["family"] == "swin"
    network = independent_attention.synthesise if swin else convolutions
    x = network(t, y_hat / 64, manifest["sizes"])
    return np.rint(255 * (x + 0.5)).clip(0, 255).astype(np.uint8)


def convolutions(t: Tensors, y: F64, sizes: dict[str, int]) -> F64:
    """g_s of the family conv, without the step to samples."""
    deep, fine = 1 + sizes["nd16"], 2 + sizes["nd16"] + sizes["nd8"]
    x = linear(t, "g_s.0", y[..., : sizes["c16"]])
    for i in range(1, deep):
        x = float_block(t, f"g_s.{i}", x)
    x = np.concatenate([x, y[..., sizes["c16"] :]], -1)
    x = shuffle(linear(t, f"g_s.{deep}.l", x), 2)
    for i in range(deep + 1, fine):
        x = float_block(t, f"g_s.{i}", x)
    out: F64 = shuffle(linear(t, f"g_s.{fine}.l", x), 8)
    return out


def linear(t: Tensors, name: str, x: F64) -> F64:
    """W x + bias."""
    out: F64 = x @ t[f"{name}.weight"].astype(np.float64).T + t[f"{name}.bias"]
    return out


def float_block(t: Tensors, name: str, x: F64) -> F64:
    """A residual block of g_s."""
    hidden = linear(t, f"{name}.pw1", x)
    hidden = np.where(hidden < 0, hidden / 8, hidden)
    h, w, _ = x.shape
    padded = np.pad(hidden, ((1, 1), (1, 1), (0, 0)), mode="edge")
    taps = t[f"{name}.dw.weight"].astype(np.float64).reshape(-1, 9)
    hidden = t[f"{name}.dw.bias"] + sum(
        padded[r : r + h, c : c + w] * taps[:, 3 * r + c] for r in range(3) for c in range(3)
    )
    x = x + linear(t, f"{name}.pw2", hidden)
    hidden = linear(t, f"{name}.f1", x)
    return x + linear(t, f"{name}.f2", np.where(hidden < 0, hidden / 8, hidden))


def decode(
    data: bytes, folder: Path
) -> tuple[I64 | None, NDArray[np.uint8], NDArray[np.uint8] | None]:
    """y_hat (None if lossless), pixels and alpha, with the model in a folder of the store."""
    stream = parse(data)
    rgba = np.zeros((stream.height, stream.width, 4), np.uint8)
    if not stream.tiles:
        assert stream.layer is not None
        lay_over(stream.layer, rgba)
        return None, rgba[..., :3], rgba[..., 3] if stream.layer.flags & 2 else None
    y_hat, rgba[..., :3] = decode_tiles(stream, folder)
    if stream.layer is not None:
        lay_over(stream.layer, rgba)
    return y_hat, rgba[..., :3], alpha(stream)


def decode_tiles(stream: Parsed, folder: Path) -> tuple[I64, NDArray[np.uint8]]:
    """y_hat and pixels of a stream's latents."""
    if identity([name for name, _ in mix(stream, folder)], folder)[:4] != stream.model:
        raise LookupError("unknown model")
    tensors = merged_model(stream, folder)
    y_hat = decode_latents(stream, tensors)
    updates = [stream.sections[6]] if 6 in stream.sections else []
    if 8 in stream.sections:
        updates.append(ready_update(folder, stream.sections[8]))
    deltas: Deltas = [(read_update(update, tensors), 16) for update in updates]
    for name in {name for layers, _ in deltas for name in layers}:
        merge_floats(tensors, name, deltas)
    manifest = json.loads((folder / "manifest.json").read_text())
    rgb = synthesise(tensors, y_hat, manifest)[: stream.height, : stream.width]
    if stream.flags & 1:
        mean = (rgb.astype(np.int64).sum(-1, keepdims=True) + 1) // 3
        rgb = np.broadcast_to(mean.astype(np.uint8), rgb.shape)
    return y_hat, rgb


def ready_update(folder: Path, reference: bytes) -> bytes:
    """The file of the store that a stream names."""
    for path in folder.glob("updates/*.rku"):
        data = path.read_bytes()
        if hashlib.sha256(data).digest()[:4] == reference:
            return data
    raise LookupError("unknown ready update")
