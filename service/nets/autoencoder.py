"""A small KL autoencoder in torch, whose latents adapt/overfit.py compresses picture by picture.

It has the layers of the backbone (nets/backbone.py) at 1/8 resolution, and no entropy model: the
encoder gives mean and log variance of C channels, and training keeps these close to the normal
distribution. Shapes: x [B, H, W, 3] from -0.5 to 0.5, latents [B, H/8, W/8, C], with H and W
multiples of 8.

Idea: Kingma and Welling, "Auto-Encoding Variational Bayes"; as the first stage of Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models".
"""

from __future__ import annotations

from torch import Tensor, nn

from service.codec.sizes import AUTOENCODER_CELL, AutoencoderSizes
from service.nets.backbone import Block, Down, Linear, Up


class KlAutoencoder(nn.Module):
    """The encoder and the decoder."""

    def __init__(self, sizes: AutoencoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, channels = sizes.width, sizes.channels
        self.encoder = nn.Sequential(
            Down(Linear, 3, width, AUTOENCODER_CELL),
            *(Block(width) for _ in range(sizes.encoder_blocks)),
            Linear(width, 2 * channels),
        )
        self.decoder = nn.Sequential(
            Linear(channels, width),
            *(Block(width) for _ in range(sizes.decoder_blocks)),
            Up(Linear, width, 3, AUTOENCODER_CELL),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x - 0.5 [B, H, W, 3] -> mean and log variance of the latents [B, H/8, W/8, C]."""
        mean, log_variance = self.encoder(x).float().chunk(2, -1)
        return mean, log_variance.clamp(-20, 5)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, h, w, C] -> x_hat - 0.5 [B, 8h, 8w, 3]."""
        out: Tensor = self.decoder(latents)
        return out.float()
