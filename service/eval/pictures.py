"""Pictures to measure with: those of a folder, or generated ones, the same on every machine.

Generated pictures have a spectrum like that of photographs, areas with sharp edges, and grain. They
cost about as many bits as a photograph and serve for timing only: rate and quality are measured on
real pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.engine.types import Codec
from service.errors import BadParameter
from service.images import read
from service.picture import U8, Picture

COARSEST: Final = 4
"""Pixels of the shortest side of the coarsest noise."""

LEVELS: Final = 11.0
"""Standard deviation in 8-bit levels of each octave of at least SMOOTH pixels per sample."""

SMOOTH: Final = 3
"""Pixels per sample below which octaves of noise become weaker."""

SHAPES: Final = 48
"""Ellipses and rectangles on a generated picture."""


@dataclass(frozen=True, eq=False)
class NamedPicture:
    """A picture without metadata, and its name: the path in its folder, without suffix."""

    name: str
    picture: Picture

    @cached_property
    def sha256(self) -> str:
        """First 16 hex digits of the SHA-256 of the pixels."""
        rgb, alpha = self.picture.rgb, self.picture.alpha
        digest = hashlib.sha256(rgb.tobytes() + repr(rgb.shape).encode())
        digest.update(b"" if alpha is None else alpha.tobytes())
        return digest.hexdigest()[:16]


def group_of(name: str) -> str:
    """Return the group that a picture's name says: `comic` of `comic-3`, `kodim` of `kodim05`."""
    return name.rpartition("-")[0] or name.rstrip("0123456789")


def decode_on_white(codec: Codec, data: bytes) -> U8:
    """Return the picture of a stream laid on white, [H, W, 3] uint8."""
    return codec.decompress(data).picture.on_white().rgb


def read_folder(folder: Path) -> tuple[NamedPicture, ...]:
    """Return the pictures of a folder, converted to sRGB; see images/read.py.

    Raises:
        BadParameter: the folder holds no picture. BadImage, OSError: one cannot be read.
    """
    pictures = []
    for path, picture in read.read_folder(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        pictures.append(NamedPicture(name, Picture(picture.rgb, picture.alpha)))
    if not pictures:
        raise BadParameter(f"there is no picture in {folder}")
    return tuple(pictures)


def generate(width: int, height: int, seed: int = 0) -> Picture:
    """Generate a picture of a size in pixels; the same seed gives the same pixels."""
    random = np.random.default_rng([seed, width, height])
    luma = _noise(random, width, height, finest=1) + 118.0
    luma += np.asarray(_shapes(random, width, height))
    luma += random.standard_normal(luma.shape, np.float32) * 1.0
    rgb = np.empty((height, width, 3), np.uint8)
    tint = _noise(random, width, height, finest=3) * 0.6
    rgb[..., 0] = np.clip(luma + tint, 0, 255)
    rgb[..., 2] = np.clip(luma - tint, 0, 255)
    luma += _noise(random, width, height, finest=3) * 0.3
    rgb[..., 1] = np.clip(luma, 0, 255)
    return Picture(rgb)


def _noise(
    random: np.random.Generator, width: int, height: int, finest: int
) -> NDArray[np.float32]:
    """Return [H, W] noise: octaves of equal power from SMOOTH pixels a sample up, weaker below."""
    octaves = max(int(np.log2(min(width, height) / COARSEST)), finest)
    plane = np.zeros((1, 1), np.float32)
    for octave in range(octaves, -1, -1):
        size = -(-width >> octave) or 1, -(-height >> octave) or 1
        plane = np.array(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
        if octave >= finest:
            level = np.float32(LEVELS * min(1.0, 2**octave / SMOOTH))
            plane += random.standard_normal(plane.shape, np.float32) * level
    return plane


def _shapes(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw ellipses and rectangles with sharp edges, as an image of offsets to the luma."""
    image = Image.new("F", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(SHAPES):
        x, y = random.uniform(0, width), random.uniform(0, height)
        w, h = random.uniform(0.01, 0.2, 2) * min(width, height)
        level = float(random.uniform(-45, 45))
        if random.random() < 0.5:
            draw.ellipse((x, y, x + w, y + h), fill=level)
        else:
            draw.rectangle((x, y, x + w, y + h / 4), fill=level)
    return image
