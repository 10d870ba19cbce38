"""Low-rank updates: stored exactly, merged in whole numbers, and never into the base itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_ladder import small_update
from small_model import SIZES

from service.codec.entropy_model import EntropyModel
from service.codec.lowrank import (
    MAX_EXPONENT,
    MAX_RANK,
    OFFSET_MAX,
    PARTS,
    LayerUpdate,
    Q,
    Share,
    Tensors,
    Update,
    merge_entropy,
    merge_transforms,
    pack,
    unpack,
)
from service.errors import StoreError
from service.store.model import StoredModel, check_adapter, layer_shapes

SHAPES = {"a.head": (2, 3), "b": (4, 1, 3, 3), "c": (6, 1)}
INT8 = st.integers(-128, 127)


def int8s(*shape: int, low: int = -128, high: int = 127) -> st.SearchStrategy[Any]:
    return arrays(np.int8, shape, elements=st.integers(low, high))


@st.composite
def layer_updates(draw: st.DrawFn, shape: tuple[int, ...]) -> LayerUpdate:
    n, k = shape[0], int(np.prod(shape[1:]))
    rank = draw(st.integers(0, 3))
    groups = draw(st.sampled_from([g for g in range(1, n + 1) if n % g == 0]))
    e = draw(int8s(rank, low=-Q, high=MAX_EXPONENT))
    bias_e = draw(int8s(groups, low=-Q, high=10))
    return LayerUpdate(draw(int8s(n, rank)), draw(int8s(rank, k)), e, draw(int8s(n)), bias_e)


@st.composite
def updates(draw: st.DrawFn, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Update:
    names = draw(st.sets(st.sampled_from(sorted(shapes))))
    layers = {name: draw(layer_updates(shapes[name])) for name in sorted(names)}
    steps = {
        "y.step": draw(arrays(np.int32, SIZES.M, elements=st.integers(1, 2**21 - 1))),
        "z.step": draw(arrays(np.int32, SIZES.Cz, elements=st.integers(1, 2**21 - 1))),
        "z.level": draw(arrays(np.uint8, SIZES.Cz, elements=st.integers(1, 63))),
        "level.offset": draw(
            arrays(np.int16, SIZES.M, elements=st.integers(-OFFSET_MAX, OFFSET_MAX))
        ),
    }
    return Update(layers, steps)


def same_updates(one: Update, other: Update) -> bool:
    parts = ("b", "a", "e", "bias", "bias_e")
    return one.layers.keys() == other.layers.keys() and all(
        np.array_equal(getattr(layer, p), getattr(other.layers[name], p))
        for name, layer in one.layers.items()
        for p in parts
    ) and all(np.array_equal(v, other.vectors[n]) for n, v in one.vectors.items())  # fmt: skip


def same_tensors(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@given(updates())
def test_what_is_packed_comes_back(update: Update) -> None:
    packed = pack(update, SHAPES)
    assert same_updates(unpack(packed, SHAPES, SIZES), update)
    assert all(t.dtype == np.int8 for n, t in packed.items() if n not in update.vectors)


# --- merging entropy layers --------------------------------------------------------------------


def slow_layer(
    base: Tensors, name: str, mix: list[tuple[LayerUpdate, int]], offsets: list[tuple[Any, int]]
) -> tuple[list[list[int]], list[int]]:
    """A layer's merged weight and bias in Python's unbounded integers, one entry at a time."""
    weight, bias = base[f"{name}.weight"].tolist(), base[f"{name}.bias"].tolist()
    shift = base[f"{name}.shift"].tolist()
    one, half = PARTS << Q, PARTS << (Q - 1)
    for i, j in itertools.product(range(len(weight)), range(len(weight[0]))):
        total = sum(
            parts * int(u.b[i, r]) * int(u.a[r, j]) * 2 ** (int(u.e[r]) + Q)
            for u, parts in mix
            for r in range(len(u.e))
        )
        weight[i][j] += (total + half) // one if mix else 0
    for i in range(len(bias)):
        total = sum(
            parts * int(u.bias[i]) * 2 ** (int(u.bias_e[i * len(u.bias_e) // len(bias)]) + Q)
            * 2 ** shift[i]
            for u, parts in mix
        )  # fmt: skip
        bias[i] += (total + half) // one if mix else 0
        if name.endswith(".head") and i >= len(bias) // 2:
            total = sum(int(o[i - len(bias) // 2]) * 2 ** shift[i] * parts for o, parts in offsets)
            bias[i] += total // (PARTS << 8)
    return weight, bias


def entropy_base(seed: int) -> Tensors:
    """Two layers and the vectors of a rate, of SIZES."""
    rng = np.random.default_rng(seed)
    shapes = {"a.head": (2 * SIZES.M, 3), "c": (6, 4)}
    out: Tensors = {}
    for name, shape in shapes.items():
        out[f"{name}.weight"] = rng.integers(-300, 300, shape).astype(np.int16)
        out[f"{name}.bias"] = rng.integers(-(2**20), 2**20, shape[0]).astype(np.int32)
        out[f"{name}.shift"] = rng.integers(0, 12, shape[0]).astype(np.int32)
    for name, size in (("y.step", SIZES.M), ("z.step", SIZES.Cz)):
        out[name] = rng.integers(1, 2**16, size).astype(np.int32)
    return out | {"z.level": rng.integers(1, 64, SIZES.Cz).astype(np.uint8)}


ENTROPY_SHAPES = {"a.head": (2 * SIZES.M, 3), "c": (6, 4)}


@given(updates(ENTROPY_SHAPES), updates(ENTROPY_SHAPES), st.integers(0, PARTS), st.integers(0, 9))
@settings(max_examples=40)
def test_merging_equals_one_number_at_a_time(u: Update, v: Update, parts: int, seed: int) -> None:
    base = entropy_base(seed)
    before = {n: t.copy() for n, t in base.items()}
    mix = [Share(u, PARTS - parts), Share(v, parts)]
    merged = merge_entropy(base, mix)
    for layer in ENTROPY_SHAPES:
        mine = [(s.update.layers[layer], s.parts) for s in mix if layer in s.update.layers]
        offsets = [(s.update.vectors["level.offset"], s.parts) for s in mix]
        weight, bias = slow_layer(base, layer, mine, offsets)
        assert merged[f"{layer}.weight"].tolist() == weight
        assert merged[f"{layer}.bias"].tolist() == bias
    for name in ("y.step", "z.step", "z.level"):
        totals = [u.vectors[name].tolist(), v.vectors[name].tolist()]
        rows = zip(*totals, strict=True)
        assert merged[name].tolist() == [((16 - parts) * a + parts * b + 8) // 16 for a, b in rows]
        assert merged[name].dtype == base[name].dtype
    assert same_tensors(base, before), "the base has changed"


@given(updates(ENTROPY_SHAPES), updates(ENTROPY_SHAPES), st.integers(0, PARTS))
@settings(max_examples=25)
def test_the_order_of_a_mix_does_not_matter(u: Update, v: Update, parts: int) -> None:
    base, mix = entropy_base(1), [Share(u, PARTS - parts), Share(v, parts)]
    assert same_tensors(merge_entropy(base, mix), merge_entropy(base, mix[::-1]))
    alone = merge_entropy(base, [Share(u, PARTS)])
    for silent in ([Share(u, 16), Share(v, 0)], [Share(v, 0), Share(u, 16)]):
        assert same_tensors(merge_entropy(base, silent), alone)
    assert same_tensors(merge_entropy(base, [Share(u, 7), Share(u, 9)]), alone)


def test_merged_integers_are_whole_whatever_the_layout_of_the_factors() -> None:
    """Strided and reversed views take other paths through a BLAS; integers do not care."""
    rng = np.random.default_rng(5)
    b, a = rng.integers(-128, 128, (64, 16), np.int8), rng.integers(-128, 128, (16, 48), np.int8)
    e, none = np.full(16, MAX_EXPONENT, np.int8), np.zeros(64, np.int8)
    plain = LayerUpdate(b, a, e, none, none[:1]).product()
    turned = LayerUpdate(b[:, ::-1], np.asfortranarray(a[::-1]), e, none, none[:1]).product()
    assert plain.dtype == np.int64 and np.array_equal(plain, turned)
    largest = LayerUpdate(
        np.full((1, MAX_RANK), -128, np.int8), np.full((MAX_RANK, 1), -128, np.int8),
        e, none[:1], none[:1],
    ).product()  # fmt: skip
    assert int(largest[0, 0]) == MAX_RANK * 2 ** (14 + MAX_EXPONENT + Q) < 2**63 // PARTS


def test_no_updates_leave_the_base(small_model: StoredModel) -> None:
    assert same_tensors(merge_entropy(small_model.entropy, []), small_model.entropy)


# --- merging transforms ------------------------------------------------------------------------


def test_transforms_merge_as_the_formula_says_and_leave_the_base(small_model: StoredModel) -> None:
    base = small_model.transforms
    before = {n: t.copy() for n, t in base.items()}
    u, v = small_update(small_model, 5), small_update(small_model, 6)
    merged = merge_transforms(base, [Share(u, 10), Share(v, 6)])
    name = "g_s.1.pw1"
    w = base[f"{name}.weight"].astype(np.float64)
    rows = np.sqrt((w**2).mean(1, keepdims=True))
    columns = np.sqrt(((w / rows) ** 2).mean(0, keepdims=True))
    deltas = [x.layers[name].product() / 2.0**Q for x in (u, v)]
    expected = w + rows * (10 * deltas[0] + 6 * deltas[1]) / 16 * columns
    assert np.allclose(merged[f"{name}.weight"], expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(merged[f"{name}.weight"], w, rtol=1e-4)
    assert all(t.dtype == np.float32 for t in merged.values())
    assert same_tensors(base, before)


def test_a_layer_that_only_one_neighbour_updates_is_mixed_too(small_model: StoredModel) -> None:
    """The rank of a layer may differ from rate to rate."""
    base, name = small_model.transforms, "g_s.1.pw1"
    u, v = small_update(small_model, 5), small_update(small_model, 6)
    layer = u.layers[name]
    flat = replace(layer, b=layer.b[:, :0], a=layer.a[:0], e=layer.e[:0])
    rank0 = Update({**u.layers, name: flat}, u.vectors)
    mixed = [merge_transforms(base, m)[f"{name}.weight"]
             for m in ([Share(rank0, 8), Share(v, 8)], [Share(v, 8), Share(rank0, 8)])]  # fmt: skip
    alone = merge_transforms(base, [Share(v, 16)])[f"{name}.weight"]
    w = base[f"{name}.weight"].astype(np.float32)
    assert np.array_equal(*mixed)
    assert np.allclose(mixed[0] - w, (alone - w) / 2, atol=1e-6) and not np.array_equal(alone, w)


def test_depthwise_kernels_may_be_updated(small_model: StoredModel) -> None:
    name = "g_s.1.dw"
    n = len(small_model.transforms[f"{name}.weight"])
    one, e = np.ones((n, 1), np.int8), np.zeros(1, np.int8)
    layer = LayerUpdate(one, np.ones((1, 9), np.int8), e, np.zeros(n, np.int8), e)
    update = Update({name: layer}, {})
    merged = merge_transforms(small_model.transforms, [Share(update, 16)])[f"{name}.weight"]
    assert merged.shape == (n, 1, 3, 3)
    assert (merged > small_model.transforms[f"{name}.weight"]).all()


# --- refusals ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(small_model: StoredModel) -> Tensors:
    shapes = layer_shapes(small_model.transforms, small_model.entropy)
    return dict(pack(small_update(small_model, 6), shapes))


def test_a_sound_adapter_is_taken(small_model: StoredModel, packed: Tensors) -> None:
    check_adapter(small_model, packed)


def _put(name: str, index: int, value: int) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return change


def _map(name: str, f: Callable[[Any], Any]) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.__setitem__(name, f(tensors[name]))


NAMES = ("factors", "exponents", "biases", "bias_exponents", "ranks", "groups",
         "y.step", "z.step", "z.level", "level.offset")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "f",
    [lambda t: t[:-1], lambda t: np.append(t, t[-1:]), lambda t: t.astype(np.float32),
     lambda t: t[None], lambda t: t[:0], lambda t: t.astype(np.float16), lambda t: t.ravel()[0]],
    ids=["shorter", "longer", "floats", "2-d", "empty", "halves", "scalar"],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_refused(
    small_model: StoredModel, packed: Tensors, name: str, f: Callable[[Any], Any]
) -> None:
    wrong = dict(packed)
    wrong[name] = f(packed[name])
    with pytest.raises(StoreError, match=r"adapter|tensor"):
        check_adapter(small_model, wrong)
    del wrong[name]
    with pytest.raises(StoreError, match="missing|nothing"):
        check_adapter(small_model, wrong)


@pytest.mark.parametrize(
    "change",
    [_put("ranks", 3, 17), _put("ranks", 3, 127), _put("ranks", 3, -1), _put("groups", 0, 0),
     _put("groups", 0, -4), _put("groups", 0, 3), _put("exponents", 0, 11),
     _put("exponents", 0, -29), _put("exponents", 0, -128), _put("y.step", 0, 0),
     _put("y.step", 1, -5), _put("y.step", 1, 2**21), _put("z.step", 0, 0),
     _put("z.level", 0, 0), _put("z.level", 0, 64), _put("level.offset", 0, OFFSET_MAX + 1),
     _map("y.step", lambda t: t.astype(np.int64) + 2**32),
     _map("z.step", lambda t: t.astype(np.uint64) + 2**63),
     _map("z.level", lambda t: t.astype(np.int16) + 256),
     _map("level.offset", lambda t: t[:1]),
     _put("bias_exponents", 0, 120), _put("bias_exponents", 0, -120),
     lambda t: t.__setitem__("more", t["ranks"])],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_before_a_cast_could_wrap_it(
    small_model: StoredModel, packed: Tensors, change: Callable[[Tensors], Any]
) -> None:
    wrong = dict(packed)
    change(wrong)
    with pytest.raises(StoreError):
        check_adapter(small_model, wrong)


@settings(max_examples=60)
@given(st.sampled_from(NAMES[:6]), st.integers(0, 10**6), INT8)
def test_any_changed_byte_is_a_sound_adapter_or_a_store_error(
    small_model: StoredModel, packed: Tensors, name: str, at: int, value: int
) -> None:
    wrong = dict(packed)
    _put(name, at % len(packed[name]), value)(wrong)
    try:
        check_adapter(small_model, wrong)
    except StoreError:
        return


@pytest.mark.parametrize("layer", ["h_s.0", "h_s.1.f2", "step.0.head", "step.2.first"])
def test_an_update_that_could_overflow_an_accumulator_is_refused(
    small_model: StoredModel, packed: Tensors, layer: str
) -> None:
    """Loud factors alone are well formed: it is the merged layer's bound that fails."""
    shapes = layer_shapes(small_model.transforms, small_model.entropy)
    update = unpack(packed, shapes, small_model.sizes)
    loud = replace(
        update.layers[layer],
        b=np.full_like(update.layers[layer].b, 127),
        a=np.full_like(update.layers[layer].a, 127),
        e=np.full_like(update.layers[layer].e, MAX_EXPONENT),
    )
    hostile = Update({**update.layers, layer: loud}, update.vectors)
    merged = merge_entropy(small_model.entropy, [Share(hostile, 16)])
    with pytest.raises(StoreError, match=f"layer {layer} can reach"):
        EntropyModel(small_model.sizes, merged)
    with pytest.raises(StoreError, match=f"layer {layer} can reach"):
        check_adapter(small_model, dict(pack(hostile, shapes)))


