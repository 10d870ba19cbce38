"""Training of the preview network: it learns what g_s gives, as a function of its seed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Small
from PIL import Image
from small_model import photo_like
from typer.testing import CliRunner

from service.cli.main import app
from service.datasets.crops import Crops
from service.engine.opening import open_engine
from service.images.resize import shrink
from service.picture import Picture, View
from service.rates.previews import PreviewProgress, PreviewRecipe, train_previews
from service.settings import Settings
from service.store.read import load_model
from service.store.write import write_model

RECIPE = PreviewRecipe(channels=16, crops=24, crop=64, steps=1000, batch=4, lr=1e-2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        Image.fromarray(photo_like(96, 128, seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path, small: Small) -> Path:
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    return tmp_path / "store" / "small"


def train(
    model: Path, pictures: Path, scratch: Path, recipe: PreviewRecipe = RECIPE
) -> list[PreviewProgress]:
    reports: list[PreviewProgress] = []
    crops = Crops(pictures, recipe.crop, recipe.seed)
    train_previews(model, crops, scratch, recipe, {"data": "drawn"}, reports.append)
    return reports


def test_small_pictures_come_to_look_like_what_g_s_gives(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    reports = train(model, pictures, tmp_path / "scratch")
    assert reports[-1].step == RECIPE.steps
    stored = load_model(model)
    record = stored.training["previews"]
    assert isinstance(record, dict) and record["data"] == "drawn" and record["channels"] == 16
    engine = open_engine(Settings(store=model.parent, graphics=False, threads=1))
    rgb = photo_like(96, 128, 9)
    data = engine.compress(Picture(rgb), 4).data
    full = engine.decompress(data).picture
    for scale in (2, 4):  # at 1/8 the small model's pictures are nearly plain
        view = View(max_size=128 // scale)
        expected = shrink(full, view).rgb.astype(float)
        found = engine.decompress(data, view).picture.rgb
        assert np.square(found - expected).mean() < 0.5 * expected.var()


def test_training_is_a_function_of_its_seed_and_uses_the_coded_crops_again(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    recipe = replace(RECIPE, steps=50)
    train(model, pictures, tmp_path / "scratch", recipe)
    coded = tmp_path / "scratch" / "previews.safetensors"
    written = coded.stat().st_mtime_ns
    train(other, pictures, tmp_path / "scratch", recipe)
    assert coded.stat().st_mtime_ns == written
    assert load_model(other).previews.keys() == load_model(model).previews.keys()
    for name, tensor in load_model(model).previews.items():
        assert np.array_equal(load_model(other).previews[name], tensor), name


def test_the_command_trains_and_refuses_crops_of_broken_latents(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = ["train", "previews", str(pictures), "--model", str(model)]
    arguments += ["--scratch", str(tmp_path / "scratch"), "--crops", "4", "--steps", "3"]
    result = CliRunner().invoke(app, [*arguments, "--crop", "64", "--channels", "8"])
    assert result.exit_code == 0 and "step 3/3" in result.output
    assert load_model(model).previews["trunk.0.weight"].shape[0] == 8
    result = CliRunner().invoke(app, [*arguments, "--crop", "72"])
    assert result.exit_code == 2 and "multiple of 16" in str(result.output)
