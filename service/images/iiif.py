"""The IIIF Image API 3.0: which picture a path names, and the document that describes a picture.

The specification is at https://iiif.io/api/image/3.0/. A path is
`{region}/{size}/{rotation}/{quality}.{format}`. All forms of level 2 are served, and mirroring and
the quality `bitonal` as well; pictures are never enlarged. This module knows no HTTP and decodes
nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from service.errors import BadImagePath, UpscalingUnsupported
from service.images.effects import Effects, Tone
from service.images.write import Format
from service.picture import Region, View

CONTEXT: Final = "http://iiif.io/api/image/3/context.json"
PROFILE: Final = "http://iiif.io/api/image/3/level2.json"

FORMATS: Final[Mapping[str, Format]] = {
    "jpg": "jpeg",
    "png": "png",
    "webp": "webp",
    "avif": "avif",
}
"""File formats by their extension; level 2 asks for the first two."""

QUALITIES: Final[Mapping[str, Tone]] = {
    "default": "color",
    "color": "color",
    "gray": "gray",
    "bitonal": "bitonal",
}

TILE: Final = 1024
"""Side of the tiles that viewers should request, in pixels. To show one, all tiles of the code
that it and the networks' halo touch are entropy decoded, so smaller ones take longer for a pixel:
those of 512 pixels 1.7 times as long at full size, 2.1 at half and 1.8 at a quarter."""

SIZES: Final = (8, 4, 2, 1)
"""Scale factors of the sizes that viewers should request."""

_WHOLE = r"[0-9]{1,9}"
_DECIMAL = r"(?:[0-9]{1,9}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})"
_REGION = re.compile(rf"full|square|{_WHOLE}(?:,{_WHOLE}){{3}}|pct:{_DECIMAL}(?:,{_DECIMAL}){{3}}")
_SIZE = re.compile(rf"\^?(?:max|{_WHOLE},|,{_WHOLE}|!?{_WHOLE},{_WHOLE}|pct:{_DECIMAL})")
_ROTATION = re.compile(rf"!?{_DECIMAL}")


@dataclass(frozen=True)
class SizeLimits:
    """The largest pictures that are served: pixels of the longest side, and of the area."""

    side: int
    area: int

    def allow(self, width: int, height: int) -> bool:
        """Return whether a picture of a size is served."""
        return max(width, height) <= self.side and width * height <= self.area

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Return the size, or if it is not served a smaller one of about the same proportions."""
        if self.allow(width, height):
            return width, height
        scale = min(self.side / max(width, height), math.sqrt(self.area / (width * height)), 1.0)
        return max(1, int(width * scale)), max(1, int(height * scale))


