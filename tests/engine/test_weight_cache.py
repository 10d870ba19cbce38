"""Merged weights: always those of a fresh merge, kept within bytes, never taken from a user."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_ladder import small_update, with_rates, with_update
from small_model import photo_like

from engine.builds import Builds, at, bytes_of_one
from service.engine.weight_cache import WeightCache
from service.errors import StoreError
from service.picture import Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, encode
from service.store.model import StoredModel
from service.transforms.synthesis_torch import TorchTransforms


@pytest.fixture(scope="module")
def ladder(small_model: StoredModel) -> StoredModel:
    return with_rates(small_model, (3, 5, 6))


@pytest.fixture(scope="module")
def base(ladder: StoredModel) -> LoadedModel:
    return load_models((ladder,), "cpu", torch.float32)[0]


def state(model: LoadedModel) -> list[np.ndarray[Any, Any]]:
    """Every number that a resident model computes with."""
    transforms, entropy = model.synthesis, model.coder.entropy
    assert isinstance(transforms, TorchTransforms)
    found: list[np.ndarray[Any, Any]] = []
    seen: set[int] = set()

    def walk(thing: object) -> None:
        if id(thing) in seen or isinstance(thing, type):
            return
        seen.add(id(thing))
        if isinstance(thing, torch.nn.Module):
            found.extend(numbers(t) for t in thing.state_dict().values())
        elif isinstance(thing, torch.Tensor):
            found.append(numbers(thing))
        elif isinstance(thing, np.ndarray):
            found.append(thing)
        elif isinstance(thing, list | tuple):
            for part in thing:
                walk(part)
        elif type(thing).__module__.startswith("service."):
            for part in vars(thing).values():
                walk(part)

    walk(transforms)
    walk(entropy)
    return found


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values, also where oneDNN has laid them out."""
    dense = tensor.to_dense() if tensor.is_mkldnn else tensor
    values: np.ndarray[Any, Any] = dense.float().numpy()
    return values


def same(one: LoadedModel, other: LoadedModel) -> bool:
    mine, theirs = state(one), state(other)
    return len(mine) == len(theirs) > 20 and all(map(np.array_equal, mine, theirs))


OFFERED = (48, 50, 56, 64, 65, 72, 80, 81, 88, 95, 96)


def test_after_a_thousand_random_swaps_every_weight_is_that_of_a_fresh_merge(
    base: LoadedModel, ladder: StoredModel
) -> None:
    """With a cache that holds some of the rates, so that they are merged again and again."""
    pristine = [a.copy() for a in state(base)]
    weights = WeightCache(7 * bytes_of_one(base))
    draw = random.Random(0)
    latest = {}
    for _ in range(1000):
        rate16 = draw.choice(OFFERED)
        with weights.lease(base, at(base, rate16), keep=draw.random() < 0.8) as model:
            latest[rate16] = model
    assert set(latest) == set(OFFERED)
    assert base.build is not None
    for rate16, model in latest.items():
        assert same(model, base.build(ladder.at_rate(rate16))), rate16
    assert all(map(np.array_equal, state(base), pristine)), "the base has changed"
    assert latest[64] is base


def test_rates_differ_in_their_weights(base: LoadedModel) -> None:
    """The test above would pass in silence if they did not."""
    weights = WeightCache(2**30)
    models = []
    for rate16 in OFFERED:
        with weights.lease(base, at(base, rate16)) as model:
            models.append(model)
    assert not any(same(a, b) for i, a in enumerate(models) for b in models[:i])


@pytest.fixture
def builds(base: LoadedModel) -> Builds:
    return Builds(base)


def lease(weights: WeightCache, base: LoadedModel, *rates: int) -> None:
    for rate16 in rates:
        with weights.lease(base, at(base, rate16)):
            pass


def test_the_least_recently_used_goes_first_when_bytes_run_out(builds: Builds) -> None:
    size = bytes_of_one(builds.base)
    builds.rates.clear()
    weights = WeightCache(2 * size)
    lease(weights, builds.base, 48, 80, 48, 96)  # 80 goes
    assert weights.size_bytes == 2 * size and len(builds.rates) == 3
    lease(weights, builds.base, 48, 96)
    assert len(builds.rates) == 3
    lease(weights, builds.base, 80)
    assert len(builds.rates) == 4
    lease(weights, builds.base, 64)
    assert len(builds.rates) == 4, "the base's own rate needs no merge"


def test_a_cache_of_no_bytes_works_and_keeps_nothing(builds: Builds) -> None:
    weights = WeightCache(0)
    lease(weights, builds.base, 80, 80)
    assert len(builds.rates) == 2 and weights.size_bytes == 0


