"""The evaluation: real bytes and pixels, one point or many, and measurements that are reused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli.main import app
from service.engine.comparison import decode_peer
from service.errors import BadParameter, RateUnavailable
from service.eval import contact_sheet, evaluation, metrics, report
from service.eval.machine import Machine
from service.eval.measurements import OUR_NAMES, OURS, Measurement
from service.eval.peer_codecs import choose_peers, peer_named
from service.eval.pictures import NamedPicture, generate, read_folder
from service.picture import Picture

from .fake_codec import CutBits

MACHINE = Machine("a cpu", 2, "cpu", 0.0)
PICTURES = (NamedPicture("a", generate(64, 48)), NamedPicture("b", generate(50, 70)))
PLAN = evaluation.EvaluationPlan((4.0, 6.0), choose_peers(["webp-m4"]))


def ignore(_: Measurement) -> None:
    return


def test_rows_are_the_lengths_and_distances_of_real_files() -> None:
    rows = evaluation.evaluate(PICTURES, CutBits(), PLAN, (), ignore)
    assert len(rows) == len(PICTURES) * PLAN.files
    peer = next(r for r in rows if r.codec == "webp-m4")
    data = peer_named("webp-m4").compress(PICTURES[0].picture, int(peer.setting[1:]))
    assert peer.bytes == len(data)
    assert peer.bpp == 8 * len(data) / (64 * 48)
    assert peer.psnr_db == metrics.psnr_db(PICTURES[0].picture, decode_peer(data))
    ours = [r for r in rows if r.codec == OURS and r.image == PICTURES[1].name]
    assert [r.setting for r in ours] == ["rate 4", "rate 6"]
    assert [r.psnr_db for r in ours] == pytest.approx([34.7, 46.4], abs=0.4)


def test_known_rows_of_peers_are_taken_over_and_ours_never() -> None:
    first = evaluation.evaluate(PICTURES, CutBits(), PLAN, (), ignore)
    codec = CutBits()
    second = evaluation.evaluate(PICTURES, codec, PLAN, first, ignore)
    assert len(codec.calls) == len(PLAN.rates) * (len(PICTURES) + 1)
    for before, after in zip(first, second, strict=True):
        assert (after is before) == (after.codec != OURS)
    changed = NamedPicture(PICTURES[0].name, Picture(255 - PICTURES[0].picture.rgb))
    third = evaluation.evaluate([changed], CutBits(), PLAN, first, ignore)
    assert not {id(r) for r in third} & {id(r) for r in first}


def test_a_rate_that_is_not_there_is_refused_before_any_work() -> None:
    with pytest.raises(RateUnavailable):
        evaluation.evaluate(
            PICTURES, CutBits(), evaluation.EvaluationPlan((4.0, 5.0), PLAN.peers), (), pytest.fail
        )


def test_a_single_rate_still_gives_bytes_at_equal_psnr_and_no_bd_rate() -> None:
    plan = evaluation.EvaluationPlan((4.0,), PLAN.peers)
    rows = evaluation.evaluate(PICTURES, CutBits(), plan, (), ignore)
    summary = evaluation.summarise(rows, CutBits(), MACHINE, None)
    (equal,) = summary["at_equal"]["psnr_db"]
    assert (equal["peer"], equal["setting"], equal["compared"]) == ("webp-m4", "rate 4", 2)
    assert OURS not in {e["codec"] for e in summary["bd_rate"]["psnr_db"]}
    assert json.loads(evaluation.to_json(summary))["images"] == 2


def test_results_have_a_column_for_each_rate_and_a_row_for_each_peer() -> None:
    rows = evaluation.evaluate(PICTURES, CutBits(), PLAN, (), ignore)
    summary = evaluation.summarise(rows, CutBits(), MACHINE, None)
    text = report.eval_table(json.loads(evaluation.to_json(summary)))
    head = next(line for line in text.splitlines() if "our bytes at equal PSNR" in line)
    assert [c.strip() for c in head.split("|")[2:4]] == ["rate 4", "rate 6"]
    percent = summary["at_equal"]["psnr_db"][0]["percent"]
    assert f"{percent:+.1f} %" in next(x for x in text.splitlines() if x.startswith("| webp-m4"))


def test_a_ladder_gives_bd_rates_against_the_anchor_that_was_named() -> None:
    rows = evaluation.evaluate(PICTURES, CutBits(), PLAN, (), ignore)
    summary = evaluation.summarise(rows, CutBits(), MACHINE, "webp-m4")
    assert summary["bd_rate"]["anchor"] == "webp-m4"
    assert {e["codec"] for e in summary["bd_rate"]["psnr_db"]} == {OURS, "webp-m4"}
    with pytest.raises(BadParameter, match="'hevc'"):
        evaluation.summarise(rows, CutBits(), MACHINE, "hevc")


@pytest.mark.parametrize(
    ("text", "rates"), [("4", (4.0,)), ("1-3", (1.0, 2.0, 3.0)), ("2,4.5", (2.0, 4.5))]
)
def test_rates_are_numbers_or_a_range(text: str, rates: tuple[float, ...]) -> None:
    assert evaluation.parse_rates(text) == rates


@pytest.mark.parametrize("text", ["", "4-2", "a", "1-b", "1-2-3"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="rates are"):
        evaluation.parse_rates(text)


def test_tunes_are_codecs_of_their_own_and_compared_with_each_other() -> None:
    plan = evaluation.EvaluationPlan((4.0, 6.0), PLAN.peers, tunes=("psnr", "ms-ssim"))
    rows = evaluation.evaluate(PICTURES, CutBits(), plan, (), ignore)
    assert len(rows) == len(PICTURES) * plan.files
    assert {r.codec for r in rows} == {*OUR_NAMES, "webp-m4"} and OUR_NAMES[1] == f"{OURS}-ms-ssim"
    codec = CutBits()
    again = evaluation.evaluate(PICTURES, codec, plan, rows, ignore)
    assert len(codec.calls) == 4 * (len(PICTURES) + 1), "both of ours are measured again"
    summary = evaluation.summarise(again, CutBits(), MACHINE, None)
    assert {(e["codec"], e["peer"]) for e in summary["at_equal"]["psnr_db"]} == {
        (OURS, "webp-m4"), (OURS, OUR_NAMES[1]),
    }  # fmt: skip
    (between,) = summary["tunes"]["psnr_db"]
    assert between["percent"] == pytest.approx(100), "it makes every stream twice as long"
    assert summary["tunes"]["ms_ssim"] == [], "the pictures are too small for it"
    assert summary["bd_rate"]["anchor"] == "webp-m4"
    text = report.eval_table(json.loads(evaluation.to_json(summary)))
    assert "| rate 4, ms-ssim |" in text and "| rate 6, psnr    |" in text
    assert re.search(r"\| BD-rate against rankpress +\| +PSNR \|\n.*\n"
                     r"\| rankpress-ms-ssim +\| \+100\.0 % \|", text)  # fmt: skip


def test_tunes_are_names_by_commas() -> None:
    assert evaluation.parse_tunes("ms-ssim,psnr,ms-ssim") == ("ms-ssim", "psnr")
    with pytest.raises(BadParameter, match="tune is 'ssim'"):
        evaluation.parse_tunes("psnr,ssim")


def test_the_sheet_of_tunes_shows_both_and_the_original() -> None:
    image = contact_sheet.draw_tunes_sheet(PICTURES[:1], CutBits(), 4.0)
    cell = 64 * contact_sheet.SCALE + contact_sheet.GAP
    assert image.size == (
        3 * cell + contact_sheet.GAP,
        48 * contact_sheet.SCALE + contact_sheet.LABEL + contact_sheet.GAP,
    )


def test_both_tunes_of_the_sheet_have_the_bytes_of_the_larger_stream() -> None:
    codec = CutBits()
    contact_sheet.draw_tunes_sheet(PICTURES[:1], codec, 4.0)
    larger = len(codec.compress(PICTURES[0].picture, 4.0, "ms-ssim").data)
    assert codec.limits == [larger, larger]


def test_the_sheet_has_a_row_of_five_crops_for_each_picture() -> None:
    image = contact_sheet.draw_peers_sheet(PICTURES[:1], CutBits(), 4.0)
    cell = 64 * contact_sheet.SCALE + contact_sheet.GAP
    assert image.size == (
        5 * cell + contact_sheet.GAP,
        48 * contact_sheet.SCALE + contact_sheet.LABEL + contact_sheet.GAP,
    )
    left, top = contact_sheet.GAP + 4 * cell, contact_sheet.LABEL
    original = np.array(image)[top : top + 96 : 2, left : left + 128 : 2]
    assert np.array_equal(original, PICTURES[0].picture.rgb)


def test_the_busiest_crop_is_where_the_detail_is() -> None:
    rgb = np.zeros((500, 600, 3), np.uint8)
    rgb[250:330, 330:420] = generate(90, 80).rgb
    left, top = contact_sheet.find_crop(rgb)
    assert left < 420 and left + contact_sheet.CROP[0] > 330
    assert top < 330 and top + contact_sheet.CROP[1] > 250


def test_a_folder_is_read_as_plain_srgb_in_order_of_name(tmp_path: Path) -> None:
    Image.fromarray(PICTURES[0].picture.rgb).save(tmp_path / "b.png")
    Image.fromarray(PICTURES[1].picture.rgb).convert("L").save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    first, second = read_folder(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert first.picture.rgb.shape == PICTURES[1].picture.rgb.shape
    assert np.array_equal(second.picture.rgb, PICTURES[0].picture.rgb)
    with pytest.raises(BadParameter, match="none is not a folder of pictures"):
        read_folder(tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadParameter, match="no picture in .*none"):
        read_folder(tmp_path / "none")


def test_pictures_with_alpha_are_measured_by_what_is_seen_of_them(tmp_path: Path) -> None:
    """Pictures that look the same have the same measurements, whatever their alpha hides."""
    rgb = PICTURES[0].picture.rgb
    alpha = np.where(np.arange(64) < 40, 255, 0).astype(np.uint8) * np.ones((48, 1), np.uint8)
    pixels = rgb, np.where(alpha[..., None] > 0, rgb, 255 - rgb)
    rows = []
    for number, colours in enumerate(pixels):
        folder = tmp_path / str(number)
        folder.mkdir()
        Image.fromarray(np.dstack([colours, alpha])).save(folder / "a.png")
        (named_picture,) = read_folder(folder)
        assert np.array_equal(named_picture.picture.alpha, alpha)
        rows.append(evaluation.evaluate([named_picture], CutBits(), PLAN, (), ignore))
    for one, other in zip(*rows, strict=True):
        assert (one.bytes, one.psnr_db) == (other.bytes, other.psnr_db)
        assert one.psnr_db < 60


def test_the_commands_take_their_settings_from_the_environment(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "in"
    pictures.mkdir()
    Image.fromarray(PICTURES[0].picture.rgb).save(pictures / "a.png")
    monkeypatch.setenv("RANKPRESS_STORE", str(store))
    monkeypatch.setenv("RANKPRESS_DEVICE", "cpu")
    arguments = ["eval", str(pictures), "--out", str(tmp_path / "out"), "--against", ""]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["model"]["name"] == "small"
    monkeypatch.setenv("RANKPRESS_STORE", str(tmp_path / "none"))
    for name in ("codec", "decoder", "rates"):
        refused = CliRunner().invoke(app, ["bench", name])
        assert refused.exit_code != 0 and "no model in" in refused.output
    monkeypatch.setenv("RANKPRESS_MODEL", "other")
    refused = CliRunner().invoke(app, ["bench", "codec"])
    assert refused.exit_code != 0 and "RANKPRESS_MODEL" in refused.output


def test_the_command_writes_csv_json_figures_and_sheet(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(generate(184, 176).rgb).save(folder / "a.png")
    record = tmp_path / "new" / "record.json"
    arguments = ["eval", str(folder), "--against", "jpeg-420", "--store", str(store)]
    result = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "out"), "--record", str(record)]
    )
    assert result.exit_code == 0, result.output
    assert "| rate 4 " in result.output
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"images.csv", "summary.json", "rd-psnr-db.png", "rd-ms-ssim.png",
                       "crops.png"}  # fmt: skip
    assert json.loads(record.read_text())["what"] == "eval"
    result = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "again"), "--record", str(folder)]
    )
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {folder}: it is a folder, expected a file\n",
    )
    assert not (tmp_path / "again").exists(), "known before anything is measured"
