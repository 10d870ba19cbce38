"""A stored model: tensors, rates, ready updates, and the identity that streams name.

The identity of a model at a rate is the sha256 over the sha256s of the files that make the rate,
base first; streams carry its first four bytes. The base alone makes its own rate, an adapter each
of the other whole rates, and the adapters of both neighbours the rates between them; a mix never
crosses ladders (`StoredModel.mix`).
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
from service.errors import BadStream, StoreError, UnknownUpdate
from service.store.shapes import check_prompts

Tensors = dict[str, NDArray[Any]]

TRANSFORMS = ("g_a.", "g_s.", "h_a.")
"""Prefixes of tensors of the transforms."""
SYNTHESIS = ("g_s.",)
"""Prefix of tensors of the synthesis."""
ENTROPY = "entropy."
"""Prefix of integer tensors in base.safetensors."""
GRAPHS = ("g_a", "g_s", "h_a", "h_s", "step.1", "step.2", "step.3")
"""Names of the ONNX graphs; that of h_s also has step 0 of the entropy networks."""


@dataclass(frozen=True)
class StoredRate:
    """A rate of a ladder, and its mean figures on Kodak when it was published.

    Attributes:
        rate: whole rate, 1–8.
        lmbda: weight of the distortion in training; None for an adapter loaded at run time.
        kodak_bpp: bits per pixel, None if not measured.
        kodak_psnr_db: PSNR, None if not measured.
        update: low-rank update of the base, None for the base's own rate.
        digest: sha256 of the update's file, empty for the base's own rate.
        data: bytes of that file, empty for the base's own rate.
        training: record of the training.
        tune: the ladder, one of TUNES.
        kodak_ms_ssim: MS-SSIM, None if not measured.
    """

    rate: float
    lmbda: float | None
    kodak_bpp: float | None
    kodak_psnr_db: float | None
    update: Update | None = None
    digest: bytes = b""
    data: bytes = b""
    training: Mapping[str, object] = field(default_factory=dict)
    tune: str = PSNR
    kodak_ms_ssim: float | None = None

    @property
    def file_bytes(self) -> int:
        """Size of the update's file, 0 for the base's own rate."""
        return len(self.data)


@dataclass(frozen=True, eq=False)
class StoredUpdate:
    """A ready update of the synthesis g_s, which streams can name instead of holding their own.

    Attributes:
        name: kind of picture that it was fitted to.
        data: coded update (codec/model_stream.py), for every rate of the base.
        training: record of the fitting.
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
        """The bytes that name it in streams."""
        return self.digest[:READY_BYTES]


