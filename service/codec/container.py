"""The `.rkp` container: a header, sections, and a checksum of everything before it.

    magic "RKP" | version 1 | model 4 bytes | rate·16 | flags | width | height | sections | CRC-32C

Numbers without a fixed size are LEB128 varints. A section is type, length, payload; even types are
critical (a reader that does not know one must refuse the stream), odd ones may be skipped. The CRC
is little-endian. A plain photo spends 22 bytes beyond its coded latents: 14 here, 4 of section, 4
of CRC.

Every count is bounded, so that the work of a reader is: a stream has at most 16 sections, each type
once, in any order; varints have at most 5 bytes; the latents section has one tile for each 64x64
latents of the header's size, at least a byte of index for each but the last; metadata inflate to at
most 4 MiB from at most `MAX_PACKED_BYTES`, and an alpha plane to the samples that the header says
from about as many bytes (alpha.py).

One list, `HEADER`, drives reading and writing. Nothing is allocated from a length before it is
checked against the bytes that are there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import accumulate, pairwise

import google_crc32c

from service.codec.tiles import latent_box, tile_count
from service.errors import BadParameter, BadStream, UnsupportedStream

MAGIC = b"RKP"
VERSION = 1
MAX_SIDE = 2**18 - 1
"""Pixels along a side; the caller's pixel limit is usually far lower."""
MAX_METADATA_BYTES = 2**22
"""Largest ICC profile or Exif block, unpacked."""
MAX_PACKED_BYTES = MAX_METADATA_BYTES + 2**16
"""Largest ICC or Exif section: deflate adds at most 0.03 % to what it cannot make smaller. More
bytes than that inflate to nothing, at up to 0.1 microseconds each."""
MAX_SECTIONS = 16
"""Sections of a stream, those that a reader does not know among them."""
RATE_UNIT = 16
"""Rates are stored in sixteenths."""
READY_BYTES = 4
"""Of a ready update's sha256, to name it by."""
PSNR, MS_SSIM = TUNES = ("psnr", "ms-ssim")
"""What a ladder of rates is trained for; a flag says which one a stream's rate belongs to."""


class Flags(IntFlag):
    """Bits of the header's flags byte."""

    GREY = 1
    MS_SSIM = 2
    SAME_MACHINE = 4
    """Made by a model whose entropy coder is not exact: only the machine that did can decode it."""


class Section(IntEnum):
    """Section types; odd ones are optional to understand."""

    ICC = 1
    LATENTS = 2
    EXIF = 3
    ALPHA = 4
    UPDATE = 6
    READY = 8


