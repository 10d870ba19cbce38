"""Peer codecs: each writes readable files of its format that grow with the quality."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from service.engine.comparison import decode_peer
from service.errors import BadParameter
from service.eval.metrics import psnr_db
from service.eval.peer_codecs import (
    LOSSLESS_WEBP,
    PEERS,
    PeerCodec,
    PeerCurve,
    choose_peers,
    fit_bytes,
    peer_named,
)
from service.eval.pictures import generate
from service.picture import Picture

PICTURE = generate(48, 40)
IDS = [p.name for p in PEERS]

choose_peers(["jxl"])  # registers the plugin


@pytest.mark.parametrize("peer", PEERS, ids=IDS)
def test_every_setting_makes_a_file_of_its_format_with_the_same_pixels_inside(
    peer: PeerCodec,
) -> None:
    data = peer.compress(PICTURE, 90)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == peer.format
        assert np.array_equal(np.array(image.convert("RGB")), decode_peer(data))
    assert psnr_db(PICTURE, decode_peer(data)) > 28


@pytest.mark.parametrize("peer", PEERS, ids=IDS)
def test_qualities_rise_and_so_do_bytes_and_psnr(peer: PeerCodec) -> None:
    assert list(peer.qualities) == sorted(peer.qualities)
    first, last = (peer.compress(PICTURE, q) for q in (peer.qualities[0], peer.qualities[-1]))
    assert len(first) < len(last)
    assert psnr_db(PICTURE, decode_peer(first)) < psnr_db(PICTURE, decode_peer(last))


@pytest.mark.parametrize("peer", PEERS, ids=IDS)
def test_alpha_is_kept_where_the_format_has_it_and_else_the_picture_is_on_white(
    peer: PeerCodec,
) -> None:
    alpha = np.zeros((40, 48), np.uint8)
    alpha[:, :24] = 255
    picture = Picture(PICTURE.rgb, alpha)
    data = peer.compress(picture, 90)
    with Image.open(io.BytesIO(data)) as image:
        assert image.has_transparency_data == (peer.family != "jpeg")
    assert decode_peer(data)[:, 40:].min() > 250
    assert psnr_db(picture, decode_peer(data)) > 28


def test_444_keeps_the_colours_that_420_halves() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    striped = Picture(stripes)
    for family in ("jpeg-{}", "avif-s6-{}"):
        peers = (peer_named(family.format(subsampling)) for subsampling in (420, 444))
        half, full = (psnr_db(striped, decode_peer(peer.compress(striped, 95))) for peer in peers)
        assert full > half + 5


def test_fitting_gives_the_lowest_quality_with_enough_bytes() -> None:
    peer = peer_named("webp-m4")
    sizes = {q: len(peer.compress(PICTURE, q)) for q in range(1, 101)}
    min_bytes = (sizes[40] + sizes[60]) // 2
    quality, data = fit_bytes(peer, PICTURE, min_bytes)
    assert len(data) == sizes[quality] >= min_bytes
    assert sizes[quality - 1] < min_bytes
    assert fit_bytes(peer, PICTURE, 10**9)[0] == 100


def test_a_curve_finds_a_quality_that_reaches_a_psnr_and_encodes_none_twice() -> None:
    class Counting(PeerCodec):
        def compress(self, picture: Picture, quality: int) -> bytes:
            qualities.append(quality)
            return super().compress(picture, quality)

    qualities: list[int] = []
    webp = peer_named("webp-m4")
    curve = PeerCurve(Counting(webp.name, webp.format, webp.options, webp.qualities), PICTURE)
    files = [webp.compress(PICTURE, quality) for quality in range(1, 101)]
    psnrs = [psnr_db(PICTURE, decode_peer(data)) for data in files]
    for min_db in (psnrs[40], psnrs[70], psnrs[95]):
        size, reaches = curve.at_least(min_db)
        crossings = [q for q in range(1, 100) if psnrs[q - 1] < min_db <= psnrs[q]]
        assert reaches and size in [len(files[q]) for q in crossings]
    assert curve.at_least(math.inf) == (len(files[-1]), False)
    assert curve.at_least(0.0) == (len(files[0]), True)
    assert len(set(qualities)) == len(qualities) < 35


def test_lossless_webp_keeps_every_pixel() -> None:
    (effort,) = LOSSLESS_WEBP.qualities
    assert np.array_equal(decode_peer(LOSSLESS_WEBP.compress(PICTURE, effort)), PICTURE.rgb)


def test_families_and_names_choose_and_others_are_refused_by_name() -> None:
    assert {p.name for p in choose_peers(["webp", "avif-s6-444"])} == {
        "webp-m4", "webp-m6", "avif-s6-444",
    }  # fmt: skip
    with pytest.raises(BadParameter, match="'mp3'"):
        choose_peers(["webp", "mp3"])
