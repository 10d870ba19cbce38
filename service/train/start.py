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
from service.codec.sizes import Sizes, SwinSizes, conv_sizes, read_sizes
from service.errors import BadParameter
from service.nets.adapters import domains, load_update
from service.nets.backbone import Down, ScaledLinear, Unshuffle, Up
from service.nets.families import latent_layers
from service.nets.lora import RateAdapter
from service.nets.model import LOG_STEP, SIGMA_MIN, Backbone
from service.nets.twin import float_twin
from service.store.model import StoredModel
from service.store.read import load_model
from service.train.checkpoint import has_state, read_about, read_tensors
from service.train.ladder import RANKS, RateLadder, divide_latents, read_adapter
from service.train.recipe import START_CROPS, BackboneRecipe
from service.train.sampler import Sampler
from service.train.tunes import BASE, LADDER, PSNR


def new_backbone(sizes: Sizes, crops: Tensor, lmbda: float, seed: int) -> Backbone:
    """Return a backbone that works as a transform codec.

    Args:
        sizes: of any family; `_room` has the limits.
        crops: [N, H, W, 3] in [0, 1]; the latents are white on them.
        lmbda: sets the quantiser's step, see `best_step`.
        seed: of the weights that the transform does not set.

    Raises:
        BadParameter: the sizes cannot hold the transform.
    """
    first, side, latents = _room(sizes)
    if first < 3 * side**2 or sizes.M > latents:
        raise BadParameter(
            f"sizes are c{side} = {first}, M = {sizes.M}; a new backbone needs "
            f"c{side} >= {3 * side**2}, M <= {latents}"
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
    s = model.sizes
    downs = [m for m in model.g_a.children() if isinstance(m, Down)]
    ups = [m for m in model.g_s.children() if isinstance(m, Up)][::-1]
    first, last = scaled_linear(downs[0]), scaled_linear(ups[0])
    dct = colour_dct(ups[0].r)
    cells = Unshuffle(ups[0].r)(crops - 0.5) @ dct.T
    mean, deviation = cells.mean((0, 1, 2)), cells.std((0, 1, 2)).clamp_min(1e-4)
    # channels beyond the transform's start small and random, and g_s does not read them yet
    _set(first, dct, so=1 / deviation, bias=-mean)
    _set(last, dct.T, si=deviation, bias=dct.T @ mean)
    features = cells - mean
    for down, up in zip(map(scaled_linear, downs[1:]), map(scaled_linear, ups[1:]), strict=True):
        features, deviation = _start_klt(down, up, features, deviation)
    deep = deviation[: s.c16]
    # latents that skip the 1/16 stage have no layer of their own that could scale them to steps
    inner_scale = torch.cat([torch.ones(s.c16), step / deviation[s.c16 :]])
    scaled_linear(downs[-1]).so.div_(inner_scale)
    scaled_linear(ups[-1]).si.mul_(inner_scale)
    eye, names = torch.eye(s.c16), latent_layers(s)
    _set(scaled_linear(model.get_submodule(names.deep_out)), eye, so=deep / step)
    _set(scaled_linear(model.get_submodule(names.deep_in)), eye, si=step / deep)
    _start_entropy(model, deviation / step)


def _start_klt(
    down: ScaledLinear, up: ScaledLinear, features: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """Make a layer the KLT of 2×2 cells of features, and the layer opposite its inverse.

    Args:
        features: [B, h, w, K] of mean 0; what `down` reads is divided by their deviation [K].

    Returns:
        The features [B, h/2, w/2, N] after the KLT, and their deviation [N]; `down` divides by it.
    """
    width, known, outputs = down.in_features // 4, len(deviation), down.out_features
    cells = Unshuffle(2)(features)
    raw = cells.reshape(-1, 4 * known)
    variance, basis = torch.linalg.eigh((raw.T @ raw / len(raw)).double())
    basis = basis.flip(1)[:, :outputs].float()
    after = variance.flip(0)[:outputs].float().clamp_min(1e-9).sqrt()
    inner = torch.ones(4, width)
    inner[:, :known] = deviation
    wide = torch.zeros(4, width, basis.shape[1])
    wide[:, :known] = basis.reshape(4, known, -1)
    klt, scale = wide.reshape(4 * width, -1), inner.flatten()
    _set(down, klt.T, si=scale, so=1 / after)
    _set(up, klt, si=after, so=1 / scale)
    return cells @ basis, after


def _room(s: Sizes) -> tuple[int, int, int]:
    """Channels of the first stage of g_a, the side of its cells of pixels, and most latents."""
    if isinstance(s, SwinSizes):
        return s.c4, 4, 4 * s.c8
    return conv_sizes(s).c8, 8, 4 * 3 * 8**2


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


def colour_dct(side: int) -> Tensor:
    """The DCT of three opponent colours, for cells unshuffled by `side`: orthonormal, square."""
    n = torch.arange(float(side))
    dct = torch.cos(math.pi / side * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / side)
    dct[0] *= math.sqrt(0.5)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    whole = torch.einsum("ui,vj,kc->uvkijc", dct, dct, colours)
    return whole.reshape(3 * side**2, 3 * side**2)


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
    ladder = RateLadder(Backbone(read_sizes(about["family"], about["sizes"])), rates)
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
