"""Training of rates: a function of its seed, whether or not it is cut off; what it stores is whole.

Blocks are not compiled here: that takes a compiler and minutes, and computes the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Small
from power_cut import PowerCut, cuts
from small_ladder import RANKS, small_adapter, small_update, with_update
from small_model import photo_like
from typer.testing import CliRunner

from service.cli.main import app
from service.codec.container import read_stream
from service.codec.lowrank import MAX_EXPONENT, PARTS, Share, Update, merge_entropy
from service.datasets.crops import Crops
from service.engine.engine import Engine
from service.errors import BadParameter, StoreError
from service.images.write import write_image
from service.nets.adapters import domains, load_update, quantise_adapter
from service.nets.backbone import Block
from service.nets.lora import AdapterLearningRates, RateAdapter
from service.nets.twin import float_twin
from service.picture import Picture
from service.rates.figures import measure_rate
from service.rates.ladder import publish, train_ladder
from service.rates.rate_training import (
    RateProgress,
    RateRecipe,
    TrainedRate,
    batch_loss,
    train_rate,
)
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.store import write as publish_module
from service.store.model import StoredModel, StoredRate
from service.store.read import load_model, load_store
from service.store.write import publish_rate, write_model
from service.train.tunes import BASE, LADDER, PSNR

RECIPE = RateRecipe(steps=6, batch=2, crop=64, warmup=2, ranks=RANKS, checkpoint_s=0.0)


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "compile", lambda *_, **__: None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        data = write_image(Picture(photo_like(70 + i, 96, i)), "png")
        (folder / f"{i}.png").write_bytes(data)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def crops(pictures: Path) -> Crops:
    return Crops(pictures, 64, seed=0)


@pytest.fixture
def folder(tmp_path: Path, small: Small) -> Path:
    """A model's folder in a store of its own."""
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    return tmp_path / "store" / "small"


def same(one: RateAdapter, other: RateAdapter) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


class CutOff(Crops):
    """The same crops, but the run ends when it asks for those of one step."""

    def __init__(self, crops: Crops, last: int) -> None:
        self.__dict__.update(crops.__dict__)
        self._last = last

    def batch(self, step: int, count: int) -> torch.Tensor:
        if step == self._last:
            raise KeyboardInterrupt
        return super().batch(step, count)


def train(
    stored: StoredModel,
    crops: Crops,
    checkpoint: Path,
    recipe: RateRecipe = RECIPE,
    rate: int = 5,
    start: TrainedRate | None = None,
) -> tuple[RateAdapter, list[RateProgress]]:
    # fmt: skip
    reports: list[RateProgress] = []
    done = train_rate(stored, crops, rate, start, recipe, checkpoint, reports.append)
    return done.adapter, reports


# --- data --------------------------------------------------------------------------------------


def test_crops_are_a_function_of_seed_and_step(pictures: Path, crops: Crops) -> None:
    again = Crops(pictures, 64, seed=0)
    assert len(crops) == 3
    assert torch.equal(crops.batch(7, 4), again.batch(7, 4))
    assert not torch.equal(crops.batch(7, 4), crops.batch(8, 4))
    assert not torch.equal(crops.batch(7, 4), Crops(pictures, 64, seed=1).batch(7, 4))
    batch = crops.batch(0, 4)
    assert batch.shape == (4, 64, 64, 3) and 0 <= batch.min() <= batch.max() <= 1
    with pytest.raises(BadParameter, match="no picture of at least 500x500"):
        Crops(pictures, 500, seed=0)


# --- determinism and resuming ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_losses_and_adapter(
    small_model: StoredModel, crops: Crops, tmp_path: Path
) -> None:
    first, reports = train(small_model, crops, tmp_path / "1.safetensors")
    torch.manual_seed(12345)  # what ran before must not matter
    second, again = train(small_model, crops, tmp_path / "2.safetensors")
    assert same(first, second)
    assert [(r.step, r.loss, r.bpp) for r in reports] == [(r.step, r.loss, r.bpp) for r in again]
    assert reports[-1].step == RECIPE.steps and math.isfinite(reports[-1].loss)
    other, _ = train(small_model, crops, tmp_path / "3.safetensors", replace(RECIPE, seed=1))
    assert not same(first, other)


