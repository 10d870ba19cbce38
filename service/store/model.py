"""A model as it is stored: tensors, rates, ready updates, and what they are identified by.

A model's identity at a rate is the sha256 over the sha256s of its files, base first; streams carry
its first four bytes. Which files those are depends on the rate, see `StoredModel.mix`: none beside
the base at its own rate, one adapter at the other whole rates, the two neighbours' in between;
never of two ladders.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Tables
from service.codec.container import PSNR, READY_BYTES, TUNES
from service.codec.entropy_model import EntropyModel
from service.codec.lowrank import (
    PARTS,
    Share,
    Update,
    merge_entropy,
    merge_transforms,
    unpack,
)
from service.codec.model_stream import read_update
from service.codec.sizes import Sizes
from service.errors import BadParameter, BadStream, StoreError, UnknownUpdate

Tensors = dict[str, NDArray[Any]]

TRANSFORMS = ("g_a.", "g_s.", "h_a.")
SYNTHESIS = ("g_s.",)
ENTROPY = "entropy."


@dataclass(frozen=True)
class StoredRate:
    """A rate of a ladder and what it measured on Kodak when it was published.

    Attributes:
        lmbda: weight of the error that it was trained with; None for one loaded at run time.
        tune: its ladder, one of TUNES.
        update: low-rank update of the base, None for the base's own rate.
        digest: sha256 of the update's file, empty for the base's own rate.
        file_bytes: size of that file. training: record of how it was made.
    """

    rate: float
    lmbda: float | None
    kodak_bpp: float | None
    kodak_psnr_db: float | None
    update: Update | None = None
    digest: bytes = b""
    file_bytes: int = 0
    training: Mapping[str, object] = field(default_factory=dict)
    tune: str = PSNR
    kodak_ms_ssim: float | None = None


@dataclass(frozen=True, eq=False)
class StoredUpdate:
    """A ready update of g_s, which streams can name instead of bringing one of their own.

    Attributes:
        name: of the pictures that it is for. data: coded (codec/model_stream.py), for every rate.
        training: record of how it was made.
    """

    name: str
    data: bytes
    training: Mapping[str, object]

    @property
    def digest(self) -> bytes:
        """sha256 of the data."""
        return hashlib.sha256(self.data).digest()

    @property
    def reference(self) -> bytes:
        """What streams name it by."""
        return self.digest[:READY_BYTES]


@dataclass(frozen=True, eq=False)
class Golden:
    """A stream and what it must decode to: y_hat exactly, pixels to within rounding of g_s."""

    stream: bytes
    y_hat: NDArray[np.int16]
    rgb: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model as read and verified.

    Attributes:
        name: its folder. sizes: of the backbone. sha256: of the base weights, hex.
        identity: full 32-byte identity of the weights at the rate they are merged for.
        transforms: g_a, g_s, h_a weights, float16, scales folded in.
        entropy: integer tensors of codec.EntropyModel, and "tables".
        rates: what can be asked for. training: record of how the weights were made.
        file_bytes: all files together. updates: ready ones; none of them is ever taken out.
        superseded: adapters whose rate a later one makes now, oldest first; they decode the
            streams that they made.
    """

    name: str
    sizes: Sizes
    sha256: str
    identity: bytes
    transforms: Tensors
    entropy: Tensors
    rates: tuple[StoredRate, ...]
    training: Mapping[str, object]
    golden: Golden
    file_bytes: int
    updates: tuple[StoredUpdate, ...] = ()
    superseded: tuple[StoredRate, ...] = ()

    @property
    def tunes(self) -> tuple[str, ...]:
        """The ladders that there are."""
        return tuple(tune for tune in TUNES if self.ladder(tune))

    def ladder(self, tune: str) -> tuple[StoredRate, ...]:
        """The rates of one ladder, ascending; empty where there is none."""
        return tuple(sorted((r for r in self.rates if r.tune == tune), key=lambda r: r.rate))

    def offers(self, rate16: int, tune: str = PSNR) -> bool:
        """Whether a rate, in sixteenths, can be made from what is stored."""
        whole, parts = divmod(rate16, PARTS)
        stored = {r.rate for r in self.ladder(tune)}
        return whole in stored and (parts == 0 or whole + 1 in stored)

    def mix(self, rate16: int, tune: str = PSNR) -> list[tuple[StoredRate, int]]:
        """The rates that a rate is mixed from, and their parts in sixteenths.

        Raises:
            KeyError: not `offers(rate16, tune)`.
        """
        whole, parts = divmod(rate16, PARTS)
        by_rate = {r.rate: r for r in self.ladder(tune)}
        if parts == 0:
            return [(by_rate[whole], PARTS)]
        return [(by_rate[whole], PARTS - parts), (by_rate[whole + 1], parts)]

    def identity_at(self, rate16: int, tune: str = PSNR) -> bytes:
        """Identity of the weights that a rate needs, 32 bytes."""
        digests = [r.digest for r, _ in self.mix(rate16, tune) if r.update is not None]
        return identity([bytes.fromhex(self.sha256), *digests])

    @property
    def synthesis(self) -> Tensors:
        """The weights of g_s among the transforms."""
        return {n: t for n, t in self.transforms.items() if n.startswith(SYNTHESIS)}

    def ready_update(self, reference: bytes, tables: Tables) -> Update:
        """The ready update that a stream names.

        Args:
            reference: its name. tables: of the model.

        Raises:
            UnknownUpdate: it is not here. StoreError: it does not fit the model.
        """
        for update in self.updates:
            if update.reference == reference:
                try:
                    return read_update(update.data, layer_shapes(self.synthesis), tables)
                except BadStream as error:
                    words = f"ready update {update.name} of model {self.name}: {error}"
                    raise StoreError(words) from error
        known = ", ".join(u.reference.hex() for u in self.updates) or "none"
        raise UnknownUpdate(
            f"the stream needs the ready update {reference.hex()} of model {self.name}; "
            f"the store holds {known}"
        )

    def lmbda_at(self, rate16: int, tune: str = PSNR) -> float | None:
        """Weight of the error in the loss at a rate; between rates their geometric mean.

        None where an adapter that was loaded at run time does not say.
        """
        log = 0.0
        for rate, parts in self.mix(rate16, tune):
            if rate.lmbda is None:
                return None
            log += parts * math.log(rate.lmbda)
        return math.exp(log / PARTS)

    def at_rate(
        self, rate16: int, tune: str = PSNR, networks: tuple[str, ...] = TRANSFORMS
    ) -> StoredModel:
        """The model with a rate's update merged in afresh; the stored one is not changed.

        Args:
            rate16: in sixteenths. tune: its ladder.
            networks: prefixes of the transforms that are wanted.
        """
        mix = self.mix(rate16, tune)
        if all(r.update is None for r, _ in mix):
            return self
        shares = [Share(self._own_update() if r.update is None else r.update, n) for r, n in mix]
        return replace(
            self,
            transforms=merge_transforms(
                {n: t for n, t in self.transforms.items() if n.startswith(networks)}, shares
            ),
            entropy=merge_entropy(self.entropy, shares),
            identity=self.identity_at(rate16, tune),
        )

    def _own_update(self) -> Update:
        """The base's own rate as an update that changes nothing."""
        vectors = {name: self.entropy[name] for name in ("y.step", "z.step", "z.level")}
        offset = np.zeros(self.sizes.M, np.int16)
        return Update({}, vectors | {"level.offset": offset})

    @property
    def parameters(self) -> int:
        """Number of weights and biases (formats, steps and the coder's tables not counted)."""
        tensors = [*self.transforms.items(), *self.entropy.items()]
        return sum(t.size for name, t in tensors if name.endswith((".weight", ".bias")))


