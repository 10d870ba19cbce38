"""Smaller pictures and parts of pictures, with Exif blocks for their pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from service.errors import BadImage
from service.images import exif
from service.images.faults import PILLOW_ERRORS
from service.images.limits import check_exif
from service.images.samples import unless_opaque
from service.images.write import to_pillow
from service.picture import Picture, View


def shrink(picture: Picture, view: View) -> Picture:
    """Return the part of a picture that a view shows, which is given, at the size of the view.

    It is resampled by Lanczos, colours weighted by alpha. The Exif block of a smaller picture, or
    of a part, is rebuilt for the new pixels.
    """
    size = view.fit(picture.width, picture.height)
    if size != (picture.width, picture.height):
        return resample(picture, size)
    return picture if view.region is None else _with_rebuilt_exif(picture)


def resample(
    picture: Picture, size: tuple[int, int], part: tuple[float, float, float, float] | None = None
) -> Picture:
    """Resample as `shrink` does.

    Args:
        picture: to resample. size: width and height of the result.
        part: left, top, right and bottom edge of the part to resample, in pixels of the picture;
            None for the whole of it.
    """
    # Pillow weights LA and RGBA by alpha on its own.
    small = np.asarray(to_pillow(picture).resize(size, Image.Resampling.LANCZOS, part))
    alpha = small[..., -1] if picture.alpha is not None else None
    channels = small if picture.alpha is None else small[..., :-1]
    rgb = np.empty((size[1], size[0], 3), np.uint8)
    rgb[...] = channels.reshape(size[1], size[0], -1)
    return _with_rebuilt_exif(replace(picture, rgb=rgb, alpha=unless_opaque(alpha)))


def _with_rebuilt_exif(picture: Picture) -> Picture:
    if picture.exif is None:
        return picture
    try:
        check_exif(picture.exif)
        block = exif.rebuild(picture.exif, picture.width, picture.height)
    except (BadImage, *PILLOW_ERRORS):
        return replace(picture, exif=None, notes=(*picture.notes, exif.DAMAGED_EXIF))
    return replace(picture, exif=block)
