"""A backbone small enough for tests whose streams are as varied as those of a trained one.

Random orthogonal-ish layers give latents of widely different scales per channel; the entropy
networks are biased towards those scales and perturbed, so that symbols and levels (0 among them)
differ from place to place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.fixed_point import NUMPY
from service.codec.latents import LatentCoder
from service.codec.sizes import ConvSizes, Sizes, SwinSizes
from service.export.backbone import stored_model
from service.nets.backbone import Depthwise
from service.nets.families import latent_layers
from service.nets.model import LOG_STEP, SIGMA_MIN, Backbone
from service.picture import U8
from service.runtime.decode_only import NoSynthesis, by_family
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel
from service.transforms.synthesis_numpy import NumpySynthesis

SIZES = ConvSizes(M=20, Cz=8, c8=16, c16=16, ne8=1, ne16=1, nd8=1, nd16=1, cp=16, cc=16)

SWIN = SwinSizes(M=36, Cz=8, c16=32, cp=16, cc=16, c4=32, c8=64)
"""Sizes of a small model of the other family."""


def photo_like(height: int, width: int, seed: int = 0) -> U8:
    """Smooth shading, edges of shapes and grain, [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    out = np.empty((height, width, 3))
    waves = [rng.uniform(0.004, 0.06, 4) for _ in range(3)]
    for channel, (fy, fx, gy, gx) in enumerate(waves):
        out[..., channel] = 128 + 60 * np.sin(fy * y + fx * x + channel) + 30 * np.cos(gy * y * gx)
    for _ in range(6):
        a, b, c = rng.normal(size=2), rng.normal(size=3) * 40, rng.uniform()
        side = a[0] * (y - c * height) + a[1] * (x - (1 - c) * width) > 0
        out[side] += b
    out += rng.normal(0, 6, (height, width, 1)) + rng.normal(0, 2, out.shape)
    return out.round().clip(0, 255).astype(np.uint8)


def as_input(rgb: U8) -> Tensor:
    """[1, H, W, 3] float32 in [0, 1]."""
    return torch.from_numpy(rgb).float()[None] / 255


def random_backbone(sizes: Sizes = SIZES, seed: int = 0) -> Backbone:
    """A folded backbone with perturbed residual branches and fitting entropy parameters."""
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        model = Backbone(sizes, nn.Linear).eval().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                module.bias.normal_(0, 0.02)
        for name, parameter in model.named_parameters():
            if name.endswith(("pw2.weight", "f2.weight", "out.weight")):
                parameter.mul_(0.3)
            if name.endswith("position"):
                parameter.normal_()
        for module in model.g_s.modules():
            if isinstance(module, Depthwise):  # neighbours change whole 8-bit steps
                module.weight.add_(0.3 * torch.randn_like(module.weight))
        calibration = [as_input(photo_like(128, 192, s)) for s in (100, 101)]
        _scale_latents(model, calibration)
        _fit_entropy(model, calibration)
    return model


def small_stored_model(sizes: Sizes = SIZES, seed: int = 0) -> tuple[StoredModel, bytes, Backbone]:
    """The backbone quantised as export does it, its base.safetensors, and itself."""
    model = random_backbone(sizes, seed)
    pictures = [as_input(photo_like(128, 192, s)) for s in range(200, 204)]
    stored, base = stored_model("small", model, pictures, {"note": "made for tests"})
    return stored, base, model


def _scale_latents(model: Backbone, pictures: list[Tensor]) -> None:
    """Channels of y with deviations from far below a step to dozens; pixels that stay in range."""
    s = model.sizes
    y = torch.cat([model.g_a(x - 0.5).flatten(0, 2) for x in pictures])
    wanted = torch.logspace(-2, 1.5, s.M)[torch.randperm(s.M)]
    factor, offset = wanted / y.std(0), torch.randn(s.M)
    names = latent_layers(s)
    last, down, first, up = (
        model.get_submodule(n)
        for n in (names.deep_out, names.straight_out, names.deep_in, names.straight_in)
    )
    for layer, rows in ((last, slice(s.c16)), (down, slice(s.c16, s.M))):
        layer.bias[rows] = (layer.bias[rows] - y.mean(0)[rows]) * factor[rows] + offset[rows]
        layer.weight[rows] *= factor[rows, None]
    out = (model.g_s.patch if isinstance(s, SwinSizes) else model.g_s[-1]).l
    first.weight.div_(wanted[: s.c16].clamp_min(0.3))
    up.weight[:, s.c16 :].div_(wanted[s.c16 :].clamp_min(0.3))
    y_hat = torch.cat([model.g_a(x - 0.5).round() for x in pictures])
    out.weight.mul_(0.2 / model.g_s(y_hat).std())
    out.bias.zero_()
    z = torch.cat([model.h_a(model.g_a(x - 0.5)).flatten(0, 2) for x in pictures])
    z_out = model.h_a[-1]
    assert isinstance(z_out, nn.Linear)
    factor = torch.logspace(-0.5, 1, z.shape[-1]) / z.std(0)
    z_out.weight.mul_(factor[:, None])
    z_out.bias.mul_(factor)


def _fit_entropy(model: Backbone, pictures: list[Tensor]) -> None:
    """Scales near the true ones, means that depend weakly on what is known."""
    M = model.sizes.M
    z = torch.cat([model.h_a(model.g_a(x - 0.5)).flatten(0, 2) for x in pictures])
    model.z_mean.copy_(z.mean(0))
    model.z_idx.copy_(_index_of(z.std(0)).clamp_min(0.25))
    first_up = model.h_s[0].l
    first_up.weight.div_(z.std(0)[None].clamp_min(1))
    y = torch.cat([model.g_a(x - 0.5).flatten(0, 2) for x in pictures])
    spread = y.std(0)
    for head in (model.head0, *(net[-1] for net in model.ctx)):
        head.weight[:M].mul_(0.1 * spread[:, None].clamp_min(0.05))
        head.weight[M:].mul_(0.4)
        head.bias[:M].copy_(y.mean(0))
        head.bias[M:].copy_(_index_of(spread))
    for net in model.ctx:
        net[0].weight[:, model.sizes.cp :].div_(spread[None].clamp_min(1))


def _index_of(deviation: Tensor) -> Tensor:
    """Level/8 whose scale is nearest to a deviation; below the ladder, level 0."""
    return torch.log(deviation.clamp_min(0.5 * SIGMA_MIN) / SIGMA_MIN) / LOG_STEP / 8


def with_steps(model: StoredModel, seed: int = 0) -> StoredModel:
    """The model with other quantiser steps in every channel, as a rate's adapter has them."""
    rng = np.random.default_rng(seed)
    steps = {
        name: (model.entropy[name] * 2 ** rng.uniform(-2, 2, len(model.entropy[name]))).astype(
            np.int32
        )
        for name in ("y.step", "z.step")
    }
    return replace(model, entropy=model.entropy | steps)


def decode_only(model: StoredModel) -> LoadedModel:
    """Resident as the base install does it: numpy alone, which has no g_s of the family swin."""
    entropy = EntropyModel(model.sizes, model.entropy, NUMPY)
    coder = LatentCoder(entropy, Tables(model.entropy["tables"]))
    build = by_family(NumpySynthesis, lambda _: NoSynthesis())
    return LoadedModel(model, coder, build(model), None, build_synthesis=build)