def layer_shapes(*tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Weight shape of every layer, by name."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for group in tensors
        for name, tensor in group.items()
        if name.endswith(".weight")
    }


def check_adapter(model: StoredModel, tensors: Tensors) -> Update:
    """An adapter's tensors as the update that they are, proven to fit a base at its whole rate.

    Raises:
        StoreError: they do not fit, or the merged networks could leave their exact range.
    """
    update = unpack(tensors, layer_shapes(model.transforms, model.entropy), model.sizes)
    mix = [Share(update, PARTS)]
    EntropyModel(model.sizes, merge_entropy(model.entropy, mix))
    for name, tensor in merge_transforms(model.transforms, mix).items():
        if not np.isfinite(tensor).all():
            raise StoreError(f"with the adapter, {name} is not finite")
    return update


def with_rate(model: StoredModel, rate: StoredRate) -> StoredModel:
    """A model with another adapter for a rate; the one that it takes the place of is superseded.

    Raises:
        BadParameter: the rate is the base's own.
    """
    where = (rate.rate, rate.tune)
    before = [r for r in model.rates if (r.rate, r.tune) == where]
    if any(r.update is None for r in before):
        raise BadParameter(f"rate {rate.rate:g} is the base's own and takes no adapter")
    others = [r for r in model.rates if (r.rate, r.tune) != where]
    rates = sorted([*others, rate], key=lambda r: (TUNES.index(r.tune), r.rate))
    earlier = (*model.superseded, *before)
    return replace(
        model,
        rates=tuple(rates),
        superseded=tuple(r for r in earlier if r.digest != rate.digest),
    )


def with_updates(model: StoredModel, fresh: Sequence[StoredUpdate]) -> StoredModel:
    """A model with more ready updates; they are read when they are used.

    Raises:
        StoreError: two cannot be told apart by what streams name them by.
    """
    every = (*model.updates, *fresh)
    if len({u.reference for u in every}) < len(every):
        raise StoreError(f"model {model.name} has two ready updates of one reference")
    return replace(model, updates=every)


def identity(digests: list[bytes]) -> bytes:
    """Identity of a set of weight files: sha256 over their sha256s, base first."""
    return hashlib.sha256(b"".join(digests)).digest()
