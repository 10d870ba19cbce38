"""Smaller pictures and parts of pictures, with Exif blocks for their pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from service.errors import BadImage, BadParameter
from service.images import exif
from service.images.faults import PILLOW_ERRORS
from service.images.limits import check_exif
from service.images.samples import unless_opaque
from service.images.write import to_pillow
from service.picture import Picture


def shrink(picture: Picture, max_size: int | None, *, is_part: bool = False) -> Picture:
    """Return a picture with its longest side at most `max_size` pixels; it is never enlarged.

    It is resampled by Lanczos, colours weighted by alpha. The Exif block of a smaller picture, or
    of a part, is rebuilt for the new pixels.

    Args:
        picture: as decoded. max_size: in pixels; None keeps the size.
        is_part: whether the picture was cut out of the one that its Exif block describes.

    Raises:
        BadParameter: max_size is below 1.
    """
    if max_size is not None and max_size < 1:
        raise BadParameter(f"max_size is {max_size}, expected at least 1")
    size = size_within(picture.width, picture.height, max_size)
    if size != (picture.width, picture.height):
        return _with_rebuilt_exif(_resample(picture, size))
    return _with_rebuilt_exif(picture) if is_part else picture


def size_within(width: int, height: int, max_size: int | None) -> tuple[int, int]:
    """Return the size of a picture whose longest side is shrunk to at most `max_size` pixels."""
    scale = 1.0 if max_size is None else min(1, max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resample(picture: Picture, size: tuple[int, int]) -> Picture:
    # Pillow weights LA and RGBA by alpha on its own.
    small = np.asarray(to_pillow(picture).resize(size, Image.Resampling.LANCZOS))
    alpha = small[..., -1] if picture.alpha is not None else None
    channels = small if picture.alpha is None else small[..., :-1]
    rgb = np.empty((size[1], size[0], 3), np.uint8)
    rgb[...] = channels.reshape(size[1], size[0], -1)
    return replace(picture, rgb=rgb, alpha=unless_opaque(alpha))


def _with_rebuilt_exif(picture: Picture) -> Picture:
    if picture.exif is None:
        return picture
    try:
        check_exif(picture.exif)
        block = exif.rebuild(picture.exif, picture.width, picture.height)
    except (BadImage, *PILLOW_ERRORS):
        return replace(picture, exif=None, notes=(*picture.notes, exif.DAMAGED_EXIF))
    return replace(picture, exif=block)
