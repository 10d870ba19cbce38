"""A backbone's run is a function of its recipe, however it is split into sessions.

The small model is trained eagerly: compiling takes a compiler and minutes, and computes the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SIZES, photo_like, random_backbone
from torch import Tensor

from service.codec.sizes import ConvSizes
from service.datasets.tile_file import TileRecord
from service.engine.engine import Engine
from service.errors import BadParameter
from service.export.agreement import measure_agreement
from service.export.backbone import (
    export_backbone,
    folded_backbone,
    stored_model,
    trained_weights,
)
from service.images.write import write_image
from service.nets.backbone import ScaledLinear
from service.nets.model import add_noise
from service.picture import Picture
from service.runtime.loading import load_models
from service.store.read import load_store
from service.store.write import write_model
from service.train import soap
from service.train.checkpoint import read_about, read_tensors
from service.train.evaluate import evaluate
from service.train.ladder import RateLadder
from service.train.progress import BackboneProgress
from service.train.recipe import (
    LR_FLOOR,
    NAMED_SIZES,
    BackboneRecipe,
    Decay,
    learning_rate,
    recipe_for,
    sizes_named,
)
from service.train.run import TrainingRun, TrainingSession
from service.train.sampler import Sampler, Source, TrainingData
from service.train.start import best_step, colour_dct, from_weights, new_backbone, unfolded
from service.train.step import TrainingStep
from service.train.tunes import BASE, LADDER

RECIPE = BackboneRecipe(
    rates=(2, 4, 7), groups=3, lr=2e-3, warmup=4, batch=3, crop=64, procedural=0.0
)
TILES = torch.from_numpy(np.stack([photo_like(96, 96, s) for s in range(4)]))
CUT = TileRecord(96, True, 4, 0, "tests")
CPU = torch.device("cpu")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


def small_start(rates: tuple[int, ...] = RECIPE.rates) -> RateLadder:
    return RateLadder(unfolded(random_backbone(SIZES)).requires_grad_(True), rates)


def data(tiles: Tensor = TILES, device: str = "cpu") -> TrainingData:
    return TrainingData([Source(tiles.to(device), 1.0, True)], {"tiles": len(tiles), **asdict(CUT)})


def training_step(
    device: str = "cpu", *, graph: bool = False, recipe: BackboneRecipe = RECIPE
) -> TrainingStep:
    sampler = Sampler(data(device=device).sources, recipe)
    return TrainingStep(small_start(recipe.rates).to(device), sampler, recipe, "off", graph)


def steps(work: TrainingStep, first: int, last: int) -> list[float]:
    """Do steps; their mean losses over the rates."""
    losses = []
    for step in range(first, last):
        work.run(step, learning_rate(RECIPE, step, None))
        losses.append(float(np.mean([m.loss for m in work.means().values()])))
    return losses


def copies(work: TrainingStep) -> dict[str, Tensor]:
    return {n: t.detach().cpu().clone() for n, t in work.tensors().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [n for n in one if not torch.equal(one[n], other[n])]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        data = write_image(Picture(photo_like(192, 256, 50 + i)), "png")
        (folder / f"{i}.png").write_bytes(data)
    return folder


class Clock:
    """Stands for the time module: ten seconds pass with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("run", "progress"):
        monkeypatch.setattr(f"service.train.{module}.time", clock)
    return clock


def run(
    folder: Path,
    session: TrainingSession,
    recipe: BackboneRecipe = RECIPE,
    start: Callable[[], RateLadder] = small_start,
) -> TrainingRun:
    return TrainingRun(folder, data(), recipe, start, session, "test")


# --- a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_seed_gives_the_same_losses_and_state(device: str) -> None:
    one, two = training_step(device), training_step(device)
    losses = steps(one, 0, 4)
    torch.manual_seed(999)  # what ran before must not matter
    assert steps(two, 0, 4) == losses and not differing(copies(one), copies(two))
    other = training_step(device, recipe=replace(RECIPE, seed=1))
    assert steps(other, 0, 4) != losses


