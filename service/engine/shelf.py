"""A resident base, the adapters of its store and those loaded since: which rate is made of what.

A shelf never changes; loading or unloading an adapter makes another shelf, so a request that has
read one keeps what it began with. The newest adapter of a rate serves new requests. Streams name
the files that made them by hash, so those of an older adapter are found for as long as it is on the
shelf.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from threading import Lock
from typing import Final

from service.codec.container import Header
from service.codec.lowrank import PARTS
from service.engine.types import AdapterInfo
from service.errors import BadAdapter, BadParameter, StoreError, TooManyBytes, UnknownAdapter
from service.runtime.pipeline import LoadedModel
from service.store.adapters import AdapterFiles, StoredAdapter
from service.store.model import StoredRate
from service.store.read import read_adapter

MAX_ADAPTER_BYTES: Final = 1 << 24
"""Far more than rank 16 in every layer of the shipped backbone takes."""

MAX_LOADED: Final = 64
"""Adapters of one base besides those of its store: bounds memory, and the search for a stream's."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """One base and all its adapters.

    Attributes:
        base: as it was loaded; `base.stored.rates` are those of its store.
        loaded: adapters loaded since, newest last.
        served: the base with what new requests get.
    """

    base: LoadedModel
    loaded: tuple[StoredRate, ...]
    served: LoadedModel

    def find(self, digest: bytes) -> StoredRate | None:
        """The adapter with a hash, of the store or loaded."""
        return next((r for r in self._adapters() if r.digest == digest), None)

    def with_adapter(self, adapter: StoredRate) -> Shelf:
        """The shelf with one more. Raises BadParameter: there are too many."""
        if len(self.loaded) >= MAX_LOADED:
            raise BadParameter(f"{MAX_LOADED} adapters are loaded, remove one first")
        return shelf_of(self.base, (*self.loaded, adapter))

    def without_adapter(self, digest: bytes) -> Shelf:
        """The shelf without a loaded one.

        Raises:
            UnknownAdapter: it is not here. BadParameter: it belongs to the store.
        """
        if any(r.digest == digest for r in self._in_store()):
            raise BadParameter(f"adapter {digest.hex()} belongs to the store and stays")
        left = tuple(r for r in self.loaded if r.digest != digest)
        if len(left) == len(self.loaded):
            raise UnknownAdapter(f"no adapter {digest.hex()} is loaded")
        return shelf_of(self.base, left)

    def made(self, header: Header) -> LoadedModel | None:
        """What made a stream; None when that is not here."""
        for rates in self._mixes(header.rate16, header.tune):
            stored = replace(self.base.stored, rates=rates)
            if stored.identity_at(header.rate16, header.tune)[:4] == header.model:
                return replace(self.base, stored=stored)
        return None

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter: those of the store, then the loaded ones, oldest first."""
        stored, served = self.base.stored, self.served.stored.rates
        return tuple(
            AdapterInfo(
                r.digest.hex(), stored.sha256, stored.name, int(r.rate), r.tune, r.file_bytes,
                any(r is s for s in served), any(r is s for s in self._in_store()),
            )
            for r in self._adapters()
        )  # fmt: skip

    def _adapters(self) -> Iterator[StoredRate]:
        yield from self._in_store()
        yield from self.loaded

    def _in_store(self) -> Iterator[StoredRate]:
        yield from self.base.stored.superseded
        yield from (r for r in self.base.stored.rates if r.update is not None)

    def _mixes(self, rate16: int, tune: str) -> Iterator[tuple[StoredRate, ...]]:
        """What a rate may have been made of, that of new requests first."""
        whole, parts = divmod(rate16, PARTS)
        needed = [whole] if parts == 0 else [whole, whole + 1]
        options = [self._at(rate, tune) for rate in needed]
        return product(*options)

    def _at(self, rate: int, tune: str) -> list[StoredRate]:
        """The base's own rate and adapters of a whole rate, the newest first."""
        stored = self.base.stored
        newest_first = (*reversed(self.loaded), *stored.rates, *reversed(stored.superseded))
        return [r for r in newest_first if (r.rate, r.tune) == (rate, tune)]


