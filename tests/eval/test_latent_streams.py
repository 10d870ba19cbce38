"""The evaluation of latent streams: real streams, ceilings, and measurements that are reused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_autoencoder import CellMeans, small_autoencoders
from small_model import photo_like

from service.cli.eval import parse_bpp
from service.engine.engine import Engine
from service.errors import BadParameter
from service.eval import contact_sheet, evaluation, report
from service.eval.latent_streams import (
    CEILING,
    PEERS,
    LatentMeasurement,
    LatentPlan,
    fit,
    latent_name,
    measure_latents,
    quality_at,
    summarise_latents,
)
from service.eval.machine import Machine
from service.eval.measurements import Measurement, read_rows, write_rows
from service.eval.metrics import psnr_db
from service.eval.peer_codecs import peer_named
from service.eval.pictures import NamedPicture, decode_on_white
from service.picture import Picture
from service.runtime.pipeline import LoadedModel

MEANS, COARSE = CellMeans("means"), CellMeans("coarse", cell=16)
PICTURES = tuple(
    NamedPicture(f"photo-{i}", Picture(photo_like(170, 180, seed=i))) for i in range(2)
)
PLAN = LatentPlan(("means", "coarse"), (2.0, 5.0), (0,))


def ignore(_: Measurement) -> None:
    return


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Engine:
    return Engine((loaded,), autoencoders=small_autoencoders(MEANS, COARSE))


@pytest.fixture(scope="module")
def rows(engine: Engine) -> tuple[LatentMeasurement, ...]:
    return measure_latents(PICTURES, engine, PLAN, (), ignore)


def test_rows_are_those_of_real_streams(
    engine: Engine, rows: tuple[LatentMeasurement, ...]
) -> None:
    assert len(rows) == 2 * 2 * 3
    named = PICTURES[1]
    (row,) = (
        r for r in rows
        if (r.image, r.codec, r.setting) == (named.name, latent_name("means"), "quality 5")
    )  # fmt: skip
    data = fit(engine, named.picture, "means", 5, 0)
    assert row.bytes == len(data) and row.bpp == 8 * len(data) / (170 * 180)
    assert row.psnr_db == psnr_db(named.picture, decode_on_white(engine, data))
    assert 20 <= row.network_bytes < 0.5 * row.bytes
    # 12 grids at most: 179 for each value, 19 for each grid and position, the rest for positions.
    assert 0 < row.multiply_adds < 12 * (179 + 19 + 16) / 64 + 10


def test_no_stream_comes_closer_than_the_ceiling(rows: tuple[LatentMeasurement, ...]) -> None:
    for ceiling in (r for r in rows if r.setting == CEILING):
        assert ceiling.bytes == ceiling.network_bytes == 0
        of_it = [r for r in rows if (r.image, r.codec) == (ceiling.image, ceiling.codec)]
        assert max(r.psnr_db for r in of_it) <= ceiling.psnr_db + 0.05


def test_known_rows_are_taken_over(
    engine: Engine, rows: tuple[LatentMeasurement, ...], tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.csv", LatentMeasurement, rows)
    known = read_rows(tmp_path / "rows.csv", LatentMeasurement)
    again = measure_latents(PICTURES, engine, PLAN, known, ignore)
    assert all(a is b for a, b in zip(again, known, strict=True))
    others = [replace(row, identity="0" * 16) for row in known if row.codec.endswith("coarse")]
    plan = replace(PLAN, autoencoders=("coarse",), qualities=(2.0,))
    fresh = measure_latents(PICTURES[:1], engine, plan, others, ignore)
    assert not any(row in others for row in fresh), "they are of other weights"


def test_the_summary_has_points_ceilings_and_costs(
    engine: Engine, rows: tuple[LatentMeasurement, ...]
) -> None:
    plan = evaluation.EvaluationPlan((4.0,), PEERS[-1:], perceptual=True)
    others = evaluation.evaluate(PICTURES, engine, plan, (), ignore)
    machine = Machine("a cpu", 2, "cpu", 0.0)
    summary = summarise_latents({"photos": PICTURES}, rows, others, engine, machine)
    back = json.loads(evaluation.to_json(summary))
    (group,) = back["groups"]
    assert {c["name"] for c in group["curves"]} == {
        "rankpress", "webp-m6", latent_name("means"), latent_name("coarse"),
    }  # fmt: skip
    assert group["ceilings"][latent_name("means")]["psnr_db"] > 0
    assert {(c["codec"], c["setting"]) for c in back["costs"]} == {
        (latent_name(n), f"quality {q}") for n in ("means", "coarse") for q in (2, 5)
    }
    assert all(c["loss_percent"] == 0 for c in back["costs"]), "there is one effort only"
    text = report.latent_tables(back)
    assert "photos, mean of 2 pictures:" in text and "rankpress-latent-means, ceiling" in text
    assert "| means, quality 2, effort 0 " in text


def test_the_sheet_has_a_cell_for_each_stream_each_peer_and_the_original(
    engine: Engine, rows: tuple[LatentMeasurement, ...]
) -> None:
    sheet = contact_sheet.draw_latent_sheet(PICTURES[:1], engine, rows, 0.05)
    cell = 180 * contact_sheet.SCALE + contact_sheet.GAP
    assert sheet.width == (2 + len(PEERS) + 1) * cell + contact_sheet.GAP


def test_the_quality_of_some_bits_lies_between_those_that_were_measured(
    rows: tuple[LatentMeasurement, ...],
) -> None:
    points = [r for r in rows if r.image == "photo-0" and r.codec == latent_name("means")]
    low, high = sorted((r for r in points if r.setting != CEILING), key=lambda r: r.bpp)
    assert quality_at([high, low], low.bpp) == 2 and quality_at([high, low], 9) == 5
    assert quality_at([high, low], (low.bpp * high.bpp) ** 0.5) == 3.5


def test_a_picture_of_half_the_size_is_shown_at_its_own() -> None:
    peer = replace(peer_named("webp-m6"), divisor=2)
    picture = Picture(photo_like(41, 61, seed=3))
    data = peer.compress(picture, 90)
    assert peer.decode(data, (61, 41)).shape == (41, 61, 3)
    assert len(data) < 0.5 * len(peer_named("webp-m6").compress(picture, 90))
    flat = Picture(np.full((41, 61, 3), 90, np.uint8))
    assert np.abs(peer.decode(peer.compress(flat, 90), (61, 41)).astype(int) - 90).max() <= 2


def test_bits_per_pixel_are_positive_numbers() -> None:
    assert parse_bpp("0.05,0.1") == (0.05, 0.1) and parse_bpp("") == ()
    for text in ("a", "0", "0.1,-1", "inf", "nan"):
        with pytest.raises(BadParameter, match="bits per pixel are"):
            parse_bpp(text)
