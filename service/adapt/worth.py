"""What a picture's latents and an update of g_s are worth: real bytes, real 8-bit pixels.

The exact coder rounds what optimisation leaves, and the codec's own g_s paints the pixels, so that
what is compared is what a decoder will have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.codec import container
from service.codec.tiles import Box, latent_box
from service.errors import CheckFailed, RankpressError
from service.picture import Picture
from service.runtime.check import seen_error
from service.runtime.pipeline import Latents, LoadedModel, decode_latents, with_update


@dataclass(frozen=True, eq=False)
class Coded:
    """A picture's latents, coded.

    Attributes:
        tiles: coded bytes of each tile, in storing order. y_hat: what they decode to, [h, w, M].
    """

    tiles: tuple[bytes, ...]
    y_hat: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Measured:
    """A stream, the latents it was made of, and what it is worth.

    Attributes:
        loss: R + lmbda·D, bits per pixel; what alpha hides is no part of D.
    """

    data: bytes
    y_hat: NDArray[np.int16]
    psnr_db: float
    loss: float


def code(
    model: LoadedModel, picture: Picture, latents: Iterable[tuple[Box, Tensor, Tensor]]
) -> Coded:
    """Code latents tile by tile.

    Args:
        model: merged for the rate. picture: that they are of.
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
    return Coded(tuple(tiles), y_hat)


def measure(
    model: LoadedModel,
    picture: Picture,
    lmbda: float,
    stream: container.Stream,
    y_hat: NDArray[np.int16],
) -> Measured:
    """Write a stream, paint its pixels, and say what that is worth.

    Args:
        model: merged for the rate. picture: that the stream is of. lmbda: of the rate.
        y_hat: that the stream's tiles hold.
    """
    latents = Latents(latent_box(picture.width, picture.height), y_hat, 0.0)
    squared = seen_error(with_update(model, stream), picture, latents)
    data = container.write_stream(stream)
    bpp = 8 * len(data) / (picture.width * picture.height)
    loss = bpp + lmbda * squared / picture.rgb.size
    return Measured(data, y_hat, picture.psnr_db(squared), loss)


def prove(model: LoadedModel, found: Measured) -> None:
    """Decode a stream's latents from its bytes. Raises CheckFailed: they are others."""
    try:
        stream = container.read_stream(found.data)
        everything = Box(0, 0, stream.header.height, stream.header.width)
        latents = decode_latents(model, stream, everything)
    except RankpressError as error:
        raise CheckFailed(f"the adapted stream does not decode: {error}") from error
    if not np.array_equal(latents.y_hat, found.y_hat):
        raise CheckFailed("the adapted stream decodes to other latents than were encoded")
