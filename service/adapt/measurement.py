"""The loss of a picture's latents and an update of g_s, by real bytes and real 8-bit pixels.

The exact coder rounds the optimised latents, and the codec's own g_s makes the pixels, so the
measured stream and picture are those of every decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from service.codec import container
from service.codec.graphics import GraphicsLayer, hide
from service.codec.tiles import Box, Pieces, latent_box
from service.picture import Picture
from service.runtime.check import visible_error
from service.runtime.pipeline import Latents, LoadedModel, marked_in, with_update


@dataclass(frozen=True, eq=False)
class MeasuredStream:
    """A stream, the latents that it holds, and its loss.

    Attributes:
        psnr_db: PSNR in dB of the 8-bit picture.
        loss: R + lmbda·D in bits per pixel; errors in D are weighted by alpha.
    """

    data: bytes
    latents: Latents
    psnr_db: float
    loss: float


def code_latents(
    model: LoadedModel,
    picture: Picture,
    variables: Iterable[tuple[Box, Tensor, Tensor]],
    layer: GraphicsLayer | None,
) -> tuple[tuple[Pieces, ...], Latents]:
    """Code latents of a picture; returns the pieces of each tile and the latents that they hold.

    Args:
        variables: of every tile in storing order: its box, y [h, w, M] and z [h', w', Cz].
        layer: whose latents are not coded.
    """
    box = latent_box(picture.width, picture.height)
    y_hat = np.empty((box.height, box.width, model.stored.sizes.M), np.int16)
    tiles = []
    for tile, *tensors in variables:
        y, z = (v.detach().cpu().numpy()[None] for v in tensors)
        result = model.coder.encode(y, z, marked_in(layer, tile))
        tiles.append(result.data[0])
        y_hat[tile.slices] = result.y_hat[0]
    return tuple(tiles), Latents(box, y_hat, 0.0)


def measure_stream(
    model: LoadedModel, picture: Picture, lmbda: float, stream: container.Stream, latents: Latents
) -> MeasuredStream:
    """Write a stream whose tiles hold latents, paint its pixels, and measure its loss."""
    layer = stream.graphics
    neural = picture if layer is None else hide(picture, layer.marked)
    squared = visible_error(with_update(model, stream), neural, latents)
    data = container.write_stream(stream)
    bpp = 8 * len(data) / (picture.width * picture.height)
    loss = bpp + lmbda * squared / picture.rgb.size
    return MeasuredStream(data, latents, picture.psnr_db(squared), loss)
