"""Other codecs to compare with, through Pillow: JPEG, WebP, AVIF and JPEG XL.

Each peer is a codec with all options fixed except the quality, at its usual effort or its best.
All peers get the same 8-bit pixels without metadata, with alpha where a picture has it (JPEG gets
the picture laid on white). Sizes are those of whole files. JPEG XL needs the Pillow plugin of the
`eval` extra.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from PIL import Image, features

from service.engine.comparison import BEST, decode_peer, lowest_quality
from service.errors import BadParameter, MissingExtra
from service.eval import metrics
from service.picture import U8, Picture


@dataclass(frozen=True)
class PeerCodec:
    """A codec with all options fixed except the quality.

    Attributes:
        name: in tables and on the command line.
        format: Pillow's name of it. options: of Pillow's writer.
        qualities: the points of its curve, lowest first.
        divisor: of the picture's sides; a smaller picture is shown at the original's size.
    """

    name: str
    format: str
    options: Mapping[str, Any] = field(hash=False)
    qualities: tuple[int, ...]
    divisor: int = 1

    @property
    def family(self) -> str:
        """The name that selects all peers of a format on the command line."""
        return self.name.partition("-")[0]

    def compress(self, picture: Picture, quality: int) -> bytes:
        """Return a picture as a file of this codec."""
        if self.format == "JPEG":
            picture = picture.on_white()
        out = io.BytesIO()
        image = Image.fromarray(picture.samples())
        if self.divisor > 1:
            width, height = (-(-side // self.divisor) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        image.save(out, format=self.format, quality=quality, **self.options)
        return out.getvalue()

    def decode(self, data: bytes, size: tuple[int, int]) -> U8:
        """Return the picture in such a file, laid on white, of a width and height."""
        rgb = decode_peer(data)
        if self.divisor == 1:
            return rgb
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


_JPEG: Final = {"optimize": True, "progressive": True}
_JPEG_QUALITIES: Final = (30, 45, 60, 70, 80, 87, 92, 96)
_WEBP_QUALITIES: Final = (15, 35, 55, 70, 80, 88, 94, 98)
_AVIF_QUALITIES: Final = (25, 37, 48, 57, 65, 73, 82, 90)
_SLOW_QUALITIES: Final = (35, 50, 65, 80)
_JXL_QUALITIES: Final = (30, 50, 65, 75, 84, 90, 95)

PEERS: Final = (
    PeerCodec("jpeg-420", "JPEG", {**_JPEG, "subsampling": "4:2:0"}, _JPEG_QUALITIES),
    PeerCodec("jpeg-444", "JPEG", {**_JPEG, "subsampling": "4:4:4"}, _JPEG_QUALITIES),
    PeerCodec("webp-m4", "WEBP", {"method": 4}, _WEBP_QUALITIES),
    PeerCodec("webp-m6", "WEBP", {"method": 6}, _WEBP_QUALITIES),
    PeerCodec("avif-s6-420", "AVIF", {"speed": 6, "subsampling": "4:2:0"}, _AVIF_QUALITIES),
    PeerCodec("avif-s6-444", "AVIF", {"speed": 6, "subsampling": "4:4:4"}, _AVIF_QUALITIES),
    PeerCodec("avif-s2-420", "AVIF", {"speed": 2, "subsampling": "4:2:0"}, _SLOW_QUALITIES),
    PeerCodec("avif-s2-444", "AVIF", {"speed": 2, "subsampling": "4:4:4"}, _SLOW_QUALITIES),
    PeerCodec("jxl-e7", "JXL", {"effort": 7}, _JXL_QUALITIES),
    PeerCodec("jxl-e9", "JXL", {"effort": 9}, _JXL_QUALITIES),
)


LOSSLESS_WEBP: Final = PeerCodec("webp-lossless", "WEBP", {"lossless": True}, (80,))
"""WebP that keeps every pixel. Its quality is an effort; 80 is Pillow's default."""


def choose_peers(names: Sequence[str]) -> tuple[PeerCodec, ...]:
    """Return the peers of some families ("avif") or names ("avif-s6-444").

    Raises:
        BadParameter: there is no such peer. MissingExtra: it is not installed.
    """
    known = {p.family for p in PEERS} | {p.name for p in PEERS}
    unknown = [n for n in names if n not in known]
    if unknown:
        raise BadParameter(f"codec is {unknown[0]!r}, expected one of {', '.join(sorted(known))}")
    return installed(tuple(p for p in PEERS if p.name in names or p.family in names))


def installed(peers: tuple[PeerCodec, ...]) -> tuple[PeerCodec, ...]:
    """Return the peers. Raises MissingExtra: files of one cannot be written here."""
    for family in {p.family for p in peers}:
        _check_installed(family)
    return peers


def peer_named(name: str) -> PeerCodec:
    """Return the peer of a name that is in PEERS."""
    return next(peer for peer in PEERS if peer.name == name)


def fit_bytes(peer: PeerCodec, picture: Picture, min_bytes: int) -> tuple[int, bytes]:
    """Return the lowest quality whose file has at least `min_bytes`, and that file.

    Rounding up favours the peer: its file is the smaller one only at quality 100.
    """

    quality = min(lowest_quality(lambda q: len(peer.compress(picture, q)), min_bytes), BEST)
    return quality, peer.compress(picture, quality)


class PeerCurve:
    """Sizes and PSNR of a peer's files of one picture; each quality is encoded at most once."""

    def __init__(self, peer: PeerCodec, picture: Picture) -> None:
        self._peer, self._picture = peer, picture
        self._points: dict[int, tuple[float, int]] = {}

    def at_least(self, min_psnr_db: float) -> tuple[int, bool]:
        """Bytes at the lowest quality that reaches a PSNR, and whether one does.

        Where none does, the bytes are those of quality 100, the least that the PSNR would need.
        PSNR is taken to rise with the quality.
        """
        quality = min(lowest_quality(self._psnr_db, min_psnr_db), BEST)
        psnr_db, size = self._point(quality)
        return size, psnr_db >= min_psnr_db

    def _psnr_db(self, quality: int) -> float:
        return self._point(quality)[0]

    def _point(self, quality: int) -> tuple[float, int]:
        """PSNR in dB and bytes at a quality."""
        if quality not in self._points:
            data = self._peer.compress(self._picture, quality)
            self._points[quality] = metrics.psnr_db(self._picture, decode_peer(data)), len(data)
        return self._points[quality]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries behind the peers."""
    versions = {"pillow": version("pillow")}
    for name, feature in (("webp", "webp"), ("avif", "avif"), ("libjpeg-turbo", "libjpeg_turbo")):
        versions[name] = str(features.version(feature))
    if importlib.util.find_spec("pillow_jxl"):
        versions["pillow-jxl-plugin"] = version("pillow-jxl-plugin")
    return versions


def _check_installed(family: str) -> None:
    if family == "jxl":
        if not importlib.util.find_spec("pillow_jxl"):
            raise MissingExtra("JPEG XL needs pip install 'rankpress[eval]'")
        importlib.import_module("pillow_jxl")  # registers itself with Pillow
    elif family in ("webp", "avif") and not features.check(family):
        raise MissingExtra(f"this Pillow was built without {family.upper()}")
