"""A picture as JPEG, WebP or AVIF, to compare with a stream: as good as a size allows, or the
smallest of a quality.

Each format is written as servers of pictures usually do, with 4:2:0 chroma and without metadata.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from PIL import Image

from service.engine.target import Target
from service.engine.target_search import MAX_PSNR_DB
from service.errors import NotAcceptable, TargetUnreachable
from service.images.write import OPAQUE, Effort, WriteLimits, check_fits, save_pillow, to_pillow
from service.picture import U8, Picture, squared_error
from service.runtime.interruption import allow_interruption

PeerFormat = Literal["jpeg", "webp", "avif"]

PEER_EFFORTS: Final[Mapping[PeerFormat, Effort]] = {
    "jpeg": Effort(0.02, 16, {"optimize": True, "subsampling": "4:2:0"}),
    "webp": Effort(0.38, 48, {"method": 4}),
    "avif": Effort(1.8, 44, {"subsampling": "4:2:0", "speed": 6}),
}
"""How each format is written. Costs are measured as in images/write.py, with decoding again."""

BEST: Final = 100
"""The highest quality; the lowest is 1."""

USUAL_ENCODES: Final = 6
"""Times that a search writes the picture, rounded up (on average 5.3 for four photographs)."""

GUESSES: Final = 5
"""Qualities that a search tries before it only halves."""


@dataclass(frozen=True, eq=False)
class PeerFile:
    """An image file of another codec.

    Attributes:
        quality: 1–100, that it was written with.
        psnr_db: of its pixels, inf when exact; errors count as alpha shows them.
        encodes: times that the picture was written to find it.
    """

    data: bytes
    quality: int
    psnr_db: float
    encodes: int


def compare(picture: Picture, format: PeerFormat, target: Target, limits: WriteLimits) -> PeerFile:
    """The file that meets a target best: the largest within a size, the smallest from a PSNR on.

    Sizes and PSNR are taken to rise with the quality. In any case the file meets the target, and
    the file of the next quality would be too large, or that of the quality below not good enough.

    Args:
        picture: without a profile, in sRGB.

    Raises:
        TargetUnreachable: no quality meets the target.
        NotAcceptable: the format cannot hold the picture or its alpha, or not within the limits.
        WorkAbandoned: nobody waits for the result any more.
    """
    check_comparable(format, picture.width, picture.height, limits)
    if picture.alpha is not None and format in OPAQUE:
        raise NotAcceptable(f"{format} has no alpha, and the picture has: compare another format")
    files = _Files(picture, format)
    if target.psnr_db is not None:
        quality = lowest_quality(files.psnr_db, target.psnr_db)
        if quality > BEST:
            best = files.psnr_db(BEST)
            message = f"{format} at quality {BEST} has {best:.3f} dB"
            message += f", target_psnr is {target.psnr_db:g}"
            raise TargetUnreachable(message, best, target.psnr_db)
        return files.file(quality)
    max_bytes = _max_bytes(target, picture)
    quality = lowest_quality(files.log_bytes, math.log(max_bytes + 0.5)) - 1
    if quality < 1:
        smallest = len(files.data(1))
        message = f"{format} at quality 1 has {smallest} bytes, max_bytes is {max_bytes}"
        raise TargetUnreachable(message, smallest, max_bytes)
    return files.file(quality)


def check_comparable(format: PeerFormat, width: int, height: int, limits: WriteLimits) -> None:
    """Raise NotAcceptable for a size that a format cannot hold, or not within the limits."""
    check_fits(format, width, height)
    refusal = limits.refusal_with(PEER_EFFORTS[format], format, width * height)
    if refusal is not None:
        raise NotAcceptable(refusal)


def lowest_quality(value: Callable[[int], float], level: float) -> int:
    """The lowest quality whose value is at least `level`, and BEST + 1 where there is none.

    Values are taken to rise with the quality. The result's value and that of the quality below it
    have been asked for, so both are on the right side of the level in any case.
    """
    low, high = 0, BEST + 1
    values: dict[int, float] = {}
    while high - low > 1:
        quality = (low + high) // 2
        is_curve = low in values and high in values and math.isfinite(values[high])
        if is_curve and len(values) < GUESSES:
            part = (level - values[low]) / (values[high] - values[low])
            quality = min(max(low + round(part * (high - low)), low + 1), high - 1)
        values[quality] = value(quality)
        if values[quality] >= level:
            high = quality
        else:
            low = quality
    return high


def decode_peer(data: bytes) -> U8:
    """The picture in an image file that this program wrote, laid on white, [H, W, 3] uint8."""
    with Image.open(io.BytesIO(data)) as image:
        samples = np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    alpha = samples[..., 3] if samples.shape[2] == 4 else None
    return Picture(samples[..., :3], alpha).on_white().rgb


def _max_bytes(target: Target, picture: Picture) -> int:
    """The bytes that a target of size allows."""
    if target.max_bytes is not None:
        return target.max_bytes
    assert target.bpp is not None  # a target has one of three
    return math.floor(target.bpp * picture.width * picture.height / 8)


@dataclass(eq=False)
class _Files:
    """The files of a picture in one format; each is written, and decoded, at most once."""

    picture: Picture
    format: PeerFormat
    _data: dict[int, bytes] = field(default_factory=dict)
    _psnr: dict[int, float] = field(default_factory=dict)

    def data(self, quality: int) -> bytes:
        """The file of a quality."""
        if quality not in self._data:
            allow_interruption()
            options = {**PEER_EFFORTS[self.format].options, "quality": quality}
            self._data[quality] = save_pillow(to_pillow(self.picture), self.format, options)
        return self._data[quality]

    def log_bytes(self, quality: int) -> float:
        """log of the bytes, which is almost linear in the quality."""
        return math.log(len(self.data(quality)))

    def psnr_db(self, quality: int) -> float:
        """PSNR in dB, at most MAX_PSNR_DB."""
        return min(self._psnr_db(quality), MAX_PSNR_DB)

    def _psnr_db(self, quality: int) -> float:
        if quality not in self._psnr:
            decoded = decode_peer(self.data(quality))
            error = squared_error(self.picture.on_white().rgb, decoded)
            self._psnr[quality] = self.picture.psnr_db(error)
        return self._psnr[quality]

    def file(self, quality: int) -> PeerFile:
        """The file of a quality with what the search for it took."""
        return PeerFile(self.data(quality), quality, self._psnr_db(quality), len(self._data))
