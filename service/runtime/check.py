"""Fresh streams decoded again: is what comes out what went in, and how far is it from the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.errors import CheckFailed, RankpressError
from service.picture import Picture, squared_error
from service.runtime.pipeline import Latents, LoadedModel, decode_all, painted_windows


def verify(
    model: LoadedModel, made: Sequence[tuple[Picture, bytes, Latents]]
) -> list[float | CheckFailed]:
    """Decode fresh streams of one padded size; their PSNR in dB, or why one failed.

    Streams are decoded together, and one by one where that fails, so that only the one fails that
    is at fault.
    """
    if not made:
        return []
    try:
        decoded = _decode([data for _, data, _ in made], model)
    except RankpressError as error:
        if len(made) > 1:
            return [result for one in made for result in verify(model, [one])]
        return [CheckFailed(f"the fresh stream does not decode: {error}")]
    return [
        picture.psnr_db(seen_error(model, picture, latents))
        if np.array_equal(latents.y_hat, expected.y_hat)
        else CheckFailed("the fresh stream decodes to other latents than were encoded")
        for (picture, _, expected), latents in zip(made, decoded, strict=True)
    ]


def _decode(fresh: Sequence[bytes], model: LoadedModel) -> list[Latents]:
    """The latents of whole streams of one padded size. Raises RankpressError."""
    streams = [container.read_stream(data) for data in fresh]
    header = streams[0].header
    return decode_all(model, streams, Box(0, 0, header.height, header.width))


def seen_error(model: LoadedModel, picture: Picture, latents: Latents) -> float:
    """Sum of squared errors of what latents decode to, see `picture.squared_error`."""
    everything, squared = Box(0, 0, picture.height, picture.width), 0.0
    for box, rgb in painted_windows(model, latents, everything, picture.grey):
        alpha = None if picture.alpha is None else picture.alpha[box.slices]
        squared += squared_error(rgb, picture.rgb[box.slices], alpha)
    return squared
