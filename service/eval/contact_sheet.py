"""A contact sheet: the same crop of a picture by each codec at equal bytes, to be judged by eye.

Peers get at least as many bytes as our stream has (`peer_codecs.fit_bytes`). Crops are shown at
twice their size without smoothing, next to the original, with bytes and PSNR of the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.codec.container import TUNES
from service.engine.comparison import decode_peer
from service.engine.engine import Engine
from service.engine.target import Target
from service.engine.types import Codec
from service.eval import latent_streams
from service.eval.latent_streams import LatentMeasurement
from service.eval.metrics import psnr_db
from service.eval.peer_codecs import fit_bytes, peer_named
from service.eval.pictures import NamedPicture, decode_on_white
from service.picture import U8

CROP: Final = (208, 160)
"""Width and height of a crop, in pixels of the picture."""

SCALE: Final = 2
GAP: Final = 8
LABEL: Final = 22
PEERS: Final = {"avif-s6-420": "AVIF speed 6", "webp-m6": "WebP method 6", "jpeg-420": "JPEG"}
"""Peer codecs and their titles."""

KODAK_CROPS: Final[Mapping[str, tuple[int, int]]] = {
    "kodim04": (200, 290),
    "kodim05": (270, 170),
    "kodim08": (540, 230),
    "kodim19": (30, 480),
    "kodim21": (270, 60),
    "kodim23": (100, 170),
}
"""Left and top of the crops of Kodak pictures: a face, print, a facade, a fence, a lighthouse,
feathers."""


def choose_pictures(pictures: Sequence[NamedPicture], most: int = 6) -> tuple[NamedPicture, ...]:
    """Return the pictures for the sheet: those of KODAK_CROPS, else every n-th of the folder."""
    every_nth = tuple(pictures[:: max(1, len(pictures) // most)])
    return (tuple(p for p in pictures if p.name in KODAK_CROPS) or every_nth)[:most]


def draw_peers_sheet(pictures: Sequence[NamedPicture], codec: Codec, rate: float) -> Image.Image:
    """Draw a row for each picture: our codec, the peers, and the original."""
    return _stack([_peers_row(p, codec, rate) for p in pictures])


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def draw_tunes_sheet(pictures: Sequence[NamedPicture], codec: Codec, rate: float) -> Image.Image:
    """Draw a row for each picture: tune PSNR, tune MS-SSIM, and the original.

    Both tunes get at most the bytes of the larger of their two streams at the rate.
    """
    return _stack([_tunes_row(p, codec, rate) for p in pictures])


def draw_latent_sheet(
    pictures: Sequence[NamedPicture],
    engine: Engine,
    rows: Sequence[LatentMeasurement],
    bpp: float,
) -> Image.Image:
    """Draw a row for each picture: latent streams of about some bits per pixel, peers, original.

    Args:
        rows: of the pictures, in which the quality that takes these bits is looked up. Peers get at
            least as many bytes as the largest latent stream.
    """
    return _stack([_latent_row(p, engine, rows, bpp) for p in pictures])


def _latent_row(
    named: NamedPicture, engine: Engine, rows: Sequence[LatentMeasurement], bpp: float
) -> Image.Image:
    own = [r for r in rows if r.sha256 == named.sha256 and r.setting != latent_streams.CEILING]
    effort = max(r.effort for r in own)
    cells = []
    for codec in dict.fromkeys(r.codec for r in own):
        points = [r for r in own if r.codec == codec and r.effort == effort]
        quality = latent_streams.quality_at(points, bpp)
        name = codec.removeprefix(latent_streams.latent_name(""))
        data = latent_streams.fit(engine, named.picture, name, quality, effort)
        cells.append((f"{name} {quality:.3g}", data, decode_on_white(engine, data)))
    most = max(len(data) for _, data, _ in cells)
    size = named.picture.width, named.picture.height
    for peer in latent_streams.PEERS:
        quality, file = fit_bytes(peer, named.picture, most)
        cells.append((f"{peer.name} {quality}", file, peer.decode(file, size)))
    return _side_by_side(named, cells)


def find_crop(rgb: U8) -> tuple[int, int]:
    """Return left and top of the crop with the most local contrast, on a grid of half crops."""
    luma = rgb.mean(axis=2)
    width, height = _crop_size(rgb)
    detail = np.abs(np.diff(luma, axis=0))[:, :-1] + np.abs(np.diff(luma, axis=1))[:-1]
    lefts = range(0, rgb.shape[1] - width + 1, max(1, width // 2))
    tops = range(0, rgb.shape[0] - height + 1, max(1, height // 2))

    def contrast(place: tuple[int, int]) -> float:
        left, top = place
        return float(detail[top : top + height, left : left + width].mean())

    return max(((left, top) for top in tops for left in lefts), key=contrast)


def _peers_row(named: NamedPicture, codec: Codec, rate: float) -> Image.Image:
    """Draw the crops of a picture side by side: our codec's and the peers'."""
    data = codec.compress(named.picture, rate).data
    cells = [(f"Rankpress rate {rate:g}", data, decode_on_white(codec, data))]
    for name, title in PEERS.items():
        _, file = fit_bytes(peer_named(name), named.picture, len(data))
        cells.append((title, file, decode_peer(file)))
    return _side_by_side(named, cells)


def _tunes_row(named: NamedPicture, codec: Codec, rate: float) -> Image.Image:
    """Draw the crops of a picture side by side, one for each tune."""
    most = max(len(codec.compress(named.picture, rate, tune).data) for tune in TUNES)
    results = [codec.compress(named.picture, Target(max_bytes=most), tune) for tune in TUNES]
    cells = [
        (f"{result.tune} {result.rate:g}", result.data, decode_on_white(codec, result.data))
        for result in results
    ]
    return _side_by_side(named, cells)


def _side_by_side(named: NamedPicture, cells: Sequence[tuple[str, bytes, U8]]) -> Image.Image:
    """Draw the crops of some (title, file, pixels), and then that of the original."""
    original = named.picture.on_white().rgb
    width, height = _crop_size(original)
    left, top = KODAK_CROPS.get(named.name) or find_crop(original)
    shown = [
        (f"{title}: {len(file):,} bytes, {psnr_db(named.picture, rgb):.2f} dB", rgb)
        for title, file, rgb in cells
    ]
    shown.append((f"original {named.name}", original))
    large = (width * SCALE, height * SCALE)
    step = large[0] + GAP
    row = Image.new("RGB", (step * len(shown) + GAP, large[1] + LABEL + GAP), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(15)
    for i, (text, rgb) in enumerate(shown):
        x = GAP + i * step
        crop = Image.fromarray(rgb).crop((left, top, left + width, top + height))
        row.paste(crop.resize(large, Image.Resampling.NEAREST), (x, LABEL))
        draw.text((x, 2), text, fill="black", font=font)
    return row


def _crop_size(rgb: U8) -> tuple[int, int]:
    return min(CROP[0], rgb.shape[1]), min(CROP[1], rgb.shape[0])
