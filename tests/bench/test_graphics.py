"""The benchmark of the graphics layer: figures of real streams, resumed runs, and its table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.bench.graphics import (
    DRAWN,
    PER_GROUP,
    LayerMeasurement,
    StreamMeasurement,
    draw_pictures,
    first_of_groups,
    read_measurements,
    read_record,
)
from service.bench.report import graphics_table
from service.cli.main import app
from service.datasets.procedural import LEAST_SIDE
from service.engine.comparison import decode_peer
from service.engine.engine import Engine
from service.errors import BadParameter
from service.eval.metrics import psnr_db
from service.eval.peer_codecs import peer_named
from service.eval.pictures import NamedPicture, generate, group_of
from service.images.write import write_image
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.model import StoredModel
from service.store.read import load_store

RATE = 4.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tiny pictures of two groups: one half plain, one like a photograph."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    screen = generate(64, 48).rgb
    screen[:, :32] = (250, 250, 240)
    for name, rgb in (("screen-0", screen), ("photo-0", generate(48, 64).rgb)):
        (folder / f"{name}.png").write_bytes(write_image(Picture(rgb), "png"))
    return folder


def bench(folder: Path, store: Path, record: Path, *options: str) -> dict[str, Any]:
    """The results of a run over a folder without drawn pictures."""
    fixed = ["--no-drawn", "--rates", "4", "--device", "cpu", "--threads", "1"]
    paths = ["--store", str(store), "--record", str(record)]
    ran = CliRunner().invoke(app, ["bench", "graphics", str(folder), *fixed, *paths, *options])
    assert ran.exit_code == 0, ran.output
    result: dict[str, Any] = json.loads(record.read_text())
    return result


def test_figures_are_those_of_the_streams_with_and_without_the_layer(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    rows = read_measurements(bench(folder, store, tmp_path / "out.json"))
    assert [row.image for row in rows] == ["photo-0", "screen-0"]
    models = load_models(load_store(store), "cpu", None, 1)
    lmbda = models[0].stored.lmbda_at(16 * int(RATE))
    assert lmbda is not None
    picture = generate(48, 64)
    engines = Engine(models), Engine(models, graphics=True)
    for engine, stream in zip(engines, (rows[0].plain, rows[0].layered), strict=True):
        compressed = engine.compress(picture, RATE)
        difference = engine.decompress(compressed.data).picture.rgb - picture.rgb.astype(float)
        squared = float(np.square(difference).sum())
        assert stream.bytes == len(compressed.data)
        assert stream.psnr_db == (pytest.approx(compressed.psnr_db, abs=0.1) if squared else None)
        assert stream.loss_bits == pytest.approx(8 * stream.bytes + lmbda * squared / 3, rel=1e-5)
        assert stream.seconds > 0
    assert rows[0].layered.loss_bits <= rows[0].plain.loss_bits
    assert all(0 <= row.share <= 1 for row in rows)


def test_avif_beside_ours_has_at_least_our_psnr_and_one_quality_less_has_not(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    picture, avif = generate(48, 64), peer_named("avif-s6-444")
    files = [avif.compress(picture, quality) for quality in range(1, 101)]
    points = [(psnr_db(picture, decode_peer(data)), len(data)) for data in files]
    row = read_measurements(bench(folder, store, tmp_path / "out.json"))[0]
    for stream in (row.plain, row.layered):
        if stream.psnr_db is None:
            assert not stream.avif_reaches and stream.avif_bytes == points[-1][1]
        else:
            fitting = [
                points[q][1]
                for q in range(100)
                if points[q][0] >= stream.psnr_db and (q == 0 or points[q - 1][0] < stream.psnr_db)
            ]
            assert stream.avif_reaches and stream.avif_bytes in fitting


def test_a_resumed_run_measures_only_what_the_record_lacks(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    record = tmp_path / "out.json"
    first = bench(folder, store, record, "--limit", "1")
    kept = first["measurements"][0]
    kept["plain"]["seconds"] = 1234.0
    first["measurements"] = [kept]
    record.write_text(json.dumps(first))
    resumed = bench(folder, store, record, "--resume")["measurements"]
    assert [row["image"] for row in resumed] == ["photo-0", "screen-0"]
    assert resumed[0] == kept and resumed[1]["plain"]["seconds"] < 1234
    fresh = bench(folder, store, record)["measurements"]
    assert fresh[0]["plain"]["seconds"] < 1234


def test_a_record_of_other_weights_is_not_resumed(
    folder: Path, store: Path, tmp_path: Path, small_model: StoredModel
) -> None:
    record = tmp_path / "out.json"
    first = bench(folder, store, record)
    first["model"]["sha256"] = "0" * 64
    for row in first["measurements"]:
        row["plain"]["seconds"] = 1234.0
    record.write_text(json.dumps(first))
    again = bench(folder, store, record, "--resume")
    assert again["model"]["sha256"] == small_model.sha256
    assert all(row["plain"]["seconds"] < 1234 for row in again["measurements"])


@pytest.mark.parametrize("text", ['{"what": "train"}', "[]", "no json", '{"measurements": [1]}'])
def test_a_record_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    record = tmp_path / "other.json"
    record.write_text(text)
    with pytest.raises(BadParameter, match="bench graphics"):
        read_record(record)


def test_a_record_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.json") == {}


def test_drawn_pictures_are_the_same_every_time_and_all_different() -> None:
    first, again = (list(draw_pictures(LEAST_SIDE)) for _ in range(2))
    assert [group_of(named.name) for named in first] == [
        group for group in DRAWN for _ in range(PER_GROUP)
    ]
    assert [named.sha256 for named in first] == [named.sha256 for named in again]
    assert len({named.sha256 for named in first}) == len(first)
    assert {named.picture.rgb.shape for named in first} == {(LEAST_SIDE, LEAST_SIDE, 3)}


def test_a_limit_keeps_the_first_pictures_of_each_group() -> None:
    names = ("comic-0", "kodim01", "comic-1", "comic-2", "kodim02")
    pictures = [NamedPicture(name, generate(16, 16)) for name in names]
    assert [named.name for named in first_of_groups(pictures, 1)] == ["comic-0", "kodim01"]
    assert first_of_groups(pictures, None) == tuple(pictures)


def test_the_table_shows_means_exact_pictures_and_lower_bounds() -> None:
    plain = StreamMeasurement(1000, 30.0, 10000.0, 1.0, 900, True)
    lossy = StreamMeasurement(800, 40.0, 9000.0, 1.5, 1600, True)
    exact = StreamMeasurement(500, None, 4000.0, 2.5, 5000, False)
    rows = [
        LayerMeasurement("page-0", "00", 2.0, 0.5, 700, plain, lossy),
        LayerMeasurement("page-1", "01", 2.0, 1.0, 490, plain, exact),
        LayerMeasurement("page-1", "01", 4.0, 1.0, 490, plain, exact),
    ]
    machine = {"cpu": "a cpu", "cores": 2, "device": "cpu", "load": 0.1}
    text = graphics_table({"machine": machine, "measurements": [asdict(row) for row in rows]})
    first, second = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:4]
    )
    assert first == [
        "page, 2", "2", "1,000 → 650", "30.0 → 40.0 (1 exact)", "-35.0 %", "0.90 → ≥ 6.00",
        "0.93", "75%", "×2.00",
    ]  # fmt: skip
    assert second[3] == "30.0 → exact"
    assert "Largest change of R + lmbda·D: -10.00 %" in text and "+100 bytes" in text
