"""ICC profiles: what a profile is for, whether it is sRGB by another name, and the way to sRGB.

Profiles are judged by what they do to colours, never by their names. Works by Pillow's LittleCMS.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

Mode = Literal["L", "RGB", "CMYK"]


def space(icc: bytes) -> str:
    """Return the colour space in the profile's header, such as RGB, GRAY or CMYK; "" if broken."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return ""
    return icc[16:20].decode("ascii", "replace").strip()


def to_srgb(icc: bytes, mode: Mode) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from pictures of `mode` in the profile's colours to sRGB.

    Relative colorimetric with black point compensation. None when the profile is damaged.
    """
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    """Return the picture in sRGB, mode RGB."""
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:  # only with inPlace=True
        raise ValueError("the transform returned no picture")
    return converted


def is_srgb(transform: ImageCms.ImageCmsTransform, mode: Literal["L", "RGB"]) -> bool:
    """Whether the transform moves no 8-bit sample by more than one step.

    Tried on all 256 greys, or on a 9x9x9 grid of colours.
    """
    if mode == "L":
        grey = np.arange(256, dtype=np.uint8)[None, :]
        before = np.repeat(grey[..., None], 3, axis=2)
        probe = Image.fromarray(grey)
    else:
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        before = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        probe = Image.fromarray(before)
    after = np.asarray(apply(transform, probe))
    return int(np.abs(after.astype(np.int16) - before.astype(np.int16)).max()) <= 1
