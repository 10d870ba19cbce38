"""Trials differ in ranks and in nothing else, and stand in the manifest entry of their rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Small
from small_ladder import small_update

from service.errors import BadParameter
from service.eval.report import trials_table
from service.nets.backbone import Block
from service.store import load_model
from service.stored import StoredRate
from service.train.data import Crops
from service.train.one_rate import Recipe
from service.train.publish import publish_rate, record_trials, write_model
from service.train.trials import PLACEMENTS, run_trials
from service.train.tunes import LADDER

RECIPE = Recipe(steps=2, batch=1, crop=64, warmup=1)


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "compile", lambda *_, **__: None)


@pytest.fixture
def folder(tmp_path: Path, small: Small) -> Path:
    folder = tmp_path / "store" / "small"
    write_model(folder, small.stored, small.base)
    publish_rate(folder, small_update(small.stored, 5), StoredRate(5, LADDER[5], 0.5, 30.0))
    return folder


def test_trials_are_measured_and_not_run_twice(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    stored, crops, scratch = load_model(folder), Crops(pictures, 64, 0), tmp_path / "s"
    reports: list[object] = []
    start, found = run_trials(stored, crops, pictures, 5, RECIPE, scratch, reports.append)
    assert [t.name for t in found] == list(PLACEMENTS)
    sizes = {t.name: t.bytes for t in found}
    assert sizes["biases and steps only"] == min(sizes.values())
    assert sizes["all, 8 and 4"] == max(sizes.values())
    for trial in found:
        assert trial.ranks == dict(PLACEMENTS[trial.name])
        assert trial.loss == pytest.approx(trial.bpp + LADDER[5] * trial.mse, abs=1e-3)
    assert start.loss not in {t.loss for t in found}
    assert len(reports) == len(PLACEMENTS)
    again = run_trials(stored, crops, pictures, 5, RECIPE, scratch, reports.append)
    assert again == (start, found) and len(reports) == len(PLACEMENTS)
    with pytest.raises(BadParameter, match="rate is 6, expected a neighbour"):
        run_trials(stored, crops, pictures, 6, RECIPE, scratch, reports.append)


def test_trials_are_recorded_with_their_rate_and_shown(folder: Path) -> None:
    before = load_model(folder)
    trial = {"name": "all", "bytes": 1234, "bpp": 0.5, "mse": 20.0, "loss": 0.9}
    record: dict[str, object] = {"steps": 2, "start": {"loss": 1.0}, "found": [trial]}
    record_trials(folder, 5, record)
    now = load_model(folder)
    assert [r.training.get("trials") for r in now.ladder("psnr")] == [None, record]
    assert now.identity_at(80) == before.identity_at(80)
    table = trials_table({"rates": [{"rate": 5, "training": {"trials": record}}]})
    assert "| all " in table and "1,234" in table and "-10.00%" in table
    with pytest.raises(BadParameter, match="no rate 7"):
        record_trials(folder, 7, record)