@dataclass(frozen=True, eq=False)
class Golden:
    """A stream and its decoded result, to test a decoder with.

    Attributes:
        stream: the stream.
        y_hat: [h, w, M] int16 Q6, to be matched exactly.
        rgb: [H, W, 3] uint8, to be matched within the rounding of g_s.
    """

    stream: bytes
    y_hat: NDArray[np.int16]
    rgb: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model, read and verified.

    Attributes:
        name: name of its folder.
        sizes: sizes of the backbone.
        sha256: hex sha256 of base.safetensors.
        identity: 32-byte identity of the weights at the rate that they are merged for.
        transforms: weights of g_a, g_s and h_a, float16 in a base and float32 when merged.
        entropy: integer tensors of codec.EntropyModel, and "tables".
        rates: the rates that make new streams.
        training: record of the training.
        golden: a stream and its decoded result.
        file_bytes: size of all files.
        updates: ready updates; none is ever removed, because streams name them.
        superseded: adapters that a later one of their rate has replaced, oldest first; they decode
            the streams that they made.
        graphs: a serialised ONNX graph for each of GRAPHS, for all rates; they hold no weights and
            are no part of the identity.
        previews: float16 weights of the preview network, for all rates; empty where there is none.
            They are no part of the identity.
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
    graphs: Mapping[str, bytes] = field(default_factory=dict)
    previews: Tensors = field(default_factory=dict)

    @property
    def tunes(self) -> tuple[str, ...]:
        """The ladders that the model has."""
        return tuple(tune for tune in TUNES if self.ladder(tune))

    def ladder(self, tune: str) -> tuple[StoredRate, ...]:
        """The rates of a ladder, ascending; empty if the model does not have it."""
        return tuple(sorted((r for r in self.rates if r.tune == tune), key=lambda r: r.rate))

    def offers(self, rate16: int, tune: str = PSNR) -> bool:
        """Whether the stored rates make a rate, given in sixteenths."""
        whole, parts = divmod(rate16, PARTS)
        stored = {r.rate for r in self.ladder(tune)}
        return whole in stored and (parts == 0 or whole + 1 in stored)

    def mix(self, rate16: int, tune: str = PSNR) -> list[tuple[StoredRate, int]]:
        """The stored rates that make a rate, with their weights in sixteenths.

        Raises:
            KeyError: the model does not offer the rate.
        """
        whole, parts = divmod(rate16, PARTS)
        by_rate = {r.rate: r for r in self.ladder(tune)}
        if parts == 0:
            return [(by_rate[whole], PARTS)]
        return [(by_rate[whole], PARTS - parts), (by_rate[whole + 1], parts)]

    def identity_at(self, rate16: int, tune: str = PSNR) -> bytes:
        """Identity of the weights that make a rate, 32 bytes."""
        digests = [r.digest for r, _ in self.mix(rate16, tune) if r.update is not None]
        return identity([bytes.fromhex(self.sha256), *digests])

    @property
    def synthesis(self) -> Tensors:
        """The weights of g_s among the transforms."""
        return {n: t for n, t in self.transforms.items() if n.startswith(SYNTHESIS)}

    def ready_update(self, reference: bytes, tables: Tables) -> Update:
        """Decode the ready update that a stream names by these READY_BYTES.

        Raises:
            UnknownUpdate: the store does not hold it.
            StoreError: it does not fit the model.
        """
        for update in self.updates:
            if update.reference == reference:
                try:
                    return read_update(update.data, layer_shapes(self.synthesis), tables)
                except BadStream as error:
                    raise StoreError(
                        f"ready update {update.name} of model {self.name}: {error}"
                    ) from error
        known = ", ".join(u.reference.hex() for u in self.updates) or "none"
        raise UnknownUpdate(
            f"the stream needs the ready update {reference.hex()} of model {self.name}; "
            f"the store holds {known}"
        )

    def lmbda_at(self, rate16: int, tune: str = PSNR) -> float | None:
        """Weight of the distortion at a rate; between rates, their weighted geometric mean.

        None if an adapter that was loaded at run time makes the rate.
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
        """The model with a rate, in sixteenths, merged in; this model is not changed.

        Of the transforms it has only those whose prefixes are in `networks`.

        Raises:
            KeyError: the model does not offer the rate.
            StoreError: an update does not fit the base.
        """
        mix = self.mix(rate16, tune)
        if all(r.update is None for r, _ in mix):
            return self
        shares = [Share(self._own_update() if r.update is None else r.update, n) for r, n in mix]
        chosen = {n: t for n, t in self.transforms.items() if n.startswith(networks)}
        return replace(
            self,
            transforms=merge_transforms(chosen, shares),
            entropy=merge_entropy(self.entropy, shares),
            identity=self.identity_at(rate16, tune),
        )

    def _own_update(self) -> Update:
        """The base's own rate as an update that changes no weight."""
        vectors = {name: self.entropy[name] for name in ("y.step", "z.step", "z.level")}
        offset = np.zeros(self.sizes.M, np.int16)
        return Update({}, vectors | {"level.offset": offset})

    @property
    def parameters(self) -> int:
        """Number of weights and biases, without formats, quantiser steps and tables."""
        tensors = [*self.transforms.items(), *self.entropy.items()]
        counted = (".weight", ".bias", ".position")
        return sum(t.size for name, t in tensors if name.endswith(counted))


def layer_shapes(*tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Weight shape of every layer in groups of tensors, by layer name."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for group in tensors
        for name, tensor in group.items()
        if name.endswith(".weight")
    }


def unpack_adapter(model: StoredModel, tensors: Tensors) -> Update:
    """Unpack an adapter's tensors, with prompts or without, for a base of these shapes.

    Raises:
        StoreError: the tensors do not fit.
    """
    prompts = {name: tensor for name, tensor in tensors.items() if ".prompts." in name}
    if prompts:
        check_prompts(prompts, model.sizes)
    others = {name: tensor for name, tensor in tensors.items() if name not in prompts}
    shapes = layer_shapes(model.transforms, model.entropy)
    return replace(unpack(others, shapes, model.sizes), prompts=prompts)


def check_adapter(model: StoredModel, tensors: Tensors) -> Update:
    """Unpack an adapter's tensors, and prove that the update fits a base at its whole rate.

    Raises:
        StoreError: the tensors do not fit, the merged entropy networks could leave their exact
            range, or a merged weight is not finite.
    """
    update = unpack_adapter(model, tensors)
    mix = [Share(update, PARTS)]
    EntropyModel(model.sizes, merge_entropy(model.entropy, mix))
    for name, tensor in merge_transforms(model.transforms, mix).items():
        if not np.isfinite(tensor).all():
            raise StoreError(f"with the adapter, {name} is not finite")
    return update


def with_updates(model: StoredModel, fresh: Sequence[StoredUpdate]) -> StoredModel:
    """The model with more ready updates, which are not decoded yet.

    Raises:
        StoreError: two updates have the same reference.
    """
    updates = (*model.updates, *fresh)
    if len({u.reference for u in updates}) < len(updates):
        raise StoreError(f"model {model.name} has two ready updates of one reference")
    return replace(model, updates=updates)


def identity(digests: list[bytes]) -> bytes:
    """Identity of a set of weight files: sha256 over their sha256 digests, base first."""
    return hashlib.sha256(b"".join(digests)).digest()
