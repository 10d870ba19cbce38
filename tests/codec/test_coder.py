"""Symbols come back, at the length that their tables promise."""

from __future__ import annotations

from itertools import pairwise

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.codec.coder import TOTAL_BITS, Decoder, Encoder, Tables
from service.codec.entropy_model import LEVELS, SYMBOL_MAX
from service.errors import BadStream, StoreError
from service.export.quantise import gaussian_tables

HALF = gaussian_tables()
TABLES = Tables(HALF)


def draw(rng: np.random.Generator, levels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Symbols that follow the tables of their levels."""
    out = np.zeros(len(levels), np.int32)
    for level in np.unique(levels[levels > 0]):
        edges = np.cumsum(TABLES.mass[level])
        at = rng.integers(0, 2**TOTAL_BITS, int((levels == level).sum()))
        out[levels == level] = np.searchsorted(edges, at, side="right") - SYMBOL_MAX
    return out


def encode(*groups: tuple[NDArray[np.int32], NDArray[np.uint8]]) -> bytes:
    encoder = Encoder(TABLES)
    for symbols, levels in groups:
        encoder.push(symbols, levels)
    return encoder.finish()


def ideal(symbols: NDArray[np.int32], levels: NDArray[np.uint8]) -> float:
    """Bits of the symbols that are coded: those above level 0."""
    return float(TABLES.costs(symbols, levels)[levels > 0].sum())


def constant(level: int, count: int) -> NDArray[np.uint8]:
    return np.full(count, level, np.uint8)


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_length_is_within_a_thousandth_and_64_bits_of_the_tables(level: int) -> None:
    levels = constant(level, 3000)
    symbols = draw(np.random.default_rng(level), levels)
    data = encode((symbols, levels))
    mass = HALF[level, np.abs(symbols)] / 2**TOTAL_BITS
    ideal_bits = -np.log2(mass).sum()
    assert ideal(symbols, levels) == pytest.approx(ideal_bits)
    assert abs(8 * len(data) - ideal_bits) <= 0.001 * ideal_bits + 64


def test_length_holds_for_symbols_that_do_not_follow_the_tables() -> None:
    rng = np.random.default_rng(7)
    levels = rng.integers(0, LEVELS, 5000).astype(np.uint8)
    symbols = rng.integers(-SYMBOL_MAX, SYMBOL_MAX + 1, 5000).astype(np.int32)
    ideal_bits = ideal(symbols, levels)
    assert abs(8 * len(encode((symbols, levels))) - ideal_bits) <= 0.001 * ideal_bits + 64


def test_the_tables_that_are_used_are_the_stored_integers() -> None:
    """A state of 2^32 + q decodes the symbol whose interval holds q: probe both ends of each."""
    for level in range(LEVELS):
        edges = np.concatenate([[0], np.cumsum(TABLES.mass[level])])
        for symbol, (low, high) in enumerate(pairwise(edges.tolist())):
            for q in (low, high - 1):
                coder = constriction.stream.stack.AnsCoder(np.array([q, 1], np.uint32))
                assert coder.decode(TABLES.models[level]) == symbol, (level, symbol, q)


def test_near_tables_decode_their_symbols_from_the_intervals_of_the_whole_tables() -> None:
    for whole, near in zip(TABLES.mass, TABLES.near, strict=True):
        edges = np.concatenate([[0], np.cumsum(whole)])
        for symbol in range(-near.reach - 1, near.reach + 2):
            low, high = edges[[symbol + SYMBOL_MAX, symbol + SYMBOL_MAX + 1]].tolist()
            for q in (low, high - 1):
                coder = constriction.stream.stack.AnsCoder(np.array([q, 1], np.uint32))
                assert coder.decode(near.model) == symbol + near.reach + 1


@pytest.mark.parametrize("level", [1, 2, 11, 30, 57, LEVELS - 1])
def test_symbols_beyond_the_near_table_come_back_wherever_they_are(level: int) -> None:
    levels = np.repeat([level, 5], 500).astype(np.uint8)
    symbols = draw(np.random.default_rng(level), levels)
    reach = TABLES.near[level].reach
    for at in (0, 250, 499):
        for rare in (reach, reach + 1, -reach - 1, SYMBOL_MAX, -SYMBOL_MAX):
            symbols[at] = rare
            decoder = Decoder(TABLES, encode((symbols, levels)))
            assert (decoder.pull(levels) == symbols).all()
            decoder.finish()


def test_tables_are_gaussian_to_one_unit() -> None:
    """statistics.NormalDist as witness, where the mass is not squeezed by the units kept back."""
    from statistics import NormalDist

    for level in (1, 20, 40, 63):
        normal = NormalDist(0, 0.11 * (128 / 0.11) ** (level / 63))
        reach = 2 * normal.cdf(SYMBOL_MAX + 0.5) - 1
        for k in (0, 1, 5, 50):
            p = (normal.cdf(k + 0.5) - normal.cdf(k - 0.5)) / reach
            expected = 1 + p * (2**TOTAL_BITS - 2 * SYMBOL_MAX - 1)
            assert abs(HALF[level, k] - expected) < (1.5 if k else 2 * SYMBOL_MAX)


def test_level_zero_costs_nothing() -> None:
    assert encode((np.zeros(1000, np.int32), constant(0, 1000))) == b""
    decoder = Decoder(TABLES, b"")
    assert not decoder.pull(constant(0, 1000)).any()
    decoder.finish()


def test_nothing_is_coded_as_nothing() -> None:
    empty = np.zeros(0, np.int32)
    assert encode() == b""
    assert encode((empty, constant(0, 0))) == b""
    decoder = Decoder(TABLES, b"")
    assert len(decoder.pull(constant(0, 0))) == 0
    decoder.finish()


group_strategy = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-SYMBOL_MAX, SYMBOL_MAX), min_size=n, max_size=n),
        st.lists(st.integers(0, LEVELS - 1), min_size=n, max_size=n),
    )
)


@given(st.lists(group_strategy, max_size=5))
@settings(max_examples=150)
def test_groups_come_back_and_the_decoder_ends_where_the_encoder_began(
    groups: list[tuple[list[int], list[int]]],
) -> None:
    arrays = [(np.array(s, np.int32), np.array(v, np.uint8)) for s, v in groups]
    for symbols, levels in arrays:
        symbols[levels == 0] = 0
    decoder = Decoder(TABLES, encode(*arrays))
    for symbols, levels in arrays:
        assert (decoder.pull(levels) == symbols).all()
    decoder.finish()


@given(st.binary(max_size=64), st.integers(0, 50), st.integers(0, LEVELS - 1))
@settings(max_examples=300)
def test_any_bytes_give_the_right_number_of_symbols_or_bad_stream(
    data: bytes, count: int, level: int
) -> None:
    try:
        decoder = Decoder(TABLES, data)
        symbols = decoder.pull(constant(level, count))
        assert symbols.shape == (count,)
        assert np.abs(symbols).max(initial=0) <= SYMBOL_MAX
        decoder.finish()
    except BadStream:
        return
    assert encode((symbols, constant(level, count))) == data, "accepted, so it must be canonical"


def test_every_cut_and_every_bit_flip_changes_what_is_decoded() -> None:
    levels = constant(30, 200)
    symbols = draw(np.random.default_rng(1), levels)
    data = encode((symbols, levels))
    cuts = [data[:n] for n in range(len(data))]
    flips = [_flipped(data, bit) for bit in range(8 * len(data))]
    for damaged in [*cuts, *flips]:
        try:
            decoder = Decoder(TABLES, damaged)
            other = decoder.pull(levels)
            decoder.finish()
        except BadStream:
            continue
        assert (other != symbols).any()


def _flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def test_leftover_words_are_a_bad_stream() -> None:
    levels = constant(30, 200)
    data = encode((draw(np.random.default_rng(2), levels), levels))
    decoder = Decoder(TABLES, bytes([1, 2, 3, 4]) + data)
    decoder.pull(levels)
    with pytest.raises(BadStream, match="do not end where their symbols do"):
        decoder.finish()
    for zeros in (1, 4):
        with pytest.raises(BadStream, match="end in a zero byte"):
            Decoder(TABLES, data + bytes(zeros))


def test_wrong_tables_are_refused() -> None:
    zero, sums = HALF.copy(), HALF.copy()
    zero[5, 3], zero[5, 0] = 0, zero[5, 0] + 2 * zero[5, 3]
    sums[7, 0] += 1
    for wrong in (zero, sums, HALF[1:], HALF[:, 1:], HALF.astype(np.float64)):
        with pytest.raises(StoreError, match="tables"):
            Tables(wrong)
