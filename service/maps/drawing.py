"""Figures of image files and streams: the work of `/maps` and `rankpress maps`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from service.codec.container import MAGIC
from service.codec.sizes import swin_sizes
from service.engine.types import Codec, Load
from service.errors import MissingExtra
from service.images.read import image_size, read_image
from service.maps.attention import draw_attention
from service.maps.bits import StreamMap, draw_bits
from service.maps.figure import SIDE, MapFigure
from service.maps.request import MapRequest
from service.picture import Picture, View

SMALL = View(max_size=SIDE)
"""The picture of a stream as a figure shows it."""

READ_SIDE = 640
"""Pixels along the side of the part of a picture that attention depends on, for two layers."""


def begins_as_stream(data: bytes) -> bool:
    """Whether bytes are a stream rather than an image file, by the first of them."""
    return data.startswith(MAGIC)


@dataclass(frozen=True, eq=False)
class DrawMaps:
    """A figure of an image file or a stream. Calling it does the work.

    Attributes:
        is_stream: whether `data` is a stream.
    """

    codec: Codec
    data: bytes
    is_stream: bool
    request: MapRequest
    max_pixels: int

    def __call__(self) -> MapFigure:
        """Draw the figure.

        Raises:
            BadStream, BadImage, RateUnavailable, TooManyPixels: as `read_image` and `Codec` do.
            BadParameter: the request is not one that can be met.
        """
        begun = time.perf_counter()
        return replace(self._draw(), work_s=time.perf_counter() - begun)

    def _draw(self) -> MapFigure:
        if self.is_stream:
            return self._of_stream()
        if self.request.attention:
            return self._of_attention()
        return self._of_picture()

    def load(self) -> Load:
        """How much work it is, by the header of the file.

        Raises:
            BadStream, TooManyPixels, BadParameter: as calling it does.
        """
        codec, request = self.codec, self.request
        if self.is_stream:
            request.check_stream()
            views = (View(), SMALL)
            return Load(sum(codec.preview_stream(self.data, view).load.pixels for view in views))
        size = image_size(self.data)
        if size is not None and request.attention:
            size = min(size[0], READ_SIDE), min(size[1], READ_SIDE)
        loads = [
            codec.picture_load(size, rate, model=request.model) for rate in request.rates_of(codec)
        ]
        return Load(sum(load.pixels for load in loads))

    def _of_stream(self) -> MapFigure:
        self.request.check_stream()
        spent = self.codec.stream_bits(self.data)
        shown = self.codec.decompress(self.data, SMALL).picture
        return draw_bits(shown, [StreamMap(spent.rate, spent, len(self.data))])

    def _of_picture(self) -> MapFigure:
        picture, maps = self._picture(), []
        for rate in self.request.rates_of(self.codec):
            stream = self.codec.compress(picture, rate, model=self.request.model).data
            maps.append(StreamMap(rate, self.codec.stream_bits(stream), len(stream)))
        return draw_bits(picture, maps)

    def _of_attention(self) -> MapFigure:
        rates, request = self.request.rates_of(self.codec), self.request
        swin_sizes(self.codec.stored_at(rates[0], request.model).sizes)  # before the file is read
        try:
            from service.maps.swin_attention import window_attention
            from service.nets.twin import float_twin
        except ModuleNotFoundError as error:
            raise MissingExtra("attention needs torch: pip install 'rankpress[server]'") from error
        picture = self._picture()
        at, windows = request.position_in(picture.width, picture.height), {}
        for rate in rates:
            twin = float_twin(self.codec.stored_at(rate, request.model))
            windows[rate] = window_attention(twin, picture, at)
        return draw_attention(picture, windows)

    def _picture(self) -> Picture:
        return read_image(self.data, max_pixels=self.max_pixels)
