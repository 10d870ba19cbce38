"""A second ladder: trained for another loss, lined up with the first, published beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Small
from small_ladder import RANKS, small_adapter, small_update, with_update
from small_model import photo_like
from torch import Tensor

from service.datasets.crops import Crops
from service.engine.engine import Engine
from service.errors import BadParameter
from service.images.write import write_image
from service.ms_ssim import ms_ssim
from service.nets.adapters import domains, quantise_adapter
from service.nets.backbone import Block
from service.nets.lora import RateAdapter
from service.nets.model import add_noise
from service.nets.twin import float_twin
from service.picture import Picture
from service.rates.figures import measure_model, measure_rate
from service.rates.ladder import train_ladder
from service.rates.rate_training import RECIPES, RateProgress, RateRecipe, train_rate
from service.runtime.loading import load_models
from service.store.model import StoredModel, StoredRate
from service.store.read import load_model
from service.store.write import publish_rate, write_model
from service.train.tunes import LADDER, MS_SSIM, PSNR, BppTarget, Tune, estimated_bpp

RECIPE = replace(RECIPES["ms-ssim"], steps=2, batch=1, crop=192, warmup=1, ranks=RANKS)


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "compile", lambda *_, **__: None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        (folder / f"{i}.png").write_bytes(write_image(Picture(photo_like(192, 200, i)), "png"))
    return folder


@pytest.fixture
def folder(tmp_path: Path, small: Small) -> Path:
    """A model's folder in a store of its own, with a measured PSNR rate 5."""
    folder = tmp_path / "store" / "small"
    write_model(folder, small.stored, small.base)
    publish_rate(folder, small_update(small.stored, 5), StoredRate(5, LADDER[5], 0.5, 30.0))
    return folder


# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", [PSNR, MS_SSIM], ids=lambda t: t.name)
def test_an_error_is_zero_for_equal_pictures_and_grows(tune: Tune) -> None:
    x = torch.from_numpy(photo_like(192, 192)).float()[None] / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    errors = [float(tune.error(x + amount * noise, x)) for amount in (0, 0.01, 0.03, 0.1)]
    assert errors[0] == pytest.approx(0, abs=1e-6) and errors == sorted(errors)
    assert len(set(errors)) == 4


def test_squared_error_is_that_of_8_bit_values() -> None:
    x, y = torch.zeros(1, 2, 2, 3), torch.full((1, 2, 2, 3), 2 / 255)
    assert float(PSNR.error(y, x)) == pytest.approx(4, rel=1e-5)


def test_the_error_of_likeness_is_the_figure_that_eval_reports() -> None:
    x = photo_like(192, 224)
    y = x.astype(int) + np.random.default_rng(0).integers(-9, 10, x.shape)
    y = y.clip(0, 255).astype(np.uint8)
    error = MS_SSIM.error(*(torch.from_numpy(p)[None].float() / 255 for p in (y, x)))
    assert float(error) == pytest.approx(1 - (ms_ssim(x, y) or 0), abs=2e-5)


def test_flat_crops_have_finite_slopes() -> None:
    x = torch.full((1, 192, 192, 3), 0.5)
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(MS_SSIM.error(y, x), y)
    assert torch.isfinite(slope).all()


def test_every_rate_starts_from_one_that_was_trained_before_it() -> None:
    for tune in (PSNR, MS_SSIM):
        for place, rate in enumerate(tune.order):
            near = tune.neighbour(rate)
            assert near is None or near in tune.order[:place]
    assert set(PSNR.order) == set(range(1, 9)) - {4}, "rate 4 of the first ladder is the base"
    assert set(MS_SSIM.order) == set(range(1, 9))
    assert RECIPE.steps_of(4) == RECIPE.steps * MS_SSIM.head_start
    assert RECIPE.steps_of(5) == RECIPE.steps


