"""Fresh streams decoded again: do they hold the latents that went in, and how good are they."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.codec import container
from service.codec.graphics import marked_pixels, visible_colours
from service.codec.tiles import PATCH, Box, latents_under
from service.errors import CheckFailed, RankpressError
from service.picture import U8, Picture
from service.runtime.graphics_costs import block_sums
from service.runtime.pipeline import (
    Latents,
    LoadedModel,
    decode_all,
    decode_latents,
    painted_windows,
)

BlockErrors = NDArray[np.float64]
"""[ceil(H/16), ceil(W/16)]: the squared errors of each block, weighted as `squared_error` does."""


def check_stream(
    model: LoadedModel, picture: Picture, data: bytes, latents: Latents, measure: bool
) -> BlockErrors | None:
    """The errors of the 8-bit picture that a fresh stream decodes to, where they are measured.

    Raises:
        CheckFailed: it does not decode to the latents that were encoded.
    """
    check_latents(model, data, latents, "the fresh stream")
    return block_errors(model, picture, latents) if measure else None


def check_group(
    model: LoadedModel,
    pictures: Sequence[Picture],
    encoded: Sequence[tuple[bytes, Latents]],
    measure: bool,
) -> list[BlockErrors | CheckFailed | None]:
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
        return [
            _check_one(model, p, *one, measure) for p, one in zip(pictures, encoded, strict=True)
        ]
    return [
        block_errors(model, picture, latents) if measure else None
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


def check_layer(data: bytes, picture: Picture) -> None:
    """Decode the graphics layer of a fresh stream and compare it with the picture.

    Raises:
        CheckFailed: a marked pixel, or the alpha plane in the layer, differs.
    """
    whole = Box(0, 0, picture.height, picture.width)
    layer = container.read_stream(data).graphics
    assert layer is not None
    expected = visible_colours(picture)
    decoded = np.where(marked_pixels(layer.marked, whole)[..., None], np.uint8(0), expected)
    layer.lay_over(decoded, whole)
    same = np.array_equal(decoded, expected)
    if layer.has_alpha and picture.alpha is not None:
        same = same and np.array_equal(layer.alpha_plane(whole), picture.alpha)
    if not same:
        raise CheckFailed("the graphics layer of the fresh stream decodes to other pixels")


def block_errors(model: LoadedModel, picture: Picture, latents: Latents) -> BlockErrors:
    """The errors of the 8-bit picture that latents decode to."""
    out = np.zeros(latents.y_hat.shape[:2])
    whole = Box(0, 0, picture.height, picture.width)
    for window, rgb in painted_windows(model, latents, whole, picture.grey):
        out[latents_under(window).slices] = _errors_in(picture, window, rgb)
    return out


def _errors_in(picture: Picture, window: Box, rgb: U8) -> BlockErrors:
    """The errors of part of a decoded picture, for the blocks under it.

    Args:
        picture: the source. window: place of the part, in pixels; it begins at a block's corner.
        rgb: the decoded part, [window.height, window.width, 3].
    """
    blocks = latents_under(window)
    out = np.empty((blocks.height, blocks.width))
    for row in range(blocks.height):  # all rows together would take much memory
        top = window.top + PATCH * row
        strip = Box(top, window.left, top + PATCH, window.right).cut(window)
        difference = rgb[strip.relative(window).slices] - picture.rgb[strip.slices].astype(int)
        squared = np.square(difference).sum(-1)
        if picture.alpha is not None:
            squared = squared * np.square(picture.alpha[strip.slices] / 255)
        out[row] = block_sums(squared)[0]
    return out


def visible_error(model: LoadedModel, picture: Picture, latents: Latents) -> float:
    """Sum of squared errors of the picture that latents decode to, see `picture.squared_error`."""
    return float(block_errors(model, picture, latents).sum())


def _check_one(
    model: LoadedModel, picture: Picture, data: bytes, latents: Latents, measure: bool
) -> BlockErrors | CheckFailed | None:
    try:
        return check_stream(model, picture, data, latents, measure)
    except CheckFailed as error:
        return error


def _whole(header: container.Header) -> Box:
    """All pixels of a stream's picture."""
    return Box(0, 0, header.height, header.width)