def shelf_of(base: LoadedModel, loaded: tuple[StoredRate, ...] = ()) -> Shelf:
    """A shelf with these adapters besides the store's.

    Args:
        base: as it was loaded. loaded: newest last.
    """
    newest = {(r.tune, r.rate): r for r in (*base.stored.rates, *loaded)}
    stored = replace(base.stored, rates=tuple(newest.values()))
    return Shelf(base, loaded, replace(base, stored=stored))


class Shelves:
    """The shelves of all models. `now` is replaced whole; changes take turns."""

    def __init__(self, models: Sequence[LoadedModel], files: AdapterFiles | None) -> None:
        """Shelves of models as loaded, with what the files hold.

        Raises:
            StoreError: a kept adapter is damaged or does not fit.
        """
        self.now = tuple(shelf_of(model) for model in models)
        self._files, self._changing = files, Lock()
        for kept in [] if files is None else files.read():
            self._restore(kept)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter of every shelf."""
        return tuple(info for shelf in self.now for info in shelf.infos())

    def add(
        self, adapter: StoredAdapter, prove: Callable[[LoadedModel], object]
    ) -> AdapterInfo:
        """Put an adapter on its shelf; see Engine.add_adapter. Nothing changes if this raises.

        Args:
            adapter: its file, and what it is for.
            prove: is given the base with the adapter before anyone else is; raises StoreError
                if it cannot be used.
        """
        data = adapter.data
        if len(data) > MAX_ADAPTER_BYTES:
            raise TooManyBytes(f"the adapter has {len(data)} bytes, at most {MAX_ADAPTER_BYTES}")
        digest = hashlib.sha256(data).digest()
        with self._changing:
            place = self._place_of(adapter.base_sha256)
            shelf = self.now[place]
            found = shelf.find(digest)
            if found is None:
                try:
                    shelf = shelf.with_adapter(_read(shelf, adapter))
                    prove(shelf.served)
                except StoreError as error:
                    raise BadAdapter(f"the adapter does not fit: {error}") from error
                if self._files is not None:
                    self._files.add(adapter)
                self._put(place, shelf)
            elif (found.rate, found.tune) != (adapter.rate, adapter.tune):
                words = f"as rate {found.rate:g}, tune {found.tune}"
                raise BadParameter(f"this adapter is loaded already, {words}")
        return next(info for info in shelf.infos() if info.sha256 == digest.hex())

    def remove(self, sha256: str) -> None:
        """Take an adapter off its shelf; see Engine.remove_adapter."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UnknownAdapter(f"{sha256[:100]!r} is no sha256 in hex")
        digest = bytes.fromhex(sha256)
        with self._changing:
            places = [i for i, shelf in enumerate(self.now) if shelf.find(digest)]
            if not places:
                raise UnknownAdapter(f"no adapter {sha256} is loaded")
            changed = {place: self.now[place].without_adapter(digest) for place in places}
            if self._files is not None:
                self._files.remove(sha256)
            for place, shelf in changed.items():
                self._put(place, shelf)

    def _restore(self, kept: StoredAdapter) -> None:
        """Put an adapter from the files back on its shelf."""
        try:
            place = self._place_of(kept.base_sha256)
            shelf = self.now[place]
            self._put(place, shelf.with_adapter(_read(shelf, kept)))
        except (BadParameter, StoreError) as error:
            name = hashlib.sha256(kept.data).hexdigest()
            raise StoreError(f"the kept adapter {name} cannot be loaded: {error}") from error

    def _place_of(self, base_sha256: str) -> int:
        """Which shelf. Raises BadParameter: none has that base."""
        bases = [shelf.base.stored.sha256 for shelf in self.now]
        if base_sha256 not in bases:
            held = ", ".join(bases)
            raise BadParameter(f"base is {base_sha256[:100]!r}, the store holds {held}")
        return bases.index(base_sha256)

    def _put(self, place: int, shelf: Shelf) -> None:
        """Replace a shelf in one step: readers see the old one or the new one."""
        self.now = (*self.now[:place], shelf, *self.now[place + 1 :])


def _read(shelf: Shelf, adapter: StoredAdapter) -> StoredRate:
    return read_adapter(shelf.base.stored, adapter.data, adapter.rate, adapter.tune)
