"""BD-rates and bytes at equal quality of curves whose results are known."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import BadParameter
from service.eval import curves
from service.eval.curves import Curve, CurvePoint, at_equal, average, bd_rate, bpp_at, published
from service.eval.measurements import OURS, Measurement, our_name, read_rows, write_rows


def row(image: str, codec: str, setting: str, size: int, psnr: float) -> Measurement:
    return Measurement(image, f"hash of {image}", 100, 80, codec, setting, size, size / 1000, psnr,
               1 - 10 ** (-psnr / 20), None, 5.0, 2.0)  # fmt: skip


def curve(name: str, scale: float, first: float = 30.0) -> Curve:
    """A curve that gains 6 dB for each doubling of the rate."""
    points = (CurvePoint("", 0, scale * 2**i, first + 6 * i, None, None) for i in range(5))
    return Curve(name, name, tuple(points))


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.7])
def test_bd_rate_of_a_scaled_curve_is_the_scale(scale: float) -> None:
    result = bd_rate(curve("anchor", 0.1), curve("test", 0.1 * scale), "psnr_db")
    assert result is not None
    assert result.percent == pytest.approx(100 * (scale - 1))
    assert (result.anchor, result.codec, result.overlap) == ("anchor", "test", 1.0)


def test_bd_rate_reports_a_partial_overlap_without_warning() -> None:
    result = bd_rate(curve("anchor", 0.1), curve("test", 0.2, first=42.0), "psnr_db")
    assert result is not None
    assert result.overlap == pytest.approx(12 / 36)
    assert result.percent == pytest.approx(-50)


def test_there_is_no_bd_rate_of_a_point_or_of_curves_that_do_not_meet() -> None:
    whole = curve("anchor", 0.1)
    assert bd_rate(whole, replace(whole, points=whole.points[:1]), "psnr_db") is None
    assert bd_rate(whole, curve("far", 0.1, first=60.0), "psnr_db") is None
    assert bd_rate(whole, whole, "ms_ssim") is None


def test_published_curves_give_the_bd_rates_the_literature_has_for_them() -> None:
    by_name = {c.name: c for c in published()}
    expected = {"bpg-444": 22, "av1": 16, "elic": -7, "cheng2020": 3.9, "mbt2018-mean": 22}
    for name, percent in expected.items():
        result = bd_rate(by_name["vtm"], by_name[name], "psnr_db")
        assert result is not None
        assert result.percent == pytest.approx(percent, abs=1.0), name
    assert bpp_at(by_name["vtm"], 34.0) == pytest.approx(0.465, abs=0.005)
    assert all(c.source for c in by_name.values())


def test_averages_are_means_of_bpp_and_metric_by_setting() -> None:
    rows = [row("a", "x", "q1", 1000, 30.0), row("b", "x", "q1", 3000, 40.0),
            row("a", "x", "q2", 4000, 42.0), row("b", "x", "q2", 6000, 44.0)]  # fmt: skip
    (result,) = average(rows)
    assert [(p.setting, p.bytes, p.bpp, p.psnr_db) for p in result.points] == [
        ("q1", 4000, 2.0, 35.0),
        ("q2", 10000, 5.0, 43.0),
    ]


def peer_rows(image: str, scale: float) -> list[Measurement]:
    """Measurements of a peer whose log bytes are linear in PSNR."""
    return [row(image, "peer", f"q{p}", round(scale * 2 ** (p / 6)), float(p))
            for p in range(24, 49, 4)]  # fmt: skip


def test_bytes_at_equal_quality_are_read_off_each_pictures_own_curve() -> None:
    rows = [*peer_rows("a", 100), *peer_rows("b", 1000)]
    rows.append(row("a", OURS, "rate 4", round(0.5 * 100 * 2 ** (33 / 6)), 33.0))
    rows.append(row("b", OURS, "rate 4", round(0.8 * 1000 * 2 ** (41 / 6)), 41.0))
    for metric in ("psnr_db", "ms_ssim"):
        (result,) = at_equal(rows, metric)
        assert result.percent == pytest.approx(100 * (math.sqrt(0.5 * 0.8) - 1), abs=0.2)
        assert (result.best, result.worst) == pytest.approx((-50, -20), abs=0.2)
        assert (result.compared, result.images) == (2, 2)


def test_at_equal_likeness_ours_is_the_ladder_trained_for_it() -> None:
    rows = [*peer_rows("a", 100), row("a", OURS, "rate 4", 3000, 33.0)]
    rows.append(row("a", our_name("ms-ssim"), "rate 4", 2000, 33.0))
    for metric, name, peers in (
        ("psnr_db", OURS, {"peer"}),
        ("ms_ssim", our_name("ms-ssim"), {"peer"}),
    ):
        result = at_equal(rows, metric)
        assert {f.codec for f in result} == {name}
        assert {f.peer for f in result} == peers, "a single point is no curve to compare with"


def test_pictures_beyond_the_peers_curve_are_counted_out_not_extrapolated() -> None:
    rows = [*peer_rows("a", 100), *peer_rows("b", 100)]
    rows += [row("a", OURS, "rate 4", 3000, 33.0), row("b", OURS, "rate 4", 90000, 50.0)]
    (result,) = at_equal(rows, "psnr_db")
    assert (result.compared, result.images) == (1, 2)
    assert at_equal(rows, "ssimulacra2") == ()


def test_a_setting_that_is_larger_and_no_better_is_no_part_of_the_curve() -> None:
    rows = [*peer_rows("a", 100), row("a", "peer", "worse", 100000, 33.0)]
    rows.append(row("a", OURS, "rate 4", round(100 * 2 ** (36 / 6)), 36.0))
    (result,) = at_equal(rows, "psnr_db")
    assert result.percent == pytest.approx(0, abs=0.2)


def test_rows_come_back_from_csv_as_they_were(tmp_path: Path) -> None:
    rows = (row("a", "x", "q1", 1000, 30.0), row("b", OURS, "rate 4", 77, math.inf))
    write_rows(tmp_path / "rows.csv", Measurement, rows)
    result = read_rows(tmp_path / "rows.csv", Measurement)
    assert [r.key for r in result] == [r.key for r in rows]
    assert result[0] == replace(rows[0], ms_ssim=result[0].ms_ssim)
    assert result[1].psnr_db == math.inf
    assert result[1].value("psnr_db") is None
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadParameter, match=r"other\.csv"):
        read_rows(tmp_path / "other.csv", Measurement)


def test_rows_that_are_written_again_are_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, Measurement, [row("a", "x", "q1", 1000, 30.0)])
    before = path.read_bytes()

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_rows(
            path, Measurement, [row("a", "x", "q1", 1000, 30.0), row("b", "x", "q1", 900, 31.0)]
        )
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["rows.csv"]


def test_kodak_is_known_by_its_24_names() -> None:
    names = [f"kodim{i:02d}" for i in range(1, 25)]
    assert curves.is_kodak(names)
    assert not curves.is_kodak(names[1:])
