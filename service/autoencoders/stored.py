"""Autoencoders in the model store, without torch: the small KL autoencoder and its numpy decoder.

model_store/autoencoders/kl/weights.safetensors     float16, see nets/autoencoder.py
model_store/autoencoders/kl/networks.safetensors    default networks (codec/overfit.py)
model_store/autoencoders/own/IDENTITY.safetensors   default networks of the transforms g_a and
                                                    g_s of a model at its lowest rate, by the first
                                                    digits of their identity
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from service.autoencoders.interfaces import F32
from service.codec.overfit import LatentNetworks
from service.codec.sizes import AUTOENCODER_CELL, AutoencoderSizes
from service.codec.tiles import Box
from service.errors import MissingExtra, StoreError
from service.picture import U8
from service.store.latent_networks import read_networks
from service.transforms.synthesis_numpy import NumpyLayers, pixels_of, shuffle

FOLDER = "autoencoders"
"""Folder of the autoencoders in a store."""

WEIGHTS, NETWORKS = "weights.safetensors", "networks.safetensors"

MAX_BYTES = 2**26
"""Largest file of an autoencoder that is read."""

MAX_BLOCKS = 64
"""Most blocks of an encoder or decoder."""

_BLOCK = re.compile(r"(encoder|decoder)\.(\d{1,3})\.f2\.weight")


@dataclass(frozen=True, eq=False)
class StoredAutoencoder:
    """A KL autoencoder as it is stored.

    Attributes:
        tensors: float16, by the names of nets.autoencoder.KlAutoencoder's state.
    """

    name: str
    identity: bytes
    sizes: AutoencoderSizes
    tensors: Mapping[str, NDArray[Any]]
    networks: LatentNetworks


def read_autoencoder(folder: Path) -> StoredAutoencoder:
    """Read a KL autoencoder.

    Raises:
        StoreError: a file is missing, damaged, or does not fit the others.
    """
    weights, networks = read_file(folder / WEIGHTS), read_file(folder / NETWORKS)
    try:
        tensors = load_safetensors(weights)
    except SafetensorError as error:
        raise StoreError(f"{folder / WEIGHTS} is no safetensors file: {error}") from error
    sizes = _sizes_of(tensors, folder)
    identity = hashlib.sha256(
        hashlib.sha256(weights).digest() + hashlib.sha256(networks).digest()
    ).digest()
    defaults = read_networks(networks, sizes.channels)
    return StoredAutoencoder(folder.name, identity, sizes, tensors, defaults)


def read_file(path: Path) -> bytes:
    """A file of an autoencoder. Raises StoreError: it is missing or too large."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise StoreError(f"{path} has {size} bytes, at most {MAX_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read") from error


def expected_tensors(sizes: AutoencoderSizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a KL autoencoder of these sizes."""
    width, channels, samples = sizes.width, sizes.channels, 3 * AUTOENCODER_CELL * AUTOENCODER_CELL
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (outputs, inputs), (outputs,)

    for part, blocks in (("encoder", sizes.encoder_blocks), ("decoder", sizes.decoder_blocks)):
        for i in range(1, 1 + blocks):
            linear(f"{part}.{i}.pw1", width, width)
            linear(f"{part}.{i}.pw2", width, width)
            linear(f"{part}.{i}.f1", width, 2 * width)
            linear(f"{part}.{i}.f2", 2 * width, width)
            out[f"{part}.{i}.dw.weight"] = (width, 1, 3, 3)
            out[f"{part}.{i}.dw.bias"] = (width,)
    linear("encoder.0.l", samples, width)
    linear(f"encoder.{1 + sizes.encoder_blocks}", width, 2 * channels)
    linear("decoder.0", channels, width)
    linear(f"decoder.{1 + sizes.decoder_blocks}.l", width, samples)
    return out


def _sizes_of(tensors: Mapping[str, NDArray[Any]], folder: Path) -> AutoencoderSizes:
    """The sizes that the tensors' shapes say. Raises StoreError: they do not agree."""
    first = tensors.get("decoder.0.weight", np.zeros((0, 0)))
    blocks = [m.group(1) for name in tensors if (m := _BLOCK.fullmatch(name))]
    counts = blocks.count("encoder"), blocks.count("decoder")
    width, channels = first.shape if first.ndim == 2 else (0, 0)
    if not (1 <= channels <= 1024 and 1 <= width <= 4096 and max(counts) <= MAX_BLOCKS):
        raise StoreError(f"{folder / WEIGHTS} has {channels} channels, width {width}, {counts}")
    sizes = AutoencoderSizes(channels, width, *counts)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != expected_tensors(sizes):
        odd = sorted(set(shapes.items()) ^ set(expected_tensors(sizes).items()))[:3]
        raise StoreError(f"{folder / WEIGHTS} does not hold a KL autoencoder: {odd}")
    if any(not np.isfinite(t).all() for t in tensors.values()):
        raise StoreError(f"{folder / WEIGHTS} has weights that are no finite numbers")
    return sizes


class NumpyAutoencoder:
    """The decoder of a KL autoencoder in numpy, for the base install. Implements `Autoencoder`."""

    cell = AUTOENCODER_CELL

    def __init__(self, stored: StoredAutoencoder) -> None:
        self.stored = stored
        self.name, self.identity, self.networks = stored.name, stored.identity, stored.networks
        self.channels = stored.sizes.channels
        self.halo: int | None = max(stored.sizes.encoder_blocks, stored.sizes.decoder_blocks)

    @cached_property
    def _layers(self) -> NumpyLayers:
        return NumpyLayers(decoder_tensors(self.stored.tensors))

    def encode(self, pixels: U8) -> F32:
        """Raise MissingExtra: only the decoder runs in numpy."""
        raise MissingExtra(
            f"encoding {pixels.shape[1]}x{pixels.shape[0]} pixels with autoencoder {self.name} "
            "needs torch: pip install 'rankpress[server]'"
        )

    @np.errstate(over="ignore", invalid="ignore")  # hostile latents can cause both
    def decode(self, latents: F32, inner: Box | None = None) -> U8:
        """See Autoencoder."""
        inner = inner or Box(0, 0, *latents.shape[:2])
        blocks = self.stored.sizes.decoder_blocks
        x = self._layers.linear("0", latents)
        for i in range(blocks):
            x = self._layers.block(f"{1 + i}", x)
        x = self._layers.linear(f"{1 + blocks}.l", np.ascontiguousarray(x[inner.slices]))
        return pixels_of(shuffle(x, AUTOENCODER_CELL))


def decoder_tensors(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors of the decoder, without the prefix of their names."""
    prefix = "decoder."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
