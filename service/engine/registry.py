"""Which models are loaded, with the adapters of their store and those loaded since.

What is registered of a model never changes: loading or unloading an adapter registers the model
anew, so a request that has read it keeps what it began with. The newest adapter of a rate serves
new requests. Streams name the files that made them by hash, so streams of an older adapter decode
for as long as that adapter is registered.
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
from service.engine.target import whole_rates
from service.engine.types import AdapterInfo, ModelInfo, RateInfo
from service.engine.weight_cache import RateKey
from service.errors import (
    BadAdapter,
    BadParameter,
    StoreError,
    TooManyBytes,
    UnknownAdapter,
    UnknownModel,
)
from service.runtime.pipeline import LoadedModel
from service.store.adapters import AdapterFiles, StoredAdapter
from service.store.decoder_files import DecoderFiles, decoder_files
from service.store.model import StoredModel, StoredRate
from service.store.read import read_adapter

MAX_ADAPTER_BYTES: Final = 1 << 24
"""Largest file of an adapter: far more than rank 16 in every layer of the shipped backbone."""

MAX_LOADED: Final = 64
"""Adapters of one base besides those of its store. This bounds memory, and the search for the
adapters of a stream."""


@dataclass(frozen=True, eq=False)
class RegisteredModel:
    """One base and all its adapters.

    Attributes:
        base: as it was loaded, with the rates of its store. loaded: adapters since, newest last.
        current: the base with the rates that new requests get.
    """

    base: LoadedModel
    loaded: tuple[StoredRate, ...]
    current: LoadedModel

    def find(self, digest: bytes) -> StoredRate | None:
        """The adapter with that SHA-256, of the store or loaded; None where there is none."""
        return next((r for r in self._adapters() if r.digest == digest), None)

    def with_adapter(self, adapter: StoredAdapter) -> RegisteredModel:
        """The model with one more. Raises BadParameter: too many are loaded. StoreError: unfit."""
        rate = read_adapter(self.base.stored, adapter.data, adapter.rate, adapter.tune)
        if len(self.loaded) >= MAX_LOADED:
            raise BadParameter(f"{MAX_LOADED} adapters are loaded, remove one first")
        return registered(self.base, (*self.loaded, rate))

    def without_adapter(self, digest: bytes) -> RegisteredModel:
        """The model without a loaded adapter.

        Raises:
            UnknownAdapter: it is not loaded. BadParameter: it belongs to the store.
        """
        if any(r.digest == digest for r in self._in_store()):
            raise BadParameter(f"adapter {digest.hex()} belongs to the store and stays")
        left = tuple(r for r in self.loaded if r.digest != digest)
        if len(left) == len(self.loaded):
            raise UnknownAdapter(f"no adapter {digest.hex()} is loaded")
        return registered(self.base, left)

    def model_of(self, header: Header) -> tuple[LoadedModel, RateKey] | None:
        """The model that made a stream and the key of its rate; None when it is not here."""
        for rates in self._candidates(header.rate16, header.tune):
            stored = replace(self.base.stored, rates=rates)
            key = RateKey.of(stored, header.rate16, header.tune)
            if key.identity[:4] == header.model:
                return replace(self.base, stored=stored), key
        return None

    def for_decoders(self) -> StoredModel:
        """The model with all that its streams may name: what new requests get, and the others."""
        stored, current = self.base.stored, self.current.stored
        served = {id(r) for r in current.rates}
        every = (*stored.superseded, *stored.rates, *self.loaded)
        return replace(current, superseded=tuple(r for r in every if id(r) not in served))

    def info(self) -> ModelInfo:
        """The model as new requests get it."""
        m = self.current.stored
        rates = tuple(
            RateInfo(r.rate, r.tune, r.lmbda, r.kodak_bpp, r.kodak_psnr_db, r.kodak_ms_ssim,
                     r.digest.hex() or None, r.file_bytes)
            for r in m.rates
        )  # fmt: skip
        training, family = dict(m.training), m.sizes.family
        return ModelInfo(m.name, m.sha256, m.parameters, m.file_bytes, rates, training, family)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Every adapter: those of the store, then the loaded ones, oldest first."""
        base = (self.base.stored.sha256, self.base.stored.name)
        current = {id(r) for r in self.current.stored.rates}
        in_store = {id(r) for r in self._in_store()}
        return tuple(
            AdapterInfo(r.digest.hex(), *base, int(r.rate), r.tune, r.file_bytes,
                        served=id(r) in current, stored=id(r) in in_store)
            for r in self._adapters()
        )  # fmt: skip

    def _adapters(self) -> Iterator[StoredRate]:
        yield from self._in_store()
        yield from self.loaded

    def _in_store(self) -> Iterator[StoredRate]:
        yield from self.base.stored.superseded
        yield from (r for r in self.base.stored.rates if r.update is not None)

    def _candidates(self, rate16: int, tune: str) -> Iterator[tuple[StoredRate, ...]]:
        """The stored rates that a rate may have been made of, those of new requests first."""
        return product(*(self._at(rate, tune) for rate in whole_rates(rate16)))

    def _at(self, rate: int, tune: str) -> list[StoredRate]:
        """The base's own rate and adapters of a whole rate, the newest first."""
        stored = self.base.stored
        newest_first = (*reversed(self.loaded), *stored.rates, *reversed(stored.superseded))
        return [r for r in newest_first if (r.rate, r.tune) == (rate, tune)]


