"""The codecs people use instead, through Pillow, at the settings people run and at their best.

A setting is a codec with everything fixed but quality. All of them get the same 8-bit pixels, with
alpha where a picture has it (JPEG gets the picture on white), and no metadata, and their sizes are
those of whole files. JPEG XL needs the Pillow plugin of the
`eval` extra; where it is missing the family is reported as not available.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image, features

from service.errors import BadParameter, MissingExtra
from service.picture import U8, Picture


@dataclass(frozen=True)
class Peer:
    """A codec with everything fixed but quality.

    Attributes:
        name: as in tables and on the command line.
        family: what `--against` selects.
        format: Pillow's name. options: passed to Pillow.
        qualities: what the curve is drawn through, lowest first.
    """

    name: str
    family: str
    format: str
    options: Mapping[str, Any] = field(hash=False)
    qualities: tuple[int, ...]

    def compress(self, picture: Picture, quality: int) -> bytes:
        """The pixels as a whole file."""
        if self.format == "JPEG":
            picture = picture.on_white()
        out = io.BytesIO()
        image = Image.fromarray(picture.samples())
        image.save(out, format=self.format, quality=quality, **self.options)
        return out.getvalue()


_JPEG: Final = {"optimize": True, "progressive": True}
_JPEG_QUALITIES: Final = (30, 45, 60, 70, 80, 87, 92, 96)
_WEBP_QUALITIES: Final = (15, 35, 55, 70, 80, 88, 94, 98)
_AVIF_QUALITIES: Final = (25, 37, 48, 57, 65, 73, 82, 90)
_SLOW_QUALITIES: Final = (35, 50, 65, 80)
_JXL_QUALITIES: Final = (30, 50, 65, 75, 84, 90, 95)

PEERS: Final = (
    Peer("jpeg-420", "jpeg", "JPEG", {**_JPEG, "subsampling": "4:2:0"}, _JPEG_QUALITIES),
    Peer("jpeg-444", "jpeg", "JPEG", {**_JPEG, "subsampling": "4:4:4"}, _JPEG_QUALITIES),
    Peer("webp-m4", "webp", "WEBP", {"method": 4}, _WEBP_QUALITIES),
    Peer("webp-m6", "webp", "WEBP", {"method": 6}, _WEBP_QUALITIES),
    Peer("avif-s6-420", "avif", "AVIF", {"speed": 6, "subsampling": "4:2:0"}, _AVIF_QUALITIES),
    Peer("avif-s6-444", "avif", "AVIF", {"speed": 6, "subsampling": "4:4:4"}, _AVIF_QUALITIES),
    Peer("avif-s2-420", "avif", "AVIF", {"speed": 2, "subsampling": "4:2:0"}, _SLOW_QUALITIES),
    Peer("avif-s2-444", "avif", "AVIF", {"speed": 2, "subsampling": "4:4:4"}, _SLOW_QUALITIES),
    Peer("jxl-e7", "jxl", "JXL", {"effort": 7}, _JXL_QUALITIES),
    Peer("jxl-e9", "jxl", "JXL", {"effort": 9}, _JXL_QUALITIES),
)


def choose(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers of some families ("avif") or of some names ("avif-s6-444").

    Raises:
        BadParameter: no such codec. MissingExtra: it is not installed.
    """
    known = {p.family for p in PEERS} | {p.name for p in PEERS}
    unknown = [n for n in names if n not in known]
    if unknown:
        raise BadParameter(f"no codec {unknown[0]!r}; there are {', '.join(sorted(known))}")
    chosen = tuple(p for p in PEERS if p.name in names or p.family in names)
    for family in {p.family for p in chosen}:
        _check_installed(family)
    return chosen


def named(name: str) -> Peer:
    """The peer of that name. Raises BadParameter."""
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise BadParameter(f"no codec {name!r}")


def decompress(data: bytes) -> U8:
    """What is seen of a peer's file on white, [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        samples = np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    alpha = samples[..., 3] if samples.shape[2] == 4 else None
    return Picture(samples[..., :3], alpha).on_white().rgb


def fit_bytes(peer: Peer, picture: Picture, wanted_bytes: int) -> tuple[int, bytes]:
    """The lowest quality whose file has at least `wanted_bytes`, and that file; at most 100.

    The peer gets the benefit of the last step: its file is never the smaller one.
    """
    low, high = 1, 100
    files: dict[int, bytes] = {}
    while low < high:
        middle = (low + high) // 2
        files[middle] = peer.compress(picture, middle)
        if len(files[middle]) >= wanted_bytes:
            high = middle
        else:
            low = middle + 1
    return low, files.get(low) or peer.compress(picture, low)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that do the peers' work."""
    versions = {"pillow": _version("pillow")}
    for feature in ("webp", "avif"):
        versions[feature] = str(features.version(feature))
    versions["libjpeg-turbo"] = str(features.version("libjpeg_turbo"))
    if importlib.util.find_spec("pillow_jxl"):
        versions["pillow-jxl-plugin"] = _version("pillow-jxl-plugin")
    return versions


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _check_installed(family: str) -> None:
    if family == "jxl":
        if not importlib.util.find_spec("pillow_jxl"):
            raise MissingExtra("JPEG XL needs pip install 'rankpress[eval]'")
        importlib.import_module("pillow_jxl")  # registers itself with Pillow
    elif family in ("webp", "avif") and not features.check(family):
        raise MissingExtra(f"this Pillow was built without {family.upper()}")
