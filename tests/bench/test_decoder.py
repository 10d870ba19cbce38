"""The light decoder's benchmark: fresh processes, sizes on disk, and agreement with torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from service.bench import decoder, report
from service.errors import BadParameter
from service.eval.evaluation import to_json
from service.eval.pictures import generate
from service.settings import Settings


def test_times_are_those_of_a_fresh_process(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "SIZES", ((128, 96),))
    monkeypatch.setattr(decoder, "STARTS", 1)
    lines: list[str] = []
    result = decoder.bench_decoder(
        Settings(store=store, device="cpu", threads=1), 4.0, lines.append
    )
    (times,) = result["times"]
    assert (times["width"], times["height"]) == (128, 96)
    assert 0 < times["import_s"] < times["first_s"]
    assert 0 < times["decode_ms"] <= times["decode_p95_ms"]
    assert times["decode_ms"] / 1000 < times["first_s"]
    assert 30 < times["peak_mib"] < 600
    assert "decoding 128x96" in lines
    text = report.decoder_table(json.loads(to_json(result)))
    assert "| 128×96" in text and "Installed: " in text


def test_the_size_is_that_of_a_package_and_all_it_needs() -> None:
    sizes = decoder.installed_bytes("onnxruntime")
    assert {"onnxruntime", "numpy", "protobuf"} <= set(sizes)
    assert sizes["onnxruntime"] > 10**7 and "sympy" not in sizes
    assert decoder.installed_bytes("no-such-package-at-all") == {}


def test_pixels_are_compared_at_the_rates_of_the_store(store: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        Image.fromarray(generate(70, 40, seed).rgb).save(tmp_path / f"{seed}.png")
    result = decoder.compare_pixels(tmp_path, store, lambda _: None)
    (at_4,) = result["agreement"]
    assert (at_4["tune"], at_4["rate"], at_4["pictures"]) == ("psnr", 4, 2)
    assert at_4["largest"] <= 1 and at_4["share"] < 1e-2
    assert at_4["server_largest"] <= 6, "bfloat16 where the CPU has it, else exactly the same"
    text = report.agreement_table(json.loads(to_json(result)))
    assert text.splitlines()[2].startswith("| 4 ")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadParameter, match="no picture"):
        decoder.compare_pixels(tmp_path / "none", store, lambda _: None)
