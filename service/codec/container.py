"""The `.rkp` container: a header, sections, and a checksum of everything before it.

    magic "RKP" | version 1 | model 4 bytes | rate16 | flags | width | height | sections | CRC-32C

Numbers without a fixed size are varints (byte_reader.py). A section is type, length, payload; even
types are critical (a reader that does not know one must refuse the stream), odd ones may be
skipped. A plain photo spends 22 bytes beyond its coded latents: 14 of header, 4 of section and 4 of
checksum. service/docs/format.md is the full specification.

The work of a reader is bounded: a stream has at most 16 sections, each type once; the latents
section needs an index of at least a byte for each tile but the last; metadata and alpha planes
inflate to known limits. Nothing is allocated from a length before the length is checked against the
bytes that are there.

This module does not decode payloads: see latents.py, alpha.py and model_stream.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import accumulate, pairwise

import google_crc32c

from service.codec.byte_reader import ByteReader, inflate, varint
from service.codec.graphics import GraphicsLayer, read_layer, write_layer
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
LOSSLESS16 = 0
"""Stored in place of a rate where the stream holds every pixel exactly, and so has no rate."""
LOSSLESS = math.inf
"""The rate of such a stream elsewhere: better than every number."""
NO_MODEL = bytes(MODEL_BYTES)
"""Stored in place of the model's identity in such a stream: any decoder reads it."""
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
    """Section types, in the order in which they are written. Readers may skip unknown odd ones.

    Each but LATENTS is stored in the field of Stream that has its name. A complete graphics layer
    stands alone: such a stream has no section of latents, of updates or of alpha.
    """

    LATENTS = 2
    UPDATE = 6
    READY = 8
    GRAPHICS = 10
    ALPHA = 4
    ICC = 1
    EXIF = 3


METADATA = ("icc", "exif")
"""Sections that are zlib streams."""

WITHOUT_COMPLETE_LAYER = (Section.LATENTS, Section.UPDATE, Section.READY, Section.ALPHA)
"""Sections that a stream with a complete graphics layer has not."""

HEADER: Mapping[str, tuple[int, int, int]] = {
    "rate16": (1, LOSSLESS16, 8 * RATE_UNIT),
    "flags": (1, 0, sum(Flags)),
    "width": (0, 1, MAX_SIDE),
    "height": (0, 1, MAX_SIDE),
}
"""Numbers of the header after the model, in order: (bytes, lowest value, highest value).

0 bytes stand for a varint."""


@dataclass(frozen=True)
class Header:
    """The header of a stream; HEADER has the layout of its numbers."""

    model: bytes
    """First MODEL_BYTES of the identity of the weights (store/model.py)."""
    rate16: int
    """Rate in sixteenths; LOSSLESS16 stands for none."""
    flags: int
    """A combination of Flags."""
    width: int
    height: int

    @property
    def rate(self) -> float:
        """The rate, 1–8, or LOSSLESS."""
        return self.rate16 / RATE_UNIT if self.rate16 != LOSSLESS16 else LOSSLESS

    @property
    def tune(self) -> str:
        """The ladder that the rate belongs to, one of TUNES."""
        return MS_SSIM if self.flags & Flags.MS_SSIM else PSNR


@dataclass(frozen=True, eq=False)
class Stream:
    """The parts of a stream.

    Attributes:
        tiles: coded latents of each tile, in the order of tiles.tiles; none where the graphics
            layer is complete.
        alpha: packed alpha plane (alpha.py), None for an opaque picture.
        icc: ICC profile, None for sRGB.
        exif: Exif block, None without one.
        update: coded update of g_s for this picture (model_stream.py), None without one.
        ready: READY_BYTES that name an update of g_s in the store, None without one. Where a stream
            has both updates, both are added to the weights.
        graphics: blocks that are stored exactly (graphics.py), None without any.
    """

    header: Header
    tiles: tuple[bytes, ...]
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    update: bytes | None = None
    ready: bytes | None = None
    graphics: GraphicsLayer | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether the picture has an alpha plane."""
        return self.alpha is not None or (self.graphics is not None and self.graphics.has_alpha)

    @property
    def is_lossless(self) -> bool:
        """Whether every pixel is stored exactly."""
        return self.graphics is not None and self.graphics.is_complete


@dataclass(frozen=True)
class StreamInfo:
    """What `rankpress info` shows of a stream; `model` and `ready` are in hex.

    Attributes:
        tiles: number of tiles.
        sections: (name, payload bytes) in stored order.
        graphics_share: share of the blocks that the graphics layer holds exactly, 0–1.
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
    graphics_share: float = 0.0


def _read_header(reader: ByteReader) -> Header:
    if reader.take(3, "magic") != MAGIC:
        raise BadStream("the first three bytes are not 'RKP': this is not a Rankpress stream")
    version = reader.take(1, "version")[0]
    if version != VERSION:
        raise UnsupportedStream(f"format version {version}, this decoder reads {VERSION}")
    model = reader.take(MODEL_BYTES, "model")
    numbers = {}
    for name, (size, low, high) in HEADER.items():
        value = reader.take(size, name)[0] if size else reader.varint(name)
        if not low <= value <= high:
            error = UnsupportedStream if name == "flags" else BadStream
            raise error(f"{name} is {value}, expected {low} to {high}")
        numbers[name] = value
    return Header(model, **numbers)


def _write_header(header: Header) -> bytes:
    values = {name: getattr(header, name) for name in HEADER}
    numbers = [bytes([v]) if HEADER[name][0] else varint(v) for name, v in values.items()]
    return b"".join([MAGIC, bytes([VERSION]), header.model, *numbers])


