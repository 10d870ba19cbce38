"""Variants differ in one thing, see equal pixels, and are not measured twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.codec.sizes import Sizes
from service.eval.report import compare_table
from service.nets.backbone import Block
from service.train.compare import (
    VARIANTS,
    Found,
    MuonStep,
    SmoothBlock,
    Variant,
    WideBlock,
    compare,
)
from service.train.recipe import Recipe
from service.train.sample import Sampler
from service.train.start import fresh
from service.train.step import TrainingStep

SMALL = Sizes(M=64, Cz=8, c8=192, ne8=1, ne16=1, nd8=1, nd16=1, cp=16, cc=16)
RECIPE = {"batch": 2, "crop": 64}
PIXELS = 4 * 2 * 64 * 64
PHOTOS = torch.from_numpy(np.stack([photo_like(96, 96, s) for s in range(4)]))
RECORD = {"machine": {"cpu": "a CPU", "cores": 2, "device": "cpu", "load": 0.0}}


def small(variant: Variant) -> Variant:
    sizes = replace(SMALL, c8=256) if variant.sizes.c8 == 256 else SMALL
    return replace(variant, sizes=sizes, recipe={**RECIPE, **variant.recipe})


def test_variants_are_measured_and_not_run_twice(tmp_path: Path, pictures: Path) -> None:
    names = ("light", "16 crops a step", "5×5 depthwise", "SiLU", "other pictures mixed in")
    variants = {n: small(VARIANTS[n]) for n in (*names, "wider: c8 = 256, 2 and 1 blocks")}
    out, told = tmp_path / "c.json", []

    def run() -> dict[str, object]:
        return compare(
            PHOTOS, PHOTOS[:2] // 2, [pictures, pictures], PIXELS, "off", out, RECORD,
            lambda name, _: told.append(name), variants,
        )  # fmt: skip

    result = run()
    assert told == list(variants)
    found = {n: Found(**f) for n, f in json.loads(out.read_text())["found"].items()}
    light, wide, mixed = found["light"], found["5×5 depthwise"], found["other pictures mixed in"]
    assert light.steps == 4 and found["16 crops a step"].steps == 1, "equal pixels"
    assert wide.parameters - light.parameters == 2 * 16 * (192 + 64), "a block each of g_a and g_s"
    assert found["SiLU"].parameters == light.parameters and found["SiLU"].loss != light.loss
    assert mixed.parameters == light.parameters and mixed.loss != light.loss
    # at 1/8 a block has 6 products of c8 squared, and g_s opens with M·M and M·4c8 at 1/16
    macs = ((6 * 192**2 + 9 * 192) + 192 * 192) / 64 + (7 * 64**2 + 9 * 64 + 64 * 4 * 192) / 256
    assert light.kmac_per_pixel == pytest.approx(macs / 1e3, rel=0.01)
    assert light.loss[0] == light.loss[1] and len(light.bpp) == 2
    assert run() == result and told == list(variants), "what is there is kept"
    table = compare_table(result)
    assert table.count("\n| ") == 1 + len(variants) and "(+0.0%)" in table.splitlines()[2]


def test_blocks_that_are_tried_start_as_the_shipped_one_would() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, 32)
    for kind in (WideBlock, SmoothBlock):
        assert torch.equal(kind(32)(x), x), "residual branches start at zero"
    torch.manual_seed(1)
    plain = Block(32)
    torch.manual_seed(1)
    wide = WideBlock(32)
    assert torch.allclose(wide.depthwise(x), plain.depthwise(x), atol=1e-6)


def test_muon_moves_matrices_by_orthogonal_steps_and_leaves_the_rest_to_adamw() -> None:
    sampler = Sampler(PHOTOS, 64, 2)
    recipe = Recipe(**RECIPE)  # type: ignore[arg-type]

    def stepped(kind: type[TrainingStep], finite: bool = True) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = fresh(SMALL, sampler.draw(), recipe.lmbda, 0)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        if not finite:
            model.g_s[0].so.fill_(float("nan"))
        kind(model, sampler, recipe, "off", False).run(0, 1e-3)
        return {n: p.detach() - before[n] for n, p in model.named_parameters()}

    muon, adamw = stepped(MuonStep), stepped(TrainingStep)
    assert all(torch.equal(muon[n], adamw[n]) for n in muon if muon[n].ndim != 2)
    change = muon["g_a.0.l.weight"]
    spread = torch.linalg.svdvals(change) / (1e-3 * 0.2 * 192**0.5)
    assert 0.5 < spread[40] and spread[0] < 1.3, "one direction as far as the other"
    plain = torch.linalg.svdvals(adamw["g_a.0.l.weight"])
    assert plain[0] > 5 * plain[40]
    assert not any(change.any() for change in stepped(MuonStep, finite=False).values())


def test_each_variant_differs_from_the_first_and_has_a_whole_recipe() -> None:
    for variant in VARIANTS.values():
        replace(Recipe(), **variant.recipe)
    told = {(v.sizes, str(v.recipe), v.block, v.step, v.others) for v in VARIANTS.values()}
    assert len(told) == len(VARIANTS)