def prompts_of(value: float) -> dict[str, Any]:
    names = ("g_a.prompts.up.l.weight", "g_s.prompts.stage4.l.weight")
    return {name: np.full((2, 3), value, np.float16) for name in names}


def test_prompts_of_a_mix_are_a_weighted_mean_that_weighs_less_next_to_the_base() -> None:
    base = {"g_a.last.weight": np.eye(2, dtype=np.float16), "g_a.last.bias": np.zeros(2)}
    plain, one, three = Update({}, {}), Update({}, {}, prompts_of(1)), Update({}, {}, prompts_of(3))
    for mix, value, share in (
        ([Share(one, PARTS)], 1, 1),
        ([Share(one, 4), Share(three, 12)], 2.5, 1),
        ([Share(plain, 4), Share(three, 12)], 3, 0.75),
    ):
        merged = merge_transforms(base, mix)
        assert merged.keys() == {*base, "g_a.prompts.up.l.weight", "g_a.prompts.log_weight"}
        assert merged["g_a.prompts.up.l.weight"].dtype == np.float32
        assert (merged["g_a.prompts.up.l.weight"] == value).all()
        assert np.isclose(np.exp(merged["g_a.prompts.log_weight"]), share)
        assert np.array_equal(merged["g_a.last.weight"], base["g_a.last.weight"])
    assert merge_transforms(base, [Share(plain, PARTS)]).keys() == base.keys()
