"""The search for the graphics layer of one picture at one rate.

Layers are compared by bits + lmbda·D over the bytes and 8-bit pixels of real streams, so no stream
is worse than without a layer. A first look (graphics_costs.py) ends the search for photographs
before it costs more than a few percent of a compression. Otherwise up to three streams are
compared: without a layer, with every block marked, and with the blocks marked whose estimated
lossless bits are below the network's bits and error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from service.codec import container, webp
from service.codec.graphics import (
    GraphicsLayer,
    Mask,
    hide,
    make_layer,
    visible_colours,
    write_layer,
)
from service.codec.tiles import PATCH, Box, latent_box, tiles
from service.ms_ssim import ms_ssim
from service.picture import U8, Picture
from service.runtime.check import BlockErrors, block_errors, check_latents, check_layer
from service.runtime.graphics_costs import block_bits, predictable_share
from service.runtime.interruption import allow_interruption
from service.runtime.pipeline import Latents, LoadedModel, encode, lossless_stream, paint

F32 = NDArray[np.float32]

GRAPHIC_SHARE = 0.75
"""Share of a block's pixels that its neighbours predict, from which the block looks graphic."""
GRAPHIC_BLOCKS = 1 / 64
"""Share of blocks that look graphic from which the picture does."""
LEAST_RATIO = 0.4
"""Smallest ratio of lossless bytes to the smaller of a quick encoding and the estimate (0.47 to 3.5
in pictures of many kinds)."""
SAMPLE_SIDE = 192
"""Pixels along the side of the middle, which stands for a picture without graphic blocks."""
SAMPLE_MARGIN = 0.6
"""How many bits the whole may take, in units of what its middle promises."""
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on estimated lossless bits that are tried, because the estimate is crude."""
BORDER_BITS = 16.0
"""Bits that an edge between a marked and an unmarked block costs: latents next to the layer are
predicted worse (measured on screenshots: 10 to 30)."""
SWEEPS = 6
"""Times that all blocks are decided again, given their neighbours."""
LARGEST_COST = 4
"""Largest bits and lmbda·D of a plain stream, in units of its bits (dithered pictures: 3.3)."""
MS_SSIM_PIXELS = 2**22
"""Pixels of the largest picture whose MS-SSIM is computed, which takes 40 bytes a pixel."""
LMBDA_RATIO = 2000.0
"""Weight of 1 - MS-SSIM in units of that of squared errors, on average over the rates."""
LEAST_GAIN = 0.02
"""Estimated gain below which a layer over part of the picture is not tried."""


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A stream and what it holds.

    Attributes:
        data: the stream. latents: None where the layer holds every pixel.
        layer: None without one. errors: of the decoded picture; None where it was not measured.
        under: colours that the networks saw under a layer over part of the picture, [H, W, 3].
    """

    data: bytes
    latents: Latents | None
    layer: GraphicsLayer | None = None
    errors: BlockErrors | None = None
    under: U8 | None = None

    def psnr_db(self, picture: Picture) -> float | None:
        """PSNR in dB, None where it was not measured; the picture is the source."""
        return None if self.errors is None else picture.psnr_db(float(self.errors.sum()))


@dataclass(frozen=True)
class SearchRate:
    """The rate of a search.

    Attributes:
        rate16: in sixteenths. tune: its ladder.
        lmbda: weight of the error in that ladder's loss: of squared errors, or of 1 - MS-SSIM.
        check: whether fresh streams are decoded again and compared.
    """

    rate16: int
    tune: str
    lmbda: float
    check: bool

    def squared_bits(self, errors: BlockErrors) -> float:
        """lmbda·D in bits by squared error; on the MS-SSIM ladder this is a rough measure."""
        lmbda = self.lmbda if self.tune == container.PSNR else self.lmbda / LMBDA_RATIO
        return lmbda / 3 * float(errors.sum())


