"""The `.rkp` container: a header, sections, and a checksum of everything before it.

    magic "RKP" | version 1 | model 4 bytes | rate16 | flags | width | height | sections | CRC-32C

Numbers without a fixed size are LEB128 varints. A section is type, length, payload; even types are
critical (a reader that does not know one must refuse the stream), odd ones may be skipped. A plain
photo spends 22 bytes beyond its coded latents: 14 of header, 4 of section and 4 of checksum.
service/docs/format.md is the full specification.

The work of a reader is bounded: a stream has at most 16 sections, each type once; a varint has at
most 5 bytes; the latents section needs an index of at least a byte for each tile but the last;
metadata and alpha planes inflate to known limits. Nothing is allocated from a length before the
length is checked against the bytes that are there.

This module does not decode payloads: see coder.py, alpha.py and model_stream.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import accumulate, pairwise

import google_crc32c

from service.codec.tiles import latent_box, tile_count
from service.errors import BadParameter, BadStream, UnsupportedStream

MAGIC = b"RKP"
VERSION = 1
MODEL_BYTES = 4
"""Bytes of a model's identity in the header."""
MAX_SIDE = 2**18 - 1
"""Largest width or height in pixels; callers usually set a far lower limit on pixels."""
MAX_METADATA_BYTES = 2**22
"""Largest ICC profile or Exif block, inflated."""
MAX_PACKED_BYTES = MAX_METADATA_BYTES + 2**16
"""Largest ICC or Exif section. Deflate enlarges incompressible data by at most 0.03 %, so a longer
section holds blocks that inflate to nothing, each of which costs a reader time."""
MAX_SECTIONS = 16
"""Most sections in a stream, unknown ones included."""
RATE_UNIT = 16
"""Rates are stored in sixteenths."""
READY_BYTES = 4
"""Bytes of a ready update's sha256 that name it in a stream."""
PSNR, MS_SSIM = TUNES = ("psnr", "ms-ssim")
"""The ladders of rates, by the measure they are trained for."""


class Flags(IntFlag):
    """Bits of the header's flags byte."""

    GREY = 1
    """The picture is grey: a decoder averages the three channels."""
    MS_SSIM = 2
    """The rate belongs to the MS-SSIM ladder, not to the PSNR ladder."""
    SAME_MACHINE = 4
    """The entropy model is not exact, so only the machine that coded the stream can decode it."""


class Section(IntEnum):
    """Section types. Readers may skip odd ones that they do not know."""

    ICC = 1
    LATENTS = 2
    EXIF = 3
    ALPHA = 4
    UPDATE = 6
    READY = 8


HEADER: Mapping[str, tuple[int, int, int]] = {
    "rate16": (1, RATE_UNIT, 8 * RATE_UNIT),
    "flags": (1, 0, sum(Flags)),
    "width": (0, 1, MAX_SIDE),
    "height": (0, 1, MAX_SIDE),
}
"""Numbers of the header after the model, in order: (bytes, lowest value, highest value).

0 bytes stand for a varint."""


@dataclass(frozen=True)
class Header:
    """The header of a stream; HEADER has the layout of its numbers.

    Attributes:
        model: first MODEL_BYTES of the identity of the weights (store/model.py).
        rate16: rate in sixteenths, 16–128.
        flags: a combination of Flags.
        width: pixels.
        height: pixels.
    """

    model: bytes
    rate16: int
    flags: int
    width: int
    height: int

    @property
    def rate(self) -> float:
        """The rate, 1–8."""
        return self.rate16 / RATE_UNIT

    @property
    def tune(self) -> str:
        """The ladder that the rate belongs to, one of TUNES."""
        return MS_SSIM if self.flags & Flags.MS_SSIM else PSNR


@dataclass(frozen=True, eq=False)
class Stream:
    """The parts of a stream.

    Attributes:
        header: the stream's Header.
        tiles: coded latents of each tile, in the order of tiles.tiles.
        alpha: packed alpha plane (alpha.py), None for an opaque picture.
        icc: ICC profile, None for sRGB.
        exif: Exif block, None without one.
        update: coded update of g_s for this picture (model_stream.py), None without one.
        ready: READY_BYTES that name an update of g_s in the store, None without one. Where a stream
            has both updates, both are added to the weights.
    """

    header: Header
    tiles: tuple[bytes, ...]
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    update: bytes | None = None
    ready: bytes | None = None


