"""The float model that is trained and the integer codec that ships say the same."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from small_model import as_input, photo_like, random_backbone, small_stored_model
from torch import nn

from service.codec.container import read_stream
from service.codec.entropy_model import GROUP_AT, LEVELS, STEPS, gather
from service.codec.sizes import ConvSizes
from service.engine.engine import Engine
from service.nets.backbone import ScaledLinear, folded, leaky, shifted_products
from service.nets.model import (
    LOG_STEP,
    P_MIN,
    SIGMA_MAX,
    SIGMA_MIN,
    Backbone,
    add_noise,
    clamp,
    gaussian_bits,
    sigma,
    ste_round,
    step_masks,
)
from service.picture import Picture
from service.runtime.loading import load_models

CPU = torch.device("cpu")


@pytest.mark.parametrize("height, width, M", [(1, 1, 4), (2, 2, 8), (5, 7, 12), (1, 6, 8)])
def test_masks_pick_what_gather_picks(height: int, width: int, M: int) -> None:
    masks = step_masks(height, width, M, CPU).numpy()
    assert (masks.sum(0) == 1).all(), "each latent is coded in one step"
    values = np.arange(1, height * width * M + 1).reshape(1, height, width, M)
    for t in range(STEPS):
        picked = (values * masks[t]).astype(int)
        assert sorted(picked[picked > 0]) == sorted(gather(values, t)[0])
        for row, col, channel in np.argwhere(masks[t]):
            assert channel % 4 == GROUP_AT[t, row % 2 * 2 + col % 2]


def scaled_backbone(seed: int) -> Backbone:
    """A backbone as it is trained, with random weights and scale vectors."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        sizes = ConvSizes(M=12, Cz=4, c8=8, c16=8, ne8=1, ne16=1, nd8=1, nd16=1, cp=8, cc=8)
        model = Backbone(sizes)
        for tensor in model.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
        for module in model.modules():
            if isinstance(module, ScaledLinear):
                module.si.uniform_(0.5, 2)
                module.so.uniform_(0.5, 2)
    return model