@dataclass(frozen=True)
class ImagePath:
    """A well-formed path; whether a picture has what it names depends on the picture's size."""

    region: str
    size: str
    rotation: str
    quality: str
    format: str

    def __post_init__(self) -> None:
        """Check the syntax.

        Raises:
            BadImagePath: the path is malformed, or names a rotation, quality or format that no
                picture has.
        """
        for name, text, pattern in (
            ("region", self.region, _REGION),
            ("size", self.size, _SIZE),
            ("rotation", self.rotation, _ROTATION),
        ):
            if not pattern.fullmatch(text):
                raise BadImagePath(f"the {name} is {text[:80]!r}, which is malformed")
        if self._degrees not in (0, 90, 180, 270, 360):
            raise BadImagePath(f"the rotation is {self.rotation!r}, expected a multiple of 90")
        for name, text, known in (
            ("quality", self.quality, QUALITIES),
            ("format", self.format, FORMATS),
        ):
            if text not in known:
                raise BadImagePath(f"the {name} is {text[:80]!r}, expected {', '.join(known)}")

    @property
    def effects(self) -> Effects:
        """What is done to the pixels, once they are decoded at their size."""
        turns = int(self._degrees) // 90 % 4
        return Effects(self.rotation.startswith("!"), turns, QUALITIES[self.quality])

    def view(self, width: int, height: int, limits: SizeLimits) -> View:
        """Return the part of a picture of that size to decode, and its size.

        Raises:
            BadImagePath: the region lies outside the picture, or the size is empty, larger than
                the region or than the limits.
            UpscalingUnsupported: the path asks for a picture larger than its region.
        """
        part = self._part(width, height)
        size = self._scaled(part, limits)
        return View(
            region=None if part == Region.of(width, height) else part,
            size=None if size == (part.width, part.height) else size,
        )

    def canonical(self, width: int, height: int, limits: SizeLimits) -> str:
        """Return the one path of all that name this picture. Raises as `view`."""
        view = self.view(width, height, limits)
        part = view.part(width, height)
        most, size = limits.fit(part.width, part.height), view.fit(part.width, part.height)
        region = f"{part.x},{part.y},{part.width},{part.height}" if view.region else "full"
        effects = self.effects
        rotation = f"{'!' if effects.mirrored else ''}{90 * effects.quarter_turns}"
        quality = "default" if effects.tone == "color" else effects.tone
        scaled = "max" if size == most else f"{size[0]},{size[1]}"
        return f"{region}/{scaled}/{rotation}/{quality}.{self.format}"

    @property
    def _degrees(self) -> Fraction:
        return Fraction(self.rotation.removeprefix("!"))

    def _part(self, width: int, height: int) -> Region:
        """The region, cut at the picture's edges."""
        if self.region == "full":
            return Region.of(width, height)
        if self.region == "square":
            side = min(width, height)
            return Region((width - side) // 2, (height - side) // 2, side, side)
        scale_x, scale_y = Fraction(1), Fraction(1)
        if self.region.startswith("pct:"):
            scale_x, scale_y = Fraction(width, 100), Fraction(height, 100)
        x, y, w, h = map(Fraction, self.region.removeprefix("pct:").split(","))
        left, right = _rounded(x * scale_x), min(width, _rounded((x + w) * scale_x))
        top, bottom = _rounded(y * scale_y), min(height, _rounded((y + h) * scale_y))
        if left >= right or top >= bottom:
            raise BadImagePath(
                f"the region {self.region} has no pixels of the picture of {width}x{height}"
            )
        return Region(left, top, right - left, bottom - top)

    def _scaled(self, part: Region, limits: SizeLimits) -> tuple[int, int]:
        """The size that the region is shrunk to."""
        most = limits.fit(part.width, part.height)
        form = self.size.removeprefix("^")
        if form == "max":
            if form != self.size and most == (part.width, part.height):
                raise self._enlarging(part)
            return most
        scales = _scales(form, part, most, confined=form == self.size)
        if 0 in scales:
            raise BadImagePath(f"the size {self.size} is empty")
        if max(scales) > 1:
            raise self._enlarging(part)
        size = max(1, _rounded(part.width * scales[0])), max(1, _rounded(part.height * scales[1]))
        if not limits.allow(*size):
            raise BadImagePath(
                f"the size is {size[0]}x{size[1]}, expected at most {limits.side} pixels a side "
                f"and {limits.area} pixels"
            )
        return size

    def _enlarging(self, part: Region) -> BadImagePath | UpscalingUnsupported:
        """The error of a size that is larger than the region."""
        text = f"the size {self.size} is larger than the region of {part.width}x{part.height}"
        return UpscalingUnsupported(text) if self.size.startswith("^") else BadImagePath(text)


def _scales(
    form: str, part: Region, most: tuple[int, int], *, confined: bool
) -> tuple[Fraction, Fraction]:
    """By what the width and height of a region are multiplied for a form of size other than max.

    Args:
        most: width and height that no confined size exceeds.
        confined: whether `!w,h` is at most the region.
    """
    if form.startswith("pct:"):
        scale = Fraction(form[4:]) / 100
        return scale, scale
    width, height = form.removeprefix("!").split(",")
    across = Fraction(int(width or height), part.width if width else part.height)
    down = Fraction(int(height or width), part.height if height else part.width)
    if not form.startswith("!"):
        return across, down
    scale = min(across, down)
    if confined:
        scale = min(scale, Fraction(most[0], part.width), Fraction(most[1], part.height))
    return scale, scale


def _rounded(number: Fraction) -> int:
    """The nearest whole number; a half is rounded up."""
    return math.floor(number + Fraction(1, 2))


def describe_image(
    identifier: str, width: int, height: int, limits: SizeLimits, *, has_alpha: bool
) -> dict[str, object]:
    """Return the image information document (section 5 of the specification).

    Args:
        identifier: the URL of the picture's service, without a slash at its end.
        width, height: of the picture in pixels.
        limits: of sizes; those that the picture does not reach are left out.
    """
    sizes = dict.fromkeys((-(-width // s), -(-height // s)) for s in SIZES)
    document: dict[str, object] = {
        "@context": CONTEXT,
        "id": identifier,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": width,
        "height": height,
        "sizes": [{"width": w, "height": h} for w, h in sizes if limits.allow(w, h)],
        "tiles": [_tiles(width, height, limits)],
        "extraFormats": ["webp", "avif"],
        "extraQualities": ["color", "gray", "bitonal"],
        "extraFeatures": ["canonicalLinkHeader", "mirroring", "profileLinkHeader"],
    }
    if max(width, height) > limits.side:
        document["maxWidth"] = document["maxHeight"] = limits.side
    if width * height > limits.area:
        document["maxArea"] = limits.area
    if has_alpha:
        document["preferredFormats"] = ["webp", "png"]
    return document


def _tiles(width: int, height: int, limits: SizeLimits) -> dict[str, object]:
    """Square tiles at full size, a half and so on, until one tile shows the whole picture."""
    side = min(TILE, limits.side, math.isqrt(limits.area))
    factors = [1]
    while -(-max(width, height) // factors[-1]) > side:
        factors.append(2 * factors[-1])
    return {"width": side, "scaleFactors": factors}
