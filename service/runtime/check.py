"""Fresh streams decoded again: do they hold the latents that went in, and how good are they."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.errors import CheckFailed, RankpressError
from service.picture import Picture, squared_error
from service.runtime.pipeline import (
    Latents,
    LoadedModel,
    decode_all,
    decode_latents,
    painted_windows,
)


def check_stream(model: LoadedModel, picture: Picture, data: bytes, latents: Latents) -> float:
    """PSNR in dB of the 8-bit picture that a fresh stream decodes to.

    Raises:
        CheckFailed: it does not decode to the latents that were encoded.
    """
    check_latents(model, data, latents, "the fresh stream")
    return picture.psnr_db(visible_error(model, picture, latents))


def check_group(
    model: LoadedModel, pictures: Sequence[Picture], encoded: Sequence[tuple[bytes, Latents]]
) -> list[float | CheckFailed]:
    """What `check_stream` returns or raises for each of several streams of one padded size.

    They are decoded together, and one by one where that fails, to find which of them is at fault.
    """
    try:
        streams = [container.read_stream(data) for data, _ in encoded]
        decoded = decode_all(model, streams, _whole(streams[0].header))
    except RankpressError:
        decoded = []
    expected = [latents.y_hat for _, latents in encoded]
    if not decoded or not all(map(np.array_equal, (one.y_hat for one in decoded), expected)):
        return [_check_one(model, p, *one) for p, one in zip(pictures, encoded, strict=True)]
    return [
        picture.psnr_db(visible_error(model, picture, latents))
        for picture, latents in zip(pictures, decoded, strict=True)
    ]


def check_latents(model: LoadedModel, data: bytes, latents: Latents, name: str) -> None:
    """Decode a stream from its bytes and compare its latents; messages call it `name`.

    Raises:
        CheckFailed: it does not decode, or to other latents.
    """
    try:
        stream = container.read_stream(data)
        decoded = decode_latents(model, stream, _whole(stream.header))
    except RankpressError as error:
        raise CheckFailed(f"{name} does not decode: {error}") from error
    if not np.array_equal(decoded.y_hat, latents.y_hat):
        raise CheckFailed(f"{name} decodes to other latents than were encoded")


def visible_error(model: LoadedModel, picture: Picture, latents: Latents) -> float:
    """Sum of squared errors of the picture that latents decode to, see `picture.squared_error`."""
    everything, squared = Box(0, 0, picture.height, picture.width), 0.0
    for box, rgb in painted_windows(model, latents, everything, picture.grey):
        alpha = None if picture.alpha is None else picture.alpha[box.slices]
        squared += squared_error(rgb, picture.rgb[box.slices], alpha)
    return squared


def _check_one(
    model: LoadedModel, picture: Picture, data: bytes, latents: Latents
) -> float | CheckFailed:
    try:
        return check_stream(model, picture, data, latents)
    except CheckFailed as error:
        return error


def _whole(header: container.Header) -> Box:
    """All pixels of a stream's picture."""
    return Box(0, 0, header.height, header.width)
