"""The loss of a named stream is the one that adaptation minimises."""

from __future__ import annotations

import numpy as np
import pytest

from service.adapt.measurement import measure_stream
from service.blobs import digest_of
from service.codec import container
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.names.version import NamedStream, mse_of
from service.picture import Picture
from service.runtime.pipeline import LoadedModel, decode_latents


@pytest.mark.parametrize("kind", ["opaque", "grey", "half seen"])
def test_the_loss_is_that_of_adaptation(
    engine: Engine, loaded: LoadedModel, photo: Picture, kind: str
) -> None:
    rgb, alpha = photo.rgb, None
    if kind == "grey":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    if kind == "half seen":
        alpha = np.linspace(0, 255, rgb[..., 0].size).reshape(rgb.shape[:2]).astype(np.uint8)
    picture = Picture(rgb, alpha, grey=kind == "grey")
    made = engine.compress(picture, 4)
    assert made.psnr_db is not None
    named = NamedStream(
        sha256=digest_of(made.data),
        size_bytes=len(made.data),
        width=made.width,
        height=made.height,
        rate=made.rate,
        tune=made.tune,
        mse=mse_of(made.psnr_db),
        visible=picture.visible_share,
    )
    stream = container.read_stream(made.data)
    latents = decode_latents(loaded, stream, Box(0, 0, picture.height, picture.width))
    measured = measure_stream(loaded, picture, 0.013, stream, latents)
    assert named.psnr_db == pytest.approx(measured.psnr_db)
    assert named.loss(0.013) == pytest.approx(measured.loss)
