"""Any bytes are a Stream or a BadStream, and a Stream survives being written."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from itertools import accumulate, chain, combinations
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codec.container import (
    MAX_METADATA_BYTES,
    MAX_PACKED_BYTES,
    MAX_SECTIONS,
    MAX_SIDE,
    Flags,
    Header,
    Section,
    Stream,
    describe,
    read_stream,
    write_stream,
)
from service.codec.tiles import SEGMENTS, piece_count, tiles
from service.errors import BadParameter, BadStream, UnsupportedStream

HEADER = Header(b"\x01\x80\xff\x00", 64, 0, 768, 512)
PIECES = tuple(bytes(range(1, 1 + n)) for n in (5, 0, 7, 11, 8, 9))
STREAM = Stream(HEADER, (PIECES,), b"\0alpha", b"profile" * 9, b"Exif" * 5)
PLAIN = Stream(HEADER, (PIECES,))
LATENTS = (2, bytes([5, 0, 7, 11, 8]) + b"".join(PIECES))
"""The section of PLAIN, written by hand."""
SMALL = 64
"""Pixels along the side of a picture whose only tile is one piece."""


def same(a: Stream, b: Stream) -> bool:
    return all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Stream))


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def sealed(body: bytes) -> bytes:
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def stream_of(*sections: tuple[int, bytes], width: int = 768, height: int = 512) -> bytes:
    """A stream written by hand, independently of container.py."""
    body = b"RKP\x01" + b"\x01\x80\xff\x00" + bytes([64, 0]) + varint(width) + varint(height)
    for kind, payload in sections:
        body += varint(kind) + varint(len(payload)) + payload
    return sealed(body)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


streams = st.builds(
    lambda model, rate, flags, side, sizes, updates, alpha, icc, exif: Stream(
        (h := Header(model, rate, flags, *side)),
        tuple(
            tuple(bytes(n) for _ in range(piece_count(tile)))
            for tile, n in zip(tiles(h.latents), sizes, strict=False)
        ),
        alpha,
        icc,
        exif,
        *updates,
    ),
    st.binary(min_size=4, max_size=4),
    st.integers(16, 128),
    st.integers(0, 1),
    st.tuples(st.integers(1, 2048), st.integers(1, 2048)),
    st.lists(st.integers(0, 300), min_size=4, max_size=4),
    st.tuples(st.none() | st.binary(max_size=50), st.none())
    | st.tuples(st.none(), st.binary(min_size=4, max_size=4)),
    *[st.none() | st.binary(max_size=50)] * 3,
)


@given(streams)
@settings(max_examples=200)
def test_a_stream_comes_back_as_it_was_written(stream: Stream) -> None:
    assert same(read_stream(write_stream(stream)), stream)


def test_the_layout_is_the_one_that_is_documented() -> None:
    assert write_stream(PLAIN) == stream_of(LATENTS)
    wide = replace(HEADER, width=2048 + 16)
    large, edge = (b"a", b"b", b"c", b"d", b"e", b"f"), (b"small",)
    index = bytes([1, 1, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    section = index + b"aa" + b"small" + b"bbccddeeff"
    data = stream_of((Section.LATENTS, section), width=wide.width)
    assert write_stream(Stream(wide, (large, large, edge))) == data
    assert read_stream(data).tiles == (large, large, edge)


@pytest.mark.parametrize("width, height", [(768, 512), (1, 1), (6000, 4000), (16383, 1)])
def test_a_plain_photo_spends_less_than_24_bytes_beyond_its_latents(
    width: int, height: int
) -> None:
    header = replace(HEADER, width=width, height=height)
    counts = [piece_count(tile) for tile in tiles(header.latents)]
    coded = tuple((bytes(2**14 - 4),) * count for count in counts)
    spent = len(write_stream(Stream(header, coded))) - (2**14 - 4) * sum(counts)
    assert spent - 2 * (sum(counts) - 1) < 24, "each piece beyond the first adds its length"


def test_every_prefix_is_a_bad_stream() -> None:
    data = write_stream(STREAM)
    for n in range(len(data)):
        with pytest.raises(BadStream):
            read_stream(data[:n])
        with pytest.raises(BadStream):
            describe(data[:n])


def test_every_changed_byte_is_a_bad_stream() -> None:
    """The checksum sees every error of up to 32 bits in a row."""
    data = write_stream(STREAM)
    for at in range(len(data)):
        for change in (*(1 << bit for bit in range(8)), 0xFF, 0x55):
            damaged = bytearray(data)
            damaged[at] ^= change
            with pytest.raises(BadStream):
                read_stream(bytes(damaged))


def test_behind_a_valid_checksum_every_change_is_refused_or_read_sanely() -> None:
    body = write_stream(STREAM)[:-4]
    outcomes = {"read": 0, "refused": 0}
    for at in range(len(body)):
        for value in range(256):
            changed = sealed(body[:at] + bytes([value]) + body[at + 1 :])
            try:
                stream = read_stream(changed)
            except BadStream:
                outcomes["refused"] += 1
                continue
            outcomes["read"] += 1
            if stream.overfit is None and not stream.header.flags & Flags.SAME_MACHINE:
                boxes = tiles(stream.header.latents)
                assert list(map(len, stream.tiles)) == list(map(piece_count, boxes))
            assert sum(map(len, chain.from_iterable(stream.tiles))) <= len(body)
            assert describe(changed).width == stream.header.width
    assert min(outcomes.values()) > 1000


def test_behind_a_valid_checksum_every_cut_is_refused_unless_whole_sections_go() -> None:
    body = write_stream(STREAM)[:-4]
    whole = [read_or_none(sealed(body[:n])) for n in range(len(body))]
    assert sum(stream is not None for stream in whole) == 1, "without the Exif block"


def read_or_none(data: bytes) -> Stream | None:
    try:
        return read_stream(data)
    except BadStream:
        return None


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_after_a_header_are_a_stream_or_a_bad_stream(rest: bytes) -> None:
    start = stream_of()[:-4]
    for data in (rest, b"RKP\x01" + rest, start + rest, sealed(start + rest)):
        try:
            stream = read_stream(data)
        except BadStream:
            continue
        assert same(read_stream(write_stream(stream)), stream)


def test_unknown_sections_are_skipped_when_optional_and_refused_when_critical() -> None:
    for kind in (7, 101, 2**14 + 1):
        stream = read_stream(stream_of((kind, b"whatever"), LATENTS, (kind + 2, b"")))
        assert stream.tiles == (PIECES,)
    for kind in (0, 14, 2**14):
        with pytest.raises(UnsupportedStream, match=f"critical section {kind}"):
            read_stream(stream_of(LATENTS, (kind, b"")))


def test_a_ready_update_is_named_by_four_bytes() -> None:
    own = (int(Section.UPDATE), b"update")
    named = stream_of((int(Section.READY), b"\xca\xfe\0\1"), LATENTS)
    assert int(Section.READY) % 2 == 0, "a decoder that does not know it must refuse the stream"
    assert read_stream(named).ready == b"\xca\xfe\0\1"
    assert write_stream(read_stream(named)) == named
    assert describe(named).ready == "cafe0001" and describe(write_stream(PLAIN)).ready is None
    for read in (read_stream, describe):
        for wrong in (b"", b"abc", b"abcde"):
            with pytest.raises(BadStream, match=f"named by {len(wrong)} bytes, expected 4"):
                read(stream_of((int(Section.READY), wrong), LATENTS))
    data = stream_of(own, (int(Section.READY), b"abcd"), LATENTS)
    both = read_stream(data)
    assert (both.update, both.ready) == (b"update", b"abcd")
    assert write_stream(both) == data


def test_sections_stand_in_one_order_and_once() -> None:
    """What the latents need stands before them, so that a cut stream can be decoded."""
    layers = (Section.GRAPHICS, Section.OVERFIT)  # the latents do not stand with these
    optional = {kind: (int(kind), b"abcd") for kind in Section if kind not in layers}
    optional |= {kind: (int(kind), zlib.compress(b"p")) for kind in (Section.ICC, Section.EXIF)}
    optional[Section.LATENTS] = LATENTS
    assert read_stream(stream_of(*optional.values())).exif == b"p"
    for first, second in combinations(optional.values(), 2):
        for read in (read_stream, describe):
            with pytest.raises(BadStream, match="follows section"):
                read(stream_of(second, first))
    for twice in (*optional.values(), (9, b"")):
        with pytest.raises(BadStream, match="occurs twice"):
            read_stream(stream_of(twice, twice))


def test_sections_are_few_and_more_are_refused_without_reading_them() -> None:
    """Also empty ones of different types, which a reader may skip."""
    optional = [(kind, b"") for kind in range(101, 101 + 2 * MAX_SECTIONS, 2)]
    assert read_stream(stream_of(LATENTS, *optional[: MAX_SECTIONS - 1])).tiles == (PIECES,)
    assert len(describe(stream_of(*optional[: MAX_SECTIONS - 1], LATENTS)).sections) == MAX_SECTIONS
    many = b"".join(varint(kind) + b"\0" for kind in range(101, 800_000, 2))
    hostile = sealed(stream_of(LATENTS)[:-4] + many)
    for read in (read_stream, describe):
        with pytest.raises(BadStream, match=f"more than {MAX_SECTIONS} sections"):
            read(stream_of(LATENTS, *optional[:MAX_SECTIONS]))
        with memory_below(2 * len(hostile)), pytest.raises(BadStream, match="more than"):
            read(hostile)


def test_what_a_writer_can_write_has_few_sections() -> None:
    assert len(Section) < MAX_SECTIONS, "there is room for optional ones of later versions"


@pytest.mark.parametrize("kind", [Section.ICC, Section.EXIF])
def test_deflate_that_inflates_to_nothing_is_refused_by_its_length(kind: Section) -> None:
    """Empty blocks, each of which may cost a decoder a microsecond."""
    empty, last = b"\0\0\0\xff\xff", b"\1\0\0\xff\xff"

    def packed(blocks: int) -> bytes:
        return b"\x78\x9c" + empty * blocks + last + (1).to_bytes(4, "big")

    fits = (MAX_PACKED_BYTES - 11) // len(empty)
    assert read_stream(with_metadata(kind, packed(fits))).tiles == (PIECES,)
    with pytest.raises(BadStream, match=f"at most {MAX_PACKED_BYTES} are read"):
        read_stream(with_metadata(kind, packed(fits + 1)))


def with_metadata(kind: Section, packed: bytes) -> bytes:
    """A stream with a section of metadata at its place."""
    sections = [(int(kind), packed), LATENTS]
    return stream_of(*(sections if kind == Section.ICC else reversed(sections)))


def test_a_stream_without_latents_is_bad() -> None:
    for read in (read_stream, describe):
        with pytest.raises(BadStream, match="no latents"):
            read(stream_of((int(Section.ICC), zlib.compress(b"p"))))


@pytest.mark.parametrize(
    "at, value, error, message",
    [
        (0, ord("X"), BadStream, "not a Rankpress stream"),
        (3, 2, UnsupportedStream, "format version 2"),
        (8, 15, BadStream, "rate16 is 15, expected 16 to 128"),
        (8, 129, BadStream, "rate16 is 129"),
        (9, 8, UnsupportedStream, "flags is 8"),
        (9, 255, UnsupportedStream, "flags is 255"),
    ],
)
def test_a_wrong_header_field_is_named(
    at: int, value: int, error: type[BadStream], message: str
) -> None:
    body = bytearray(write_stream(PLAIN)[:-4])
    body[at] = value
    for read in (read_stream, describe):
        with pytest.raises(error, match=message):
            read(sealed(bytes(body)))


def test_sides_are_between_one_and_the_limit() -> None:
    latents = (int(Section.LATENTS), bytes(2**17))
    for side in (0, MAX_SIDE + 1, 2**34):
        with pytest.raises(BadStream, match="width is"):
            read_stream(stream_of(latents, width=side, height=1))
        with pytest.raises(BadStream, match="height is"):
            read_stream(stream_of(latents, width=1, height=side))
    assert read_stream(stream_of(latents, width=MAX_SIDE, height=1)).header.width == MAX_SIDE


def test_numbers_are_written_in_one_way_only() -> None:
    body = stream_of((int(Section.LATENTS), b"abcd"), width=5, height=5)[:-4]
    assert body[10:11] == b"\x05"
    with pytest.raises(BadStream, match="width is padded with zeros"):
        read_stream(sealed(body[:10] + b"\x85\x00" + body[11:]))
    with pytest.raises(BadStream, match="width is longer than 5 bytes"):
        read_stream(sealed(body[:10] + b"\x85" * 9 + body[11:]))


def test_huge_lengths_allocate_nothing() -> None:
    with memory_below(2**18):
        for length in (2**20, 2**32, 2**35 - 1):
            body = stream_of()[:-4] + varint(Section.LATENTS) + varint(length) + b"abc"
            with pytest.raises(BadStream, match=f"section needs {length} bytes"):
                read_stream(sealed(body))


def test_huge_pictures_allocate_nothing() -> None:
    """65,536 tiles need an index of at least as many bytes."""
    for payload in (b"", b"abcd", bytes(3000)):
        data = stream_of((int(Section.LATENTS), payload), width=MAX_SIDE, height=MAX_SIDE)
        for read in (read_stream, describe):
            with memory_below(2**18), pytest.raises(BadStream, match="65536 tiles need more"):
                read(data)
    start = stream_of(width=MAX_SIDE, height=MAX_SIDE)[:-4] + varint(2) + varint(2**33)
    with memory_below(2**18), pytest.raises(BadStream, match="65536 tiles need more"):
        read_stream(start + bytes(3000), partial=True)


def test_lengths_beyond_the_section_are_refused() -> None:
    for length, error in ((2**33, "pieces of latents exceed it"), (41, "by 1 bytes"), (40, None)):
        payload = varint(length) + bytes(40)
        data = stream_of((int(Section.LATENTS), payload), width=1025, height=10)
        if error is None:
            assert read_stream(data).tiles == ((bytes(40),), (b"",))
            continue
        with memory_below(2**18), pytest.raises(BadStream, match=error):
            read_stream(data)


@pytest.mark.parametrize("kind", [Section.ICC, Section.EXIF])
def test_a_metadata_bomb_is_refused_within_the_limit(kind: Section) -> None:
    data = with_metadata(kind, zlib.compress(bytes(2**26), 9))
    with memory_below(3 * MAX_METADATA_BYTES), pytest.raises(BadStream, match="over"):
        read_stream(data)


@pytest.mark.parametrize("kind", [Section.ICC, Section.EXIF])
def test_damaged_metadata_is_refused(kind: Section) -> None:
    packed = zlib.compress(b"profile")
    for wrong in (b"", packed[:-1], packed + b"\0", b"garbage"):
        with pytest.raises(BadStream):
            read_stream(with_metadata(kind, wrong))


@pytest.mark.parametrize("name", ["icc", "exif"])
def test_metadata_up_to_the_limit_comes_back_and_more_is_not_written(name: str) -> None:
    most = np.random.default_rng(0).bytes(MAX_METADATA_BYTES)
    for block in (most, bytes(MAX_METADATA_BYTES)):
        full = replace(PLAIN, **{name: block})
        assert same(read_stream(write_stream(full)), full)
    with pytest.raises(BadParameter, match=f"{MAX_METADATA_BYTES}"):
        write_stream(replace(PLAIN, **{name: most + b"1"}))


def test_describe_says_what_is_in_the_stream() -> None:
    header = replace(HEADER, flags=int(Flags.GREY), width=1025, rate16=72)
    data = write_stream(replace(STREAM, header=header, tiles=(PIECES, (b"edge",))))
    info = describe(data)
    assert (info.version, info.model, info.rate) == (1, "0180ff00", 4.5)
    assert (info.width, info.height, info.grey, info.has_alpha) == (1025, 512, True, True)
    assert (info.tiles, info.total_bytes) == (2, len(data))
    names = [name for name, _ in info.sections]
    assert names == ["icc", "alpha", "latents", "exif"]
    assert dict(info.sections)["latents"] == 6 + 40 + 4
    unknown = describe(stream_of((Section.LATENTS, b""), (77, b"xyz"), width=SMALL, height=SMALL))
    assert unknown.sections == (("latents", 0), ("type-77", 3))
    assert not unknown.grey and not unknown.has_alpha


OVERFIT = replace(STREAM, tiles=(), overfit=b"networks and grids")


def test_a_latent_stream_comes_back_and_is_described() -> None:
    for latent in (OVERFIT, replace(PLAIN, tiles=(), overfit=b"")):
        assert same(read_stream(write_stream(latent)), latent)
    by_hand = stream_of((Section.OVERFIT, b"networks and grids"))
    assert write_stream(replace(PLAIN, tiles=(), overfit=b"networks and grids")) == by_hand
    info = describe(write_stream(OVERFIT))
    assert (info.method, info.tiles, info.rate, info.marks) == ("latent", 0, 4, ())
    assert [name for name, _ in info.sections] == ["icc", "alpha", "overfit", "exif"]
    assert describe(write_stream(STREAM)).method == "model"


@pytest.mark.parametrize(
    "other",
    [
        {"sections": (LATENTS, (Section.OVERFIT, b"x"))},
        {"sections": ((Section.OVERFIT, b"x"), LATENTS)},
        {"sections": ((Section.UPDATE, b"u"), (Section.OVERFIT, b"x"))},
        {"sections": ((Section.READY, b"abcd"), (Section.OVERFIT, b"x"))},
        {"sections": ((Section.OVERFIT, b"x"), (Section.OVERFIT, b"x"))},
        {"sections": ((Section.EXIF, b""), (Section.OVERFIT, b"x"))},
        {"flags": Flags.MS_SSIM},
        {"flags": Flags.SAME_MACHINE},
        {"rate16": 0},
    ],
)
def test_a_latent_stream_has_nothing_that_belongs_to_models(other: dict[str, Any]) -> None:
    if "sections" in other:
        data = stream_of(*other["sections"])
    else:
        data = write_stream(replace(OVERFIT, header=replace(HEADER, **other)))
    for read in (read_stream, describe):
        with pytest.raises(BadStream):
            read(data)


def test_a_latent_stream_is_refused_where_it_is_cut() -> None:
    data = write_stream(OVERFIT)
    for n in range(len(data)):
        for read in (read_stream, describe):
            with pytest.raises(BadStream):
                read(data[:n], partial=True)
    assert same(read_stream(data, partial=True), OVERFIT)


def test_marks_are_where_each_segment_of_all_tiles_ends() -> None:
    wide = replace(HEADER, width=2048 + 16)
    data = write_stream(Stream(wide, (PIECES, PIECES, (b"edge",))))
    begin = len(data) - 4 - 2 * 40 - 4
    sizes = dict(zip(SEGMENTS, (2 * 5 + 4, 0, 2 * 7, 2 * 11, 2 * 8, 2 * 9), strict=True))
    ends = accumulate(sizes.values(), initial=begin)
    assert describe(data).marks == tuple(zip(SEGMENTS, list(ends)[1:], strict=True))
    one_piece = replace(HEADER, width=SMALL, height=SMALL)
    assert describe(write_stream(Stream(one_piece, ((b"all",),)))).marks == ()


def test_a_cut_stream_has_the_pieces_that_are_whole() -> None:
    data = write_stream(STREAM)
    marks = dict(describe(data).marks)
    seen = set()
    for n in range(len(data)):
        try:
            cut = read_stream(data[:n], partial=True)
        except BadStream:
            assert n < marks["z"] - len(PIECES[0]), "the index of the latents is not there yet"
            continue
        whole = sum(end <= n for end in marks.values())
        assert cut.tiles == (PIECES[:whole],)
        assert (cut.alpha, cut.icc, cut.exif) == (STREAM.alpha, STREAM.icc, None)
        share = sum(map(len, PIECES[:whole])) / 45
        assert cut.complete == (1 if whole == 6 else pytest.approx(share))
        assert describe(data[:n], partial=True).marks == tuple(marks.items())[:whole]
        seen.add(whole)
    assert seen == {0, 2, 3, 4, 5, 6}, "the second piece is empty"
    assert same(read_stream(data, partial=True), STREAM)


def test_a_cut_of_several_tiles_keeps_the_first_of_a_segment() -> None:
    wide = replace(HEADER, width=2048 + 16)
    data = write_stream(Stream(wide, (PIECES, PIECES, (b"edge",))))
    at = dict(describe(data).marks)["step 0b"] - 1
    assert read_stream(data[:at], partial=True).tiles == (PIECES[:3], PIECES[:2], (b"edge",))


def test_cut_streams_of_any_bytes_are_streams_or_bad() -> None:
    body = write_stream(STREAM)
    for at in range(len(body)):
        for value in range(0, 256, 5):
            changed = body[:at] + bytes([value]) + body[at + 1 :]
            for read in (read_stream, describe):
                with suppress(BadStream):
                    read(changed, partial=True)
