"""A trained ladder that is given straight latents goes on from what it has learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_model import SIZES, as_input, photo_like, random_backbone
from torch import Tensor

from service.codec.sizes import ConvSizes
from service.errors import BadParameter
from service.nets.backbone import in_turn
from service.train.ladder import RateLadder
from service.train.start import unfolded
from service.train.widening import widen_ladder

NARROW = replace(SIZES, M=16)
CROPS = torch.cat([as_input(photo_like(64, 64, s)) for s in range(24)])
RATES = (2, 4)


@pytest.fixture(scope="module")
def ladders() -> tuple[RateLadder, RateLadder]:
    """A ladder without straight latents, all its numbers moved, and the same after widening."""
    ladder = RateLadder(unfolded(random_backbone(NARROW)), RATES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in ladder.masks(frozen=False).items():
            moved = 0.05 * torch.randn(mask.shape, generator=generator)
            getattr(ladder, name).add_(moved * mask)
    return ladder, widen_ladder(ladder, SIZES, CROPS)


def latents(ladder: RateLadder, x: Tensor) -> Tensor:
    y: Tensor = ladder.base.g_a(x - 0.5)
    return y


@torch.inference_mode()
def test_the_old_latents_and_what_predicts_them_are_unchanged(
    ladders: tuple[RateLadder, RateLadder],
) -> None:
    old, new = ladders
    x = as_input(photo_like(64, 128, 99))
    y, wide = latents(old, x), latents(new, x)
    assert torch.allclose(wide[..., : NARROW.M], y, atol=1e-4)
    assert torch.allclose(new.base.h_a(wide), old.base.h_a(y), atol=1e-3)
    for at in range(len(RATES)):
        one, other = (m.merged(torch.tensor([at])) for m in (old, new))
        for name, part in one.items():
            if "head0" not in name and part.ndim and part.shape == other[name].shape:
                assert torch.allclose(part, other[name], atol=1e-5), name
        assert torch.allclose(other["y_step"][: NARROW.M], one["y_step"])
        head, wide_head = one["head0.weight"], other["head0.weight"]
        assert torch.allclose(wide_head[: NARROW.M], head[: NARROW.M])
        assert torch.allclose(wide_head[SIZES.M : SIZES.M + NARROW.M], head[NARROW.M :])


@torch.inference_mode()
def test_the_new_latents_bring_back_what_was_missed(
    ladders: tuple[RateLadder, RateLadder],
) -> None:
    old, new = ladders
    layers = list(new.base.g_s)
    x = CROPS
    target = x - 0.5
    y = latents(new, x)
    without = y.clone()
    without[..., NARROW.M :] = 0
    plain = float((new.base.g_s(without) - target).square().mean())
    assert plain == pytest.approx(
        float((old.base.g_s(latents(old, x)) - target).square().mean()), rel=1e-3
    )
    assert float((new.base.g_s(y) - target).square().mean()) < 0.999 * plain
    assert in_turn(layers[:1], y[..., : SIZES.c16]).shape[-1] == SIZES.c16


def test_only_latents_may_be_added(ladders: tuple[RateLadder, RateLadder]) -> None:
    old, _ = ladders
    for sizes in (replace(SIZES, cc=20), replace(NARROW, M=12, c16=12), ConvSizes()):
        with pytest.raises(BadParameter, match="only M may grow"):
            widen_ladder(old, sizes, CROPS)
    assert widen_ladder(old, NARROW, CROPS) is old
