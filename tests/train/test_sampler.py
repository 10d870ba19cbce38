"""Crops are windows of tiles, reduced as Pillow would reduce them, in the shares asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import photo_like
from torch import Tensor

from service.errors import BadParameter
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler, Source
from service.train.world import World

SIDE = 160
TILES = torch.from_numpy(np.stack([photo_like(SIDE, SIDE, s) for s in range(3)]))


PLAIN = BackboneRecipe(groups=1, crop=64, downscaled=0.0, grain=0.0)


def draw(sampler: Sampler, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return sampler.draw()


def orientations(x: Tensor) -> list[Tensor]:
    """A square picture [S, S, 3] flipped and transposed in all eight ways."""
    turned = [x, x.flip(0), x.flip(1), x.flip(0, 1)]
    return turned + [t.transpose(0, 1) for t in turned]


def test_a_reduced_crop_is_what_pillow_makes_of_a_window() -> None:
    """Where windows lie is read off ramps, drawn by the same seed as the pictures."""
    ramp = torch.arange(128, dtype=torch.uint8)
    ramps = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij") + (ramp.expand(128, -1),), -1)
    tile = TILES[:1, :128, :128].contiguous()
    places, crops = (
        draw(Sampler([Source(t, 1.0, True)], replace(PLAIN, batch=32, downscaled=1.0))) * 255
        for t in (ramps[None], tile)
    )
    scales = []
    for place, crop in zip(places, crops, strict=True):
        upright = [
            (p, c)
            for p, c in zip(orientations(place), orientations(crop), strict=True)
            if p[-5, 5, 0] > p[5, 5, 0] and p[5, -5, 1] > p[5, 5, 1]
        ]
        ((where, found),) = upright
        box = []
        for line in (where[:, 32, 0], where[32, :, 1]):
            slope, start = np.polyfit(np.arange(10.5, 54), line[10:54].numpy() + 0.5, 1)
            box += [start, start + 64 * slope]
            scales.append(slope)
        image = Image.fromarray(tile[0].numpy())
        region = tuple(min(max(box[i], 0.0), 128.0) for i in (2, 0, 3, 1))
        like = np.array(image.resize((64, 64), Image.Resampling.BICUBIC, region), np.float32)
        error = (found - torch.from_numpy(like))[6:-6, 6:-6].abs()
        assert float(error.mean()) < 1 and float(error.max()) < 20
    assert 1 <= min(scales) < 1.2 and 1.7 < max(scales) <= 2.02


def test_sources_are_drawn_by_their_shares() -> None:
    plain = [torch.full((n, 64, 64, 3), v, dtype=torch.uint8) for n, v in ((5, 10), (1, 200))]
    sources = [Source(plain[0], 0.75, True), Source(plain[1], 0.25, False)]
    values = (draw(Sampler(sources, replace(PLAIN, batch=2000)))[:, 0, 0, 0] * 255).round()
    assert set(values.tolist()) == {10.0, 200.0}
    assert float((values == 200).float().mean()) == pytest.approx(0.25, abs=0.04)


def test_grain_is_added_to_photographs_alone() -> None:
    plain = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    sources = [Source(plain, 0.5, True), Source(plain // 2, 0.5, False)]
    x = draw(Sampler(sources, replace(PLAIN, batch=400, grain=0.5))) * 255
    photographs = x[x.mean((1, 2, 3)) > 96]
    assert set(x[x.mean((1, 2, 3)) < 96].unique().tolist()) == {64.0}
    spread = photographs.std((1, 2, 3))
    assert float((spread > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert 1.5 < float(spread.max()) < 3
    assert float(photographs.mean()) == pytest.approx(128, abs=0.1)


def test_processes_draw_the_parts_of_what_one_draws() -> None:
    def sampler(world: World) -> Sampler:
        recipe = replace(PLAIN, groups=3, batch=12, downscaled=0.5, grain=0.5)
        return Sampler([Source(TILES, 1.0, True)], recipe, world)

    whole = draw(sampler(World())).reshape(3, 4, -1)
    parts = [draw(sampler(World(rank, 2))).reshape(3, 2, -1) for rank in range(2)]
    assert torch.equal(torch.cat(parts, 1), whole)
    with pytest.raises(BadParameter, match="multiple of the 3 processes"):
        sampler(World(0, 3))


def test_what_cannot_be_drawn_is_refused() -> None:
    for crop, said in ((100, "multiple of 64"), (192, "up to the tiles' 160")):
        with pytest.raises(BadParameter, match=said):
            Sampler([Source(TILES, 1.0, True)], replace(PLAIN, crop=crop))
    with pytest.raises(BadParameter, match="expected one size"):
        Sampler([Source(TILES, 1.0, True), Source(TILES[:, :64, :64], 1.0, True)], PLAIN)
