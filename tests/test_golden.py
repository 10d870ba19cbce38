"""Streams of the shipped model decode to the same latents on every machine.

Each NAME.rkp in tests/golden/v1 was compressed by the shipped store from a generated picture
(make_golden.py); NAME.json holds what it must decode to: the sha256 of y_hat (int16, little-endian,
exact on every machine) and of the alpha plane, and NAME.png the float32 pixels. Until 1.0 a new
model or format replaces them; from then on they are never edited, skipped or removed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_model import decode_only

from service.codec import alpha, container
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.engine.self_test import GOLDEN_TOLERANCE
from service.runtime.pipeline import decode_latents
from service.settings import Settings
from service.store.read import load_store

V1 = Path(__file__).parent / "golden" / "v1"
NAMES = sorted(p.stem for p in V1.glob("*.rkp"))


@pytest.fixture(scope="module")
def shipped() -> Engine:
    """The store as it ships, with torch."""
    return open_engine(Settings(device="cpu"))


def test_there_are_golden_streams() -> None:
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_bit_exact_and_alpha_too(name: str) -> None:
    stream = container.read_stream((V1 / f"{name}.rkp").read_bytes())
    expected = json.loads((V1 / f"{name}.json").read_text())
    header = stream.header
    (stored,) = (
        m
        for m in load_store()
        if m.offers(header.rate16, header.tune)
        and m.identity_at(header.rate16, header.tune)[:4] == header.model
    )
    merged = stored.at_rate(header.rate16, header.tune)
    everything = Box(0, 0, header.height, header.width)
    latents = decode_latents(decode_only(merged), stream, everything)
    assert hashlib.sha256(latents.y_hat.astype("<i2").tobytes()).hexdigest() == expected["y_hat"]
    if expected["alpha"] is not None:
        assert stream.alpha is not None
        plane = alpha.unpack(stream.alpha, header.height, header.width)
        assert hashlib.sha256(plane.tobytes()).hexdigest() == expected["alpha"]


@pytest.fixture(scope="module")
def light() -> Engine:
    """The store as it ships, as the base install opens it."""
    return open_engine(Settings(decode_only=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_light_decoder_gives_the_pixels_of_float32(name: str, light: Engine) -> None:
    picture = light.decompress((V1 / f"{name}.rkp").read_bytes()).picture
    with Image.open(V1 / f"{name}.png") as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    off = np.abs(picture.rgb - expected)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_release(name: str, shipped: Engine) -> None:
    picture = shipped.decompress((V1 / f"{name}.rkp").read_bytes()).picture
    with Image.open(V1 / f"{name}.png") as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    assert picture.rgb.shape == expected.shape
    assert np.abs(picture.rgb - expected).max() <= GOLDEN_TOLERANCE