@pytest.mark.parametrize("last", [1, 4])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    small_model: StoredModel, crops: Crops, tmp_path: Path, last: int
) -> None:
    whole, _ = train(small_model, crops, tmp_path / "whole.safetensors")
    checkpoint = tmp_path / "cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(small_model, CutOff(crops, last), checkpoint)
    resumed, _ = train(small_model, crops, checkpoint)
    assert same(whole, resumed)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_finished_checkpoint_is_taken_as_it_is(
    small_model: StoredModel, crops: Crops, tmp_path: Path
) -> None:
    done, _ = train(small_model, crops, tmp_path / "c.safetensors")
    again, reports = train(small_model, CutOff(crops, 0), tmp_path / "c.safetensors")
    assert same(done, again) and reports == []


def test_a_checkpoint_of_another_base_rate_or_recipe_is_refused(
    small_model: StoredModel, crops: Crops, tmp_path: Path
) -> None:
    """It would be published as an adapter of a base that it was not trained on."""
    path = tmp_path / "c.safetensors"
    train(small_model, crops, path)
    before = path.read_bytes()
    other_base = replace(small_model, sha256="00" * 32)
    for model, recipe, rate in (
        (other_base, RECIPE, 5),
        (small_model, replace(RECIPE, lr=AdapterLearningRates(2e-3, 1e-3, 5e-3)), 5),
        (small_model, RECIPE, 6),
    ):
        with pytest.raises(BadParameter, match="is the checkpoint of"):
            train(model, crops, path, recipe, rate)
    train(small_model, crops, path, replace(RECIPE, checkpoint_s=9.0))
    assert path.read_bytes() == before


def test_the_base_is_frozen_and_the_adapter_starts_as_it(small_model: StoredModel) -> None:
    base = float_twin(small_model)
    adapter = RateAdapter(base, domains(small_model, RANKS), 0)
    x = torch.from_numpy(photo_like(64, 64)).float()[None] / 255
    with torch.inference_mode():
        plain = base(x, relax=None)
        adapted = torch.func.functional_call(base, adapter.merged(), (x,), {"relax": None})
    assert torch.equal(plain.x_hat, adapted.x_hat) and torch.equal(plain.bits_y, adapted.bits_y)
    assert not any(p.requires_grad for p in base.parameters())


def test_training_lowers_the_loss_of_its_lmbda(
    small_model: StoredModel, crops: Crops, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, steps=40, lr=AdapterLearningRates(3e-3, 3e-3, 15e-3))
    adapter, _ = train(small_model, crops, tmp_path / "c.safetensors", recipe, rate=1)
    fresh = RateAdapter(float_twin(small_model), domains(small_model, RANKS), 0)
    fresh.start_from(fresh, LADDER[1] / LADDER[4])

    def loss(a: RateAdapter) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            x = crops.batch(999, 8)
            return float(batch_loss(float_twin(small_model), a, x, PSNR, LADDER[1])[0])

    assert loss(adapter) < 0.99 * loss(fresh)


