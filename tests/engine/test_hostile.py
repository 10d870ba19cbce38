"""Every prefix and thousands of byte flips: a picture of the declared size or a BadStream.

Damage is tried as it is (the checksum must see it) and behind a valid checksum (the decoder itself
must stand it), with the plain decoder and with a picture of many tiles.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hostile import MAX_PIXELS, check_any_bytes, check_cut_bytes, sealed
from small_model import photo_like

from service.codec.container import read_stream
from service.engine.engine import Engine
from service.errors import BadStream
from service.picture import Picture, View
from service.runtime.pipeline import LoadedModel

FLIPS = 2000
"""Random changes of one to three bytes behind a valid checksum, for each of two streams."""


@pytest.fixture(scope="module")
def target(decode_only: LoadedModel) -> Engine:
    return Engine((decode_only,), max_pixels=MAX_PIXELS)


@pytest.fixture(params=["one piece", "six pieces", "many tiles"])
def stream(
    request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> bytes:
    """A small stream with every section there is."""
    if request.param == "many tiles":
        monkeypatch.setattr("service.codec.tiles.TILE", 2)
    if request.param == "six pieces":
        monkeypatch.setattr("service.codec.tiles.ONE_PIECE", 0)
    rgb = photo_like(50, 84, 11)
    alpha = np.where(rgb[..., 0] > 128, 255, 0).astype(np.uint8)
    data = engine.compress(Picture(rgb, alpha, icc=b"profile", exif=b"II*\0"), 4).data
    assert len(read_stream(data).tiles) == (6 if request.param == "many tiles" else 1)
    return data


def test_every_prefix_is_refused(target: Engine, stream: bytes) -> None:
    for n in range(len(stream)):
        assert not check_any_bytes(target, stream[:n])


def test_every_prefix_with_a_valid_checksum(target: Engine, stream: bytes) -> None:
    whole = sum(check_any_bytes(target, sealed(stream[:n])) for n in range(len(stream)))
    assert whole >= 1, "the section behind the latents may be missing"


def test_every_prefix_is_a_picture_or_refused_where_it_may_be_cut(
    target: Engine, stream: bytes
) -> None:
    """From the index of the latents on, it is a picture of the whole size."""
    sizes = []
    for n in range(len(stream)):
        with suppress(BadStream):
            decoded = target.decompress(stream[:n], View(partial=True))
            sizes.append((decoded.picture.width, decoded.picture.height))
            assert decoded.complete == 1 or decoded.picture.notes
    assert set(sizes) == {(84, 50)} and len(sizes) > 100


def test_every_flipped_bit_is_refused(target: Engine, stream: bytes) -> None:
    for bit in range(8 * len(stream)):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not check_any_bytes(target, bytes(damaged))
        if bit % 31 == 0:
            check_cut_bytes(target, bytes(damaged))


def test_random_flips_with_a_valid_checksum(target: Engine, stream: bytes) -> None:
    rng = np.random.default_rng(12)
    body = np.frombuffer(stream[:-4], np.uint8)
    pictures = 0
    for _ in range(FLIPS):
        damaged = body.copy()
        at = rng.integers(0, len(body), rng.integers(1, 4))
        damaged[at] ^= rng.integers(1, 256, len(at)).astype(np.uint8)
        pictures += check_any_bytes(target, sealed(damaged.tobytes()))
    assert 0 < pictures < FLIPS


def test_every_value_of_every_header_byte_with_a_valid_checksum(
    target: Engine, stream: bytes
) -> None:
    body = stream[:-4]
    for at in range(16):
        for value in range(256):
            check_any_bytes(target, sealed(body[:at] + bytes([value]) + body[at + 1 :]))


def test_torch_refuses_what_numpy_refuses(
    target: Engine, loaded: LoadedModel, stream: bytes
) -> None:
    with_torch = Engine((loaded,), max_pixels=MAX_PIXELS)
    rng = np.random.default_rng(13)
    body = np.frombuffer(stream[:-4], np.uint8)
    for at in rng.integers(0, len(body), 60):
        damaged = body.copy()
        damaged[at] ^= rng.integers(1, 256)
        data = sealed(damaged.tobytes())
        assert check_any_bytes(with_torch, data) == check_any_bytes(target, data)