@dataclass(frozen=True)
class Header:
    """What every stream says first.

    Attributes:
        model: first 4 bytes of the identity of the weights (store/read.py).
        rate16: rate in sixteenths, 16–128.
        flags: Flags.
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
    """A whole stream in parts.

    Attributes:
        header: see Header.
        tiles: coded latents of each tile, in storing order.
        alpha: packed alpha plane (alpha.py), None when opaque.
        icc: ICC profile. exif: Exif block.
        update: coded update of g_s for this picture (model_stream.py), None without one.
        ready: READY_BYTES that name an update of g_s in the model's store, or None; where a
            stream has both, they are added.
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
    """What a stream's header and sections say, for people.

    Attributes:
        model: identity in hex. tune: one of TUNES.
        sections: (name, payload bytes) in stored order.
        ready: what names a ready update, in hex; None without one.
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
    sections: tuple[tuple[str, int], ...] = field(default=())
    ready: str | None = None


class _Reader:
    """A cursor over bytes that never reads past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, what: str) -> bytes:
        left = len(self.data) - self.at
        if count > left:
            raise BadStream(f"{what} needs {count} bytes at offset {self.at}, {left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, what: str) -> int:
        value = 0
        for i in range(5):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i:
                    raise BadStream(f"{what} is padded with zeros at offset {self.at}")
                return value
        raise BadStream(f"{what} is longer than 5 bytes at offset {self.at}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@dataclass(frozen=True)
class _Field:
    """One header field: how to read it, write it, and what it may be."""

    name: str
    read: Callable[[_Reader], int | bytes]
    write: Callable[[int | bytes], bytes]
    low: int = 0
    high: int = 0


def _number(name: str, low: int, high: int) -> _Field:
    return _Field(name, lambda r: r.varint(name), lambda v: _varint(int(v)), low, high)


def _byte(name: str, low: int, high: int) -> _Field:
    return _Field(name, lambda r: r.take(1, name)[0], lambda v: bytes([int(v)]), low, high)


HEADER = (
    _Field("model", lambda r: r.take(4, "model"), lambda v: bytes(v)),
    _byte("rate16", RATE_UNIT, 8 * RATE_UNIT),
    _byte("flags", 0, sum(Flags)),
    _number("width", 1, MAX_SIDE),
    _number("height", 1, MAX_SIDE),
)


def read_header(data: bytes) -> Header:
    """The header alone, without checking the rest; for limits before any work is done.

    Raises:
        BadStream: not a stream. UnsupportedStream: of a newer version.
    """
    return _read_header(_Reader(data))


def _read_header(reader: _Reader) -> Header:
    if reader.take(3, "magic") != MAGIC:
        raise BadStream("the first three bytes are not 'RKP': this is not a Rankpress stream")
    version = reader.take(1, "version")[0]
    if version != VERSION:
        raise UnsupportedStream(f"format version {version}, this decoder reads {VERSION}")
    values: dict[str, int | bytes] = {}
    for f in HEADER:
        value = values[f.name] = f.read(reader)
        if isinstance(value, int) and not f.low <= value <= f.high:
            error = UnsupportedStream if f.name == "flags" else BadStream
            raise error(f"{f.name} is {value}, expected {f.low} to {f.high}")
    return Header(**values)  # type: ignore[arg-type]


def write_stream(stream: Stream) -> bytes:
    """Serialise; `read_stream` gives the same Stream back.

    Raises:
        BadParameter: metadata larger than a reader accepts.
        BadStream: a ready update that is named by other than READY_BYTES.
    """
    _check_ready(stream.ready)
    parts = [MAGIC, bytes([VERSION])]
    parts += [f.write(getattr(stream.header, f.name)) for f in HEADER]
    sections = [(Section.LATENTS, _join_tiles(stream.tiles))]
    if stream.update is not None:
        sections.append((Section.UPDATE, stream.update))
    if stream.ready is not None:
        sections.append((Section.READY, stream.ready))
    if stream.alpha is not None:
        sections.append((Section.ALPHA, stream.alpha))
    if stream.icc is not None:
        sections.append((Section.ICC, _pack(stream.icc, "ICC profile")))
    if stream.exif is not None:
        sections.append((Section.EXIF, _pack(stream.exif, "Exif block")))
    for kind, payload in sections:
        parts += [_varint(kind), _varint(len(payload)), payload]
    body = b"".join(parts)
    return body + _crc(body).to_bytes(4, "little")


def read_stream(data: bytes) -> Stream:
    """Parse and check a whole stream.

    Raises:
        BadStream: damaged or not a stream. UnsupportedStream: needs a newer reader.
    """
    header, sections = _read_sections(data)
    coded = sections[Section.LATENTS]
    count = tile_count(latent_box(header.width, header.height))
    return Stream(
        header,
        (coded,) if header.flags & Flags.SAME_MACHINE else _split_tiles(coded, count),
        sections.get(Section.ALPHA),
        _unpack(sections.get(Section.ICC), "ICC profile"),
        _unpack(sections.get(Section.EXIF), "Exif block"),
        sections.get(Section.UPDATE),
        sections.get(Section.READY),
    )


def describe(data: bytes) -> StreamInfo:
    """What a stream says of itself, without unpacking any of it.

    Raises:
        BadStream: damaged or not a stream. UnsupportedStream: needs a newer reader.
    """
    header, sections = _read_sections(data)
    ready = sections.get(Section.READY)
    return StreamInfo(
        VERSION,
        header.model.hex(),
        header.rate,
        header.tune,
        header.width,
        header.height,
        bool(header.flags & Flags.GREY),
        Section.ALPHA in sections,
        tile_count(latent_box(header.width, header.height)),
        len(data),
        tuple((_section_name(kind), len(payload)) for kind, payload in sections.items()),
        None if ready is None else ready.hex(),
    )


def _read_sections(data: bytes) -> tuple[Header, dict[int, bytes]]:
    reader = _Reader(data)
    header = _read_header(reader)
    if len(data) - reader.at < 4:
        raise BadStream(f"the stream ends at {len(data)} bytes, before its checksum")
    body = data[:-4]
    found, expected = _crc(body), int.from_bytes(data[-4:], "little")
    if found != expected:
        raise BadStream(f"checksum is {found:08x}, the stream says {expected:08x}: damaged or cut")
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
    """Raise BadStream unless a ready update is named rightly."""
    if ready is not None and len(ready) != READY_BYTES:
        raise BadStream(f"a ready update is named by {len(ready)} bytes, expected {READY_BYTES}")


def _crc(body: bytes) -> int:
    return int(google_crc32c.value(body))


def _section_name(kind: int) -> str:
    return Section(kind).name.lower() if kind in set(Section) else f"type-{kind}"


def _join_tiles(tiles: tuple[bytes, ...]) -> bytes:
    """Tile lengths in 32-bit words (all but the last), then the tiles."""
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


def _pack(block: bytes, what: str) -> bytes:
    """Deflate metadata within its limit."""
    if len(block) > MAX_METADATA_BYTES:
        raise BadParameter(f"{what} has {len(block)} bytes, at most {MAX_METADATA_BYTES} are kept")
    return zlib.compress(block, 9)


def _unpack(packed: bytes | None, what: str) -> bytes | None:
    """Inflate metadata within its limit."""
    if packed is None:
        return None
    if len(packed) > MAX_PACKED_BYTES:
        raise BadStream(f"{what} takes {len(packed)} bytes, at most {MAX_PACKED_BYTES} are read")
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(packed, MAX_METADATA_BYTES)
    except zlib.error as error:
        raise BadStream(f"{what} is not valid deflate data") from error
    if not inflater.eof or inflater.unused_data:
        raise BadStream(f"{what} is cut, over {MAX_METADATA_BYTES} bytes, or has bytes after it")
    return out
