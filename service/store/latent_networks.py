"""Default networks of latent streams (codec/overfit.py) as safetensors files of an autoencoder."""

from __future__ import annotations

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from service.codec.overfit import (
    GAIN_MAX,
    MAX_GRIDS,
    MAX_WIDTH,
    WEIGHT_MAX,
    LatentNetworks,
    expected_shapes,
)
from service.errors import StoreError


def read_networks(data: bytes, channels: int) -> LatentNetworks:
    """Read default networks, a safetensors file, for latents of so many channels.

    Raises:
        StoreError: tensors are missing, of the wrong shape or type, or out of range.
    """
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise StoreError(f"default networks are no safetensors file: {error}") from error
    counts = tensors.pop("levels", np.zeros(0, np.int32))
    if counts.dtype != np.int32 or counts.ndim != 1:
        raise StoreError(f"levels of default networks are {counts.dtype} {counts.shape}")
    levels = tuple(counts[:16].tolist())
    if not 1 <= len(levels) <= 8 or min(levels) < 1 or sum(levels) > MAX_GRIDS:
        raise StoreError(f"default networks have grids {levels}, expected 1 to {MAX_GRIDS} in all")
    n, h = (tensors.get(name, counts[:0]).size for name in ("ar.b2", "syn.b1"))
    if not (1 <= n <= MAX_WIDTH and 1 <= h <= MAX_WIDTH):
        raise StoreError(f"default networks have widths {n} and {h}, expected 1 to {MAX_WIDTH}")
    shapes = expected_shapes(levels, channels, n, h)
    actual = {name: t.shape for name, t in tensors.items()}
    if actual != shapes or any(t.dtype != np.int32 for t in tensors.values()):
        raise StoreError(f"default networks have tensors {actual}, expected int32 {shapes}")
    if any(abs(t.astype(np.int64)).max() > WEIGHT_MAX for t in tensors.values()):
        raise StoreError(f"default networks have weights over {WEIGHT_MAX}")
    if abs(tensors["gain"]).max() > GAIN_MAX:
        raise StoreError(f"default networks have gains over {GAIN_MAX}")
    return LatentNetworks(levels, tensors)


def write_networks(networks: LatentNetworks) -> bytes:
    """Serialise networks; `read_networks` gives equal ones back."""
    levels = {"levels": np.array(networks.levels, np.int32)}
    data: bytes = save_safetensors(levels | dict(networks.tensors))
    return data