# --- quantising --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 3, 5, 8])
def test_the_stored_adapter_codes_as_the_float_one_estimates(
    small_model: StoredModel, rate: int
) -> None:
    """Real bytes of 8-bit factors and integer networks against the float estimate of the bits."""
    adapter = small_adapter(small_model, rate)
    stored = with_update(small_model, rate, quantise_adapter(small_model, adapter))
    engine, base = Engine(load_models((stored,), "cpu", torch.float32)), float_twin(small_model)
    estimated, real, float_psnr, real_psnr = [], [], [], []
    for seed in range(300, 303):
        rgb = photo_like(128, 192, seed)
        x = torch.from_numpy(rgb).float()[None] / 255
        with torch.inference_mode():
            e = torch.func.functional_call(base, adapter.merged(), (x,), {"relax": None})
        estimated.append(float(e.bits_y + e.bits_z))
        shown = (e.x_hat.clamp(0, 1) * 255).round() / 255
        float_psnr.append(-10 * math.log10(float((shown - x).square().mean())))
        made = engine.compress(Picture(rgb), rate)
        real.append(8 * sum(map(len, chain.from_iterable(read_stream(made.data).tiles))))
        real_psnr.append(made.psnr_db)
    flush = 48 * len(real)  # the coder ends each piece on whole bytes
    assert sum(real) == pytest.approx(sum(estimated), abs=0.01 * sum(estimated) + flush)
    assert np.mean(real_psnr) == pytest.approx(np.mean(float_psnr), abs=0.05)


def test_a_changed_first_layer_of_h_s_sees_the_mean_of_its_input_too(
    small_model: StoredModel,
) -> None:
    """The stored layer reads z_hat less its mean, whose part is in the bias."""
    adapter = small_adapter(small_model, 3)
    with torch.no_grad():
        adapter.b["h_s/0/l"].mul_(30)
        adapter.d["h_s/0/l"].zero_()
    base = float_twin(small_model)
    assert float(base.z_mean.abs().max()) > 0.3
    shares = [Share(quantise_adapter(small_model, adapter), PARTS)]
    merged = replace(small_model, entropy=merge_entropy(small_model.entropy, shares))
    torch.manual_seed(0)
    z_hat = base.z_mean + torch.randn(1, 3, 4, small_model.sizes.Cz)
    with torch.inference_mode():
        found = float_twin(merged).h_s[0](z_hat)
        names = {f"h_s.0.l.{part}": f"l.{part}" for part in ("weight", "bias")}
        changed = {names[n]: t for n, t in adapter.merged().items() if n in names}
        expected = torch.func.functional_call(base.h_s[0], changed, (z_hat,))
        plain = base.h_s[0](z_hat)
    assert float((expected - plain).abs().max()) > 0.3
    assert float((found - expected).abs().max()) < 0.05 * float((expected - plain).abs().max())


# --- publishing --------------------------------------------------------------------------------


def entry(rate: int) -> StoredRate:
    return StoredRate(rate, LADDER[rate], 0.5, 30.0, training={"steps": 3})


def test_what_is_published_is_read_back(folder: Path, small_model: StoredModel) -> None:
    update = small_update(small_model, 5)
    now = publish_rate(folder, update, entry(5))
    stored = next(r for r in now.rates if r.rate == 5)
    assert (stored.lmbda, stored.kodak_bpp, stored.kodak_psnr_db) == (LADDER[5], 0.5, 30.0)
    assert stored.training == {"steps": 3} and stored.update is not None
    expected = with_update(small_model, 5, update)
    assert now.identity_at(80) == expected.identity_at(80) == load_model(folder).identity_at(80)
    assert now.sha256 == small_model.sha256, "publishing a rate leaves the base alone"
    assert [r.rate for r in publish_rate(folder, small_update(small_model, 3), entry(3)).rates] == [
        3, 4, 5,
    ]  # fmt: skip


def test_a_retrained_rate_still_decodes_the_streams_of_the_one_before(
    folder: Path, small_model: StoredModel
) -> None:
    """Whole rates and the fractions that lie beside them; new requests get the new adapter."""
    picture = Picture(photo_like(64, 64, 1))
    streams = {}
    for seed in (1, 2, 3):
        now = publish_rate(folder, small_update(small_model, 5, seed), entry(5))
        engine = Engine(load_models((now,), "cpu", torch.float32))
        for rate in (4.5, 5.0):
            data = engine.compress(picture, rate).data
            streams[seed, rate] = data, engine.decompress(data).picture.rgb
    assert len({data for data, _ in streams.values()}) == len(streams)
    light = Engine(load_decode_only(load_store(folder.parent)))
    for data, rgb in streams.values():
        assert np.array_equal(engine.decompress(data).picture.rgb, rgb)
        assert np.abs(light.decompress(data).picture.rgb.astype(int) - rgb).max() <= 1
    assert engine.compress(picture, 5).data == streams[3, 5.0][0]
    served = [(a.rate, a.served, a.stored) for a in engine.adapters()]
    assert served == [(5, False, True), (5, False, True), (5, True, True)]


