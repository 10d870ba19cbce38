"""The `.rkp` container: a header, sections, and a checksum of everything before it.

    magic "RKP" | version 1 | model 4 bytes | rate16 | flags | width | height | sections | CRC-32C

Numbers without a fixed size are varints (byte_reader.py). A section is type, length, payload; even
types are critical (a reader that does not know one must refuse the stream), odd ones may be
skipped. A plain photo spends 32 bytes beyond its coded latents: 14 of header, 14 of the section
with its index, and 4 of checksum. service/docs/format.md is the full specification.

A prefix of a stream can be read too: all that a picture needs stands before the latents, and these
are stored segment by segment (tiles.SEGMENTS), each segment tile by tile, so that the pieces that
are there give a coarser picture.

The work of a reader is bounded: a stream has at most 16 sections, each type once; the latents
section needs an index of at least a byte for each piece but the last; metadata and alpha planes
inflate to known limits. Nothing is allocated from a length before the length is checked against the
bytes that are there.

This module does not decode payloads: see latents.py, overfit.py, alpha.py and model_stream.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import google_crc32c

from service.codec.byte_reader import ByteReader, inflate, join_pieces, piece_spans, varint
from service.codec.graphics import GraphicsLayer, read_layer, write_layer
from service.codec.tiles import SEGMENTS, Box, Pieces, latent_box, piece_count, tile_count, tiles
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
MODEL, LATENT = "model", "latent"
"""How a picture is coded: by a model of the store at a rate, or as the latents of an autoencoder,
by small networks that were fitted to this one picture (overfit.py)."""


class Flags(IntFlag):
    """Bits of the header's flags byte."""

    GREY = 1
    """The picture is grey: a decoder averages the three channels."""
    MS_SSIM = 2
    """The rate belongs to the MS-SSIM ladder, not to the PSNR ladder."""
    SAME_MACHINE = 4
    """The entropy model is not exact, so only the machine that coded the stream can decode it."""


class Section(IntEnum):
    """Section types, in the order in which they stand. Readers may skip unknown odd ones.

    Each but LATENTS is stored in the field of Stream that has its name. A stream has exactly one of
    LATENTS, OVERFIT and a complete graphics layer. With such a layer it has no section of updates
    or of alpha; with OVERFIT it has none of updates or of graphics.
    """

    ICC = 1
    UPDATE = 6
    READY = 8
    ALPHA = 4
    GRAPHICS = 10
    LATENTS = 2
    OVERFIT = 12
    EXIF = 3


METADATA = ("icc", "exif")
"""Sections that are zlib streams."""

OPTIONAL = (*METADATA, "update", "ready", "alpha", "overfit")
"""Sections that Stream holds as bytes."""

WITHOUT_COMPLETE_LAYER = (
    Section.LATENTS,
    Section.OVERFIT,
    Section.UPDATE,
    Section.READY,
    Section.ALPHA,
)
"""Sections that a stream with a complete graphics layer has not."""

WITHOUT_OVERFIT = (Section.LATENTS, Section.UPDATE, Section.READY, Section.GRAPHICS)
"""Sections that a latent stream has not."""

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
    """Rate in sixteenths, in a latent stream the quality; LOSSLESS16 stands for none."""
    flags: int
    """A combination of Flags."""
    width: int
    height: int

    @property
    def rate(self) -> float:
        """The rate, 1–8, or LOSSLESS."""
        return self.rate16 / RATE_UNIT if self.rate16 != LOSSLESS16 else LOSSLESS

    @property
    def latents(self) -> Box:
        """All latents of the picture."""
        return latent_box(self.width, self.height)

    @property
    def tune(self) -> str:
        """The ladder that the rate belongs to, one of TUNES."""
        return MS_SSIM if self.flags & Flags.MS_SSIM else PSNR


