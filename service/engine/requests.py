"""What requests ask for, checked before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.codec import container
from service.codec.tiles import PATCH, Box, latent_box, padded_pixels, tile_count
from service.engine.types import Decompressed, StreamShape, Timings
from service.errors import BadParameter, RateUnavailable, TooManyPixels
from service.picture import U8, Picture
from service.runtime.pipeline import LoadedModel, alpha_plane
from service.store.model import StoredModel


@dataclass(frozen=True, eq=False)
class Order:
    """A stream to decode, with the model that made it and the pixels that are wanted."""

    base: LoadedModel
    stream: container.Stream
    want: Box

    @property
    def group(self) -> object:
        """Equal for streams that can be decoded together."""
        header = self.stream.header
        return header.model, header.rate16, latent_box(header.width, header.height)

    @property
    def grey(self) -> bool:
        """Whether the picture is grey."""
        return bool(self.stream.header.flags & container.Flags.GREY)

    def decompressed(self, rgb: U8, timings: Timings) -> Decompressed:
        """The answer, given its pixels."""
        stream = self.stream
        alpha = alpha_plane(stream, self.want)
        picture = Picture(rgb, alpha, self.grey, stream.icc, stream.exif)
        return Decompressed(picture, stream.header.rate, self.base.stored.name, timings)


def stream_shape(data: bytes) -> StreamShape:
    """What a stream's header says of its picture.

    Raises:
        BadStream: damaged. UnsupportedStream: needs a newer decoder.
    """
    told = container.describe(data)
    return StreamShape(told.width, told.height, told.has_alpha)


def check_tune(tune: str, model: StoredModel) -> None:
    """Raise BadParameter unless the model has a ladder of that name."""
    if tune not in model.tunes:
        held = ", ".join(model.tunes)
        raise BadParameter(f"model {model.name} has no tune {tune!r}, it has {held}")


def rate16_of(rate: float, tune: str, model: StoredModel) -> int:
    """A rate in sixteenths. Raises BadParameter or RateUnavailable."""
    check_tune(tune, model)
    if not (math.isfinite(rate) and 1 <= rate <= 8):
        raise BadParameter(f"rate is {rate:g}, expected a number from 1 to 8")
    available = tuple(r.rate for r in model.ladder(tune))
    rounded = round(rate * container.RATE_UNIT)
    if not model.offers(rounded, tune):
        listed = ", ".join(f"{r:g}" for r in available)
        held = f"{listed} and what lies between neighbours"
        raise RateUnavailable(f"rate {rate:g} is not in the store; it holds {held}", available)
    return rounded


def check_pixels(limit: int, width: int, height: int, cell: int = PATCH) -> None:
    """Raise TooManyPixels for a picture over the limit, or over what a header can say.

    Sides count as whole cells, because the networks run over whole cells.
    """
    if max(width, height) > container.MAX_SIDE:
        raise TooManyPixels(
            f"the picture is {width}x{height}, a side has at most {container.MAX_SIDE} pixels"
        )
    if padded_pixels(width, height, cell) > limit:
        raise TooManyPixels(
            f"the picture is {width}x{height}, with sides rounded up to {cell}: "
            f"{padded_pixels(width, height, cell)} pixels, the limit is {limit}"
        )


def batch_of(way: str, width: int, height: int) -> tuple[str, int, int] | None:
    """Equal for pictures of one padded size; None for those of several tiles, worked on alone."""
    box = latent_box(width, height)
    return (way, box.height, box.width) if tile_count(box) == 1 else None