def test_training_for_likeness_gains_likeness(
    small_model: StoredModel, pictures: Path, tmp_path: Path
) -> None:
    crops = Crops(pictures, 192, seed=0)
    recipe = replace(RECIPE, steps=10, lr=replace(RECIPE.lr, b=3e-3, a=3e-3))
    done = train_rate(small_model, crops, 4, None, recipe, tmp_path / "c", lambda _: None)
    assert done.lmbda == pytest.approx(MS_SSIM.lmbdas[4]), "without a target it stays"
    base, x = float_twin(small_model), crops.batch(999, 4)
    fresh = RateAdapter(base, domains(small_model, RANKS), 0)

    def loss(adapter: RateAdapter) -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            e = torch.func.functional_call(base, adapter.merged(), (x,), {"relax": add_noise})
        bpp = float((e.bits_y + e.bits_z).sum()) / x[..., 0].numel()
        return bpp + done.lmbda * float(MS_SSIM.error(e.x_hat, x))

    assert loss(done.adapter) < 0.99 * loss(fresh)


# --- lining up ---------------------------------------------------------------------------------


def test_the_estimate_of_the_bits_is_that_of_real_streams(small_model: StoredModel) -> None:
    adapter = small_adapter(small_model, 5)
    rgb = [photo_like(128, 192, seed) for seed in (1, 2)]
    inputs = [torch.from_numpy(p).float()[None] / 255 for p in rgb]
    estimated = estimated_bpp(float_twin(small_model), adapter, inputs)
    stored = with_update(small_model, 5, quantise_adapter(small_model, adapter))
    engine = Engine(load_models((stored,), "cpu", torch.float32))
    real = np.mean([engine.compress(Picture(p), 5).bpp for p in rgb])
    assert estimated == pytest.approx(real - 8 * 24 / (128 * 192), rel=0.03)


class Expensive(BppTarget):
    """A target that every rate exceeds by a factor of two."""

    def correction(self, _: RateAdapter) -> float:
        return math.log(0.5)


