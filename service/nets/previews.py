"""The preview network in torch: small pictures from latents, without the synthesis g_s.

A trunk at 1/16 resolution serves all scales, and a layer for each scale turns its features into
pixels. transforms/synthesis_numpy.py runs the network in numpy.
"""

from __future__ import annotations

from torch import Tensor, nn

from service.codec.tiles import PATCH, SCALES
from service.nets.backbone import Block, Up


class PreviewNetwork(nn.Module):
    """Latents to pictures at every scale."""

    def __init__(self, M: int, channels: int, blocks: int) -> None:
        """Make a network with random weights.

        Args:
            M: channels of the latents. channels: of the trunk. blocks: of the trunk; each sees one
                latent further.
        """
        super().__init__()
        layers = [Block(channels) for _ in range(blocks)]
        self.trunk = nn.Sequential(nn.Linear(M, channels), *layers)
        self.head = nn.ModuleDict({str(s): Up(nn.Linear, channels, 3, PATCH // s) for s in SCALES})

    def forward(self, y_hat: Tensor) -> dict[int, Tensor]:
        """y_hat [B, h, w, M] -> by scale s, x_hat - 0.5 [B, 16h/s, 16w/s, 3]."""
        features = self.trunk(y_hat)
        return {int(s): head(features) for s, head in self.head.items()}
