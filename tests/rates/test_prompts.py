"""Rates by prompts: trained on a frozen Swin backbone, stored, mixed and swapped like adapters.

Blocks are not compiled here: that takes a compiler and minutes, and computes the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SWIN, photo_like, small_stored_model

from service.codec.lowrank import LOG_WEIGHTS
from service.datasets.crops import Crops
from service.engine.engine import Engine
from service.errors import BadParameter, StoreError
from service.images.write import write_image
from service.maps.drawing import DrawMaps
from service.maps.request import MapRequest
from service.maps.swin_attention import window_attention
from service.nets.adapters import load_update, quantise_adapter
from service.nets.backbone import Block
from service.nets.lora import FullAdapter, PromptAdapter, RateAdapter
from service.nets.twin import float_twin
from service.picture import Picture
from service.rates.comparison import compare_ways
from service.rates.ladder import train_ladder
from service.rates.rate_training import RateRecipe, new_adapter, recipe_by, train_rate
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.store.model import StoredModel, check_adapter
from service.store.read import load_model, load_store
from service.store.write import write_model

RECIPE = replace(recipe_by("prompts"), steps=3, batch=2, crop=64, warmup=1, checkpoint_s=0.0)
RATES = (5, 6)


@pytest.fixture(autouse=True, scope="module")
def not_compiled() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "compile", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        (folder / f"{i}.png").write_bytes(write_image(Picture(photo_like(70, 96, i)), "png"))
    return folder


@pytest.fixture(scope="module")
def crops(pictures: Path) -> Crops:
    return Crops(pictures, 64, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, crops: Crops, pictures: Path) -> Path:
    """A Swin model with its base's rate 4, and rates 5 and 6 by prompts."""
    out = tmp_path_factory.mktemp("store") / "swin"
    stored, base, _ = small_stored_model(SWIN)
    write_model(out, stored, base)
    scratch = tmp_path_factory.mktemp("scratch")
    train_ladder(out, crops, pictures, RECIPE, scratch, RATES, {}, lambda _: None)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(load_models(load_store(folder.parent), "cpu", torch.float32))


def test_training_leaves_the_backbone_as_it_is(folder: Path, crops: Crops, tmp_path: Path) -> None:
    stored = load_model(folder)
    before = float_twin(stored).state_dict()
    adapter = train_rate(stored, crops, 5, None, RECIPE, tmp_path / "5", lambda _: None).adapter
    assert isinstance(adapter, PromptAdapter)
    after = float_twin(stored).state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    trainable = {n for n, p in adapter.named_parameters() if p.requires_grad}
    assert all(n.startswith(("generators.", "log_", "z_idx")) for n in trainable)
    assert set(adapter.merged()) - {"y_step", "z_step", "z_idx"} == set(adapter.prompts())
    start = new_adapter(stored, RECIPE, RECIPE.seed + 5)
    assert not torch.equal(
        adapter.prompts()["g_s.prompts.stage8.l.weight"],
        start.merged()["g_s.prompts.stage8.l.weight"],
    )


@pytest.mark.parametrize("rate", (4, 4.5, 5, 5.25, 6))
def test_every_rate_decodes_to_its_latents_with_torch_and_without(
    engine: Engine, folder: Path, rate: float
) -> None:
    """The engine's own check has compared the latents; the base install's pixels differ by 1."""
    picture = Picture(photo_like(150, 95, 7))
    stream = engine.compress(picture, rate)
    mine = engine.decompress(stream.data)
    light = Engine(load_decode_only(load_store(folder.parent), 1)).decompress(stream.data)
    assert mine.rate == light.rate == rate
    assert np.abs(mine.picture.rgb.astype(int) - light.picture.rgb).max() <= 1


def test_prompts_without_weight_give_the_bytes_of_the_base(folder: Path) -> None:
    """Only the attention's weight of the prompts is changed; their values are large."""
    base = load_model(folder)
    at_five = base.at_rate(16 * 5)
    silent = {name: np.array(-np.inf, np.float32) for name in LOG_WEIGHTS}
    own = replace(base, transforms=at_five.transforms | silent)
    loud = replace(base, transforms=at_five.transforms)
    picture = Picture(photo_like(130, 150, 3))

    def bytes_of(model: StoredModel) -> bytes:
        return Engine(load_models((model,), "cpu", torch.float32)).compress(picture, 4).data

    assert bytes_of(own) == bytes_of(base) != bytes_of(loud)


def test_a_prompt_set_is_an_adapter_that_can_be_loaded_at_run_time(
    engine: Engine, folder: Path
) -> None:
    stored = load_model(folder)
    (five,) = (r for r in stored.rates if r.rate == 5)
    bare = replace(stored, rates=tuple(r for r in stored.rates if r.update is None))
    fresh = Engine(load_models((bare,), "cpu", torch.float32))
    picture = Picture(photo_like(64, 64, 1))
    info = fresh.add_adapter(five.data, stored.sha256, 5)
    assert info.sha256 == five.digest.hex()
    assert fresh.compress(picture, 5).data == engine.compress(picture, 5).data
    fresh.remove_adapter(info.sha256)
    with pytest.raises(BadParameter, match="no rate 5"):
        fresh.compress(picture, 5)


