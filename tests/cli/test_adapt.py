"""`rankpress adapt` and `rankpress eval-adaptation` on the real engine with the small model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import Small
from PIL import Image
from small_model import photo_like
from typer.testing import CliRunner, Result

import service.adapt.plan
from service.adapt.task import AdaptProgress
from service.cli import main
from service.cli.output import adaptation_gain, adaptation_line
from service.codec.container import describe
from service.errors import BadParameter
from service.eval.adaptation import AdaptationMeasurement, parse_efforts
from service.eval.measurements import read_rows
from service.images.write import write_image
from service.picture import Picture
from service.store.write import write_model


@pytest.fixture
def store(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the small model, pictures in `in/`, and few steps for every effort.

    The graphics layer is off, because the small model is so bad that every picture would be exact.
    """
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "false")
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    (tmp_path / "in").mkdir()
    for name, seed in (("flat-0", 1), ("flat-1", 2)):
        Image.fromarray(photo_like(40, 48, seed)).save(tmp_path / "in" / f"{name}.png")
    monkeypatch.setattr(service.adapt.plan, "STEPS", (0, 3, 4, 5, 6))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def rankpress(*arguments: str) -> Result:
    return CliRunner().invoke(main.app, list(arguments))


def test_adapt_writes_a_stream_that_decompress_reads(store: Path) -> None:
    options = ("--store", str(store), "--json")
    result = rankpress("adapt", "in/flat-0.png", "a.rkp", "--effort", "2", *options)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["output_bytes"] == Path("a.rkp").stat().st_size
    assert answer["rate"] == 4 and "% bytes" in answer["notes"][-1]
    assert rankpress("compress", "in/flat-0.png", "p.rkp", *options).exit_code == 0
    assert answer["output_bytes"] <= 1.02 * Path("p.rkp").stat().st_size
    assert rankpress("decompress", "a.rkp", "a.png", *options).exit_code == 0
    with Image.open("a.png") as image:
        assert image.size == (48, 40)
    assert describe(Path("a.rkp").read_bytes()).rate == 4