@dataclass(frozen=True)
class StreamInfo:
    """What `rankpress info` shows of a stream.

    Attributes:
        model: first bytes of the model's identity, in hex.
        tiles: number of tiles.
        sections: (name, payload bytes) in stored order.
        ready: name of the ready update in hex, None without one.
    """

    version: int
    model: str
    rate: float
    tune: str
    width: int
    height: int
    grey: bool
    has_alpha: bool
    tiles: int
    total_bytes: int
    sections: tuple[tuple[str, int], ...] = ()
    ready: str | None = None


class _Reader:
    """A cursor over bytes that never reads past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, name: str) -> bytes:
        left = len(self.data) - self.at
        if count > left:
            raise BadStream(f"{name} needs {count} bytes at offset {self.at}, {left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, name: str) -> int:
        value = 0
        for i in range(5):
            byte = self.take(1, name)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i:
                    raise BadStream(f"{name} is padded with zeros at offset {self.at}")
                return value
        raise BadStream(f"{name} is longer than 5 bytes at offset {self.at}")

    def number(self, name: str) -> int:
        """The number of HEADER with this name."""
        size, low, high = HEADER[name]
        value = self.take(size, name)[0] if size else self.varint(name)
        if not low <= value <= high:
            error = UnsupportedStream if name == "flags" else BadStream
            raise error(f"{name} is {value}, expected {low} to {high}")
        return value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def read_header(data: bytes) -> Header:
    """Read the header alone, for limits that apply before any work is done.

    Raises:
        BadStream: the bytes do not begin with a header.
        UnsupportedStream: the stream needs a newer decoder.
    """
    return _read_header(_Reader(data))


def _read_header(reader: _Reader) -> Header:
    if reader.take(3, "magic") != MAGIC:
        raise BadStream("the first three bytes are not 'RKP': this is not a Rankpress stream")
    version = reader.take(1, "version")[0]
    if version != VERSION:
        raise UnsupportedStream(f"format version {version}, this decoder reads {VERSION}")
    model = reader.take(MODEL_BYTES, "model")
    return Header(model, **{name: reader.number(name) for name in HEADER})


def _write_header(header: Header) -> bytes:
    values = {name: getattr(header, name) for name in HEADER}
    numbers = [bytes([v]) if HEADER[name][0] else _varint(v) for name, v in values.items()]
    return b"".join([MAGIC, bytes([VERSION]), header.model, *numbers])


def write_stream(stream: Stream) -> bytes:
    """Serialise a stream; `read_stream` gives an equal Stream back.

    Raises:
        BadParameter: metadata are larger than a reader accepts.
        BadStream: the name of the ready update has not READY_BYTES.
    """
    _check_ready(stream.ready)
    sections = {
        Section.LATENTS: _join_tiles(stream.tiles),
        Section.UPDATE: stream.update,
        Section.READY: stream.ready,
        Section.ALPHA: stream.alpha,
        Section.ICC: _deflate(stream.icc, "ICC profile"),
        Section.EXIF: _deflate(stream.exif, "Exif block"),
    }
    parts = [_write_header(stream.header)]
    for kind, payload in sections.items():
        if payload is not None:
            parts += [_varint(kind), _varint(len(payload)), payload]
    body = b"".join(parts)
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def read_stream(data: bytes, check_header: Callable[[Header], object] | None = None) -> Stream:
    """Parse and check a whole stream; payloads stay coded, metadata are inflated.

    Args:
        data: the stream.
        check_header: is called with the header before anything else is read; what it raises ends
            the reading.

    Raises:
        BadStream: the bytes are damaged or no stream.
        UnsupportedStream: the stream needs a newer decoder.
    """
    header, sections = _read_sections(data, check_header)
    coded = sections[Section.LATENTS]
    count = tile_count(latent_box(header.width, header.height))
    return Stream(
        header,
        (coded,) if header.flags & Flags.SAME_MACHINE else _split_tiles(coded, count),
        sections.get(Section.ALPHA),
        _inflate(sections.get(Section.ICC), "ICC profile"),
        _inflate(sections.get(Section.EXIF), "Exif block"),
        sections.get(Section.UPDATE),
        sections.get(Section.READY),
    )


def describe(data: bytes, check_header: Callable[[Header], object] | None = None) -> StreamInfo:
    """Describe a stream without inflating or decoding any of it.

    Args:
        data, check_header: see `read_stream`.

    Raises:
        BadStream: the bytes are damaged or no stream.
        UnsupportedStream: the stream needs a newer decoder.
    """
    header, sections = _read_sections(data, check_header)
    ready = sections.get(Section.READY)
    return StreamInfo(
        version=VERSION,
        model=header.model.hex(),
        rate=header.rate,
        tune=header.tune,
        width=header.width,
        height=header.height,
        grey=bool(header.flags & Flags.GREY),
        has_alpha=Section.ALPHA in sections,
        tiles=tile_count(latent_box(header.width, header.height)),
        total_bytes=len(data),
        sections=tuple((_section_name(kind), len(payload)) for kind, payload in sections.items()),
        ready=None if ready is None else ready.hex(),
    )


def _read_sections(
    data: bytes, check_header: Callable[[Header], object] | None
) -> tuple[Header, dict[int, bytes]]:
    """The header and the payload of each section by type, once the checksum holds."""
    reader = _Reader(data)
    header = _read_header(reader)
    if check_header is not None:
        check_header(header)
    if len(data) - reader.at < 4:
        raise BadStream(f"the stream ends at {len(data)} bytes, before its checksum")
    body = data[:-4]
    actual, expected = int(google_crc32c.value(body)), int.from_bytes(data[-4:], "little")
    if actual != expected:
        raise BadStream(f"checksum is {actual:08x}, the stream says {expected:08x}: damaged or cut")
    reader.data = body
    sections: dict[int, bytes] = {}
    while reader.at < len(body):
        kind, at = reader.varint("section type"), reader.at
        if len(sections) == MAX_SECTIONS:
            raise BadStream(f"more than {MAX_SECTIONS} sections, the next at offset {at}")
        payload = reader.take(reader.varint("section length"), "section")
        if kind in sections:
            raise BadStream(f"section {_section_name(kind)} occurs twice, again at offset {at}")
        if kind % 2 == 0 and kind not in set(Section):
            raise UnsupportedStream(f"critical section {kind} needs a newer decoder")
        sections[kind] = payload
    if Section.LATENTS not in sections:
        raise BadStream("the stream has no latents section")
    _check_ready(sections.get(Section.READY))
    return header, sections


def _check_ready(ready: bytes | None) -> None:
    """Raise BadStream unless the name of a ready update has READY_BYTES."""
    if ready is not None and len(ready) != READY_BYTES:
        raise BadStream(f"a ready update is named by {len(ready)} bytes, expected {READY_BYTES}")


def _section_name(kind: int) -> str:
    return Section(kind).name.lower() if kind in set(Section) else f"type-{kind}"


def _join_tiles(tiles: tuple[bytes, ...]) -> bytes:
    """Lengths of all tiles but the last, in words of 4 bytes, then the tiles."""
    index = b"".join(_varint(len(t) // 4) for t in tiles[:-1])
    return index + b"".join(tiles)


def _split_tiles(payload: bytes, count: int) -> tuple[bytes, ...]:
    if count - 1 > len(payload):
        raise BadStream(f"latents section has {len(payload)} bytes, {count} tiles need more")
    reader = _Reader(payload)
    lengths = [4 * reader.varint("tile length") for _ in range(count - 1)]
    left = len(payload) - reader.at - sum(lengths)
    if left < 0:
        raise BadStream(f"tile lengths exceed the latents section by {-left} bytes")
    edges = list(accumulate([*lengths, left], initial=reader.at))
    return tuple(payload[low:high] for low, high in pairwise(edges))


def _deflate(block: bytes | None, name: str) -> bytes | None:
    """Compress metadata, and check that a reader accepts their size."""
    if block is None:
        return None
    if len(block) > MAX_METADATA_BYTES:
        raise BadParameter(f"{name} has {len(block)} bytes, at most {MAX_METADATA_BYTES} are kept")
    return zlib.compress(block, 9)


def _inflate(packed: bytes | None, name: str) -> bytes | None:
    """Decompress metadata, up to MAX_METADATA_BYTES."""
    if packed is None:
        return None
    if len(packed) > MAX_PACKED_BYTES:
        raise BadStream(f"{name} takes {len(packed)} bytes, at most {MAX_PACKED_BYTES} are read")
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(packed, MAX_METADATA_BYTES)
    except zlib.error as error:
        raise BadStream(f"{name} is not valid deflate data") from error
    if not inflater.eof or inflater.unused_data:
        raise BadStream(f"{name} is cut, over {MAX_METADATA_BYTES} bytes, or has bytes after it")
    return out