def test_prompts_survive_quantisation_and_loading(folder: Path) -> None:
    stored = load_model(folder)
    adapter = new_adapter(stored, RECIPE, 9)
    update = quantise_adapter(stored, adapter)
    again = new_adapter(stored, RECIPE, 10)
    load_update(again, stored, update)
    assert isinstance(adapter, PromptAdapter) and isinstance(again, PromptAdapter)
    for name, tensor in adapter.prompts().items():
        assert torch.allclose(again.prompts()[name], tensor, atol=1e-3)


def change_shape(tensors: dict[str, np.ndarray]) -> None:
    tensors["g_a.prompts.up.l.bias"] = np.zeros(5, np.float16)


def leave_out(tensors: dict[str, np.ndarray]) -> None:
    del tensors["g_s.prompts.stage4.l.weight"]


def make_infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["g_a.prompts.up.l.bias"][0] = np.inf


def add_unknown(tensors: dict[str, np.ndarray]) -> None:
    tensors["g_a.prompts.log_weight"] = np.zeros((), np.float16)


@pytest.mark.parametrize("damage", (change_shape, leave_out, make_infinite, add_unknown))
def test_prompts_that_do_not_fit_are_refused(
    folder: Path, damage: Callable[[dict[str, np.ndarray]], None]
) -> None:
    from safetensors.numpy import load

    stored = load_model(folder)
    (five,) = (r for r in stored.rates if r.rate == 5)
    tensors = load(five.data)
    check_adapter(stored, dict(tensors))
    damage(tensors)
    with pytest.raises(StoreError, match="prompts|do not fit"):
        check_adapter(stored, tensors)


def test_prompts_are_refused_for_another_family(folder: Path) -> None:
    from safetensors.numpy import load

    conv, _, _ = small_stored_model()
    (five,) = (r for r in load_model(folder).rates if r.rate == 5)
    with pytest.raises(StoreError, match="family swin"):
        check_adapter(conv, load(five.data))
    with pytest.raises(BadParameter, match="only swin takes prompts"):
        new_adapter(conv, RECIPE, 0)


def test_ways_are_compared_on_one_backbone(
    folder: Path, crops: Crops, pictures: Path, tmp_path: Path
) -> None:
    """Every way at a rate, then prompts on the base of that rate; a second run trains nothing."""
    stored = load_model(folder)
    recipe = RateRecipe(steps=1, batch=1, crop=64, warmup=1)
    steps: list[int] = []

    def compare() -> list[tuple[str, int, int]]:
        figures = compare_ways(
            stored, crops, pictures, recipe, tmp_path, (5,), 5, lambda p: steps.append(p.step)
        )
        by_way = {f.way: f for f in figures if f.own_rate == 4 and f.rate == 5}
        whole = FullAdapter(float_twin(stored), 0)
        assert by_way["full"].parameters == sum(p.numel() for p in whole.parameters())
        assert by_way["steps"].parameters == SWIN.M + 2 * SWIN.Cz
        assert by_way["prompts"].kmac_per_pixel > by_way["steps"].kmac_per_pixel
        assert by_way["lowrank"].kmac_per_pixel == by_way["steps"].kmac_per_pixel
        return [(f.way, f.own_rate, f.rate) for f in figures]

    ways = ("steps", "prompts", "lowrank", "full")
    assert compare() == [("base", 4, 4), *((w, 4, 5) for w in ways), ("prompts", 5, 4)]
    assert len(steps) == 5
    compare()
    assert len(steps) == 5


def test_attention_of_a_stored_rate_has_prompts_but_that_of_the_base_has_not(
    engine: Engine,
) -> None:
    picture = Picture(photo_like(130, 150, 3))
    shares = {}
    for rate in (4.0, 4.5, 5.0):
        window = window_attention(float_twin(engine.stored_at(rate)), picture, (80, 70))
        shares[rate] = window.prompt_share
        assert np.isclose(np.nansum(window.tokens) + shares[rate], 1)
    assert shares[4.0] == 0 < shares[4.5] < shares[5.0]
    request = MapRequest(rates=(4.0, 5.0), attention=True)
    data = write_image(picture, "png")
    figure = DrawMaps(engine, data, False, request, 10**6)()
    assert figure.data.startswith(b"\x89PNG")


def test_an_adapter_starts_with_the_quantiser_steps_of_its_base(folder: Path) -> None:
    """Those of a base that was trained for another rate are not the units of its levels."""
    base = float_twin(load_model(folder))
    base.y_step, base.z_step = 0.25 * base.y_step, 0.5 * base.z_step
    merged = RateAdapter(base, {}, 0).merged()
    assert torch.allclose(merged["y_step"], base.y_step)
    assert torch.allclose(merged["z_step"], base.z_step)


def test_low_rank_serves_this_backbone_too(
    folder: Path, crops: Crops, pictures: Path, tmp_path: Path
) -> None:
    """The same adapters as those of convolutions, beside prompts in one ladder."""
    model = tmp_path / "swin"
    shutil.copytree(folder, model)
    recipe = RateRecipe(steps=2, batch=1, crop=64, warmup=1)
    train_ladder(model, crops, pictures, recipe, tmp_path / "scratch", (3,), {}, lambda _: None)
    engine = Engine(load_models((load_model(model),), "cpu", torch.float32))
    picture = Picture(photo_like(90, 70, 5))
    for rate in (3, 3.5, 5):
        assert engine.decompress(engine.compress(picture, rate).data).rate == rate
    (three,) = (r for r in load_model(model).rates if r.rate == 3)
    assert three.update is not None and three.update.layers and not three.update.prompts
