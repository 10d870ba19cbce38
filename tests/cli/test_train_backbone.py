"""The commands of training, from pictures to a model that compresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Small
from small_model import SIZES, photo_like

from cli.test_commands import rankpress
from service.codec.sizes import ConvSizes
from service.engine.opening import open_engine
from service.export.agreement import CodecAgreement
from service.images.write import write_image
from service.picture import Picture
from service.settings import Settings
from service.store.write import write_model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        data = write_image(Picture(photo_like(128, 192, i)), "png")
        (folder / f"{i}.png").write_bytes(data)
    return folder


def test_from_pictures_to_checkpoint_to_a_model_that_compresses(
    tmp_path: Path, pictures: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train in two parts from a stored model, the second with the decay, and export the result."""
    # the small model's few bits a picture are mostly header: the limits are tested elsewhere
    monkeypatch.setattr(CodecAgreement, "check", lambda _: None)
    store = tmp_path / "store"
    write_model(store / "small", small.stored, small.base)
    options = ["--run", str(tmp_path / "run"), "--device", "cpu", "--compile", "off"]
    recipe = ["--from", str(store / "small"), "--batch", "2", "--crop", "64", "--tile", "64"]
    recipe += ["--rates", "2,4", "--procedural", "0.2", "--mix", f"{pictures}=0.1"]
    first = rankpress("train", "base", str(pictures), *options, *recipe, "--minutes", "0.01")
    assert first.exit_code == 0, first.output
    assert "18 tiles of 64x64 from 3 pictures" in first.output
    second = rankpress(
        "train", "base", str(pictures), *options, "--tile", "64", "--minutes", "0.05",
        "--mix", f"{pictures}=0.1", "--decay", "0.03", "--measure", str(pictures),
    )  # fmt: skip
    assert second.exit_code == 0, second.output
    assert "Mpixel/s" in second.output and "3 pictures, real rounding" in second.output
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(about["pieces"]) == 2 and about["recipe"]["batch"] == 2 and about["decay"]
    assert about["recipe"]["rates"] == [2, 4] and about["recipe"]["mixed"] == {"pictures": 0.1}
    where = ["--calibrate", str(pictures), "--measure", str(pictures)]
    made = rankpress("train", "export", str(tmp_path / "run"), str(store / "new"), *where)
    assert made.exit_code == 0, made.output
    assert "rate 2: " in made.output, "rates that were trained with it are published too"
    assert open_engine(Settings(store=store)).models()[0].name == "new", "first by name"
    rates = open_engine(Settings(store=store, model="new")).models()[0].rates
    assert {r.rate for r in rates} == {2, 4}
    assert rankpress("train", "default", str(store / "small")).exit_code == 0
    assert open_engine(Settings(store=store)).models()[0].name == "small"
    training = dict(open_engine(Settings(store=store, model="new")).models()[0].training)
    assert training["steps"] == about["step"] and training["started_from"] == "small"
    again = rankpress("train", "export", str(tmp_path / "run"), str(store / "new"), *where)
    assert again.exit_code == 2 and "export under another name" in again.output


def test_what_cannot_be_trained_is_said_in_a_line(tmp_path: Path, pictures: Path) -> None:
    run = ["--run", str(tmp_path / "run"), "--minutes", "1", "--device", "cpu"]
    for arguments, said in (
        (["nowhere"], "nowhere is not a folder"),
        ([str(pictures), "--size", "huge"], "expected light, base, swin or a JSON file"),
        ([str(pictures), "--rates", "1,2"], "with 4 among them"),
        ([str(pictures), "--groups", "3"], "expected a multiple"),
        ([str(pictures), "--procedural", "1"], "expected less than 1"),
        ([str(pictures), "--mix", "nowhere"], "expected FOLDER=SHARE"),
        ([str(pictures), "--tile", "500"], "no picture is at least 500x500"),
        ([str(pictures), "--tile", "64", "--crop", "100"], "multiple of 64"),
        ([str(pictures), "--tile", "64", "--crop", "64", "--from", "nowhere"], "not a run, a"),
    ):
        result = rankpress("train", "base", *arguments, *run)
        assert result.exit_code == 2 and said in result.output, result.output


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore what a command sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_training_takes_its_settings_from_the_environment(
    tmp_path: Path, pictures: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "store" / "small"
    write_model(model, small.stored, small.base)
    monkeypatch.setenv("RANKPRESS_DEVICE", "cpu")
    for given, found in (((), 3), (("--threads", "2"), 2)):
        monkeypatch.setenv("RANKPRESS_THREADS", "3")
        written = rankpress("train", "measure", str(pictures), "--model", str(model), *given)
        assert written.exit_code == 0, written.output
        assert torch.get_num_threads() == found
    monkeypatch.setenv("RANKPRESS_DEVICE", "abacus")
    measure = ("--measure", str(pictures))
    run = ("--model", str(model), "--scratch", str(tmp_path / "scratch"))
    for arguments in (
        ("base", str(pictures), "--run", str(tmp_path / "run"), "--minutes", "1"),
        ("rates", str(pictures), *measure, *run),
        ("measure", str(pictures), "--model", str(model)),
        ("updates", str(pictures), *run),
    ):
        refused = rankpress("train", *arguments)
        assert refused.exit_code == 2 and "device: Input should be" in refused.output, arguments


def test_a_training_step_is_measured(tmp_path: Path) -> None:
    sizes = tmp_path / "sizes.json"
    values = {f: getattr(SIZES, f) for f in ConvSizes.__dataclass_fields__}
    sizes.write_text(json.dumps(values | {"c8": 192}))
    record = tmp_path / "record.json"
    result = rankpress(
        "bench", "training", "--size", str(sizes), "--batch", "2", "--groups", "2", "--crop", "64",
        "--compile", "off", "--seconds", "0.2", "--device", "cpu", "--record", str(record),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output.splitlines()[-1])
    assert answer == json.loads(record.read_text())
    assert answer["pixels_per_s"] == pytest.approx(2 * 64 * 64 / answer["step_ms"] * 1000, rel=1e-4)
    macs = answer["kmac_per_pixel"] * 1000
    block = (6 * 192**2 + 9 * 192) / 64
    # of this small model g_a's and g_s's block and outer layer at 1/8 are nearly all
    assert macs == pytest.approx(2 * (block + 192 * 192 / 64), rel=0.15)


def test_every_benchmark_is_a_command_of_its_own() -> None:
    shown = rankpress("bench", "--help").output
    names = "codec", "service", "rates", "decoder", "agreement", "jobs", "graphics", "training"
    for name in names:
        assert name in shown
        assert "--record" in rankpress("bench", name, "--help").output
    assert rankpress("bench", "codec", "--service").exit_code == 2