def test_lmbda_follows_a_target_and_is_part_of_the_checkpoint(
    small_model: StoredModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.rates.rate_training.CORRECTION_STEPS", 2)
    x: list[Tensor] = []
    target = Expensive(0.5, x, float_twin(small_model))
    crops, recipe = Crops(pictures, 192, seed=0), replace(RECIPE, steps=2, checkpoint_s=0.0)
    reports: list[RateProgress] = []
    path = tmp_path / "c"
    done = train_rate(small_model, crops, 4, None, recipe, path, reports.append, target)
    # six steps; after 2 and 4 it is corrected, after 0.8 of them no more
    assert done.lmbda == pytest.approx(MS_SSIM.lmbdas[4] / 4)
    again = train_rate(small_model, crops, 4, None, recipe, path, reports.append, target)
    assert again.lmbda == done.lmbda and len(reports) == 1
    above = train_rate(small_model, crops, 5, done, recipe, tmp_path / "d", reports.append)
    ratio = MS_SSIM.lmbdas[5] / MS_SSIM.lmbdas[4]
    assert above.lmbda == pytest.approx(done.lmbda * ratio), "it starts from its neighbour's"


def test_a_correction_lowers_lmbda_where_the_rate_costs_too_much(small_model: StoredModel) -> None:
    adapter = RateAdapter(float_twin(small_model), domains(small_model, RANKS), 0)
    x = torch.from_numpy(photo_like(128, 128)).float()[None] / 255
    bpp = estimated_bpp(float_twin(small_model), adapter, [x])
    targets = [BppTarget(bpp * f, [x], float_twin(small_model)) for f in (0.5, 1, 2)]
    corrections = [target.correction(adapter) for target in targets]
    assert corrections[0] == -corrections[2] < 0 and corrections[1] == pytest.approx(0, abs=0.02)


# --- publishing --------------------------------------------------------------------------------


def test_a_rate_of_each_tune_is_replaced_without_the_other(folder: Path, small: Small) -> None:
    first = load_model(folder).identity_at(80)
    entry = StoredRate(5, 30.0, 0.4, 29.0, tune="ms-ssim", kodak_ms_ssim=0.98765)
    for seed in (1, 2):
        now = publish_rate(folder, small_update(small.stored, 5, seed), entry)
    assert now.identity_at(80) == first
    (likeness,) = now.ladder("ms-ssim")
    assert (likeness.rate, likeness.lmbda, likeness.kodak_ms_ssim) == (5, 30.0, 0.98765)
    assert sorted(p.name.rpartition("-")[0] for p in (folder / "rates").iterdir()) == [
        "5", "ms-ssim-5", "ms-ssim-5",
    ]  # fmt: skip
    again = publish_rate(folder, small_update(small.stored, 4), replace(entry, rate=4))
    assert [(r.tune, r.rate) for r in again.rates] == [
        ("psnr", 4), ("psnr", 5), ("ms-ssim", 4), ("ms-ssim", 5),
    ], "the base's own rate number may have an adapter in the second ladder"  # fmt: skip


def test_the_second_ladder_is_trained_measured_and_published_beside_the_first(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    crops, scratch = Crops(pictures, 192, seed=0), tmp_path / "s"

    def run(*rates: int) -> None:
        train_ladder(folder, crops, pictures, RECIPE, scratch, rates, {"data": "x"}, lambda _: None)

    with pytest.raises(BadParameter, match="rate 4 must be trained first"):
        run(5)
    with pytest.raises(BadParameter, match="rate 4 of the PSNR ladder must be .* measured"):
        run(4)  # the small base was never measured
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["rates"][0]["kodak_bpp"] = 0.4
    path.write_text(json.dumps(manifest))
    before = load_model(folder)
    run(5, 4)
    now = load_model(folder)
    assert now.identity_at(72) == before.identity_at(72)
    engine = Engine(load_models((now,), "cpu", None))
    for rate in now.ladder("ms-ssim"):
        made = [engine.compress(Picture(photo_like(192, 200, i)), rate.rate, "ms-ssim")
                for i in range(2)]  # fmt: skip
        assert rate.kodak_bpp == round(float(np.mean([m.bpp for m in made])), 4)
        assert rate.kodak_ms_ssim is not None and 0 < rate.kodak_ms_ssim < 1
        assert rate.training["tune"] == "ms-ssim" and rate.training["data"] == "x"
        assert rate.training["steps"] == RECIPE.steps_of(int(rate.rate))
        assert rate.lmbda == pytest.approx(MS_SSIM.lmbdas[int(rate.rate)], rel=1e-3)


def test_measuring_again_replaces_figures_and_nothing_else(folder: Path, pictures: Path) -> None:
    before = json.loads((folder / "manifest.json").read_text())
    measured = measure_model(folder, pictures, "cpu")
    after = json.loads((folder / "manifest.json").read_text())
    assert [r.rate for r in measured] == [4, 5]
    engine = Engine(load_models((load_model(folder),), "cpu", None))
    for entry, old in zip(after["rates"], before["rates"], strict=True):
        found = measure_rate(engine, entry["rate"], entry["tune"], pictures)
        assert found.ms_ssim is not None
        assert entry == old | {
            "kodak_bpp": round(found.bpp, 4),
            "kodak_psnr_db": round(found.psnr_db, 3),
            "kodak_ms_ssim": round(found.ms_ssim, 5),
        }
    assert {k: v for k, v in after.items() if k != "rates"} == {
        k: v for k, v in before.items() if k != "rates"
    }


# --- kernels -----------------------------------------------------------------------------------


def test_kernels_can_have_an_update_and_are_stored_as_they_were_trained(
    small_model: StoredModel,
) -> None:
    base = float_twin(small_model)
    adapter = RateAdapter(base, domains(small_model, RANKS | {"kernels": 9}), 0)
    kernels = [n for n, d in adapter.domains.items() if n.endswith(".dw") and d.rank]
    assert {n[:3] for n in kernels} == {"g_a", "g_s"}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in kernels:
            b = adapter.b[name.replace(".", "/")]
            b.copy_(0.1 * torch.randn(b.shape, generator=generator))
    stored = with_update(small_model, 5, quantise_adapter(small_model, adapter)).at_rate(80)
    merged = adapter.merged()
    for name in kernels:
        want = merged[f"{name}.weight"].detach().numpy()
        start = small_model.transforms[f"{name}.weight"].astype(np.float32)
        error = np.abs(stored.transforms[f"{name}.weight"] - want).max()
        assert np.abs(want - start).max() > 20 * error > 0


def test_recipes_are_of_their_tunes() -> None:
    assert {name: r.loss.name for name, r in RECIPES.items()} == {n: n for n in RECIPES}
    assert RECIPES["psnr"] == RateRecipe() and RECIPES["ms-ssim"].crop >= 176
