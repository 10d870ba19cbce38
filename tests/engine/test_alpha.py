"""What alpha hides costs nothing and counts for nothing; what it shows in part counts in part."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.adapt.objective import Objective
from service.adapt.plan import AdaptationPlan
from service.engine.engine import Engine
from service.engine.target import Target
from service.picture import U8, Picture
from service.runtime.pipeline import LoadedModel

RATE = 4
HEIGHT, WIDTH = 96, 80
FILLINGS = ("noise", "black", "photo")


def matte(height: int = HEIGHT, width: int = WIDTH) -> U8:
    """An ellipse with a soft edge, transparent outside."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((x - width / 2) / width, (y - height / 2) / height)
    return (255 * np.clip(4 - 10 * radius, 0, 1)).astype(np.uint8)


def cut_out(filling: str, height: int = HEIGHT, width: int = WIDTH) -> Picture:
    """The same visible picture, with something else where it is transparent."""
    alpha = matte(height, width)
    rgb = photo_like(height, width, 5)
    hidden = {
        "noise": np.random.default_rng(0).integers(0, 256, rgb.shape, np.uint8),
        "black": np.zeros_like(rgb),
        "photo": rgb,
    }[filling]
    return Picture(np.where(alpha[..., None] > 0, rgb, hidden).astype(np.uint8), alpha)


def psnr_db(decoded: U8, picture: Picture) -> float:
    """By definition: errors as they are seen, over what is visible."""
    assert picture.alpha is not None
    weight = (picture.alpha.astype(np.float64) / 255)[..., None]
    seen = weight * (decoded.astype(np.float64) - picture.rgb)
    return 10 * math.log10(255**2 * 3 * np.square(weight).sum() / np.square(seen).sum())


def adapted(engine: Engine, picture: Picture) -> bytes:
    adaptation = engine.adapt(picture, RATE, effort=AdaptationPlan(20, 6, rank=1))
    while not adaptation.done:
        adaptation.advance(60)
    return adaptation.best()


WAYS: dict[str, Callable[[Engine, Picture], bytes]] = {
    "compress": lambda engine, picture: engine.compress(picture, RATE).data,
    "compress_to": lambda engine, picture: engine.compress(picture, Target(bpp=20.0)).data,
    "adapt": adapted,
}


@pytest.mark.parametrize("way", WAYS)
def test_colours_under_alpha_0_change_no_byte(engine: Engine, way: str) -> None:
    first, *others = (WAYS[way](engine, cut_out(filling)) for filling in FILLINGS)
    assert others == [first, first]


def test_neither_do_they_in_pictures_of_several_tiles(engine: Engine) -> None:
    first, *others = (engine.compress(cut_out(f, 40, 1040), RATE).data for f in FILLINGS)
    assert others == [first, first]


def test_the_rest_is_coded_as_it_is(engine: Engine) -> None:
    """Pixels that alpha shows at all are analysed unchanged, so the stream depends on them."""
    picture = cut_out("black")
    faint = np.where(picture.alpha == 10, 255, 0)[..., None]
    assert faint.any()
    other = Picture(picture.rgb | faint.astype(np.uint8), picture.alpha)
    assert engine.compress(other, RATE).data != engine.compress(picture, RATE).data


@pytest.mark.parametrize("filling", FILLINGS)
def test_the_psnr_told_is_of_what_is_seen(engine: Engine, filling: str) -> None:
    picture = cut_out(filling)
    made = engine.compress(picture, RATE)
    back = engine.decompress(made.data).picture.rgb
    assert made.psnr_db == pytest.approx(psnr_db(back, picture), abs=1e-9)


def test_a_picture_that_nothing_is_seen_of_has_no_error(engine: Engine) -> None:
    nothing = Picture(photo_like(32, 32, 1), np.zeros((32, 32), np.uint8))
    assert engine.compress(nothing, RATE).psnr_db == math.inf


def test_adapting_tells_the_psnr_of_what_is_seen(engine: Engine) -> None:
    picture = cut_out("noise")
    adaptation = engine.adapt(picture, RATE, effort=AdaptationPlan(20, 6, rank=1))
    while not adaptation.done:
        adaptation.advance(60)
    back = engine.decompress(adaptation.best()).picture.rgb
    assert adaptation.progress.psnr_db == pytest.approx(psnr_db(back, picture), abs=1e-9)


def test_the_loss_that_adapting_minimises_weighs_errors_as_they_are_seen(
    loaded: LoadedModel,
) -> None:
    """Under an alpha of one fifth, errors are a fifth, and their squares a 25th."""
    rgb = photo_like(48, 64, 2)
    losses = []
    for alpha in (None, np.full((48, 64), 255 // 5, np.uint8)):
        objective = Objective(loaded, Picture(rgb, alpha), 0.05)
        losses.append(objective.distortion(None))
    assert losses[1] == pytest.approx(losses[0] / 25, rel=1e-5)


def test_gradients_of_hidden_pixels_are_zero(loaded: LoadedModel) -> None:
    alpha = np.zeros((64, 64), np.uint8)
    objective = Objective(loaded, Picture(photo_like(64, 64, 2), alpha), 0.05)
    _, distortion = objective.loss(objective.tiles[0], None, 0.2, torch.Generator())
    distortion.backward()
    gradient = objective.tiles[0].y.grad
    assert gradient is not None and float(gradient.abs().max()) == 0.0