def test_weights_in_use_are_never_dropped(builds: Builds) -> None:
    size = bytes_of_one(builds.base)
    builds.rates.clear()
    weights = WeightCache(size)
    with weights.lease(builds.base, at(builds.base, 80)) as held:
        lease(weights, builds.base, 48, 96, 72)
        with weights.lease(builds.base, at(builds.base, 80)) as again:
            assert again is held, "and they are still found"
    assert len(builds.rates) == 4
    assert weights.size_bytes <= size


def test_weights_not_to_be_kept_leave_the_cache_alone(builds: Builds) -> None:
    weights = WeightCache(bytes_of_one(builds.base))
    builds.rates.clear()
    with weights.lease(builds.base, at(builds.base, 80)) as cached:
        pass
    for _ in range(2):
        with weights.lease(builds.base, at(builds.base, 81), keep=False) as passing:
            assert passing is not cached
    assert len(builds.rates) == 3
    with weights.lease(builds.base, at(builds.base, 80), keep=False) as found:
        assert found is cached
    assert len(builds.rates) == 3 and weights.size_bytes == bytes_of_one(builds.base)


def test_concurrent_requests_for_a_rate_merge_it_once(builds: Builds) -> None:
    weights, inside = WeightCache(2**30), threading.Barrier(8)

    def use(_: int) -> LoadedModel:
        with weights.lease(builds.base, at(builds.base, 80)) as model:
            inside.wait(30)  # all hold it at the same time
            return model

    builds.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(use, i) for i in range(8)]
        assert builds.begun.acquire(timeout=30)
        builds.gate.set()
        models = {id(f.result(30)) for f in futures}
    assert len(models) == 1 and len(builds.rates) == 1


def test_a_rate_that_is_there_does_not_wait_for_one_that_is_merged(builds: Builds) -> None:
    weights = WeightCache(2**30)
    lease(weights, builds.base, 80)
    assert builds.begun.acquire(timeout=30)
    builds.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(lease, weights, builds.base, 96)
        assert builds.begun.acquire(timeout=30)
        pool.submit(lease, weights, builds.base, 80, 64).result(10)
        assert not slow.done()
        builds.gate.set()
        slow.result(30)


def test_a_failed_merge_leaves_no_entry_and_no_lock(builds: Builds) -> None:
    weights = WeightCache(2**30)
    for keep in (True, False):
        for fault in (StoreError("does not fit"), MemoryError()):
            builds.fault = fault
            key = at(builds.base, 80)
            with pytest.raises(type(fault)), weights.lease(builds.base, key, keep=keep):
                pass
            assert weights.size_bytes == 0
    builds.fault = None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lease, weights, builds.base, 80).result(30)
    assert weights.size_bytes > 0


def test_an_error_while_weights_are_used_gives_them_back(builds: Builds) -> None:
    weights = WeightCache(0)
    with pytest.raises(ZeroDivisionError), weights.lease(builds.base, at(builds.base, 80)):
        raise ZeroDivisionError
    lease(weights, builds.base, 96)
    assert weights.size_bytes == 0, "it is not held any more, so it could be dropped"


def test_models_that_share_a_base_do_not_share_rates(
    small_model: StoredModel, ladder: StoredModel
) -> None:
    """Two folders of a store may hold one base with different ladders."""
    other = replace(with_update(ladder, 5, small_update(small_model, 5, seed=9)), name="other")
    models = load_models((ladder, other), "cpu", torch.float32)
    weights = WeightCache(2**30)
    found = []
    for model in models:
        with weights.lease(model, at(model, 80)) as leased:
            found.append(leased)
    assert not same(*found)
    assert found[1].stored.identity == other.identity_at(80) != ladder.identity_at(80)


def test_random_leases_from_threads_never_corrupt_the_cache(builds: Builds) -> None:
    size = bytes_of_one(builds.base)
    weights, picture = WeightCache(2 * size), Picture(photo_like(33, 20))
    expected = {}
    for rate16 in OFFERED:
        with weights.lease(builds.base, at(builds.base, rate16)) as model:
            expected[rate16] = encode(model, picture, rate16)[0]

    def use(seed: int) -> bool:
        draw = random.Random(seed)
        right = True
        for _ in range(25):
            rate16 = draw.choice(OFFERED)
            key = at(builds.base, rate16)
            with weights.lease(builds.base, key, keep=draw.random() < 0.7) as model:
                right &= encode(model, picture, rate16)[0] == expected[rate16]
        return right

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(6)))
    assert weights.size_bytes <= 2 * size
    lease(weights, builds.base, 48, 96)
    merges = len(builds.rates)
    lease(weights, builds.base, 48, 96)
    assert len(builds.rates) == merges, "no weights are held by mistake, so both rates fit"


def test_a_model_loaded_for_its_own_rate_says_so(decode_only: LoadedModel, ladder: StoredModel
                                                 ) -> None:  # fmt: skip
    alone = replace(decode_only, stored=ladder)
    with (
        pytest.raises(StoreError, match="own rate only"),
        WeightCache(0).lease(alone, at(alone, 80)),
    ):
        pass
