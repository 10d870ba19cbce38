"""Ready updates lower the loss of their pictures, and come out the same however often cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Small
from PIL import Image
from power_cut import PowerCut, cuts
from small_model import photo_like
from typer.testing import CliRunner

from service.cli import main
from service.codec.container import describe
from service.engine.opening import open_engine
from service.errors import BadParameter
from service.rates.updates import UpdateProgress, UpdateRecipe, train_updates
from service.settings import Settings
from service.store.read import load_model
from service.store.write import StoredUpdate, write_model

RECIPE = UpdateRecipe((4,), rank=1, rounds=2, steps=60, batch=2, tile=64, tiles=4, lr=4.0)


def drawing(seed: int) -> np.ndarray:
    """Flat rectangles of two colours, [96, 112, 3]."""
    rng = np.random.default_rng(seed)
    rgb = np.full((96, 112, 3), (250, 0, 40), np.uint8)
    for top, left in rng.integers(0, 60, (3, 2)):
        rgb[top : top + 30, left : left + 40] = (10, 200, 120)
    return rgb


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of two kinds; one drawing lies among the photographs."""
    root = tmp_path_factory.mktemp("pictures")
    for name, made in (
        ("drawings", (drawing(1), drawing(2))),
        ("photos", (photo_like(80, 90, 1), photo_like(70, 90, 2), drawing(3))),
    ):
        (root / name).mkdir()  # fmt: skip
        for number, rgb in enumerate(made):
            Image.fromarray(rgb).save(root / name / f"{number}.png")
    (root / "photos" / "note.txt").write_text("no picture")
    Image.fromarray(photo_like(63, 200)).save(root / "photos" / "too-small.png")
    return [root / "drawings", root / "photos"]


@pytest.fixture
def model(tmp_path: Path, small: Small) -> Path:
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    return tmp_path / "store" / "small"


def train(model: Path, folders: list[Path], scratch: Path) -> tuple[StoredUpdate, ...]:
    return train_updates(model, folders, scratch, RECIPE, {"data": "drawn"}, lambda _: None)


def test_updates_lower_the_loss_and_pictures_find_theirs(
    model: Path, folders: list[Path], tmp_path: Path
) -> None:
    before = load_model(model)
    made = train(model, folders, tmp_path / "scratch")
    stored = load_model(model)
    assert [u.data for u in stored.updates] == [u.data for u in made]
    assert stored.identity == before.identity
    told = {u.name: u.training for u in stored.updates}
    counts = {name: training["pictures"] for name, training in told.items()}
    assert sum(counts.values()) == 5 and counts["drawings"] > 2, "one that lay elsewhere moved"
    assert told["drawings"]["change_of_loss"] < -0.05 and told["drawings"]["data"] == "drawn"
    assert all(len(u.data) < 4000 for u in made)


def test_a_run_that_was_cut_off_goes_on_to_the_same_updates(
    model: Path, folders: list[Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    whole = train(model, folders, tmp_path / "whole")

    class Cut(Exception):
        pass

    seen: list[UpdateProgress] = []

    def report(p: UpdateProgress) -> None:
        seen.append(p)
        if p.group == "photos":
            raise Cut

    cut = tmp_path / "cut"
    with pytest.raises(Cut):
        train_updates(other, folders, cut, RECIPE, {"data": "drawn"}, report)
    assert [p.name for p in cut.iterdir()] == ["0-drawings.safetensors"]
    assert not load_model(other).updates
    resumed: list[UpdateProgress] = []
    again = train_updates(other, folders, cut, RECIPE, {"data": "drawn"}, resumed.append)
    assert [u.data for u in again] == [u.data for u in whole]
    assert resumed[0].group == "photos", "what was done is not done again"


def test_a_round_that_is_cut_off_while_it_is_written_is_done_again(
    model: Path, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    whole = train(model, folders[:1], tmp_path / "whole")
    for _ in cuts(monkeypatch):
        with pytest.raises(PowerCut):
            train(other, folders[:1], tmp_path / "cut")
        break
    monkeypatch.undo()
    assert not list((tmp_path / "cut").glob("*.safetensors")), "half a round has no name"
    again = train(other, folders[:1], tmp_path / "cut")
    assert [u.data for u in again] == [u.data for u in whole]


def test_folders_without_pictures_and_rates_without_weights_are_refused(
    model: Path, folders: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in ([tmp_path / "empty"], [folders[0], folders[0]]):
        with pytest.raises(BadParameter):
            train(model, wrong, tmp_path / "scratch")
    with pytest.raises(BadParameter, match="rate 6 of model small is missing"):
        recipe = UpdateRecipe((6,))
        train_updates(model, folders, tmp_path / "scratch", recipe, {}, lambda _: None)


def test_from_the_command_line_to_a_stream_and_back(
    model: Path, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "false")  # exact drawings would not need an update

    def rankpress(*arguments: str) -> str:
        made = CliRunner().invoke(main.app, list(arguments))
        assert made.exit_code == 0, made.output
        return made.stdout

    options = ("--model", str(model), "--scratch", "scratch", "--rates", "4", "--rounds", "1")
    small = ("--rank", "1", "--steps", "60", "--tiles", "2", "--threads", "1")
    with pytest.raises(AssertionError, match="no picture of at least 256x256"):
        rankpress("train", "updates", str(folders[0]), *options, *small)
    (tmp_path / "large").mkdir()
    for number in (4, 5):
        rgb = np.tile(drawing(number), (3, 3, 1))
        Image.fromarray(rgb).save(tmp_path / "large" / f"{number}.png")
    said = rankpress("train", "updates", "large", *options, *small)
    assert "round 1  large  step 60/60" in said and " bytes  loss -" in said
    (update,) = load_model(model).updates
    store = ("--store", str(model.parent), "--json")
    rankpress("adapt", str(folders[0] / "0.png"), "a.rkp", "--effort", "0", *store)
    told = json.loads(rankpress("info", "a.rkp", "--json"))
    assert told["ready"] == update.reference.hex() and ["ready", 4] in told["sections"]
    assert f"ready update  {update.reference.hex()}" in rankpress("info", "a.rkp")
    rankpress("decompress", "a.rkp", "a.png", *store)
    light = open_engine(Settings(store=model.parent, decode_only=True))
    rgb = light.decompress(Path("a.rkp").read_bytes()).picture.rgb
    with Image.open("a.png") as image:
        assert np.abs(np.asarray(image).astype(int) - rgb).max() <= 2
    assert describe(Path("a.rkp").read_bytes()).sections[0] == ("ready", 4)
    options = ("--efforts", "0", "--rates", "4", "--out", "out", *store[:2])
    rankpress("eval-adaptation", str(folders[0]), *options)
    (gain,) = json.loads(Path("out/adapted.json").read_text())["gains"]
    assert (gain["effort"], gain["images"], gain["with_update"]) == (0, 2, 1.0)
    assert gain["with_own"] == 0
    assert gain["loss_percent"] < 0 and gain["ms_per_step"] is None
