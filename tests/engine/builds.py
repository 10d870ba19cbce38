"""A base that counts its merges, for tests of the cache of merged weights."""

from __future__ import annotations

import threading
from dataclasses import replace

from service.engine.weight_cache import RateKey, WeightCache
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel


def at(base: LoadedModel, rate16: int) -> RateKey:
    return RateKey.of(base.stored, rate16)


def bytes_of_one(base: LoadedModel) -> int:
    weights = WeightCache(2**30)
    with weights.lease(base, at(base, 80)):
        return weights.size_bytes


class Builds:
    """A base that notes what it builds; `gate` holds builds up, `fault` makes them fail.

    `begun` can be acquired once for each build that has begun.
    """

    def __init__(self, base: LoadedModel) -> None:
        self.rates: list[bytes] = []
        self.fault: Exception | None = None
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        build = base.build
        assert build is not None

        def noting(stored: StoredModel) -> LoadedModel:
            self.rates.append(stored.identity)
            self.begun.release()
            assert self.gate.wait(30)
            if self.fault is not None:
                raise self.fault
            return build(stored)

        self.base = replace(base, build=noting)
