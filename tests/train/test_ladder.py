"""Rates that are trained together: each is what it would be alone, and what the store can hold."""

from __future__ import annotations

import pytest
import torch
from conftest import Small
from small_ladder import with_rates
from small_model import SIZES, as_input, photo_like, random_backbone
from torch import Tensor

from service.codec.sizes import ConvSizes
from service.nets.adapters import domains
from service.nets.backbone import ScaledLinear
from service.nets.lora import RateAdapter
from service.nets.model import Backbone, Estimate
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.train.ladder import RANKS, RateLadder, read_adapter, write_adapter
from service.train.start import from_stored, unfolded
from service.train.tunes import BASE, LADDER

RATES = (1, 4, 5, 8)


@pytest.fixture
def ladder() -> RateLadder:
    """A ladder whose every trained number has moved."""
    base = unfolded(random_backbone(SIZES))
    out = RateLadder(base, RATES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, mask in out.masks(frozen=False).items():
            noise = 0.05 * torch.randn(mask.shape, generator=generator)
            getattr(out, name).add_(noise * mask)
    return out.eval()


def pictures(count: int) -> Tensor:
    return torch.cat([as_input(photo_like(64, 128, s)) for s in range(count)])


def alike(one: Estimate, other: Estimate) -> None:
    assert torch.allclose(one.x_hat, other.x_hat, atol=1e-4)
    assert torch.allclose(one.bits_y, other.bits_y, rtol=1e-3)
    assert torch.allclose(one.bits_z, other.bits_z, rtol=1e-3)


@torch.inference_mode()
def test_a_batch_of_groups_gives_what_each_rate_gives_alone(ladder: RateLadder) -> None:
    x, index = pictures(6), torch.tensor([2, 0, 3])
    together = ladder(x, index, None)
    for group, place in enumerate(index):
        part = slice(2 * group, 2 * group + 2)
        alone = ladder(x[part], place[None], None)
        mine = (together.x_hat[part], together.bits_y[part], together.bits_z[part])
        alike(Estimate(*mine, together.y_hat[part]), alone)


def test_gradients_of_groups_are_those_of_each_rate_alone(ladder: RateLadder) -> None:
    x, index = pictures(2), torch.tensor([1, 3])
    weights = [*ladder.parameters()]

    def grads(items: Tensor, of: Tensor) -> tuple[Tensor, ...]:
        e = ladder(items, of, lambda v: v)
        loss = (e.bits_y + e.bits_z).sum() + 1e3 * e.x_hat.square().mean((1, 2, 3)).sum()
        return torch.autograd.grad(loss, weights)

    together = grads(x, index)
    apart = [grads(x[i : i + 1], index[i : i + 1]) for i in range(2)]
    for whole, one, two in zip(together, *apart, strict=True):
        assert torch.allclose(whole, one + two, rtol=1e-2, atol=1e-3 * float(whole.abs().max()))


@torch.inference_mode()
def test_a_new_ladder_computes_what_its_base_does_but_for_the_steps() -> None:
    base = unfolded(random_backbone(SIZES))
    ladder, x = RateLadder(base, RATES), pictures(1)
    alike(ladder(x, torch.tensor([1]), None), base(x, relax=None))
    with torch.no_grad():
        base.y_step.fill_((LADDER[8] / LADDER[BASE]) ** -0.5)
        base.z_step.fill_((LADDER[8] / LADDER[BASE]) ** -0.125)
    finer = base(x, relax=None)
    base.y_step.fill_(1)
    base.z_step.fill_(1)
    alike(ladder(x, torch.tensor([3]), None), finer)


@torch.inference_mode()
def test_what_the_base_rate_changes_can_be_put_into_the_base(ladder: RateLadder) -> None:
    x = pictures(1)
    before = [ladder(x, torch.tensor([at]), None) for at in range(len(RATES))]
    plain = ladder.base(x, relax=None)
    assert not torch.allclose(plain.x_hat, before[1].x_hat, atol=1e-3)
    ladder.rebase()
    for at, estimate in enumerate(before):
        alike(ladder(x, torch.tensor([at]), None), estimate)
    alike(ladder.base(x, relax=None), before[1])
    assert not ladder.factors[1].any() and not ladder.vectors[1].any()


@torch.inference_mode()
def test_a_stored_ladder_comes_back_as_it_was_stored(small_model: StoredModel) -> None:
    stored, x = with_rates(small_model, RATES), pictures(1)
    ladder = from_stored(stored, RATES)
    adapter = RateAdapter(float_twin(stored), domains(stored, dict(RANKS)), 0)
    for at, rate in enumerate(RATES):
        if rate == BASE:
            expected = float_twin(stored)(x, relax=None)
        else:
            write_adapter(ladder, at, adapter)
            merged = adapter.merged()
            twin = float_twin(stored)
            expected = torch.func.functional_call(twin, merged, (x,), {"relax": None})
            update = {r.rate: r.update for r in stored.rates}[rate]
            assert update is not None
        alike(ladder(x, torch.tensor([at]), None), expected)
    other = RateLadder(ladder.base, RATES)
    read_adapter(other, 0, adapter)
    write_adapter(ladder, 3, adapter)
    assert torch.allclose(other.vectors[0], ladder.vectors[3], atol=1e-5)


def test_a_rate_is_under_a_hundredth_of_the_backbone() -> None:
    with torch.device("meta"):
        backbone = Backbone(ConvSizes())
    numbers = sum(p.numel() for p in backbone.parameters())
    ladder = RateLadder(unfolded(random_backbone(SIZES)), RATES)
    assert ladder.factors.shape[1] == sum(ladder.layout.sizes)
    changes = 0
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Linear):
            rank = RANKS.get(name[:3], RANKS["entropy"])
            changes += rank * (module.in_features + module.out_features) + module.out_features
    assert changes < 0.02 * numbers, "a byte a number, where the backbone has two"
    assert any(isinstance(m, ScaledLinear) for m in backbone.modules())


def test_the_shipped_size_is_the_default(small: Small) -> None:
    assert small.backbone.sizes.M > small.backbone.sizes.c16, "tests have straight latents too"
