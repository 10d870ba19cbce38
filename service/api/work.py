"""One request's work from file bytes to file bytes: what runs in a worker thread.

Plain functions of bytes, without HTTP; nothing here may touch the event loop.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from service.engine.types import Codec, Compressed, Target, Timings
from service.images import Format, Metadata, read_image, shrink, write_image
from service.picture import Region


@dataclass(frozen=True, eq=False)
class Stream:
    """A fresh stream, the hash of its bytes in hex, and what reading the file changed."""

    compressed: Compressed
    sha256: str
    notes: tuple[str, ...]
    read_s: float


@dataclass(frozen=True)
class View:
    """What to show of a stream, and in which file format."""

    format: Format
    region: Region | None
    max_size: int | None
    quality: int | None


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A written image file of `width` x `height` pixels, and how it came about."""

    data: bytes
    width: int
    height: int
    rate: float
    model: str
    timings: Timings
    write_s: float


def compress_file(
    codec: Codec, data: bytes, wanted: float | Target, metadata: Metadata, max_pixels: int
) -> Stream:
    """Read an image file and compress it, at a rate or to a target.

    Raises:
        BadImage, TooManyPixels, RateUnavailable, TargetUnreachable: as `read_image` and `Codec` do.
    """
    begun = time.perf_counter()
    picture = read_image(data, max_pixels=max_pixels, metadata=metadata)
    read_s = time.perf_counter() - begun
    if isinstance(wanted, Target):
        compressed = codec.compress_to(picture, wanted)
    else:
        compressed = codec.compress(picture, wanted)
    digest = hashlib.sha256(compressed.data).hexdigest()
    return Stream(compressed, digest, picture.notes, read_s)


def decompress_file(codec: Codec, data: bytes, view: View) -> ImageFile:
    """Decompress a stream and write it as an image file.

    Raises:
        BadStream, TooManyPixels, BadParameter: as `Codec.decompress` does.
    """
    decoded = codec.decompress(data, view.region)
    begun = time.perf_counter()
    picture = decoded.picture
    if view.max_size is not None:
        picture = shrink(picture, view.max_size)
    written = write_image(picture, view.format, quality=view.quality)
    return ImageFile(
        data=written,
        width=picture.width,
        height=picture.height,
        rate=decoded.rate,
        model=decoded.model,
        timings=decoded.timings,
        write_s=time.perf_counter() - begun,
    )
