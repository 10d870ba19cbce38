"""Fresh streams decoded again: is what comes out what went in, and how far is it from the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.engine.pipeline import Latents, LoadedModel, decode_all, painted_windows
from service.errors import SelfTestFailed
from service.picture import Picture, psnr_db, squared_error


def verify(
    model: LoadedModel, made: Sequence[tuple[Picture, bytes, Latents]]
) -> list[float | SelfTestFailed]:
    """Decode fresh streams of one padded size; their PSNR in dB, or that the latents differ."""
    if not made:
        return []
    streams = [container.read_stream(data) for _, data, _ in made]
    first = streams[0].header
    everything = Box(0, 0, first.height, first.width)
    decoded = decode_all(model, streams, everything)
    return [
        psnr_db(seen_error(model, picture, latents), picture.visible_samples)
        if np.array_equal(latents.y_hat, expected.y_hat)
        else SelfTestFailed("the fresh stream decodes to other latents than were encoded")
        for (picture, _, expected), latents in zip(made, decoded, strict=True)
    ]


def seen_error(model: LoadedModel, picture: Picture, latents: Latents) -> float:
    """Sum of squared errors of what latents decode to, see `picture.squared_error`."""
    everything, squared = Box(0, 0, picture.height, picture.width), 0.0
    for box, rgb in painted_windows(model, latents, everything, picture.grey):
        alpha = None if picture.alpha is None else picture.alpha[box.slices]
        squared += squared_error(rgb, picture.rgb[box.slices], alpha)
    return squared
