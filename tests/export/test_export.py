"""What is exported codes as the float model says, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Small
from small_model import SIZES, photo_like, random_backbone, small_stored_model

from service.engine.engine import Engine
from service.export.agreement import CodecAgreement, ExportFailed, measure_agreement
from service.images.write import write_image
from service.nets.model import Backbone
from service.picture import Picture
from service.rates.figures import measure_rate
from service.runtime.loading import load_models
from service.store.read import load_model
from service.store.write import write_model
from service.train.evaluate import pictures_in
from service.train.tunes import BASE


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        data = write_image(Picture(photo_like(200 + i, 260, i)), "png")
        (folder / f"{i}.png").write_bytes(data)
    (folder / "small.png").write_bytes(write_image(Picture(photo_like(63, 300)), "png"))
    return folder


def test_pictures_are_cut_to_whole_cells_and_small_ones_left_out(pictures: Path) -> None:
    assert [(p.height, p.width) for p in pictures_in(pictures)] == [(192, 256), (192, 256)]


def test_the_exported_model_agrees_with_the_float_model(small: Small, pictures: Path) -> None:
    engine = Engine(load_models((small.stored,), "cpu", torch.float32))
    agreement, figures = measure_agreement(engine, small.backbone, pictures)
    assert agreement.pictures == 2
    flush_bpp = 400 / (192 * 256)  # of these few thousand bits, header and last words are many
    assert agreement.real_bpp == pytest.approx(agreement.estimated_bpp, rel=0.01, abs=flush_bpp)
    assert agreement.real_psnr_db == pytest.approx(agreement.float_psnr_db, abs=0.02)
    assert figures == measure_rate(engine, BASE, "psnr", pictures), "small pictures count too"


def test_another_model_than_was_exported_is_noticed(small: Small, pictures: Path) -> None:
    other: Backbone = random_backbone(SIZES, seed=1)
    engine = Engine(load_models((small.stored,), "cpu", torch.float32))
    with pytest.raises(ExportFailed, match="off the estimate"):
        measure_agreement(engine, other, pictures)[0].check()
    unchecked = Engine(load_models((small.stored,), "cpu", torch.float32), check=False)
    with pytest.raises(ExportFailed, match="must check"):
        measure_agreement(unchecked, small.backbone, pictures)


def test_agreement_has_limits_on_both_sides() -> None:
    good = CodecAgreement(24, 0.5, 0.501, 33.0, 32.99)
    good.check()
    for change in ({"real_bpp": 0.51}, {"real_bpp": 0.49}, {"real_psnr_db": 32.9}):
        with pytest.raises(ExportFailed, match="off the estimate"):
            replace(good, **change).check()


def test_exporting_twice_gives_the_same_files(small: Small, tmp_path: Path) -> None:
    stored, base, _ = small_stored_model()
    assert base == small.base and stored.golden.stream == small.stored.golden.stream
    for name, model in (("a", small.stored), ("b", stored)):
        write_model(tmp_path / name, model, base)
    files = ("base.safetensors", "golden.safetensors", "manifest.json")
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert load_model(tmp_path / "a").identity == small.stored.identity
