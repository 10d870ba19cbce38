"""Which weights are live: models merged for a rate, made afresh from the pristine base and cached.

A rate's weights are made once (`StoredModel.at_rate`: W = W0 + B·A), live by pointer, and dropped
least recently used first when the cache outgrows its bytes; never while a request holds them. A
rate is never reached from another rate's weights, so nothing drifts.
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
from service.store.model import SYNTHESIS, TRANSFORMS

Key = tuple[bytes, int]
"""Identity of the base and adapters that a rate needs, rate in sixteenths."""


@dataclass(eq=False)
class _Entry:
    """Cached weights: their size and how many requests hold them."""

    model: LoadedModel
    size_bytes: int
    users: int = 0


class Weights:
    """Models by rate. Thread-safe; `lease` is the only way in."""

    def __init__(self, max_bytes: int) -> None:
        """Cache up to `max_bytes` of merged weights besides the bases (more while in use)."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = Lock()
        self._building = Lock()

    @contextmanager
    def lease(
        self, base: LoadedModel, rate16: int, tune: str = PSNR, *, keep: bool = True
    ) -> Iterator[LoadedModel]:
        """The model at a rate, kept from eviction inside the with block.

        Args:
            base: resident at its own rate.
            rate16: a rate in sixteenths, and tune: its ladder, that `base.stored.offers`.
            keep: put fresh weights into the cache; without, what is there is used and left alone.

        Raises:
            StoreError: the rate's adapters do not fit the base; nothing is cached.
        """
        key = (base.stored.identity_at(rate16, tune), rate16)
        if key[0] == base.stored.identity:
            yield base
            return
        entry = (self._take if keep else self._borrow)(key, base, tune)
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

    def _take(self, key: Key, base: LoadedModel, tune: str) -> _Entry:
        """The entry of a key with one more user; merged if it is not there."""
        entry = self._known(key)
        if entry is None:
            with self._building:  # one merge at a time: two of the same would only waste memory
                entry = self._known(key)
                if entry is None:
                    entry = self._insert(key, _merged(base, key[1], tune))
        return entry

    def _borrow(self, key: Key, base: LoadedModel, tune: str) -> _Entry:
        """The entry of a key with one more user, or a fresh one that no one else will see."""
        entry = self._known(key)
        if entry is None:
            with self._building:
                entry = _merged(base, key[1], tune)
            entry.users += 1
        return entry

    def _known(self, key: Key) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.users += 1
            return entry

    def _insert(self, key: Key, entry: _Entry) -> _Entry:
        with self._lock:
            entry.users += 1
            self._entries[key] = entry
            self._evict()
        return entry

    def _evict(self) -> None:
        """Drop unused entries, oldest first, until the rest fits. The lock is held."""
        total = sum(e.size_bytes for e in self._entries.values())
        for key in [k for k, e in self._entries.items() if not e.users]:
            if total <= self._max_bytes:
                return
            total -= self._entries.pop(key).size_bytes


def _merged(base: LoadedModel, rate16: int, tune: str) -> _Entry:
    if base.build is None:
        raise StoreError(f"model {base.stored.name} was loaded for its own rate only")
    networks = SYNTHESIS if base.analysis is None else TRANSFORMS
    stored = base.stored.at_rate(rate16, tune, networks)
    arrays = [*stored.transforms.values(), *stored.entropy.values()]
    model = base.build(stored)
    # the ready model holds its own copies; keep what a stream's own update of g_s is merged into
    g_s = stored.synthesis
    arrays += g_s.values()
    described = replace(stored, transforms=g_s, entropy={})
    return _Entry(replace(model, stored=described), sum(a.nbytes for a in arrays))
