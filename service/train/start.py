"""Weights to train on from: a new backbone, or those of an earlier run, model or state dict.

A new backbone is a transform codec before its first step. Its g_a is an orthonormal 8×8 DCT on
opponent colours followed by the KLT of 2×2 neighbours, whitened by fixed scale vectors next to
near-orthonormal weights (ScaledLinear); its g_s is the inverse. Folded into the weights, the scales
would be destroyed within a few hundred steps by Adam, whose steps have the same size for weights of
every size. A stored model has its scales folded, so `unfolded` takes scale vectors out again, by
the rms of rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from service.codec.entropy_model import LEVELS
from service.codec.sizes import Sizes
from service.errors import BadParameter
from service.nets.backbone import Down, ScaledLinear, Unshuffle, Up
from service.nets.lora import RateAdapter
from service.nets.model import LOG_STEP, SIGMA_MIN, Backbone
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.store.read import load_model
from service.train.adapters import domains, load_update, read_adapter
from service.train.checkpoint import has_state, read_about, read_tensors
from service.train.ladder import RANKS, RateLadder, divide_latents
from service.train.recipe import START_CROPS, BackboneRecipe
from service.train.sampler import Sampler
from service.train.tunes import BASE, LADDER, PSNR


def new_backbone(sizes: Sizes, crops: Tensor, lmbda: float, seed: int) -> Backbone:
    """Return a backbone that works as a transform codec.

    Args:
        sizes: M at most 768, c8 at least 192.
        crops: [N, H, W, 3] in [0, 1]; the latents are white on them.
        lmbda: sets the quantiser's step, see `best_step`.
        seed: of the weights that the transform does not set.

    Raises:
        BadParameter: the sizes cannot hold the transform.
    """
    if sizes.c8 < 192 or sizes.M > 4 * 192:
        raise BadParameter(
            f"sizes are c8 = {sizes.c8}, M = {sizes.M}; a new backbone needs c8 >= 192, M <= 768"
        )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Backbone(sizes)
    _start_as_transform(model, crops.cpu().float(), best_step(lmbda))
    return model


def new_ladder(sampler: Sampler, sizes: Sizes, recipe: BackboneRecipe) -> RateLadder:
    """Return a new backbone with a recipe's rates, whitened on crops drawn with its seed."""
    base = new_backbone(sizes, draw_crops(sampler, recipe), LADDER[BASE], recipe.seed)
    return RateLadder(base, recipe.rates)