class GraphicsSearch:
    """Proposes layers for one picture; what does not depend on the rate is computed once."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def looks_graphic(self, plain_bits: float) -> bool:
        """Whether a layer may pay.

        Args:
            plain_bits: bits and lmbda·D of the picture without a layer.
        """
        if self._has_graphic_blocks:
            return True
        if SAMPLE_MARGIN * LEAST_RATIO * self._quick_sample_bits >= plain_bits:
            return False
        return SAMPLE_MARGIN * self._lossless_sample_bits < plain_bits

    @cached_property
    def complete(self) -> GraphicsLayer:
        """The layer that marks every block."""
        box = latent_box(self.picture.width, self.picture.height)
        marked = np.ones((box.height, box.width), np.bool_)
        return make_layer(self.picture, marked)

    def complete_may_pay(self, plain_bits: float) -> bool:
        """Whether the layer that marks every block may pay; `plain_bits` as of `looks_graphic`."""
        smallest = min(8 * self._quick_bytes, float(self._lossless_bits.sum()))
        return LEAST_RATIO * smallest < plain_bits

    def partial(self, neural_bits: F32, limit_bits: float) -> GraphicsLayer | None:
        """The layer over part of the picture that promises most; None where none promises enough.

        Args:
            neural_bits: bits and lmbda·D of each block without a layer.
            limit_bits: bits and lmbda·D of the best stream so far.
        """
        proposals = []
        for scale in SCALES:
            gains = neural_bits - scale * self._lossless_bits
            marked = mark_blocks(gains)
            if gains[marked].sum() > LEAST_GAIN * limit_bits and not marked.all():
                allow_interruption()
                layer = make_layer(self.picture, marked, webp.FAST)
                bits = 8 * len(write_layer(layer)) + float(neural_bits[~marked].sum())
                proposals.append((bits, marked))
        bits, best = min(proposals, key=itemgetter(0), default=(math.inf, None))
        if best is None or bits > (1 - LEAST_GAIN) * limit_bits:
            return None
        return make_layer(self.picture, best)

    @cached_property
    def _has_graphic_blocks(self) -> bool:
        shares = predictable_share(self._rgb)
        return bool((shares >= GRAPHIC_SHARE).mean() >= GRAPHIC_BLOCKS)

    @cached_property
    def _quick_sample_bits(self) -> float:
        """Bits of a quick encoding, if all of the picture is like its middle."""
        return self._sample_bits(webp.QUICK)

    @cached_property
    def _lossless_sample_bits(self) -> float:
        """Bits of a usual encoding, if all of the picture is like its middle."""
        return self._sample_bits(webp.FAST)

    def _sample_bits(self, effort: webp.Effort) -> float:
        rgb, side = self._rgb, SAMPLE_SIDE
        top, left = (max(0, length - side) // 2 for length in rgb.shape[:2])
        middle = rgb[top : top + side, left : left + side].copy()
        return 8 * len(webp.encode(middle, effort)) * rgb.size / middle.size

    @cached_property
    def _quick_bytes(self) -> int:
        """Bytes of the colours, coded quickly without loss, tile by tile."""
        whole = Box(0, 0, self.picture.height, self.picture.width)
        boxes = tiles(latent_box(whole.width, whole.height))
        parts = (self._rgb[box.scaled(PATCH).cut(whole).slices] for box in boxes)
        return sum(len(webp.encode(np.ascontiguousarray(part), webp.QUICK)) for part in parts)

    @cached_property
    def _lossless_bits(self) -> F32:
        """Estimated bits of each block without loss, in sum at most those of the quick encoding."""
        bits = block_bits(self._rgb)
        return bits * min(np.float32(1), np.float32(8 * self._quick_bytes / (bits.sum() + 1)))

    @cached_property
    def _rgb(self) -> U8:
        return visible_colours(self.picture)


def mark_blocks(gain_bits: F32) -> Mask:
    """Mark blocks so that their gains, less BORDER_BITS for each edge of the marked area, are high.

    Every other block is decided in turn, given its four neighbours, as on a chequerboard (iterated
    conditional modes: Besag 1986).

    Args:
        gain_bits: [h, w], bits that marking each block saves.
    """
    marked = gain_bits > 0
    rows, columns = np.indices(marked.shape)
    colour = (rows + columns) % 2
    for sweep in range(2 * SWEEPS):
        sides = np.pad(2 * marked.astype(np.float32) - 1, 1)
        neighbours = sides[:-2, 1:-1] + sides[2:, 1:-1] + sides[1:-1, :-2] + sides[1:-1, 2:]
        decided = gain_bits + BORDER_BITS * neighbours > 0
        marked = np.where(colour == sweep % 2, decided, marked)
    return marked


def encode_lossless(search: GraphicsSearch, check: bool) -> EncodedPicture:
    """The stream that holds every pixel of the search's picture exactly.

    Raises:
        CheckFailed: `check` is set, and it does not.
    """
    data = container.write_stream(lossless_stream(search.picture, search.complete))
    if check:
        check_layer(data, search.picture)
    return EncodedPicture(data, None, search.complete, np.zeros(search.complete.marked.shape))


def encode_best(
    model: LoadedModel, plain: EncodedPicture, search: GraphicsSearch, rate: SearchRate
) -> EncodedPicture:
    """The stream of lowest bits + lmbda·D, with or without a layer.

    Args:
        model: merged for the rate. plain: fresh, without a layer.
        search: for layers of the picture that it holds. rate: see SearchRate.

    Raises:
        CheckFailed: a fresh stream with a layer does not decode to what was encoded.
    """
    assert plain.latents is not None and plain.latents.bits is not None
    picture, bits, errors = search.picture, 8 * len(plain.data), plain.errors
    largest = LARGEST_COST * bits if errors is None else bits + rate.squared_bits(errors)
    if not search.looks_graphic(largest):
        return plain
    if errors is None:
        errors = block_errors(model, picture, plain.latents)
    best = replace(plain, errors=errors)
    distortion = distortion_bits(model, picture, best, rate)
    limit_bits = bits + distortion
    if not search.looks_graphic(limit_bits):
        return best
    allow_interruption()
    if search.complete_may_pay(limit_bits):
        lossless = encode_lossless(search, rate.check)
        if 8 * len(lossless.data) < limit_bits:
            best, limit_bits = lossless, 8 * len(lossless.data)
    weighted = distortion / max(float(errors.sum()), 1.0) * errors
    layer = search.partial(plain.latents.bits + weighted.astype(np.float32), limit_bits)
    if layer is None:
        return best
    part = _encode_beneath(model, picture, layer, rate)
    if 8 * len(part.data) + distortion_bits(model, picture, part, rate) >= limit_bits:
        return best
    if rate.check and part.latents is not None:
        check_latents(model, part.data, part.latents, "the fresh stream")
        check_layer(part.data, picture)
    return part


def _encode_beneath(
    model: LoadedModel, picture: Picture, layer: GraphicsLayer, rate: SearchRate
) -> EncodedPicture:
    """The stream with a layer over part of the picture.

    The picture is coded twice. At first the networks see smooth colours under the layer, then what
    decoders would see there without it: so the latents next to the layer fit the means that stand
    for those under it. On screenshots that saves 0 to 4 % of bits + lmbda·D, and halves the errors
    along the edges.
    """
    whole = Box(0, 0, picture.height, picture.width)
    _, latents = encode(model, picture, rate.rate16, rate.tune, layer)
    under = paint(model, latents, whole, picture.grey)
    allow_interruption()
    data, latents = encode(model, picture, rate.rate16, rate.tune, layer, under)
    errors = block_errors(model, hide(picture, layer.marked), latents)
    return EncodedPicture(data, latents, layer, errors, under)


def distortion_bits(
    model: LoadedModel, picture: Picture, encoded: EncodedPicture, rate: SearchRate
) -> float:
    """lmbda·D of a stream in bits of the whole picture, by the measure of the rate's ladder.

    Pictures with a side below MS_SSIM_SIDE, whose MS-SSIM is not defined, and pictures over
    MS_SSIM_PIXELS count by squared error on both ladders.

    Args:
        model: merged for the rate. picture: the source. encoded: its stream, with errors measured.
    """
    assert encoded.errors is not None
    pixels = picture.width * picture.height
    if rate.tune == container.PSNR or pixels > MS_SSIM_PIXELS:
        return rate.squared_bits(encoded.errors)
    similarity = ms_ssim(picture.on_white().rgb, _decoded_on_white(model, picture, encoded))
    if similarity is None:
        return rate.squared_bits(encoded.errors)
    return rate.lmbda * (1 - similarity) * pixels


def _decoded_on_white(model: LoadedModel, picture: Picture, encoded: EncodedPicture) -> U8:
    """The decoded picture laid on white, [H, W, 3]."""
    assert encoded.latents is not None
    whole = Box(0, 0, picture.height, picture.width)
    rgb = paint(model, encoded.latents, whole, picture.grey)
    if encoded.layer is not None:
        encoded.layer.lay_over(rgb, whole)
    return replace(picture, rgb=rgb).on_white().rgb
