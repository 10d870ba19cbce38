"""Bytes of unknown origin, read within bounds: a cursor, varints, lists of pieces, zlib streams.

Varints are unsigned LEB128 numbers of at most 5 bytes, without padding. A list of pieces is the
lengths of all pieces but the last, and then the pieces; the last has the bytes that are left.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

from service.errors import BadStream


class ByteReader:
    """A cursor over bytes that never reads past their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int, name: str) -> bytes:
        """Return the next bytes. Raises BadStream where fewer are left."""
        left = len(self.data) - self.at
        if count > left:
            raise BadStream(f"{name} needs {count} bytes at offset {self.at}, {left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self, name: str) -> int:
        """Return the next number. Raises BadStream where it is cut, padded or too long."""
        value = 0
        for i in range(5):
            byte = self.take(1, name)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i:
                    raise BadStream(f"{name} is padded with zeros at offset {self.at}")
                return value
        raise BadStream(f"{name} is longer than 5 bytes at offset {self.at}")


def varint(value: int) -> bytes:
    """Return a number as ByteReader reads it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def join_pieces(pieces: Sequence[bytes]) -> bytes:
    """Return a list of pieces as `split_pieces` reads it."""
    return b"".join([*(varint(len(piece)) for piece in pieces[:-1]), *pieces])


def split_pieces(reader: ByteReader, count: int, name: str) -> tuple[bytes, ...]:
    """Read a list of pieces that ends with the bytes; arguments and errors as of `piece_spans`."""
    spans = piece_spans(reader, count, name, len(reader.data))
    reader.at = len(reader.data)
    return tuple(reader.data[span.start : span.stop] for span in spans)


def piece_spans(reader: ByteReader, count: int, name: str, end: int) -> list[range]:
    """Read the lengths of a list of pieces, and return where each piece lies.

    Args:
        count: of the pieces. name: of the list, for errors.
        end: offset at which the list ends, which may lie behind the end of the bytes.

    Raises:
        BadStream: the lengths are cut, or exceed the list.
    """
    left = len(reader.data) - reader.at
    if left < count - 1:
        raise BadStream(f"{name} has {left} bytes, the lengths of {count} pieces need more")
    lengths = [reader.varint(f"length of a piece of {name}") for _ in range(count - 1)]
    edges = list(accumulate(lengths, initial=reader.at))
    if edges[-1] > end:
        raise BadStream(f"pieces of {name} exceed it by {edges[-1] - end} bytes")
    return [range(low, high) for low, high in pairwise([*edges, end])]


def inflate(packed: bytes, name: str, max_packed: int, max_bytes: int) -> bytes:
    """Inflate one zlib stream.

    Raises:
        BadStream: there are more than max_packed bytes, which may be blocks that inflate to nothing
            and cost time; or they are not one whole zlib stream of at most max_bytes inflated.
    """
    if len(packed) > max_packed:
        raise BadStream(f"{name} takes {len(packed)} bytes, at most {max_packed} are read")
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise BadStream(f"{name} is not valid deflate data") from error
    if len(out) > max_bytes or not inflater.eof or inflater.unused_data:
        raise BadStream(f"{name} is cut, over {max_bytes} bytes, or has bytes after it")
    return out