def draw_crops(sampler: Sampler, recipe: BackboneRecipe) -> Tensor:
    """Draw about START_CROPS crops with a recipe's seed: [N, crop, crop, 3] in [0, 1]."""
    torch.manual_seed(recipe.seed)
    draws = -(-START_CROPS // recipe.batch)
    return torch.cat([sampler.draw() for _ in range(draws)])


def best_step(lmbda: float) -> float:
    """Quantiser step in pixel values of [0, 1] where dR/dstep = -lmbda · dD/dstep at high rate."""
    return math.sqrt(12 * 3 / (2 * math.log(2) * lmbda * 255**2))


@torch.no_grad()
def _start_as_transform(model: Backbone, crops: Tensor, step: float) -> None:
    s, dct = model.sizes, colour_dct()
    first, last = scaled_linear(model.g_a[0]), scaled_linear(model.g_s[-1])
    cells = Unshuffle(8)(crops - 0.5).reshape(-1, 192) @ dct.T
    mean, spread = cells.mean(0), cells.std(0).clamp_min(1e-4)
    # channels beyond the transform's 192 start small and random, and g_s does not read them yet
    _set(first, dct, so=1 / spread, bias=-mean)
    _set(last, dct.T, si=spread, bias=dct.T @ mean)
    raw = Unshuffle(2)(Unshuffle(8)(crops - 0.5) @ dct.T - mean).reshape(-1, 4 * 192)
    variance, basis = torch.linalg.eigh((raw.T @ raw / len(raw)).double())
    basis = basis.flip(1)[:, : s.M].float()
    deviation = variance.flip(0)[: s.M].float().clamp_min(1e-9).sqrt()
    deep = deviation[: s.c16]
    inner = torch.ones(4, s.c8)
    inner[:, :192] = spread
    wide = torch.zeros(4, s.c8, s.M)
    wide[:, :192] = basis.reshape(4, 192, s.M)
    klt, scale = wide.reshape(4 * s.c8, s.M), inner.flatten()
    _set(layer_of(model.g_a, Down, 1), klt.T, si=scale, so=1 / deviation)
    _set(layer_of(model.g_s, Up, 0), klt, si=deviation, so=1 / scale)
    # latents that skip the 1/16 stage have no layer of their own that could scale them to steps
    inner_scale = torch.cat([torch.ones(s.c16), step / deviation[s.c16 :]])
    layer_of(model.g_a, Down, 1).so.div_(inner_scale)
    layer_of(model.g_s, Up, 0).si.mul_(inner_scale)
    eye = torch.eye(s.c16)
    _set(scaled_linear(model.g_a[-1]), eye, so=deep / step)
    _set(scaled_linear(model.g_s[0]), eye, si=step / deep)
    _start_entropy(model, deviation / step)


def _start_entropy(model: Backbone, deviation: Tensor) -> None:
    """Entropy networks that read whitened latents and predict each channel's deviation."""
    M = model.sizes.M
    reads_y = scaled_linear(model.h_a[0])
    nn.init.orthogonal_(reads_y.weight)
    _set(reads_y, reads_y.weight.clone(), si=1 / deviation)
    level = torch.log(deviation.clamp(0.12, 100) / SIGMA_MIN) / LOG_STEP / 8
    heads = [model.head0, *(model.step(t)[2] for t in (1, 2, 3))]
    for head in map(scaled_linear, heads):
        head.weight.mul_(0.1)
        head.bias[:M] = 0
        head.bias[M:] = (level - 0.3).clamp(0, (LEVELS - 1) / 8)
        head.so[:M] = deviation.clamp_min(0.2)
    for t in (1, 2, 3):
        scaled_linear(model.step(t)[0]).si[-M:] = 1 / deviation


def colour_dct() -> Tensor:
    """The 8×8 DCT of three opponent colours, for cells unshuffled by 8: [192, 192], orthonormal."""
    n = torch.arange(8.0)
    dct = torch.cos(math.pi / 8 * (n[None] + 0.5) * n[:, None]) * 0.5
    dct[0] *= math.sqrt(0.5)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    return torch.einsum("ui,vj,kc->uvkijc", dct, dct, colours).reshape(192, 192)


def _set(
    layer: ScaledLinear,
    weight: Tensor,
    *,
    si: Tensor | None = None,
    so: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Copy a smaller matrix and its vectors into the first rows and columns of a layer.

    Further rows keep a tenth of their random values; further columns and biases become zero.
    """
    rows, columns = weight.shape
    layer.weight[:rows] = 0
    layer.weight[rows:] *= 0.1
    layer.weight[:rows, :columns] = weight
    layer.weight[:, columns:] = 0
    layer.bias.zero_()
    if bias is not None:
        layer.bias[: len(bias)] = bias
    if si is not None:
        layer.si[: len(si)] = si
    if so is not None:
        layer.so[: len(so)] = so


def scaled_linear(module: nn.Module) -> ScaledLinear:
    """Return a layer, or the linear layer inside a Down or an Up."""
    layer = module.l if isinstance(module, (Down, Up)) else module
    assert isinstance(layer, ScaledLinear)
    return layer


def layer_of(net: nn.Module, kind: type[nn.Module], index: int) -> ScaledLinear:
    """Return the linear layer of the index-th Down or Up of a transform."""
    return scaled_linear([m for m in net.children() if isinstance(m, kind)][index])


def from_weights(path: Path, sizes: Sizes | None, rates: Sequence[int]) -> RateLadder:
    """Load earlier weights as a ladder to train on.

    Rates that the source holds are loaded too; the others start as the base.

    Args:
        path: the folder of a run (its averaged weights are used), the folder of a model in a store,
            or a safetensors state dict of Backbone.
        sizes: of the model in a state dict, which does not contain them; folders do.

    Raises:
        BadParameter: the path leads to none of these.
    """
    if has_state(path):
        return _from_run(path, rates)
    if (path / "manifest.json").is_file():
        return from_stored(load_model(path), rates)
    base = Backbone(sizes)
    try:
        base.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise BadParameter(
            f"{path} is not a run, a model of a store or a state dict of these sizes: {error}"
        ) from error
    return RateLadder(base, rates)


def _from_run(path: Path, rates: Sequence[int]) -> RateLadder:
    about = read_about(path)
    tensors = read_tensors(path, "ema.")
    ladder = RateLadder(Backbone(Sizes.from_dict(about["sizes"])), rates)
    earlier = about["recipe"]["rates"]
    state = ladder.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("base."):
            state[name] = tensor
        else:
            for at, rate in enumerate(ladder.rates):
                if rate in earlier:
                    state[name][at] = tensor[earlier.index(rate)]
    ladder.load_state_dict(state)
    return ladder


def from_stored(stored: StoredModel, rates: Sequence[int]) -> RateLadder:
    """Load a stored model and its PSNR ladder, whose factors have 8 bits."""
    ladder = RateLadder(unfolded(float_twin(stored)), rates)
    by_rate = {r.rate: r.update for r in stored.ladder(PSNR.name)}
    for at, rate in enumerate(ladder.rates):
        update = by_rate.get(rate)
        if update is not None:
            adapter = RateAdapter(float_twin(stored), domains(stored, dict(RANKS)), 0)
            load_update(adapter, stored, update)
            read_adapter(ladder, at, adapter)
    return ladder


@torch.no_grad()
def unfolded(plain: Backbone) -> Backbone:
    """Return a backbone with scale vectors that computes the same as one with folded scales.

    Its latents are in quantiser steps of the base rate, as in training.
    """
    model = Backbone(plain.sizes)
    state = dict(plain.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, ScaledLinear):
            weight = state[f"{name}.weight"].double()
            rows = weight.square().mean(1).sqrt().clamp_min(1e-6) * math.sqrt(weight.shape[1])
            columns = (weight / rows[:, None]).square().mean(0).sqrt().clamp_min(1e-6)
            columns = columns * math.sqrt(weight.shape[1])
            state[f"{name}.weight"] = (weight / rows[:, None] / columns).float()
            state[f"{name}.bias"] = (state[f"{name}.bias"].double() / rows).float()
            state[f"{name}.so"], state[f"{name}.si"] = rows.float(), columns.float()
    model.load_state_dict(state)
    divide_latents(model, plain.unit_step)
    return model
