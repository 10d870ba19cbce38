"""Autoencoders of the package diffusers: Stable Diffusion's, FLUX's and the tiny ones.

They are read from a folder that `save_pretrained` wrote, or by an id of the Hugging Face hub; only
safetensors files are read, which cannot hold code. They read whole pictures, because their middle
layers attend to all of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.autoencoders.interfaces import F32
from service.codec.overfit import plain_networks
from service.codec.tiles import Box
from service.errors import BadParameter, MissingExtra
from service.picture import U8
from service.transforms.torch_layers import to_numpy, to_pixels

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
"""Classes of diffusers that are known to work."""

PROBE = 64
"""Pixels along the side of the picture that tells the latents' shape."""


class DiffusersAutoencoder:
    """Implements `DifferentiableAutoencoder`."""

    halo: int | None = None

    def __init__(self, source: str, device: torch.device) -> None:
        """Load an autoencoder.

        Args:
            source: a folder, or an id of the hub.

        Raises:
            MissingExtra: diffusers is not installed.
            BadParameter: there is no such autoencoder, or it is of another class.
        """
        try:
            import diffusers
        except ImportError as error:
            raise MissingExtra(
                f"autoencoder {source!r} needs diffusers: pip install 'rankpress[vae]'"
            ) from error
        try:
            config, _ = diffusers.AutoencoderKL.load_config(source, return_unused_kwargs=True)
            kind = config.get("_class_name")
            if kind not in CLASSES:
                raise BadParameter(f"{source!r} is a {kind}, expected one of {', '.join(CLASSES)}")
            net = getattr(diffusers, kind).from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise BadParameter(f"autoencoder {source!r} cannot be loaded: {error}") from error
        self.name = PurePath(source).name
        self._device = device
        self._net: Any = net.eval().requires_grad_(False).to(device)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)
        digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode())
        for name, tensor in sorted(net.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().float().numpy().tobytes())
        self.identity = digest.digest()
        latents = self.encode(np.zeros((PROBE, PROBE, 3), np.uint8))
        self.cell, self.channels = PROBE // latents.shape[0], latents.shape[2]
        self.networks = plain_networks(self.channels)

    @torch.inference_mode()
    def encode(self, pixels: U8) -> F32:
        """See Autoencoder; of a distribution, its mode."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)
        encoded = self._net.encode(x.permute(2, 0, 1)[None].float() / 127.5 - 1)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return to_numpy(((z - self._shift) * self._scale)[0].permute(1, 2, 0).contiguous())

    @torch.inference_mode()
    def decode(self, latents: F32, inner: Box | None = None) -> U8:
        """See Autoencoder."""
        z = torch.from_numpy(np.ascontiguousarray(latents)).to(self._device)[None]
        pixels = to_pixels(self.decode_tensor(z) - 0.5)
        return pixels if inner is None else pixels[inner.scaled(self.cell).slices]

    def decode_tensor(self, latents: Tensor) -> Tensor:
        """See DifferentiableAutoencoder."""
        z = latents.to(self._device).permute(0, 3, 1, 2) / self._scale + self._shift
        out: Tensor = self._net.decode(z).sample.permute(0, 2, 3, 1) / 2 + 0.5
        return out.to(latents.device)
