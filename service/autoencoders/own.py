"""A model's transforms g_a and g_s, at its lowest rate, as an autoencoder.

Its entropy model is not used. Latents are float32 in their own unit; the decoder rounds
them to units of 2^-Y_FRAC, as g_s takes them.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from service.autoencoders.interfaces import F32
from service.codec.entropy_model import Y_FRAC
from service.codec.overfit import LatentNetworks, plain_networks
from service.codec.sizes import conv_sizes
from service.codec.tiles import PATCH, Box
from service.errors import MissingExtra
from service.picture import U8
from service.runtime.pipeline import LoadedModel
from service.store.latent_networks import read_networks

if TYPE_CHECKING:
    from torch import Tensor, nn

LATENT_MAX = 2.0**9
"""Largest absolute latent that g_s gets."""

DIGITS = 16
"""Digits of the transforms' identity in the name of their networks' file."""


class OwnAutoencoder:
    """Implements `DifferentiableAutoencoder`; without torch it decodes only."""

    name = "own"
    cell = PATCH

    def __init__(self, model: LoadedModel, networks: bytes | None) -> None:
        """Wrap a model of the family conv; `networks` is a file of default ones, None for none.

        Raises:
            StoreError: the networks are damaged.
        """
        self._model = model
        sizes = conv_sizes(model.stored.sizes)
        self.channels = sizes.M
        self.halo: int | None = sizes.halo
        self.networks: LatentNetworks = (
            plain_networks(sizes.M) if networks is None else read_networks(networks, sizes.M)
        )
        self.identity = hashlib.sha256(b"own" + model.stored.identity + (networks or b"")).digest()

    def encode(self, pixels: U8) -> F32:
        """See Autoencoder."""
        if self._model.analysis is None:
            raise MissingExtra("fitting needs torch: pip install 'rankpress[server]'")
        return self._model.analysis.analyse(pixels.copy())

    def decode(self, latents: F32, inner: Box | None = None) -> U8:
        """See Autoencoder."""
        finite = np.nan_to_num(latents, nan=0.0)
        y_hat = np.rint(np.clip(finite, -LATENT_MAX, LATENT_MAX) * 2.0**Y_FRAC)
        return self._model.synthesis.synthesise(y_hat.astype(np.int16), inner)

    @cached_property
    def _g_s(self) -> nn.Module:
        import torch

        from service.nets.backbone import synthesis
        from service.transforms.torch_layers import fill

        stored = self._model.stored
        with torch.device("meta"):
            g_s = synthesis(conv_sizes(stored.sizes))
        fill(g_s, dict(stored.transforms), "g_s", torch.device("cpu"))
        return g_s

    def decode_tensor(self, latents: Tensor) -> Tensor:
        """See DifferentiableAutoencoder."""
        out: Tensor = self._g_s(latents) + 0.5
        return out