def test_pruning_deletes_superseded_adapters_and_nothing_else(
    folder: Path, small_model: StoredModel
) -> None:
    publish_rate(folder, small_update(small_model, 6), entry(6))
    for seed in (1, 2, 2):
        now = publish_rate(folder, small_update(small_model, 5, seed), entry(5))
    files = {f"rates/{p.name}" for p in (folder / "rates").iterdir()}
    assert len(files) == 3, "publishing the same again supersedes nothing"
    on_disk = [f.stat().st_size for f in folder.rglob("*.*") if f.name != "manifest.json"]
    assert now.file_bytes == sum(on_disk)
    ran = CliRunner().invoke(app, ["train", "prune", str(folder)])
    assert ran.exit_code == 0 and "deleted" in ran.output
    left = {f"rates/{p.name}" for p in (folder / "rates").iterdir()}
    assert len(left) == 2
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {n for n in listed if n.startswith("rates/")} == left
    pruned = load_model(folder)
    assert [r.digest for r in pruned.rates] == [r.digest for r in now.rates]
    assert not pruned.superseded
    again = CliRunner().invoke(app, ["train", "prune", str(folder)])
    assert again.exit_code == 0 and "no superseded adapters" in again.output


def test_a_rate_that_comes_back_is_superseded_no_more(
    folder: Path, small_model: StoredModel
) -> None:
    for seed in (1, 2, 1):
        now = publish_rate(folder, small_update(small_model, 5, seed), entry(5))
    assert len(now.superseded) == 1
    assert now.superseded[0].digest != next(r for r in now.rates if r.rate == 5).digest


def test_a_rate_whose_measurement_fails_is_not_published(
    folder: Path, small_model: StoredModel, tmp_path: Path
) -> None:
    before = load_model(folder)
    finished = TrainedRate(5, small_adapter(small_model, 5), LADDER[5], 0.0)
    (tmp_path / "none").mkdir()
    with pytest.raises(BadParameter, match="no pictures to measure on"):
        publish(folder, small_model, finished, tmp_path / "none", {"tune": "psnr"}, "cpu")
    assert [r.digest for r in load_model(folder).rates] == [r.digest for r in before.rates]


