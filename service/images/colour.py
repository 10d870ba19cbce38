"""Colour spaces: conversion by ICC profiles, and profiles for spaces given by primaries and curve.

Profiles are judged by what they do to colours, never by their names. Pillow's LittleCMS applies
them. It cannot make profiles of given primaries, so those are written here.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_MOST_TAGS: Final = 100
"""Tags of a profile that LittleCMS reads; it ignores later ones."""

Mode = Literal["L", "RGB", "CMYK"]


def space(icc: bytes) -> str:
    """Return the colour space in a profile's header: RGB, GRAY, CMYK or another; "" if broken."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return ""
    return icc[16:20].decode("ascii", "replace").strip()


def to_srgb(icc: bytes, mode: Mode) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of pictures in a profile's colours to sRGB; None if it is damaged.

    The intent is relative colorimetric with black point compensation.
    """
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(_without_float_tags(icc))),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _without_float_tags(icc: bytes) -> bytes:
    """Return the profile without its transforms in floating point; the integer ones are equivalent.

    The former are lists of any number of steps, each computed for 36,000 colours when a transform
    is built: a profile of 160 kB took 9 seconds (ICC.1:2022, 9.2.17 to 9.2.24 and 10.16).
    """
    if len(icc) < 132:
        return icc
    count = min(int.from_bytes(icc[128:132], "big"), _MOST_TAGS)
    table = bytearray(icc[132 : 132 + 12 * count])
    for place in range(0, len(table), 12):
        if bytes(table[place : place + 3]) in (b"D2B", b"B2D"):
            table[place] |= 0x20  # lower case: an unknown tag, which LittleCMS ignores
    return icc[:132] + table + icc[132 + len(table) :]


def is_srgb(transform: ImageCms.ImageCmsTransform, mode: Literal["L", "RGB"]) -> bool:
    """Return whether a transform changes no grey, or colour of a 9x9x9 grid, by over one step."""
    if mode == "L":
        grey = np.arange(256, dtype=np.uint8)[None, :]
        before = np.repeat(grey[..., None], 3, axis=2)
        probe = Image.fromarray(grey)
    else:
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        before = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        probe = Image.fromarray(before)
    after = np.asarray(transform.apply(probe))
    return int(np.abs(after.astype(np.int16) - before.astype(np.int16)).max()) <= 1


@dataclass(frozen=True)
class TransferCurve:
    """ICC's parametric curve 3, to linear light: (a·x + b)^g where x is at least d, else c·x."""

    g: float
    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0

    def to_srgb(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return encoded samples in [0, 1] recoded by the curve of sRGB, in [0, 1] too."""
        power = np.maximum(self.a * x + self.b, 0) ** self.g
        light = np.clip(np.where(x >= self.d, power, self.c * x), 0, 1)
        return np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)

    @property
    def is_far_from_srgb(self) -> bool:
        """Whether 8-bit samples of this curve are too coarse or too fine in the dark.

        An exponent of 1.8 moves greys by up to 19 steps, one of 2.2 by 9, and one of 2.4 by 13.
        """
        x = np.arange(256) / 255
        return bool(np.abs(self.to_srgb(x) - x).max() * 255 > 15)


SRGB_CURVE: Final = TransferCurve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

Primaries = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

D65: Final = (0.3127, 0.3290)
SRGB_PRIMARIES: Final[Primaries] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_D50_XYZ: Final = np.array([0.9642, 1.0, 0.8249])
_BRADFORD: Final = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_WIDER: Final = -0.1
"""A primary is outside sRGB, beyond rounding, if a linear sRGB component of it is below this."""


@dataclass(frozen=True)
class ColourSpace:
    """An RGB colour space as in video and PNG; primaries and white point are CIE 1931 x and y."""

    curve: TransferCurve
    primaries: Primaries = SRGB_PRIMARIES
    white: tuple[float, float] = D65

    def __post_init__(self) -> None:
        """Raise ValueError unless the primaries span a triangle that contains the white point."""
        points = (*self.primaries, self.white)
        if not all(-0.2 <= x <= 1.2 and 0.0001 <= y <= 1.2 for x, y in points):
            raise ValueError(f"chromaticities are {points}")
        columns = self._columns()
        if abs(np.linalg.det(columns)) < 1e-3:
            raise ValueError(f"primaries {self.primaries} lie on a line")
        if (np.linalg.solve(columns, _xyz(self.white)) <= 0).any():
            raise ValueError(f"white {self.white} lies outside the primaries {self.primaries}")
        if not 0.1 <= self.curve.g <= 10:
            raise ValueError(f"exponent is {self.curve.g:g}")

    @property
    def is_wider(self) -> bool:
        """Whether the space has colours that sRGB does not have."""
        srgb = ColourSpace(SRGB_CURVE)
        return bool((np.linalg.solve(srgb._to_d50(), self._to_d50()) < _WIDER).any())

    def profile(self, grey: bool) -> bytes:
        """Return an ICC profile, version 4, of the space, or of its greys alone."""
        curve = (
            b"para"
            + struct.pack(">I2H", 0, 3, 0)
            + _fixed(self.curve.g, self.curve.a, self.curve.b, self.curve.c, self.curve.d)
        )
        tags = {b"desc": _text("RGB"), b"cprt": _text("CC0"), b"wtpt": _point(_D50_XYZ)}
        if grey:
            return _profile(b"GRAY", {**tags, b"kTRC": curve})
        for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), self._to_d50().T, strict=True):
            tags[name] = _point(xyz)
        return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))

    def _columns(self) -> NDArray[np.float64]:
        return np.stack([_xyz(point) for point in self.primaries], axis=1)

    def _to_d50(self) -> NDArray[np.float64]:
        """Return the matrix [3, 3] from linear RGB to XYZ, adapted to D50 by Bradford's matrix."""
        columns, white = self._columns(), _xyz(self.white)
        matrix = columns * np.linalg.solve(columns, white)
        scale = (_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)
        adapted: NDArray[np.float64] = np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD)
        return adapted @ matrix


def _xyz(point: tuple[float, float]) -> NDArray[np.float64]:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(*values: float) -> bytes:
    """Return numbers as s15Fixed16, with 16 fractional bits."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _point(xyz: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*xyz.tolist())


def _text(words: str) -> bytes:
    """Return a multi-localised text of one language."""
    data = words.encode("utf-16-be")
    return b"mluc" + struct.pack(">3I4s2I", 0, 1, 12, b"enUS", len(data), 28) + data


def _profile(space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """Return a display profile of some tags; equal data are stored once (ICC.1:2010, 7.2, 7.3)."""
    body, table, places = b"", b"", dict[bytes, int]()
    start = 132 + 12 * len(tags)
    for name, data in tags.items():
        if data not in places:
            places[data] = start + len(body)
            body += data + bytes(-len(data) % 4)
        table += name + struct.pack(">2I", places[data], len(data))
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04200000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_D50_XYZ)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
