"""Working tile by tile changes nothing but memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from small_model import photo_like

from service.codec.container import read_stream
from service.codec.graphics import Mask
from service.codec.latents import CodedTiles, DecodedTiles
from service.codec.tiles import PATCH, Box, latent_box, tile_count, visible_at_eighth
from service.engine.engine import Engine
from service.picture import Picture, Region, View
from service.runtime.pipeline import LoadedModel, decode_latents, encode, paint

TILE = 4
"""Latents, for these tests: 64 pixels."""
HEIGHT, WIDTH = 150, 213

F32 = NDArray[np.float32]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.codec.tiles.TILE", TILE)


class Spy:
    """A coder that remembers the latents it was given and the tiles it decoded."""

    def __init__(self, model: LoadedModel) -> None:
        self.coder = model.coder
        self.encoded: list[F32] = []
        self.decoded: list[Box] = []

    def encode(self, y: F32, z: F32, skipped: Mask | None = None) -> CodedTiles:
        self.encoded.append(y[0])
        return self.coder.encode(y, z, skipped)

    def decode(self, data: Sequence[bytes], tile: Box, skipped: Mask | None = None) -> DecodedTiles:
        self.decoded.append(tile)
        return self.coder.decode(data, tile, skipped)


@pytest.fixture
def spy(loaded: LoadedModel) -> Spy:
    return Spy(loaded)


@pytest.fixture
def spied(loaded: LoadedModel, spy: Spy) -> LoadedModel:
    return replace(loaded, coder=spy)  # type: ignore[arg-type]


@pytest.fixture
def picture() -> Picture:
    return Picture(photo_like(HEIGHT, WIDTH, 9))


@pytest.fixture
def data(engine: Engine, picture: Picture) -> bytes:
    return engine.compress(picture, 4).data


def test_the_code_is_cut_into_tiles(data: bytes) -> None:
    assert len(read_stream(data).tiles) == tile_count(latent_box(WIDTH, HEIGHT)) == 12


def test_windowed_analysis_equals_that_of_the_whole_picture(
    loaded: LoadedModel, spied: LoadedModel, spy: Spy, picture: Picture
) -> None:
    encode(spied, picture, 64)
    box = latent_box(WIDTH, HEIGHT)
    padded = np.pad(
        picture.rgb,
        ((0, box.height * PATCH - HEIGHT), (0, box.width * PATCH - WIDTH), (0, 0)),
        mode="edge",
    )
    assert loaded.analysis is not None
    whole = loaded.analysis.analyse(padded)
    rows = [np.concatenate(spy.encoded[i : i + 4], 1) for i in range(0, 12, 4)]
    off = np.abs(np.concatenate(rows, 0) - whole).max()
    assert off < 1e-4 * np.abs(whole).max()


def test_windowed_synthesis_equals_that_of_the_whole_picture(
    loaded: LoadedModel, picture: Picture
) -> None:
    """To float error: a pixel on the edge between two 8-bit values may fall either way."""
    _, latents = encode(loaded, picture, 64)
    everything = Box(0, 0, HEIGHT, WIDTH)
    whole = loaded.synthesis.synthesise(latents.y_hat)[:HEIGHT, :WIDTH].astype(int)
    off = np.abs(paint(loaded, latents, everything, False) - whole)
    assert off.max() <= 1 and (off > 0).mean() < 1e-4
    narrow = replace(loaded.stored.sizes, nd16=0, ne16=0)
    assert narrow.halo == loaded.stored.sizes.halo - 1
    cut_off = replace(loaded, stored=replace(loaded.stored, sizes=narrow))
    off = np.abs(paint(cut_off, latents, everything, False) - whole)
    assert (off > 0).mean() > 1e-3, "this test sees a halo that is one latent too narrow"


def test_an_eighth_is_cut_as_wide_as_blocks_see(
    loaded: LoadedModel, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off between 1/16 and 1/8 must not come back as repeated edges."""
    _, latents = encode(loaded, picture, 64)
    box = latents.box
    inner, window = Box(4, 4, 8, 8), Box(2, 2, 10, 10).cut(box)
    whole = loaded.synthesis.synthesise(latents.y_hat)[inner.scaled(PATCH).slices].astype(int)
    y_hat = latents.y_hat[window.slices]
    part = loaded.synthesis.synthesise(y_hat, inner.relative(window))
    assert (np.abs(part - whole) > 0).mean() < 1e-3
    monkeypatch.setattr(
        "service.transforms.synthesis_torch.visible_at_eighth",
        lambda inner, window, blocks: visible_at_eighth(inner, window, blocks - 1),
    )
    part = loaded.synthesis.synthesise(y_hat, inner.relative(window))
    assert (np.abs(part - whole) > 0).mean() > 1e-2, "this test sees a cut that is too narrow"


@pytest.mark.parametrize(
    "region",
    [
        Region(0, 0, WIDTH, HEIGHT),
        Region(0, 0, 1, 1),
        Region(WIDTH - 1, HEIGHT - 1, 1, 1),
        Region(64, 64, 64, 64),
        Region(63, 65, 2, 80),
        Region(97, 16, 90, 1),
        Region(31, 111, 33, 39),
    ],
)
def test_a_region_is_the_crop_of_the_whole_and_needs_only_its_tiles(
    engine: Engine, spied: LoadedModel, spy: Spy, data: bytes, region: Region
) -> None:
    whole = engine.decompress(data).picture.rgb.astype(int)
    part = Engine((spied,)).decompress(data, View(region)).picture.rgb
    x, y, w, h = region.x, region.y, region.width, region.height
    assert part.shape == (h, w, 3)
    assert np.abs(part - whole[y : y + h, x : x + w]).max() <= 1
    halo = spied.stored.sizes.halo
    grid = latent_box(WIDTH, HEIGHT)
    rows = {r // TILE for r in range(y // PATCH - halo, (y + h - 1) // PATCH + halo + 1)
            if 0 <= r < grid.height}  # fmt: skip
    cols = {c // TILE for c in range(x // PATCH - halo, (x + w - 1) // PATCH + halo + 1)
            if 0 <= c < grid.width}  # fmt: skip
    found = sorted((t.top // TILE, t.left // TILE) for t in spy.decoded)
    assert found == sorted((r, c) for r in rows for c in cols)


def test_a_tile_decodes_without_the_others(loaded: LoadedModel, data: bytes) -> None:
    """Damage far away does not reach a region."""
    stream = read_stream(data)
    damaged = replace(stream, tiles=(*stream.tiles[:-1], (b"\1\2\3",)))
    want = Box(0, 0, 16, 16)
    expected = decode_latents(loaded, stream, want)
    found = decode_latents(loaded, damaged, want)
    assert found.box == expected.box == Box(0, 0, TILE, TILE)
    assert np.array_equal(found.y_hat, expected.y_hat)


def test_tiles_decode_to_the_latents_that_were_encoded(
    loaded: LoadedModel, picture: Picture
) -> None:
    made, latents = encode(loaded, picture, 64)
    decoded = decode_latents(loaded, read_stream(made), Box(0, 0, HEIGHT, WIDTH))
    assert decoded.box == latents.box
    assert np.array_equal(decoded.y_hat, latents.y_hat)
