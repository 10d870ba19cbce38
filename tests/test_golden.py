"""Streams of the shipped model decode to the same latents on every machine.

Each NAME.rkp in tests/golden was compressed by the shipped store from a generated picture
(make_golden.py); NAME.json holds what it must decode to: the sha256 of y_hat (int16, little-endian,
exact on every machine; null in a lossless stream) and of the alpha plane, and NAME.png the float32
pixels. Until 1.0 a new model or format replaces them; from then on they are never edited, skipped
or removed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from make_golden import hashes_of
from PIL import Image

from service.codec import container
from service.codec.container import LOSSLESS
from service.codec.graphics import marked_pixels
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.engine.self_test import GOLDEN_TOLERANCE
from service.settings import Settings
from service.store.read import load_store

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(str(p.relative_to(GOLDEN).with_suffix("")) for p in GOLDEN.glob("*/*.rkp"))


@pytest.fixture(scope="module")
def shipped() -> Engine:
    """The store as it ships, with torch."""
    return open_engine(Settings(device="cpu"))


def test_there_are_golden_streams() -> None:
    assert len(NAMES) >= 5
    shares = [container.describe(stream_of(name)).graphics_share for name in NAMES]
    assert any(0 < share < 1 for share in shares) and 0 in shares and 1 in shares


def stream_of(name: str) -> bytes:
    return (GOLDEN / f"{name}.rkp").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_bit_exact_and_alpha_too(name: str) -> None:
    data = stream_of(name)
    header = container.read_stream(data).header
    able = [
        model
        for model in load_store()
        if header.rate == LOSSLESS
        or (
            model.offers(header.rate16, header.tune)
            and model.identity_at(header.rate16, header.tune)[:4] == header.model
        )
    ]
    assert len(able) == 1 or header.rate == LOSSLESS
    assert hashes_of(able[0], data) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def light() -> Engine:
    """The store as it ships, as the base install opens it."""
    return open_engine(Settings(decode_only=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_light_decoder_gives_the_pixels_of_float32(name: str, light: Engine) -> None:
    picture = light.decompress(stream_of(name)).picture
    with Image.open(GOLDEN / f"{name}.png") as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    off = np.abs(picture.rgb - expected)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3
    layer = container.read_stream(stream_of(name)).graphics
    if layer is not None:
        marked = marked_pixels(layer.marked, Box(0, 0, layer.height, layer.width))
        assert not off[marked].any(), "pixels of a layer are exact"


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_release(name: str, shipped: Engine) -> None:
    picture = shipped.decompress(stream_of(name)).picture
    with Image.open(GOLDEN / f"{name}.png") as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    assert picture.rgb.shape == expected.shape
    assert np.abs(picture.rgb - expected).max() <= GOLDEN_TOLERANCE
