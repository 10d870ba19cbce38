"""Updates of g_s come back as written, cost what their symbols do, and hostile ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codec.coder import Encoder, Tables
from service.codec.entropy_model import LEVELS
from service.codec.lowrank import LayerUpdate, Update
from service.codec.model_stream import (
    EXPONENT_LEVEL,
    GATE_LEVEL,
    MAX_RANK,
    RANK_LEVEL,
    best_level,
    read_update,
    write_update,
)
from service.errors import BadStream
from service.store.model import StoredModel

SHAPES = {"g_s.0": (16, 16), "g_s.1.dw": (16, 1, 3, 3), "g_s.1.f1": (32, 16), "g_s.2.l": (192, 16)}


@pytest.fixture(scope="module")
def tables(small_model: StoredModel) -> Tables:
    return Tables(small_model.entropy["tables"])


def layer(
    shape: tuple[int, ...], rank: int, seed: int, spread: float = 2.0, bias: bool = True
) -> LayerUpdate:
    """A layer's update of symbols that are mostly small."""
    rng = np.random.default_rng(seed)

    def symbols(*size: int) -> np.ndarray:
        return rng.normal(0, spread, size).round().clip(-127, 127).astype(np.int8)

    return LayerUpdate(
        symbols(shape[0], rank),
        symbols(rank, int(np.prod(shape[1:]))),
        np.full(rank, -8, np.int8),
        symbols(shape[0]) if bias else np.zeros(shape[0], np.int8),
        np.array([-1 if bias else 0], np.int8),
    )


def same(one: Update, other: Update) -> bool:
    assert one.layers.keys() == other.layers.keys()
    return all(
        np.array_equal(getattr(one.layers[n], part), getattr(other.layers[n], part))
        for n in one.layers
        for part in ("b", "a", "e", "bias", "bias_e")
    )


@given(
    ranks=st.lists(st.integers(0, MAX_RANK), min_size=4, max_size=4),
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.8, 3.0, 60.0]),
)
def test_an_update_comes_back_as_it_was(
    small_model: StoredModel, ranks: list[int], seed: int, spread: float
) -> None:
    tables = Tables(small_model.entropy["tables"])
    layers = {}
    for (name, shape), rank in zip(SHAPES.items(), ranks, strict=True):
        layer_update = layer(shape, rank if len(shape) == 2 else 0, seed, spread)
        if not layer_update.bias.any() or not (layer_update.a.any(1) & layer_update.b.any(0)).all():
            continue  # zero pieces are left out, see below
        layers[name] = layer_update
    update = Update(layers, {})
    assert same(read_update(write_update(update, SHAPES, tables), SHAPES, tables), update)


def test_pieces_that_are_zero_are_left_out(tables: Tables) -> None:
    full = layer((16, 16), 3, 5)
    full.a[1] = 0
    full.b[:, 2] = 0
    dead = layer((32, 16), 1, 6)
    dead.a[:] = 0
    dead.bias[:] = 0
    update = Update({"g_s.0": full, "g_s.1.f1": dead}, {})
    decoded = read_update(write_update(update, SHAPES, tables), SHAPES, tables)
    assert decoded.layers.keys() == {"g_s.0"}
    assert np.array_equal(decoded.layers["g_s.0"].a, full.a[:1])
    assert np.array_equal(decoded.layers["g_s.0"].b, full.b[:, :1])


def test_no_update_costs_almost_nothing(tables: Tables) -> None:
    assert len(write_update(Update({}, {}), SHAPES, tables)) <= 8


def test_the_bytes_are_what_the_tables_say(tables: Tables) -> None:
    layer_update = layer((192, 16), 2, 7, spread=0.4)
    update = Update({"g_s.2.l": layer_update}, {})
    vectors = [layer_update.bias, *layer_update.a, *layer_update.b.T]
    ideal = sum(best_level(v.astype(np.int32), tables)[1] for v in vectors)
    spent = 8 * len(write_update(update, SHAPES, tables))
    assert ideal < spent < ideal + 7 * len(vectors) + 64 + 32


def test_a_zero_is_cheap_where_most_are(tables: Tables) -> None:
    """The published fixed prior spends 4.3 bits on each."""
    sparse = np.zeros(1000, np.int32)
    sparse[::50] = 1
    assert best_level(sparse, tables)[1] / 1000 < 0.3


def test_every_prefix_is_refused_or_another_update(tables: Tables) -> None:
    data = write_update(Update({"g_s.0": layer((16, 16), 2, 1)}, {}), SHAPES, tables)
    for length in range(len(data)):
        with pytest.raises(BadStream):
            read_update(data[:length], SHAPES, tables)


@given(data=st.binary(max_size=400))
def test_any_bytes_give_an_update_or_bad_stream(small_model: StoredModel, data: bytes) -> None:
    tables = Tables(small_model.entropy["tables"])
    try:
        update = read_update(data, SHAPES, tables)
    except BadStream:
        return
    assert update.layers.keys() <= SHAPES.keys()


@pytest.mark.parametrize(
    ("symbols", "level", "what"),
    [([9], RANK_LEVEL, "rank"), ([-1], RANK_LEVEL, "rank")],
)
def test_a_rank_out_of_range_is_named(
    tables: Tables, symbols: list[int], level: int, what: str
) -> None:
    encoder = Encoder(tables)
    encoder.push(np.array(symbols, np.int32), np.full(1, level, np.uint8))
    with pytest.raises(BadStream, match=f"model update: {what}"):
        read_update(encoder.finish(), SHAPES, tables)


def test_an_exponent_out_of_range_is_named(tables: Tables) -> None:
    encoder = Encoder(tables)
    gates = np.array([1, 0, 0, 0], np.int32)
    for symbols, level in (([0], RANK_LEVEL), (gates, GATE_LEVEL), ([9], EXPONENT_LEVEL)):
        encoder.push(np.array(symbols, np.int32), np.full(len(symbols), level, np.uint8))
    with pytest.raises(BadStream, match="model update: exponent is 9 to 9, expected -12 to 8"):
        read_update(encoder.finish(), SHAPES, tables)


def test_the_best_level_is_no_worse_than_any(tables: Tables) -> None:
    symbols = np.random.default_rng(3).normal(0, 5, 300).round().astype(np.int32)
    level, bits = best_level(symbols, tables)
    others = [tables.costs(symbols, np.full(300, k, np.uint8)).sum() for k in range(1, LEVELS)]
    assert bits == pytest.approx(min(others))
    assert others[level - 1] == min(others)
