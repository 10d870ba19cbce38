"""The loss of a picture's latents and an update of g_s, by real bytes and real 8-bit pixels.

The exact coder rounds the optimised latents, and the codec's own g_s makes the pixels, so the
measured stream and picture are those of every decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.codec import container
from service.codec.tiles import Box, latent_box
from service.picture import Picture
from service.runtime.check import check_latents, visible_error
from service.runtime.pipeline import Latents, LoadedModel, with_update


@dataclass(frozen=True, eq=False)
class CodedPicture:
    """A picture's latents, coded.

    Attributes:
        tiles: coded bytes of each tile, in storing order.
        y_hat: that they decode to, [h, w, M] int16, in units of 2^-Y_FRAC.
    """

    tiles: tuple[bytes, ...]
    y_hat: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class MeasuredStream:
    """A stream, the latents that it holds, and its loss.

    Attributes:
        data: the stream. y_hat: [h, w, M] int16, in units of 2^-Y_FRAC.
        psnr_db: PSNR in dB of its 8-bit picture.
        loss: R + lmbda·D in bits per pixel; errors in D are weighted by alpha.
    """

    data: bytes
    y_hat: NDArray[np.int16]
    psnr_db: float
    loss: float


def code_latents(
    model: LoadedModel, picture: Picture, latents: Iterable[tuple[Box, Tensor, Tensor]]
) -> CodedPicture:
    """Code latents tile by tile.

    Args:
        model: merged for the rate. picture: that the latents are of.
        latents: of every tile in storing order: its box, y [h, w, M] and z [h', w', Cz].
    """
    box = latent_box(picture.width, picture.height)
    y_hat = np.empty((box.height, box.width, model.stored.sizes.M), np.int16)
    tiles = []
    for tile, *variables in latents:
        y, z = (v.detach().cpu().numpy()[None] for v in variables)
        result = model.coder.encode(y, z)
        tiles.append(result.data[0])
        y_hat[tile.slices] = result.y_hat[0]
    return CodedPicture(tuple(tiles), y_hat)


def measure_stream(
    model: LoadedModel,
    picture: Picture,
    lmbda: float,
    stream: container.Stream,
    y_hat: NDArray[np.int16],
) -> MeasuredStream:
    """Write a stream, paint its pixels, and measure its loss.

    Args:
        model: merged for the rate. picture: that the stream is of. lmbda: of the rate.
        y_hat: that the stream's tiles hold.
    """
    latents = Latents(latent_box(picture.width, picture.height), y_hat, 0.0)
    squared = visible_error(with_update(model, stream), picture, latents)
    data = container.write_stream(stream)
    bpp = 8 * len(data) / (picture.width * picture.height)
    loss = bpp + lmbda * squared / picture.rgb.size
    return MeasuredStream(data, y_hat, picture.psnr_db(squared), loss)


def check_measured(model: LoadedModel, measured: MeasuredStream) -> None:
    """Decode a stream's latents from its bytes. Raises CheckFailed: they differ."""
    latents = Latents(Box(0, 0, *measured.y_hat.shape[:2]), measured.y_hat, 0.0)
    check_latents(model, measured.data, latents, "the adapted stream")
