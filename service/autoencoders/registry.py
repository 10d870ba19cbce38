"""The autoencoders of an engine, by name and by the identity that streams carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from threading import Lock

from service.autoencoders.interfaces import Autoencoder
from service.autoencoders.own import DIGITS, OwnAutoencoder
from service.autoencoders.stored import FOLDER, NumpyAutoencoder, read_autoencoder, read_file
from service.codec.container import MODEL_BYTES, PSNR, RATE_UNIT
from service.codec.sizes import ConvSizes
from service.errors import BadParameter, MissingExtra, ModelUnavailable, UnknownModel
from service.runtime.pipeline import LoadedModel
from service.store.read import default_path

Open = Callable[[], Autoencoder]


class Autoencoders:
    """Autoencoders that are loaded when they are first needed. Thread-safe."""

    def __init__(self, openers: Mapping[str, Open]) -> None:
        """Know some by name; the first is the default."""
        self._openers, self._loaded, self._lock = dict(openers), dict[str, Autoencoder](), Lock()

    def names(self) -> tuple[str, ...]:
        """All names, the default one first."""
        return tuple(self._openers)

    def named(self, name: str | None) -> Autoencoder:
        """An autoencoder, None for the default one.

        Raises:
            ModelUnavailable: there is none of that name.
            StoreError, BadParameter, MissingExtra: it cannot be loaded.
        """
        names = self.names()
        if not names or (name is not None and name not in self._openers):
            shown = "none" if name is None else repr(name[:100])
            raise ModelUnavailable(
                f"autoencoder is {shown}, expected one of {', '.join(names) or 'none'}"
            )
        chosen = names[0] if name is None else name
        with self._lock:
            if chosen not in self._loaded:
                self._loaded[chosen] = self._openers[chosen]()
            return self._loaded[chosen]

    def of_stream(self, reference: bytes) -> Autoencoder:
        """The autoencoder whose identity begins with these MODEL_BYTES.

        Raises:
            UnknownModel: there is none.
        """
        identities = []
        for name in self.names():
            try:
                autoencoder = self.named(name)
            except MissingExtra:  # it may be another one's stream
                identities.append(f"{name} (which needs more packages)")
                continue
            if autoencoder.identity[:MODEL_BYTES] == reference:
                return autoencoder
            identities.append(f"{name} ({autoencoder.identity[:MODEL_BYTES].hex()})")
        raise UnknownModel(
            f"the stream needs autoencoder {reference.hex()}, "
            f"available are {', '.join(identities) or 'none'}"
        )


def open_autoencoders(
    store: Path | None,
    models: tuple[LoadedModel, ...],
    device: str,
    decode_only: bool,
    sources: Sequence[str] = (),
) -> Autoencoders:
    """The transforms of a store's default model, its autoencoders, and those of diffusers.

    Args:
        store: its folder, None for the built-in one. models: loaded from it, the default one first.
        device: "auto", "cpu" or "cuda".
        decode_only: whether torch is not to be used.
        sources: folders or hub ids of autoencoders of diffusers.

    Raises:
        BadParameter: two have one name.
    """
    root = (store or default_path()) / FOLDER
    openers: dict[str, Open] = {}
    base = models[0]
    if isinstance(base.stored.sizes, ConvSizes):
        openers["own"] = partial(_open_own, root / "own", base)
    for weights in sorted(root.glob("*/weights.safetensors")):
        openers[weights.parent.name] = partial(_open_stored, weights.parent, device, decode_only)
    for source in sources:
        name = PurePath(source).name
        if name in openers:
            raise BadParameter(f"two autoencoders have the name {name!r}")
        openers[name] = partial(_open_diffusers, source, device, decode_only)
    return Autoencoders(openers)


def _open_own(folder: Path, base: LoadedModel) -> Autoencoder:
    ladder = base.stored.ladder(PSNR)
    model = base
    if ladder and base.build is not None:
        stored = base.stored.at_rate(round(RATE_UNIT * ladder[0].rate))
        model = base if stored is base.stored else base.build(stored)
    networks = folder / f"{model.stored.identity.hex()[:DIGITS]}.safetensors"
    return OwnAutoencoder(model, read_file(networks) if networks.is_file() else None)


def _open_stored(folder: Path, device: str, decode_only: bool) -> Autoencoder:
    stored = read_autoencoder(folder)
    if decode_only:
        return NumpyAutoencoder(stored)
    from service.autoencoders.kl import TorchAutoencoder
    from service.transforms.synthesis_torch import pick_device

    return TorchAutoencoder(stored, pick_device(device))


def _open_diffusers(source: str, device: str, decode_only: bool) -> Autoencoder:
    if decode_only:
        raise MissingExtra(f"autoencoder {source!r} needs torch: pip install 'rankpress[vae]'")
    from service.autoencoders.diffusers import DiffusersAutoencoder
    from service.transforms.synthesis_torch import pick_device

    return DiffusersAutoencoder(source, pick_device(device))