@dataclass(frozen=True, eq=False)
class Stream:
    """The parts of a stream.

    Attributes:
        tiles: coded latents of each tile, in the order of tiles.tiles, in pieces in the order of
            tiles.SEGMENTS; none where the graphics layer is complete, or in a latent stream. In a
            stream that is cut, pieces are missing at the end.
        alpha: packed alpha plane (alpha.py), None for an opaque picture.
        icc: ICC profile, None for sRGB.
        exif: Exif block, None without one.
        update: coded update of g_s for this picture (model_stream.py), None without one.
        ready: READY_BYTES that name an update of g_s in the store, None without one. Where a stream
            has both updates, both are added to the weights.
        graphics: blocks that are stored exactly (graphics.py), None without any.
        complete: share of the coded latents' bytes that is there, 0–1; below 1 in a stream that is
            cut.
        overfit: networks and grids that were fitted to the picture (overfit.py), in a latent
            stream; None in every other one.
    """

    header: Header
    tiles: tuple[Pieces, ...]
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    update: bytes | None = None
    ready: bytes | None = None
    graphics: GraphicsLayer | None = None
    complete: float = 1.0
    overfit: bytes | None = None

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
        method: MODEL, or LATENT: then `model` names the autoencoder, and `rate` is the quality.
        tiles: number of tiles; 0 in a latent stream.
        sections: (name, payload bytes) in stored order.
        marks: (segment, bytes of the stream up to the end of its last piece), in stored order: with
            so many bytes, a picture has all that the segment adds.
        graphics_share: share of the blocks that the graphics layer holds exactly, 0–1.
    """

    version: int
    method: str
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
    marks: tuple[tuple[str, int], ...] = ()
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
        alone = stream.is_lossless or stream.overfit is not None
        return None if alone else _write_latents(stream)
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


def _write_latents(stream: Stream) -> bytes:
    if stream.header.flags & Flags.SAME_MACHINE:
        return stream.tiles[0][0]
    order = _piece_order(stream.header)
    return join_pieces([stream.tiles[tile][segment] for segment, tile in order])


def read_stream(
    data: bytes, check_header: Callable[[Header], object] | None = None, *, partial: bool = False
) -> Stream:
    """Parse and check a stream; payloads stay coded, metadata are inflated.

    Args:
        data: the stream.
        check_header: called with the header before anything else is read; it may raise.
        partial: read a stream that is cut, too. It has no checksum, so damage may go unseen.

    Raises:
        BadStream: the bytes are damaged or no stream, or cut: with `partial`, before the latents
            begin, in a graphics layer that holds every pixel, or in a latent stream.
        UnsupportedStream: the stream needs a newer decoder.
    """
    sections = _read_sections(data, check_header, partial)
    header, layer = sections.header, _read_layer(sections)
    fields: dict[str, Any] = {name: sections.payload(Section[name.upper()]) for name in OPTIONAL}
    for name in METADATA:
        packed = fields[name]
        if packed is not None:
            fields[name] = inflate(packed, name, MAX_PACKED_BYTES, MAX_METADATA_BYTES)
    if Section.LATENTS not in sections.spans:
        return Stream(header, (), graphics=layer, **fields)
    if header.flags & Flags.SAME_MACHINE:
        return Stream(
            header, ((sections.payload(Section.LATENTS) or b"",),), graphics=layer, **fields
        )
    order, spans = _piece_spans(sections)
    coded: list[list[bytes]] = [[] for _ in range(tile_count(header.latents))]
    for (_, tile), span in zip(order, spans, strict=False):
        coded[tile].append(sections.body[span.start : span.stop])
    complete = 1.0
    if len(spans) < len(order):
        complete = sum(map(len, spans)) / len(sections.spans[Section.LATENTS])
    return Stream(header, tuple(map(tuple, coded)), graphics=layer, complete=complete, **fields)


def describe(
    data: bytes, check_header: Callable[[Header], object] | None = None, *, partial: bool = False
) -> StreamInfo:
    """Describe a stream without decoding it; arguments and errors as of `read_stream`."""
    sections = _read_sections(data, check_header, partial)
    header, layer = sections.header, _read_layer(sections)
    ready, is_latent = sections.payload(Section.READY), Section.OVERFIT in sections.spans
    return StreamInfo(
        version=VERSION,
        method=LATENT if is_latent else MODEL,
        model=header.model.hex(),
        rate=header.rate,
        tune=header.tune,
        width=header.width,
        height=header.height,
        grey=bool(header.flags & Flags.GREY),
        has_alpha=Section.ALPHA in sections.spans or (layer is not None and layer.has_alpha),
        tiles=0 if is_latent else tile_count(header.latents),
        total_bytes=len(data),
        sections=tuple((_section_name(kind), len(at)) for kind, at in sections.spans.items()),
        marks=_marks(sections),
        ready=None if ready is None else ready.hex(),
        graphics_share=0.0 if layer is None else layer.share,
    )


@dataclass(frozen=True)
class _Sections:
    """A header, and where the payload of each section lies in the bytes, by type."""

    header: Header
    spans: dict[int, range]
    body: bytes
    """All bytes before the checksum; in a stream that is cut, those that are there."""

    def payload(self, kind: int) -> bytes | None:
        """The payload of a section, None where there is none; it ends where the bytes end."""
        span = self.spans.get(kind)
        return None if span is None else self.body[span.start : span.stop]


def _read_sections(
    data: bytes, check_header: Callable[[Header], object] | None, partial: bool
) -> _Sections:
    """The sections of a stream whose checksum holds, or of one that is cut, if it may be."""
    reader = ByteReader(data)
    header = _read_header(reader)
    if check_header is not None:
        check_header(header)
    fault = _checksum_fault(data, reader.at)
    if fault is not None and not partial:
        raise BadStream(fault)
    is_cut = fault is not None
    reader.data = data if is_cut else data[:-4]
    spans: dict[int, range] = {}
    while reader.at < len(reader.data):
        kind = reader.varint("section type")
        if len(spans) == MAX_SECTIONS:
            raise BadStream(f"more than {MAX_SECTIONS} sections, the next at offset {reader.at}")
        if is_cut and kind == Section.OVERFIT:
            raise BadStream(f"{fault}; a latent stream cannot be decoded in part")
        length, at = reader.varint("section length"), reader.at
        is_last = is_cut and kind == Section.LATENTS  # what follows it may be cut
        payload = b"" if is_last else reader.take(length, "section")
        _check_order(kind, spans, at)
        spans[kind] = range(at, at + length)
        if is_last or (is_cut and kind == Section.GRAPHICS and payload[:1] != b"\0"):
            break  # the picture is complete, or as complete as it gets
    if len(spans.get(Section.READY, range(READY_BYTES))) != READY_BYTES:
        size = len(spans[Section.READY])
        raise BadStream(f"a ready update is named by {size} bytes, expected {READY_BYTES}")
    return _Sections(header, spans, reader.data)


def _checksum_fault(data: bytes, header_end: int) -> str | None:
    """What is wrong with the end of a stream, None where its checksum holds."""
    if len(data) - header_end < 4:
        return f"the stream ends at {len(data)} bytes, before its checksum"
    actual, expected = int(google_crc32c.value(data[:-4])), int.from_bytes(data[-4:], "little")
    if actual == expected:
        return None
    return f"checksum is {actual:08x}, the stream says {expected:08x}: damaged or cut"


def _check_order(kind: int, spans: Mapping[int, range], at: int) -> None:
    """Raise BadStream unless a section of that type may follow those before it."""
    if kind in spans:
        raise BadStream(f"section {_section_name(kind)} occurs twice, again at offset {at}")
    known = [Section(k) for k in (*spans, kind) if k in set(Section)]
    if kind % 2 == 0 and kind not in set(Section):
        raise UnsupportedStream(f"critical section {kind} needs a newer decoder")
    if known != [k for k in Section if k in known]:
        before, after = map(_section_name, known[-2:])
        raise BadStream(f"section {after} at offset {at} follows section {before}")


def _piece_spans(sections: _Sections) -> tuple[list[tuple[int, int]], list[range]]:
    """The order of all pieces and where they lie in `body`, from which those at the end may be cut.

    Raises:
        BadStream: the lengths are cut, or exceed the section.
    """
    span = sections.spans[Section.LATENTS]
    reader = ByteReader(sections.body)
    reader.at = span.start
    least, size = tile_count(sections.header.latents), min(len(span), len(reader.data) - span.start)
    if size < least - 1:
        raise BadStream(f"latents section has {size} bytes, {least} tiles need more")
    order = _piece_order(sections.header)
    spans = piece_spans(reader, len(order), "latents", span.stop)
    return order, [piece for piece in spans if piece.stop <= len(sections.body)]


def _piece_order(header: Header) -> list[tuple[int, int]]:
    """The segment and tile of each piece, in stored order."""
    counts = list(map(piece_count, tiles(header.latents)))
    return [
        (segment, tile)
        for segment in range(len(SEGMENTS))
        for tile, count in enumerate(counts)
        if segment < count
    ]


def _marks(sections: _Sections) -> tuple[tuple[str, int], ...]:
    """Where each segment ends that is there as a whole, see StreamInfo."""
    if Section.LATENTS not in sections.spans or sections.header.flags & Flags.SAME_MACHINE:
        return ()
    order, spans = _piece_spans(sections)
    last = {segment: at for at, (segment, _) in enumerate(order)}
    if len(last) == 1:  # one piece a tile
        return ()
    present = ((segment, at) for segment, at in last.items() if at < len(spans))
    return tuple((SEGMENTS[segment], spans[at].stop) for segment, at in present)


def _read_layer(sections: _Sections) -> GraphicsLayer | None:
    """The graphics layer, once it agrees with the header and with the other sections."""
    header, coded = sections.header, sections.payload(Section.GRAPHICS)
    layer = None if coded is None else read_layer(coded, header.width, header.height)
    if layer is not None and layer.is_complete:
        surplus = [_section_name(kind) for kind in WITHOUT_COMPLETE_LAYER if kind in sections.spans]
        if surplus:
            raise BadStream(f"section {surplus[0]} in a stream whose graphics layer is complete")
        if header.rate16 != LOSSLESS16 or header.model != NO_MODEL:
            raise BadStream("a stream whose graphics layer holds every pixel has a rate or a model")
        return layer
    if Section.OVERFIT in sections.spans:
        _check_latent_stream(sections)
    elif Section.LATENTS not in sections.spans:
        raise BadStream("the stream has no latents section")
    if header.rate16 < RATE_UNIT:
        raise BadStream(f"rate16 is {header.rate16}, expected {RATE_UNIT} to {8 * RATE_UNIT}")
    return layer


def _check_latent_stream(sections: _Sections) -> None:
    """Raise BadStream where a latent stream has what belongs to models and their rates."""
    surplus = [_section_name(kind) for kind in WITHOUT_OVERFIT if kind in sections.spans]
    if surplus:
        raise BadStream(f"section {surplus[0]} in a latent stream")
    if sections.header.flags & ~Flags.GREY:
        raise BadStream(f"flags are {sections.header.flags}, a latent stream is grey (1) or not")


def _section_name(kind: int) -> str:
    return Section(kind).name.lower() if kind in set(Section) else f"type-{kind}"
