"""The cache of merged weights: models at their rates, each merged afresh from the pristine base.

A rate's weights are merged once (`StoredModel.at_rate`: W = W0 + B·A) and used by pointer. When the
cache outgrows its limit, the least recently used weights are dropped, but never while a request
uses them. No rate is ever merged from another rate's weights, so no rounding errors add up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

from service.codec.container import PSNR
from service.errors import StoreError
from service.runtime.pipeline import LoadedModel
from service.store.model import SYNTHESIS, TRANSFORMS, StoredModel


@dataclass(frozen=True)
class RateKey:
    """A rate of one model with the identity of the weights it needs: the key of the cache.

    Attributes:
        identity: 32 bytes, of the base and the adapters that the rate is made of.
        rate16: in sixteenths. tune: its ladder, one of container.TUNES.
    """

    identity: bytes
    rate16: int
    tune: str

    @classmethod
    def of(cls, stored: StoredModel, rate16: int, tune: str = PSNR) -> RateKey:
        """The key of a rate. Raises KeyError: the model does not offer that rate."""
        return cls(stored.identity_at(rate16, tune), rate16, tune)


@dataclass(eq=False)
class _Entry:
    """Cached weights, their size and how many requests use them."""

    model: LoadedModel
    size_bytes: int
    users: int = 1


class WeightCache:
    """Models by rate. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        """Cache up to `max_bytes` of merged weights besides the bases, more while they are used."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[RateKey, _Entry] = OrderedDict()
        self._lock = Lock()
        self._building = Lock()

    @contextmanager
    def lease(self, base: LoadedModel, key: RateKey, *, keep: bool = True) -> Iterator[LoadedModel]:
        """The model at a rate, kept from eviction inside the with block.

        Args:
            base: resident at its own rate. key: of a rate of `base.stored`.
            keep: put freshly merged weights into the cache. Without it, cached weights are used,
                and others are merged for this request alone.

        Raises:
            StoreError: the rate's adapters do not fit the base; nothing is cached.
        """
        if key.identity == base.stored.identity:
            yield base
            return
        entry = self._take(key, base, keep)
        try:
            yield entry.model
        finally:
            with self._lock:
                entry.users -= 1
                self._evict()

    @property
    def size_bytes(self) -> int:
        """Bytes of cached weights."""
        with self._lock:
            return sum(e.size_bytes for e in self._entries.values())

    def _take(self, key: RateKey, base: LoadedModel, keep: bool) -> _Entry:
        """The entry of a key with one more user, merged if it is missing, then cached if `keep`."""
        entry = self._find(key)
        if entry is not None:
            return entry
        with self._building:  # one merge at a time: two equal ones would waste memory
            entry = self._find(key)
            if entry is not None:
                return entry
            entry = _merged(base, key)
            if keep:
                with self._lock:
                    self._entries[key] = entry
                    self._evict()
            return entry

    def _find(self, key: RateKey) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.users += 1
            return entry

    def _evict(self) -> None:
        """Drop unused entries, oldest first, until the rest fits. The lock is held."""
        total = sum(e.size_bytes for e in self._entries.values())
        for key in [k for k, e in self._entries.items() if not e.users]:
            if total <= self._max_bytes:
                return
            total -= self._entries.pop(key).size_bytes


def _merged(base: LoadedModel, key: RateKey) -> _Entry:
    if base.build is None:
        raise StoreError(f"model {base.stored.name} was loaded for its own rate only")
    networks = SYNTHESIS if base.analysis is None else TRANSFORMS
    stored = base.stored.at_rate(key.rate16, key.tune, networks)
    arrays = [*stored.transforms.values(), *stored.entropy.values()]
    model = base.build(stored)
    # the loaded model has its own copies; keep g_s, which a stream's own update is merged into
    g_s = stored.synthesis
    arrays += g_s.values()
    described = replace(stored, transforms=g_s, entropy={})
    return _Entry(replace(model, stored=described), sum(a.nbytes for a in arrays))
