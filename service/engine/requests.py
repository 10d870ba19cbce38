"""What requests ask for, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.autoencoders import interfaces as autoencoders
from service.autoencoders.interfaces import Autoencoder
from service.codec import container, overfit
from service.codec.lowrank import PARTS
from service.codec.tiles import (
    PATCH,
    SCALES,
    Box,
    latent_box,
    latents_under,
    padded_pixels,
    tile_count,
    work_pixels,
)
from service.engine.target import rate16_of, rate_unavailable
from service.engine.types import LEAST_WORK, Decompressed, StreamBits, Timings
from service.engine.weight_cache import RateKey
from service.errors import BadParameter, MissingExtra, ModelUnavailable, TooManyPixels
from service.images.resize import resample, shrink
from service.picture import U8, Picture, View
from service.runtime.pipeline import (
    Latents,
    LoadedModel,
    alpha_plane,
    decode_latents,
    paint,
    paint_scaled,
    with_update,
)
from service.store.model import StoredModel

SCALED_SPEED = 2
"""How many times as fast decoding at a smaller scale is, at least."""


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """A stream that has been read and checked, and the pixels of it that are asked for.

    Attributes:
        source: the model that made it, resident at its own rate, and the key of the stream's rate;
            None where the graphics layer holds all pixels that are asked for, and for a latent
            stream.
        model: name of the model, or of the autoencoder.
        pixels: of the whole picture that the view shows.
        scale: 1, or one of SCALES: the preview network decodes the picture at 1/scale of its size.
        autoencoder: of a latent stream, None for every other one.
    """

    source: tuple[LoadedModel, RateKey] | None
    model: str
    stream: container.Stream
    pixels: Box
    view: View
    scale: int = 1
    autoencoder: Autoencoder | None = None

    @property
    def group(self) -> object:
        """Equal for streams that can be decoded together; those with a layer are decoded alone.

        So are those that are decoded at a smaller scale.
        """
        if self.source is None or self.stream.graphics is not None or self.scale > 1:
            return id(self)
        header = self.stream.header
        return self.source[1], latent_box(header.width, header.height)

    @property
    def _grey(self) -> bool:
        return bool(self.stream.header.flags & container.Flags.GREY)

    @property
    def _cells(self) -> Box:
        """The pixels that cover the view in the picture of 1/scale the size."""
        return self.pixels.cells(self.scale)

    def decode(self, model: LoadedModel) -> Latents:
        """The stream's latents, given the model at its rate. Raises BadStream: it is damaged."""
        if self.scale == 1 or model.previews is None:
            return decode_latents(model, self.stream, self.pixels)
        return decode_latents(model, self.stream, self.pixels, model.previews.halo)

    def paint(self, model: LoadedModel, latents: Latents) -> U8:
        """The pixels at 1/scale, given the stream's latents and the model at its rate."""
        if self.scale > 1:
            rgb = paint_scaled(model, latents, self._cells, self.scale, self._grey)
            if self.stream.graphics is not None:
                self.stream.graphics.lay_over_scaled(rgb, self._cells, self.scale)
            return rgb
        rgb = paint(with_update(model, self.stream), latents, self.pixels, self._grey)
        if self.stream.graphics is not None:
            self.stream.graphics.lay_over(rgb, self.pixels)
        return rgb

    def decompress_alone(self) -> Decompressed:
        """The picture where no model decodes it. Raises BadStream: its latents are damaged."""
        start = perf_counter()
        if self.autoencoder is None:
            return self.answer(self._paint_layer(), Timings(net_s=perf_counter() - start))
        latents = self._decode_latents(self.autoencoder)
        decoded = perf_counter()
        rgb = autoencoders.paint(self.autoencoder, latents, self.pixels, self._grey)
        return self.answer(rgb, Timings(net_s=perf_counter() - decoded, code_s=decoded - start))

    def _decode_latents(self, autoencoder: Autoencoder) -> NDArray[np.float32]:
        """All latents of a latent stream, [rows, columns, channels]."""
        header, payload = self.stream.header, self.stream.overfit
        assert payload is not None
        rows, columns = (-(-side // autoencoder.cell) for side in (header.height, header.width))
        return overfit.decode_latents(
            payload, rows, columns, autoencoder.channels, autoencoder.networks
        )

    def _paint_layer(self) -> U8:
        """The pixels where the graphics layer holds them all."""
        assert self.stream.graphics is not None
        rgb = np.zeros((self.pixels.height, self.pixels.width, 3), np.uint8)
        self.stream.graphics.lay_over(rgb, self.pixels)
        return rgb

    def answer(self, rgb: U8, timings: Timings) -> Decompressed:
        """The decoded picture, given its pixels."""
        stream = self.stream
        picture = Picture(rgb, self._alpha(), self._grey, stream.icc, stream.exif, _notes(stream))
        if self.scale == 1:
            shown = shrink(picture, self.view)
        else:
            size = self.view.fit(self.pixels.width, self.pixels.height)
            shown = resample(picture, size, self._part())
        return Decompressed(shown, stream.header.rate, self.model, timings, stream.complete)

    def bits_answer(self, latents: Latents | None) -> StreamBits:
        """Where the stream spends its bits, given its latents with theirs, if it has any."""
        stream, box = self.stream, self.stream.header.latents
        bits = np.zeros((box.height, box.width), np.float32)
        if latents is not None:
            assert latents.bits is not None
            bits = latents.bits
        exact = np.zeros(bits.shape, bool) if stream.graphics is None else stream.graphics.marked
        latent_bytes = sum(len(piece) for pieces in stream.tiles for piece in pieces)
        header = stream.header
        return StreamBits(header.width, header.height, header.rate, bits, exact, latent_bytes)

    def _alpha(self) -> U8 | None:
        """Alpha of the pixels at 1/scale: the mean of what each of them covers."""
        header = self.stream.header
        whole = Box(0, 0, header.height, header.width)
        alpha = alpha_plane(self.stream, self._cells.scaled(self.scale).cut(whole))
        if alpha is None or self.scale == 1:
            return alpha
        return np.asarray(Image.fromarray(alpha).reduce(self.scale))

    def _part(self) -> tuple[float, float, float, float]:
        """Edges of the view in its pixels at 1/scale: left, top, right and bottom."""
        cells, pixels = self._cells, self.pixels
        return (
            pixels.left / self.scale - cells.left,
            pixels.top / self.scale - cells.top,
            pixels.right / self.scale - cells.left,
            pixels.bottom / self.scale - cells.top,
        )


def _notes(stream: container.Stream) -> tuple[str, ...]:
    """A sentence on what is missing of a stream that is cut."""
    if stream.complete == 1:
        return ()
    return (f"the stream is cut: {stream.complete:.1%} of its coded picture is there",)


def requested_pixels(width: int, height: int, view: View) -> Box:
    """The pixels of a picture of that size that a view shows. Raises as `View.part`."""
    part = view.part(width, height)
    return Box(part.y, part.x, part.y + part.height, part.x + part.width)


def scale_of(view: View, pixels: Box) -> int:
    """The scale of the smallest picture that is large enough for a view of these pixels; else 1."""
    width, height = view.fit(pixels.width, pixels.height)
    if (width, height) == (pixels.width, pixels.height):
        return 1
    for scale in sorted(SCALES, reverse=True):
        cells = Box(0, 0, pixels.height, pixels.width).cells(scale)
        if width <= cells.width and height <= cells.height:
            return scale
    return 1


def decode_scale(
    model: LoadedModel, view: View, pixels: Box, *, has_layer: bool, has_alpha: bool
) -> int:
    """The scale at which a model decodes a view of these pixels of a stream.

    A layer over a picture with alpha is not shrunk by itself: it is black where alpha hides it, and
    this must not be mixed into what shows.
    """
    whole = model.previews is None or (has_layer and has_alpha)
    return 1 if whole else scale_of(view, pixels)


def decode_work(
    models: Sequence[LoadedModel], info: container.StreamInfo, view: View, pixels: Box
) -> int:
    """Work of decoding these pixels for a view of a stream, in the pixels of `Load`.

    Args:
        models: those that are loaded. The one whose present weights made the stream counts; where
            there is none, the first.
    """
    box, need = latent_box(info.width, info.height), latents_under(pixels)
    if info.method == container.LATENT:  # all latents are decoded, whatever the view
        return work_pixels(box, box, 0)
    base = _source_of(models, info)
    has_layer = "graphics" in dict(info.sections)
    scale = decode_scale(base, view, pixels, has_layer=has_layer, has_alpha=info.has_alpha)
    if scale == 1 or base.previews is None:
        return work_pixels(box, need, base.stored.sizes.halo)
    return max(LEAST_WORK, work_pixels(box, need, base.previews.halo) // SCALED_SPEED)


def _source_of(models: Sequence[LoadedModel], info: container.StreamInfo) -> LoadedModel:
    rate = round(PARTS * info.rate), info.tune
    for model in models:
        stored = model.stored
        if stored.offers(*rate) and stored.identity_at(*rate)[:4].hex() == info.model:
            return model
    return models[0]


def model_index(name: str | None, names: Sequence[str]) -> int:
    """The place of the model that a request names among the names of all; None is the first.

    Raises:
        ModelUnavailable: no model has that name.
    """
    if name is None:
        return 0
    if name not in names:
        raise ModelUnavailable(f"model is {name[:100]!r}, expected one of {', '.join(names)}")
    return names.index(name)


def rate_key(rate: float, tune: str, model: StoredModel) -> RateKey:
    """The key of a rate that was asked for.

    Raises:
        BadParameter: no rate at all, or no such tune. RateUnavailable: no weights for that rate.
    """
    rate16 = rate16_of(rate)
    try:
        return RateKey.of(model, rate16, tune)
    except KeyError:
        check_tune(tune, model)
        raise rate_unavailable(model.name, rate, [r.rate for r in model.ladder(tune)]) from None


def check_tune(tune: str, model: StoredModel) -> None:
    """Raise BadParameter unless the model has a ladder of that name."""
    if tune not in model.tunes:
        available = ", ".join(model.tunes)
        raise BadParameter(f"model {model.name} has no tune {tune!r}, it has {available}")


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


def check_seconds(max_seconds: float | None) -> None:
    """Raise BadParameter for a time limit that is not above 0."""
    if not (max_seconds is None or max_seconds > 0):
        raise BadParameter(f"max_seconds is {max_seconds:g}, expected more than 0")


def check_adaptable(model: LoadedModel) -> None:
    """Raise MissingExtra where a model was loaded without torch, which adapting needs."""
    if model.analysis is None or model.build is None:
        raise MissingExtra("adapting needs torch: pip install 'rankpress[server]'")


def batch_of(work: Hashable, width: int, height: int) -> tuple[Hashable, int, int] | None:
    """Equal for pictures of one padded size and one kind of work.

    None for pictures of several tiles, which are worked on alone.
    """
    box = latent_box(width, height)
    return (work, box.height, box.width) if tile_count(box) == 1 else None