def test_a_store_is_whole_wherever_publishing_is_cut_off(
    folder: Path, small_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish_rate(folder, small_update(small_model, 5, 1), entry(5)).identity_at(80)
    update = small_update(small_model, 5, 2)
    new = with_update(small_model, 5, update).identity_at(80)
    seen = set()
    for last in cuts(monkeypatch):
        try:
            publish_rate(folder, update, entry(5))
        except PowerCut:
            pass
        found = load_model(folder).identity_at(80)
        assert found in (old, new), last
        seen.add((last, found))
    monkeypatch.undo()
    assert (0, old) in seen and (last, new) in seen and last >= 4
    assert publish_rate(folder, update, entry(5)).identity_at(80) == new


def test_an_update_that_cannot_run_is_not_published(folder: Path, small_model: StoredModel) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    update = small_update(small_model, 5)
    layer = update.layers["step.0.head"]
    loud = replace(
        layer,
        b=np.full_like(layer.b, 127),
        a=np.full_like(layer.a, 127),
        e=np.full_like(layer.e, MAX_EXPONENT),
    )
    hostile = Update({**update.layers, "step.0.head": loud}, update.vectors)
    with pytest.raises(StoreError, match=r"step.0.head can reach"):
        publish_rate(folder, hostile, entry(5))
    with pytest.raises(BadParameter, match="rate 4 is the base's own"):
        publish_rate(folder, update, entry(4))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert publish_module.load_model(folder).rates == small_model.rates


# --- the ladder --------------------------------------------------------------------------------


def test_a_ladder_is_trained_measured_and_published_and_resumes(
    folder: Path, crops: Crops, pictures: Path, tmp_path: Path
) -> None:
    measure = tmp_path / "measure"
    measure.mkdir()
    (measure / "0.png").write_bytes((pictures / "0.png").read_bytes())
    recipe = replace(RECIPE, steps=2)

    def run(rates: tuple[int, ...]) -> None:
        train_ladder(folder, crops, measure, recipe, tmp_path / "s", rates, {"data": "x"}, print)

    with pytest.raises(BadParameter, match="rate 5 must be trained first"):
        run((6,))
    run((5,))
    first = load_model(folder)
    run((6, 5, 3))
    now = load_model(folder)
    assert [r.rate for r in now.rates] == [3, 4, 5, 6]
    assert now.identity_at(80) == first.identity_at(80), "rate 5 was not trained again"
    engine = Engine(load_models((now,), "cpu", None))
    for rate in now.rates:
        if rate.update is not None:
            found = measure_rate(engine, rate.rate, "psnr", measure)
            assert rate.kodak_bpp == round(found.bpp, 4)
            assert rate.kodak_psnr_db == round(found.psnr_db, 3)
            assert rate.kodak_ms_ssim is None, "70x96 pixels are too few for it"
            assert rate.training["steps"] == 2 and rate.training["data"] == "x"


def test_the_shipped_ladder_is_monotone() -> None:
    for model in load_store():
        rates = model.ladder("psnr")
        assert [r.lmbda for r in rates] == sorted(LADDER.values())
        for figures in ([r.kodak_bpp for r in rates], [r.kodak_psnr_db for r in rates]):
            known = [f for f in figures if f is not None]
            assert known == sorted(known) and len(set(known)) == len(rates)


def test_a_rate_of_an_earlier_model_is_taken_over_and_trained_on(
    folder: Path, crops: Crops, pictures: Path, tmp_path: Path, small_model: StoredModel
) -> None:
    """On the same base it merges to what it was; a ladder starts from it with no head start."""
    measure = tmp_path / "measure"
    measure.mkdir()
    (measure / "0.png").write_bytes((pictures / "0.png").read_bytes())
    update = small_update(small_model, 8, seed=3)
    earlier = with_update(small_model, 8, update)
    adapter = RateAdapter(float_twin(small_model), domains(small_model, RANKS), 0)
    load_update(adapter, small_model, update)
    mine, theirs = adapter.merged(), small_adapter(small_model, 8, seed=3).merged()
    base = dict(float_twin(small_model).named_parameters())
    for name, tensor in mine.items():
        own = theirs[name].detach()
        moved = (own - base[name]).abs().max() if name in base else own.max()
        near = 1 / 16 + 1e-6 if name == "z_idx" else 0.1 * float(moved)  # z's levels are eighths
        assert float((tensor.detach() - own).abs().max()) < near, name
    recipe = replace(RECIPE, steps=2, lr=AdapterLearningRates(b=1e-9, a=1e-9, steps=1e-9))

    def run(earlier: StoredModel, rates: tuple[int, ...]) -> None:
        train_ladder(
            folder, crops, measure, recipe, tmp_path / "s", rates, {}, print, earlier=earlier
        )

    with pytest.raises(BadParameter, match="no psnr rate 7 to start from"):
        run(earlier, (7,))
    run(earlier, (8,))
    (found,) = [r for r in load_model(folder).rates if r.rate == 8]
    assert found.update is not None and found.training["start"] == small_model.sha256
    for name in ("y.step", "z.step", "z.level"):
        was, now = update.vectors[name].astype(int), found.update.vectors[name].astype(int)
        assert np.abs(was - now).max() <= 1
    assert replace(recipe, tune="ms-ssim", start="x").steps_of(BASE) == 2
    assert replace(recipe, tune="ms-ssim").steps_of(BASE) == 6