def write_stream(stream: Stream) -> bytes:
    """Serialise a stream; `read_stream` gives an equal Stream back.

    Raises:
        BadParameter: metadata are larger than a reader accepts.
    """
    parts = [_write_header(stream.header)]
    for kind in Section:
        payload = _payload(stream, kind)
        if payload is not None:
            parts += [varint(kind), varint(len(payload)), payload]
    body = b"".join(parts)
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def _payload(stream: Stream, kind: Section) -> bytes | None:
    """The payload of a section, None where the stream has none."""
    if kind is Section.LATENTS:
        return None if stream.is_lossless else _join_tiles(stream.tiles)
    if kind is Section.GRAPHICS:
        return None if stream.graphics is None else write_layer(stream.graphics)
    name = _section_name(kind)
    payload: bytes | None = getattr(stream, name)
    if payload is None or name not in METADATA:
        return payload
    if len(payload) > MAX_METADATA_BYTES:
        raise BadParameter(
            f"{name} has {len(payload)} bytes, at most {MAX_METADATA_BYTES} are kept"
        )
    return zlib.compress(payload, 9)


def read_stream(data: bytes, check_header: Callable[[Header], object] | None = None) -> Stream:
    """Parse and check a whole stream; payloads stay coded, metadata are inflated.

    Args:
        data: the stream.
        check_header: called with the header before anything else is read; it may raise.

    Raises:
        BadStream: the bytes are damaged or no stream.
        UnsupportedStream: the stream needs a newer decoder.
    """
    header, sections = _read_sections(data, check_header)
    layer = _read_layer(header, sections)
    fields = {_section_name(kind): sections[kind] for kind in Section if kind in sections}
    fields.pop("graphics", None)
    for name in METADATA:
        if name in fields:
            fields[name] = inflate(fields[name], name, MAX_PACKED_BYTES, MAX_METADATA_BYTES)
    if "latents" not in fields:
        return Stream(header, (), graphics=layer, **fields)
    coded = fields.pop("latents")
    count = tile_count(latent_box(header.width, header.height))
    tiles = (coded,) if header.flags & Flags.SAME_MACHINE else _split_tiles(coded, count)
    return Stream(header, tiles, graphics=layer, **fields)


def describe(data: bytes, check_header: Callable[[Header], object] | None = None) -> StreamInfo:
    """Describe a stream without decoding it; arguments and errors as of `read_stream`."""
    header, sections = _read_sections(data, check_header)
    ready, layer = sections.get(Section.READY), _read_layer(header, sections)
    return StreamInfo(
        version=VERSION,
        model=header.model.hex(),
        rate=header.rate,
        tune=header.tune,
        width=header.width,
        height=header.height,
        grey=bool(header.flags & Flags.GREY),
        has_alpha=Section.ALPHA in sections or (layer is not None and layer.has_alpha),
        tiles=tile_count(latent_box(header.width, header.height)),
        total_bytes=len(data),
        sections=tuple((_section_name(kind), len(payload)) for kind, payload in sections.items()),
        ready=None if ready is None else ready.hex(),
        graphics_share=0.0 if layer is None else layer.share,
    )


def _read_sections(
    data: bytes, check_header: Callable[[Header], object] | None
) -> tuple[Header, dict[int, bytes]]:
    """The header and the payload of each section by type, once the checksum holds."""
    reader = ByteReader(data)
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
    ready = sections.get(Section.READY)
    if ready is not None and len(ready) != READY_BYTES:
        raise BadStream(f"a ready update is named by {len(ready)} bytes, expected {READY_BYTES}")
    return header, sections


def _read_layer(header: Header, sections: Mapping[int, bytes]) -> GraphicsLayer | None:
    """The graphics layer, once it agrees with the header and with the other sections."""
    coded = sections.get(Section.GRAPHICS)
    layer = None if coded is None else read_layer(coded, header.width, header.height)
    if layer is not None and layer.is_complete:
        surplus = [_section_name(kind) for kind in WITHOUT_COMPLETE_LAYER if kind in sections]
        if surplus:
            raise BadStream(f"section {surplus[0]} in a stream whose graphics layer is complete")
        if header.rate16 != LOSSLESS16 or header.model != NO_MODEL:
            raise BadStream("a stream whose graphics layer holds every pixel has a rate or a model")
        return layer
    if Section.LATENTS not in sections:
        raise BadStream("the stream has no latents section")
    if header.rate16 < RATE_UNIT:
        raise BadStream(f"rate16 is {header.rate16}, expected {RATE_UNIT} to {8 * RATE_UNIT}")
    return layer


def _section_name(kind: int) -> str:
    return Section(kind).name.lower() if kind in set(Section) else f"type-{kind}"


def _join_tiles(tiles: tuple[bytes, ...]) -> bytes:
    """Lengths of all tiles but the last, in words of 4 bytes, then the tiles."""
    index = b"".join(varint(len(t) // 4) for t in tiles[:-1])
    return index + b"".join(tiles)


def _split_tiles(payload: bytes, count: int) -> tuple[bytes, ...]:
    if count - 1 > len(payload):
        raise BadStream(f"latents section has {len(payload)} bytes, {count} tiles need more")
    reader = ByteReader(payload)
    lengths = [4 * reader.varint("tile length") for _ in range(count - 1)]
    left = len(payload) - reader.at - sum(lengths)
    if left < 0:
        raise BadStream(f"tile lengths exceed the latents section by {-left} bytes")
    edges = list(accumulate([*lengths, left], initial=reader.at))
    return tuple(payload[low:high] for low, high in pairwise(edges))