def test_a_step_is_adamw_on_clipped_gradients_and_moves_the_average() -> None:
    """Against torch's own clipping and plain AdamW, written out, each rate by itself."""
    work, witness = training_step(), small_start()
    groups = [
        {"params": [*witness.base.parameters()], "share": 1.0},
        {"params": [witness.factors], "share": 2.5},
        {"params": [witness.vectors], "share": 5.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    weights = [p for group in groups for p in group["params"]]
    average = [p.detach().clone() for p in weights]
    kept = [m.clone() for m in (witness.factors.data[1], witness.vectors.data[1])]
    for step in range(3):
        lr = learning_rate(RECIPE, step, None)
        work.run(step, lr)
        torch.manual_seed(step)
        x, total, losses = Sampler(data().sources, RECIPE).draw(), 0.0, {}
        with torch.autocast("cpu", torch.bfloat16):
            e = witness(x, torch.arange(3), add_noise)
        for at, rate in enumerate(RECIPE.rates):
            bpp = (e.bits_y + e.bits_z)[at] / 64**2
            losses[rate] = bpp + LADDER[rate] * 255**2 * (e.x_hat - x)[at].square().mean()
            total = total + losses[rate] * (LADDER[4] / LADDER[rate]) ** RECIPE.balance / 3
        optimiser.zero_grad()
        total.backward()
        for matrix, mask in witness.masks(False).items():
            getattr(witness, matrix).grad.mul_(mask)
        norm = torch.nn.utils.clip_grad_norm_(weights, RECIPE.clip)
        assert norm > RECIPE.clip, "clipping must be seen at work"
        for group in optimiser.param_groups:
            group["lr"] = group["share"] * lr
        optimiser.step()
        for rate, means in work.means().items():
            assert means.loss == pytest.approx(float(losses[rate].detach()), rel=1e-4)
        for old, p in zip(average, weights, strict=True):
            old.lerp_(p.detach(), 1 - min(RECIPE.ema, (1 + step) / (10 + step)))
    for mine, theirs in zip(work.parameters.values(), weights, strict=True):
        assert torch.allclose(mine, theirs, rtol=2e-3, atol=5e-5)
    mine = work.averaged()
    for name, theirs in zip(work.parameters, average, strict=True):
        assert torch.allclose(mine[name], theirs, rtol=2e-3, atol=5e-5)
    layout, M, Cz = witness.layout, SIZES.M, SIZES.Cz
    factors = slice(0, sum(layout.sizes[:-1]))
    assert torch.equal(work.parameters["factors"][1, factors], kept[0][factors]), "BASE has none"
    assert torch.equal(work.parameters["vectors"][1, M : M + Cz], kept[1][M : M + Cz])
    assert not torch.equal(work.parameters["vectors"][1, :M], kept[1][:M])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_that_is_not_finite_changes_nothing_but_a_counter(device: str, value: float) -> None:
    work = training_step(device)
    steps(work, 0, 2)
    before = copies(work)
    last = work.ladder.base.g_s[-1].l
    assert isinstance(last, ScaledLinear)
    scale = last.so.clone()
    last.so.fill_(value)
    work.run(2, 1e-3)
    last.so.copy_(scale)
    assert work.skipped == 1 and not work.means()
    assert differing(before, copies(work)) == ["skipped"]
    work.run(3, 1e-3)
    assert work.means().keys() == set(RECIPE.rates)
    assert len(differing(before, copies(work))) > 20


def test_training_lowers_the_loss() -> None:
    work = training_step()
    losses = steps(work, 0, 60)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_step_of_fewer_groups_draws_other_rates_each_time() -> None:
    recipe = replace(RECIPE, groups=1)
    work, counts = training_step(recipe=recipe), dict.fromkeys(RECIPE.rates, 0)
    for step in range(12):
        work.run(step, 1e-3)
        (trained,) = work.means()
        counts[trained] += 1
    assert min(counts.values()) > 0


def test_the_finish_moves_nothing_that_an_encoder_needs() -> None:
    recipe = replace(RECIPE, frozen=True)
    work = training_step(recipe=recipe)
    before = copies(work)
    steps(work, 0, 2)
    moved = {n for n in differing(before, copies(work)) if n.startswith("model.")}
    assert {n.split(".")[2] for n in moved if n.startswith("model.base.")} == {
        "g_s", "h_s", "head0", "ctx", "z_mean", "z_idx",
    }  # fmt: skip
    old, new = before["model.factors"], work.tensors()["model.factors"]
    changes, were = work.ladder.layout.changes(new), work.ladder.layout.changes(old)
    for name, part in changes.d.items():
        assert torch.equal(part, were.d[name]) == name.startswith(("g_a", "h_a")), name
    vectors, were_vectors = work.ladder.vectors, before["model.vectors"]
    steps_of = slice(0, SIZES.M + SIZES.Cz)
    assert torch.equal(vectors[:, steps_of], were_vectors[:, steps_of])
    assert not torch.equal(vectors, were_vectors)


@pytest.mark.gpu
def test_a_replayed_graph_is_the_eager_step() -> None:
    eager, replayed = training_step("cuda"), training_step("cuda", graph=True)
    assert steps(replayed, 0, 12) == pytest.approx(steps(eager, 0, 12), rel=2e-3)
    one, two = copies(eager), copies(replayed)
    assert all(torch.allclose(one[n].float(), two[n].float(), rtol=0.02, atol=2e-3) for n in one)


@pytest.mark.gpu
def test_a_replayed_graph_skips_what_is_not_finite() -> None:
    work = training_step("cuda", graph=True)
    steps(work, 0, 6)
    before = copies(work)
    last = work.ladder.base.g_s[-1].l
    assert isinstance(last, ScaledLinear)
    scale = last.so.clone()
    last.so.fill_(math.inf)
    work.run(6, 1e-3)
    last.so.copy_(scale)
    assert work.skipped == 1 and differing(before, copies(work)) == ["skipped"]


# --- a run -------------------------------------------------------------------------------------


class CutOff(Exception):
    pass


@pytest.mark.parametrize("device", DEVICES)
def test_steps_in_two_sessions_end_as_those_in_one(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soap, "REFRESH", 2)
    whole, first = training_step(device), training_step(device)
    losses = steps(whole, 0, 7)
    assert steps(first, 0, 3) == losses[:3]
    second = training_step(device)
    second.load({n: t.cpu() for n, t in first.tensors().items()})
    assert steps(second, 3, 7) == losses[3:]
    assert not differing(copies(whole), copies(second))


@pytest.mark.usefixtures("clock")
def test_a_run_goes_on_from_its_folder_exactly(tmp_path: Path) -> None:
    session = TrainingSession(minutes=2, report_s=20)
    lines: list[BackboneProgress] = []
    one = run(tmp_path / "cut", session)
    one.train(lines.append)
    two = run(tmp_path / "cut", session)
    assert two.step == one.step > 0
    two.train(lines.append)
    work = training_step()
    steps(work, 0, two.step)
    told = read_tensors(tmp_path / "cut")
    assert differing(copies(work), told) == [] and [p.step for p in lines][-1] == two.step
    about = read_about(tmp_path / "cut")
    assert [p["steps"] for p in about["pieces"]] == [one.step, two.step - one.step]
    assert about["pixels"] == two.step * 3 * 64 * 64
    logged = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [p.step for p in lines]


@pytest.mark.usefixtures("clock")
def test_an_interrupted_run_keeps_what_it_did(tmp_path: Path) -> None:
    def stop(_: BackboneProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", TrainingSession(minutes=600, report_s=0)).train(stop)
    assert read_about(tmp_path / "r")["step"] == 16


@pytest.mark.usefixtures("clock")
def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    other = run(tmp_path / "r", TrainingSession(minutes=1))

    def begin_another(_: BackboneProgress) -> None:
        with pytest.raises(BadParameter, match="another process is training"):
            other.train(print)

    one = run(tmp_path / "r", TrainingSession(minutes=1, report_s=0))
    one.train(begin_another)
    assert read_about(tmp_path / "r")["step"] == one.step > 0 and other.step == 0


@pytest.mark.usefixtures("clock")
def test_a_decay_that_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    one = run(tmp_path / "r", TrainingSession(minutes=4, decay=2, report_s=1e9))
    one.train(print)
    decay = Decay(**read_about(tmp_path / "r")["decay"])
    assert 0 < decay.start < one.step
    if not one.finished:
        two = run(tmp_path / "r", TrainingSession(minutes=600))
        two.train(print)
        assert two.finished and Decay(**read_about(tmp_path / "r")["decay"]) == decay
        assert two.step == decay.start + decay.steps
    with pytest.raises(BadParameter, match="ended with its decay"):
        run(tmp_path / "r", TrainingSession(minutes=1))


def test_the_learning_rate_rises_stays_and_falls_as_half_a_cosine() -> None:
    decay = Decay(100, 50)
    rates = [learning_rate(RECIPE, s, decay) / RECIPE.lr for s in (0, 1, 3, 99, 100, 125, 150)]
    half = LR_FLOOR + (1 - LR_FLOOR) / 2
    assert rates == pytest.approx([0.25, 0.5, 1, 1, 1, half, LR_FLOOR])
    assert learning_rate(RECIPE, 10**6, None) == RECIPE.lr


@pytest.mark.usefixtures("clock")
def test_a_run_goes_on_only_with_its_own_recipe_and_tiles(tmp_path: Path) -> None:
    run(tmp_path / "r", TrainingSession(minutes=0.2)).train(print)
    with pytest.raises(BadParameter, match="holds a run with recipe"):
        run(tmp_path / "r", TrainingSession(minutes=1), replace(RECIPE, lr=1e-3))
    with pytest.raises(BadParameter, match="holds a run with data"):
        session, other = TrainingSession(minutes=1), data(TILES[:3])
        TrainingRun(tmp_path / "r", other, RECIPE, small_start, session, "test")
    assert recipe_for(tmp_path / "r", CPU) == RECIPE
    assert recipe_for(tmp_path / "r", CPU, lr=1e-3, crop=None) == replace(RECIPE, lr=1e-3)
    assert recipe_for(tmp_path / "new", torch.device("cuda")).batch == 64


@pytest.mark.usefixtures("clock")
def test_moments_of_half_the_size_are_taken_up_again(tmp_path: Path) -> None:
    session = TrainingSession(minutes=1, moments=torch.bfloat16)
    one = run(tmp_path / "r", session)
    one.train(print)
    kept = read_tensors(tmp_path / "r")
    assert kept["adam.m.base.z_mean"].dtype == torch.bfloat16
    assert kept["model.base.z_mean"].dtype == kept["ema.base.z_mean"].dtype == torch.float32
    two = run(tmp_path / "r", session)
    two.train(print)
    assert two.step > one.step


# --- where a run starts ------------------------------------------------------------------------


def test_the_transform_is_orthonormal() -> None:
    assert torch.allclose(colour_dct(8) @ colour_dct(8).T, torch.eye(192), atol=1e-5)


@pytest.mark.parametrize("c8, M, c16", [(192, 64, 64), (200, 68, 48)])
def test_a_fresh_backbone_is_a_transform_codec(c8: int, M: int, c16: int) -> None:
    """The step's noise alone separates its output from the KLT's projection of the input."""
    sizes = ConvSizes(M=M, Cz=8, c8=c8, c16=c16, ne8=1, ne16=1, nd8=1, nd16=1, cp=16, cc=16)
    recipe = replace(RECIPE, rates=(BASE,), groups=1, batch=64, downscaled=0.0, grain=0.0)
    torch.manual_seed(0)
    crops = Sampler([Source(TILES, 1.0, True)], recipe).draw()
    model = new_backbone(sizes, crops, LADDER[BASE], seed=0)
    step = best_step(LADDER[BASE])
    with torch.inference_mode():
        y = model.g_a(crops - 0.5)
        clean = model.g_s(y) + 0.5
        noisy = model.g_s(y + torch.rand_like(y) - 0.5) + 0.5
    spread = y.flatten(0, 2).std(0)
    assert (spread[:-1] >= 0.98 * spread[1:]).all() and spread[0] > 10, "channels by variance"
    correlation = torch.corrcoef(y.flatten(0, 2).T[:20])
    assert (correlation - torch.eye(20)).abs().max() < 0.05
    added = float((noisy - clean).square().mean())
    assert added == pytest.approx(M / 768 * step**2 / 12, rel=0.1), "an orthonormal synthesis"
    assert -10 * math.log10(float((clean - crops).square().mean())) > 25


def test_a_fresh_start_needs_room_for_the_transform() -> None:
    with pytest.raises(BadParameter, match="c8 >= 192"):
        new_backbone(SIZES, torch.zeros(1, 64, 64, 3), 0.01, 0)


def test_scale_vectors_given_again_change_nothing_that_is_computed() -> None:
    plain, scaled = random_backbone(SIZES), unfolded(random_backbone(SIZES))
    x = TILES[:1, :64, :64].float() / 255
    with torch.inference_mode():
        one, two = plain(x, relax=None), scaled(x, relax=None)
    assert torch.allclose(one.x_hat, two.x_hat, atol=1e-4)
    assert torch.allclose(one.bits_y, two.bits_y, rtol=1e-3)
    for module in scaled.modules():
        if isinstance(module, ScaledLinear):
            rms = module.weight.square().mean().sqrt() * math.sqrt(module.in_features)
            assert 0.5 < rms < 2, "weights near orthonormal"


@pytest.mark.usefixtures("clock")
def test_a_run_can_start_from_a_run_a_model_or_a_state_dict(tmp_path: Path, pictures: Path) -> None:
    from safetensors.torch import save_file

    run(tmp_path / "r", TrainingSession(minutes=0.5)).train(print)
    expected = read_tensors(tmp_path / "r", "ema.")
    rates = RECIPE.rates
    assert not differing(dict(from_weights(tmp_path / "r", None, rates).state_dict()), expected)
    of_base = {n.removeprefix("base."): t for n, t in expected.items() if n.startswith("base.")}
    save_file(of_base, tmp_path / "w.safetensors")
    again = from_weights(tmp_path / "w.safetensors", SIZES, (BASE,))
    assert not differing(dict(again.base.state_dict()), of_base)
    trained = trained_weights(tmp_path / "r", None, None)
    calibration = [torch.from_numpy(photo_like(128, 192, s)).float()[None] / 255 for s in (1, 2)]
    base = folded_backbone(trained.ladder.base)
    stored, data = stored_model("m", base, calibration, trained.record)
    write_model(tmp_path / "m", stored, data)
    twin = from_weights(tmp_path / "m", None, (BASE,))
    mine = evaluate(RateLadder(trained.ladder.base, (BASE,)), pictures)[BASE]
    assert evaluate(twin, pictures)[BASE].loss == pytest.approx(mine.loss, rel=0.02)
    for wrong in (tmp_path / "nowhere", pictures / "0.png"):
        with pytest.raises(BadParameter, match="not a run, a model of a store"):
            from_weights(wrong, SIZES, (BASE,))


# --- what comes of it --------------------------------------------------------------------------


@pytest.mark.usefixtures("clock")
def test_the_export_measures_what_the_run_measured_with_real_rounding(
    tmp_path: Path, pictures: Path
) -> None:
    work = run(tmp_path / "r", TrainingSession(minutes=1, measure=pictures))
    measured = work.train(print)
    assert set(measured) == set(RECIPE.rates)
    found = measured[BASE]
    assert found.pictures == 2
    trained = trained_weights(tmp_path / "r", None, None)
    model = folded_backbone(trained.ladder.base)
    calibration = [torch.from_numpy(photo_like(128, 192, s)).float()[None] / 255 for s in range(4)]
    stored, _ = stored_model("m", model, calibration, trained.record)
    engine = Engine(load_models((stored,), "cpu", torch.float32))
    agreement, _ = measure_agreement(engine, model, pictures)
    assert agreement.estimated_bpp == pytest.approx(found.bpp, rel=2e-3)
    assert agreement.float_psnr_db == pytest.approx(found.psnr_db, abs=0.01)
    flush_bpp = 400 / (192 * 256)  # header and last words of these small pictures
    assert agreement.real_bpp == pytest.approx(found.bpp, rel=0.01, abs=flush_bpp)
    assert agreement.real_psnr_db == pytest.approx(found.psnr_db, abs=0.02)
    assert trained.record["pixels"] == work.step * 3 * 64 * 64
    assert trained.record["devices"] == ["cpu"] and trained.record["steps"] == work.step
    assert json.loads(json.dumps(trained.record)) == trained.record


@pytest.mark.usefixtures("clock")
def test_a_model_in_the_store_is_never_replaced_by_an_export(
    tmp_path: Path, pictures: Path
) -> None:
    run(tmp_path / "r", TrainingSession(minutes=0.2)).train(print)
    trained = trained_weights(tmp_path / "r", None, None)
    out = tmp_path / "store" / "m"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(BadParameter, match="export under another name"):
        export_backbone(trained, out, pictures, pictures, print)
    assert (out / "manifest.json").read_text() == "{}"
    with pytest.raises(BadParameter, match="give a --record"):
        trained_weights(pictures / "0.png", None, None)


def test_the_recipe_is_the_ladders_middle_and_the_shipped_size_is_named() -> None:
    assert BackboneRecipe().rates == tuple(LADDER)
    assert sizes_named("light") == ConvSizes() == load_store()[0].sizes
    assert NAMED_SIZES["base"].c8 == 256
    with pytest.raises(BadParameter, match="expected light, base, swin or a JSON file"):
        sizes_named("huge")


def test_sizes_come_from_a_json_file_too(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    values = load_model_sizes()
    path.write_text(json.dumps(values | {"nd8": 5}))
    assert sizes_named(str(path)) == ConvSizes(nd8=5)
    path.write_text("[1]")
    with pytest.raises(BadParameter, match="does not contain the sizes"):
        sizes_named(str(path))


def load_model_sizes() -> dict[str, int]:
    from dataclasses import asdict

    return asdict(ConvSizes())
