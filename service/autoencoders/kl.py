"""The small KL autoencoder in torch: encoder, decoder, and the decoder's gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.autoencoders.interfaces import F32
from service.autoencoders.stored import NumpyAutoencoder, StoredAutoencoder
from service.codec.tiles import Box
from service.nets.autoencoder import KlAutoencoder
from service.picture import U8
from service.transforms.torch_layers import to_numpy, to_pixels


class TorchAutoencoder(NumpyAutoencoder):
    """Implements `DifferentiableAutoencoder` in float32 on a device."""

    def __init__(self, stored: StoredAutoencoder, device: torch.device) -> None:
        super().__init__(stored)
        self._device = device
        self._net = KlAutoencoder(stored.sizes)
        state = {n: torch.from_numpy(t.astype(np.float32)) for n, t in stored.tensors.items()}
        self._net.load_state_dict(state)
        self._net.requires_grad_(False).eval().to(device)

    @torch.inference_mode()
    def encode(self, pixels: U8) -> F32:
        """See Autoencoder; the latents are the means."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)[None]
        mean, _ = self._net.encode(x.float() / 255 - 0.5)
        return to_numpy(mean[0])

    @torch.inference_mode()
    def decode(self, latents: F32, inner: Box | None = None) -> U8:
        """See Autoencoder."""
        z = torch.from_numpy(np.ascontiguousarray(latents)).to(self._device)[None]
        layers = list(self._net.decoder)
        inner = inner or Box(0, 0, *latents.shape[:2])
        for layer in layers[:-1]:
            z = layer(z)
        return to_pixels(layers[-1](z[:, *inner.slices].contiguous()))

    def decode_tensor(self, latents: Tensor) -> Tensor:
        """See DifferentiableAutoencoder."""
        decoded = self._net.decode(latents.to(self._device)) + 0.5
        return decoded.to(latents.device)