def registered(base: LoadedModel, loaded: tuple[StoredRate, ...] = ()) -> RegisteredModel:
    """A model with its store's adapters and those loaded since, newest last."""
    newest = {(r.tune, r.rate): r for r in (*base.stored.rates, *loaded)}
    stored = replace(base.stored, rates=tuple(newest.values()))
    return RegisteredModel(base, loaded, replace(base, stored=stored))


class ModelRegistry:
    """All loaded models, the default one first. They change in turn, as a whole."""

    def __init__(self, models: Sequence[LoadedModel], files: AdapterFiles | None) -> None:
        """Register models as they were loaded, with the adapters that a folder keeps for them.

        Raises StoreError: a kept adapter is damaged or does not fit.
        """
        self.entries = tuple(registered(model) for model in models)
        self._files, self._changing = files, Lock()
        self._derived: tuple[tuple[RegisteredModel, ...], DecoderFiles] | None = None
        self._deriving = Lock()
        for kept in [] if files is None else files.read():
            self._restore(kept)

    def model_of(self, header: Header) -> tuple[LoadedModel, RateKey]:
        """The model that made a stream, and its rate's key. Raises UnknownModel: it is not here."""
        available = []
        for entry in self.entries:
            match = entry.model_of(header)
            if match is not None:
                return match
            stored = entry.current.stored
            if stored.offers(header.rate16, header.tune):
                available.append(stored.identity_at(header.rate16, header.tune)[:4].hex())
        raise UnknownModel(
            f"the stream needs weights {header.model.hex()} at rate {header.rate:g}, tune "
            f"{header.tune}; there the store holds {', '.join(sorted(available)) or 'none'}"
        )

    def decoder_files(self) -> DecoderFiles:
        """The decode-only files of every model, derived once for each change of the models."""
        with self._deriving:
            entries = self.entries
            if self._derived is None or self._derived[0] is not entries:
                self._derived = entries, decoder_files(e.for_decoders() for e in entries)
            return self._derived[1]

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Every adapter of every model."""
        return tuple(info for entry in self.entries for info in entry.adapters())

    def add(self, adapter: StoredAdapter, prove: Callable[[LoadedModel], object]) -> AdapterInfo:
        """Add an adapter to its model; see Engine.add_adapter. Nothing changes if this raises.

        `prove` is called with the model and the adapter before any request gets it, and raises
        StoreError if they cannot be used together.
        """
        data = adapter.data
        if len(data) > MAX_ADAPTER_BYTES:
            raise TooManyBytes(f"the adapter has {len(data)} bytes, at most {MAX_ADAPTER_BYTES}")
        digest = hashlib.sha256(data).digest()
        with self._changing:
            index = self._index_of(adapter.base_sha256)
            entry = self.entries[index]
            loaded = entry.find(digest)
            if loaded is None:
                try:
                    entry = entry.with_adapter(adapter)
                    prove(entry.current)
                except StoreError as error:
                    raise BadAdapter(f"the adapter does not fit: {error}") from error
                if self._files is not None:
                    self._files.add(adapter)
                self._replace(index, entry)
            elif (loaded.rate, loaded.tune) != (adapter.rate, adapter.tune):
                raise BadParameter(
                    f"this adapter is loaded already, as rate {loaded.rate:g}, tune {loaded.tune}"
                )
        return next(info for info in entry.adapters() if info.sha256 == digest.hex())

    def remove(self, sha256: str) -> None:
        """Remove an adapter from its models; see Engine.remove_adapter."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UnknownAdapter(f"{sha256[:100]!r} is no sha256 in hex")
        digest = bytes.fromhex(sha256)
        with self._changing:
            changed = {
                index: entry.without_adapter(digest)
                for index, entry in enumerate(self.entries)
                if entry.find(digest)
            }
            if not changed:
                raise UnknownAdapter(f"no adapter {sha256} is loaded")
            if self._files is not None:
                self._files.remove(sha256)
            for index, entry in changed.items():
                self._replace(index, entry)

    def _restore(self, kept: StoredAdapter) -> None:
        """Add an adapter from the folder to its model again."""
        try:
            index = self._index_of(kept.base_sha256)
            self._replace(index, self.entries[index].with_adapter(kept))
        except (BadParameter, StoreError) as error:
            name = hashlib.sha256(kept.data).hexdigest()
            raise StoreError(f"the kept adapter {name} cannot be loaded: {error}") from error

    def _index_of(self, base_sha256: str) -> int:
        """Which model has that base. Raises BadParameter: none has."""
        bases = [entry.base.stored.sha256 for entry in self.entries]
        if base_sha256 not in bases:
            available = ", ".join(bases)
            raise BadParameter(f"base is {base_sha256[:100]!r}, the store holds {available}")
        return bases.index(base_sha256)

    def _replace(self, index: int, entry: RegisteredModel) -> None:
        """Replace a model in one step: requests see the old one or the new one."""
        self.entries = (*self.entries[:index], entry, *self.entries[index + 1 :])
