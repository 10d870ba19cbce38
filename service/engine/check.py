"""Fresh streams decoded again: is what comes out what went in, and how far is it from the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.engine.pipeline import Latents, LoadedModel, decode_all, painted_windows
from service.errors import SelfTestFailed
from service.picture import Picture


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
        _psnr_db(model, picture, latents)
        if np.array_equal(latents.y_hat, expected.y_hat)
        else SelfTestFailed("the fresh stream decodes to other latents than were encoded")
        for (picture, _, expected), latents in zip(made, decoded, strict=True)
    ]


def _psnr_db(model: LoadedModel, picture: Picture, latents: Latents) -> float:
    everything = Box(0, 0, picture.height, picture.width)
    squared = 0
    for box, rgb in painted_windows(model, latents, everything, picture.grey):
        difference = np.subtract(rgb, picture.rgb[box.slices], dtype=np.int16)
        squared += int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))
    mse = squared / picture.rgb.size
    return 10 * math.log10(255**2 / mse) if mse else math.inf