def test_a_folded_layer_is_the_scaled_layer() -> None:
    torch.manual_seed(0)
    layer = ScaledLinear(5, 7)
    layer.si.uniform_(0.5, 2)
    layer.so.uniform_(0.5, 2)
    plain = nn.Linear(5, 7)
    state = folded(nn.Sequential(layer).state_dict())
    plain.load_state_dict({name.removeprefix("0."): tensor for name, tensor in state.items()})
    x = torch.randn(11, 5)
    expected = layer.so * nn.functional.linear(x * layer.si, layer.weight, layer.bias)
    assert torch.allclose(plain(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_a_folded_backbone_gives_what_the_scaled_one_gives() -> None:
    scaled = scaled_backbone(1).eval().double()
    plain = Backbone(scaled.sizes, nn.Linear)
    state = folded(scaled.state_dict())
    assert not any(name.endswith((".si", ".so")) for name in state)
    plain.load_state_dict(state)
    plain = plain.eval().double()
    x = as_input(photo_like(64, 64)).double()
    with torch.inference_mode():
        y, z = scaled.g_a(x - 0.5), scaled.h_a(scaled.g_a(x - 0.5))
        assert torch.allclose(plain.g_a(x - 0.5), y, rtol=1e-5, atol=1e-5)
        assert torch.allclose(plain.h_a(y), z, rtol=1e-5, atol=1e-5)
        assert torch.allclose(plain.h_s(z), scaled.h_s(z), rtol=1e-5, atol=1e-5)
        assert torch.allclose(plain.g_s(y), scaled.g_s(y), rtol=1e-5, atol=1e-5)
        for t in range(STEPS - 1):
            known = torch.cat([scaled.h_s(z), y], -1)
            assert torch.allclose(plain.ctx[t](known), scaled.ctx[t](known), rtol=1e-5, atol=1e-5)


def test_a_depthwise_layer_as_shifted_products_is_the_convolution() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, groups=6, bias=False).double()
    padded = torch.randn(2, 7, 9, 6, dtype=torch.float64)
    inputs = [padded.requires_grad_(), layer.weight]
    actual = shifted_products(padded, layer.weight)
    expected = layer(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.allclose(actual, expected)
    weights = torch.randn_like(actual)
    for mine, theirs in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_the_activation_that_is_compiled_is_the_plain_one() -> None:
    """Traced, not compiled: what is traced is what a compiler is given."""
    x = torch.cat([torch.linspace(-9, 9, 101), torch.tensor([1e-30, -1e30])])
    for dtype in (torch.float32, torch.float64):
        plain, traced = (x.to(dtype).clone().requires_grad_() for _ in range(2))
        expected, actual = leaky(plain), torch.compile(leaky, backend="eager")(traced)
        expected.sum().backward()
        actual.sum().backward()
        assert torch.allclose(actual, expected, rtol=1e-6)
        assert plain.grad is not None and traced.grad is not None
        moved = x.to(dtype) != 0
        assert torch.allclose(traced.grad[moved], plain.grad[moved])


@pytest.mark.parametrize("height, width", [(2, 2), (4, 6), (8, 2)])
def test_steps_computed_where_they_code_are_those_with_masks(height: int, width: int) -> None:
    """Against the definition: every step's networks over the whole grid, kept where they code."""
    model = scaled_backbone(3)
    M = model.sizes.M
    torch.manual_seed(1)
    model.y_step.uniform_(0.5, 2)
    y = 3 * torch.randn(2, height, width, M)
    z_hat = torch.randn(2, -(-height // 4), -(-width // 4), model.sizes.Cz)
    with torch.no_grad():
        features = model.h_s(z_hat)[:, :height, :width]
        model.h_s = nn.Identity()
        actual = model.predict(features, y)
        y_hat, means, levels = (torch.zeros_like(y) for _ in range(3))
        for t, mask in enumerate(step_masks(height, width, M, CPU)):
            net = model.head0 if t == 0 else model.ctx[t - 1]
            mu, level = net(features if t == 0 else torch.cat([features, y_hat], -1)).chunk(2, -1)
            coded = ((y - mu) / model.y_step).round() * model.y_step + mu
            y_hat, means = y_hat + mask * coded, means + mask * mu
            levels = levels + mask * (level - model.y_step.log() / (8 * LOG_STEP))
    for mine, expected in zip(actual, (y_hat, means, levels), strict=True):
        assert torch.allclose(mine, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0.11, 0.5, 1.0, 3.7, 128.0])
def test_gaussian_bits_are_those_of_the_normal_distribution(scale: float) -> None:
    normal = NormalDist(0, scale)
    for v in (0.0, 0.3, -0.5, 1.0, -2.0, 7.25):
        mass = normal.cdf(0.5 - abs(v)) - normal.cdf(-0.5 - abs(v))
        expected = -math.log2(max(mass, P_MIN))
        actual = gaussian_bits(torch.tensor(v), torch.tensor(scale)).item()
        assert actual == pytest.approx(expected, rel=2e-3, abs=1e-4)


def test_gaussian_bits_are_even_finite_and_grow_with_distance() -> None:
    v = torch.arange(0, 600.0)
    for scale in (0.11, 2.0, 128.0):
        bits = gaussian_bits(v, torch.tensor(scale))
        assert torch.equal(bits, gaussian_bits(-v, torch.tensor(scale)))
        assert bits.max() <= -math.log2(P_MIN) + 1e-3
        assert (bits.diff() >= -1e-3).all()


def test_scales_span_the_ladder() -> None:
    levels = torch.arange(-3, LEVELS + 3)
    scales = sigma(levels / 8)
    assert scales[3].item() == pytest.approx(SIGMA_MIN)
    assert scales[LEVELS + 2].item() == pytest.approx(SIGMA_MAX, rel=1e-4)
    assert (scales[:4] == scales[3]).all() and (scales[-4:] == scales[-4]).all()
    ratios = scales[4 : LEVELS + 3] / scales[3 : LEVELS + 2]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-4)


def test_rounding_keeps_the_gradient_of_the_identity() -> None:
    x = torch.tensor([0.4, -1.7, 2.5], requires_grad=True)
    rounded = ste_round(x)
    assert rounded.tolist() == pytest.approx([0, -2, 2])
    rounded.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1]


def test_real_files_have_the_size_that_the_float_model_predicts() -> None:
    """0.5 % over several pictures, apart from the fixed costs: 22 bytes of container and at most
    64 bits of coder a picture. The channel counts are large enough for single roundings of a
    level or a mean to average out; PSNR agrees as well."""
    sizes = ConvSizes(M=48, Cz=16, c8=32, c16=40, ne8=1, ne16=1, nd8=1, nd16=1, cp=32, cc=32)
    stored, _, model = small_stored_model(sizes, seed=3)
    engine = Engine(load_models((stored,), "cpu", torch.float32))
    estimated_bits = real_bits = 0.0
    for seed in range(300, 304):
        rgb = photo_like(256, 320, seed)
        with torch.inference_mode():
            estimate = model(as_input(rgb), relax=None)
        compressed = engine.compress(Picture(rgb), 4)
        bits = float(estimate.bits_y + estimate.bits_z)
        ((piece,),) = read_stream(compressed.data).tiles
        coded_bits = 8 * len(piece)
        assert abs(coded_bits - bits) < 0.01 * bits + 64
        assert 8 * len(compressed.data) - coded_bits <= 8 * 23
        estimated_bits, real_bits = estimated_bits + bits, real_bits + coded_bits - 32
        rounded = (estimate.x_hat.clamp(0, 1) * 255).round()[0].numpy()
        float_psnr = 10 * math.log10(255**2 / np.square(rounded - rgb).mean())
        assert compressed.psnr_db == pytest.approx(float_psnr, abs=0.02)
    assert estimated_bits > 100_000
    assert abs(real_bits / estimated_bits - 1) < 0.005


def test_the_noisy_estimate_is_near_the_rounded_one() -> None:
    model = random_backbone()
    x = as_input(photo_like(128, 128, 4))
    with torch.inference_mode():
        noisy, rounded = model(x, relax=add_noise), model(x, relax=None)
    noisy_bits = float(noisy.bits_y + noisy.bits_z)
    assert noisy_bits == pytest.approx(float(rounded.bits_y + rounded.bits_z), rel=0.25)
    assert noisy.x_hat.shape == x.shape


def test_gradients_pass_a_clamp_inside_and_where_they_lead_back() -> None:
    x = torch.tensor([-2.0, -2.0, 0.5, 0.5, 3.0, 3.0], requires_grad=True)
    out = clamp(x, 0.0, 1.0)
    assert out.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    # descent moves against the gradient: from below the range up, from above it down
    out.backward(torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [-1, 0, -1, 1, 0, 1]