def test_latents_are_fitted_and_decompress_reads_them(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.adapt.overfit.STEPS", {2: 3})
    options = ("--store", str(store), "--json")
    latent = ("--method", "latent", "--autoencoder", "own")
    result = rankpress("adapt", "in/flat-0.png", "a.rkp", *latent, "--quality", "3", *options)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["output_bytes"] == Path("a.rkp").stat().st_size and answer["rate"] == 3
    assert rankpress("decompress", "a.rkp", "a.png", *options).exit_code == 0
    with Image.open("a.png") as image:
        assert image.size == (48, 40)
    told = json.loads(rankpress("info", "a.rkp", "--json").stdout)
    assert (told["method"], told["rate"], told["tiles"]) == ("latent", 3, 0)
    shown = rankpress("info", "a.rkp").stdout
    assert "3, method latent" in shown and told["model"] in shown and "tile" not in shown
    for wrong, said in (((), "needs --quality"), (("--rate", "2"), "--rate would have no effect")):
        refused = rankpress("adapt", "in/flat-0.png", "b.rkp", *latent, *wrong, *options)
        assert refused.exit_code == 2 and said in refused.stderr
    refused = rankpress("adapt", "in/flat-0.png", "b.rkp", "--quality", "3", *options)
    assert refused.exit_code == 2 and "--method model" in refused.stderr


def test_lossless_streams_are_exact_and_decode_beside_any_store(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = photo_like(40, 70)
    Path("a.png").write_bytes(write_image(Picture(rgb), "png"))
    made = rankpress("compress", "a.png", "a.rkp", "--rate", "lossless", "--store", str(store))
    assert made.exit_code == 0, made.stderr
    told = rankpress("info", "a.rkp", "--json")
    answer = json.loads(told.stdout)
    assert (answer["rate"], answer["graphics_share"]) == (None, 1)
    assert answer["sections"] == [["graphics", answer["sections"][0][1]]]
    monkeypatch.delenv("RANKPRESS_STORE", raising=False)
    assert rankpress("decompress", "a.rkp", "b.png").exit_code == 0
    with Image.open("b.png") as image:
        assert np.array_equal(np.asarray(image), rgb)


def test_adapt_takes_folders_and_the_same_seed_gives_the_same_bytes(store: Path) -> None:
    for out in ("one", "two"):
        result = rankpress("adapt", "in", out, "--effort", "1", "--store", str(store))
        assert result.exit_code == 0, result.stderr
    for name in ("flat-0.rkp", "flat-1.rkp"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_adapt_refuses_an_unknown_effort_as_wrong_usage(store: Path) -> None:
    result = rankpress("adapt", "in/flat-0.png", "a.rkp", "--effort", "5", "--store", str(store))
    assert result.exit_code == 2 and not Path("a.rkp").exists()


def test_eval_adaptation_measures_what_adapting_gains_and_goes_on(store: Path) -> None:
    command = (
        "eval-adaptation",
        "in",
        "--efforts",
        "1",
        "--rates",
        "4",
        "--out",
        "out",
        "--store",
        str(store),
    )
    first = rankpress(*command)
    assert first.exit_code == 0, first.stderr
    rows = read_rows(Path("out/adapted.csv"), AdaptationMeasurement)
    assert {(r.image, r.kind) for r in rows} == {
        (image, kind) for image in ("flat-0", "flat-1") for kind in ("both", "latents")
    }
    assert all(r.psnr_db >= r.plain_psnr_db - 1 for r in rows)
    assert all(r.update_bytes == 0 for r in rows if r.kind == "latents")
    again = rankpress(*command)
    assert (
        again.exit_code == 0 and read_rows(Path("out/adapted.csv"), AdaptationMeasurement) == rows
    )
    summary = json.loads(Path("out/adapted.json").read_text())
    assert [g["group"] for g in summary["gains"]] == ["flat", "flat"]
    Image.fromarray(photo_like(40, 48, 3)).save("in/flat-0.png")  # another picture of that name
    more = rankpress(*command[:3], "2", *command[4:], "--no-latents")
    assert more.exit_code == 0, more.stderr
    gains = json.loads(Path("out/adapted.json").read_text())["gains"]
    answer = [(g["effort"], g["kind"], g["images"]) for g in gains]
    assert answer == [(1, "both", 1), (1, "latents", 1), (2, "both", 2)], (
        "of the pictures there are"
    )
    assert "flat, 2" in first.stdout and "latents alone" in first.stdout


def test_the_line_says_where_it_is_and_what_it_gained() -> None:
    now = AdaptProgress("latents", 150, 200, 900, 0.9, 31.25, 1000, 1.0, 31.0)
    assert adaptation_gain(now) == "31.25 dB (-10.0 % bytes, +0.25 dB)"
    assert adaptation_line(now) == "latents 150/200: 0.900 bpp, 31.25 dB (-10.0 % bytes, +0.25 dB)"


def test_an_exact_stream_has_no_decibels_to_gain() -> None:
    end = AdaptProgress("done", 0, 0, 900, 0.9, math.inf, 1000, 1.0, math.inf)
    assert adaptation_gain(end) == "exact (-10.0 % bytes)"


def test_adapt_ends_at_once_for_a_drawing_which_is_exact(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurements of adaptation leave the layer out, so the drawing is fitted there."""
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "true")
    rgb = np.full((40, 48, 3), (250, 250, 240), np.uint8)
    rgb[10:30, 5:33] = 200, 30, 30
    Image.fromarray(rgb).save("in/flat-0.png")
    result = rankpress("adapt", "in/flat-0.png", "a.rkp", "--store", str(store), "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["rate"], answer["psnr_db"]) == (None, None)
    assert answer["notes"][-1].startswith("exact (")
    options = ("--efforts", "1", "--rates", "4", "--out", "out", "--store", str(store))
    shown = rankpress("eval-adaptation", "in", *options)
    assert shown.exit_code == 0, shown.stderr
    gains = json.loads(Path("out/adapted.json").read_text())["gains"][0]
    assert gains["images"] == 2 and gains["ms_per_step"] > 0 and gains["gain_db"] is not None


def test_efforts_are_read_from_text() -> None:
    assert parse_efforts("2") == (2,) and parse_efforts("1,4,1") == (1, 4)
    for wrong in ("", "x", "7"):
        with pytest.raises(BadParameter):
            parse_efforts(wrong)
