"""More straight latents for a trained ladder, which keeps what it has learnt.

The new latents carry the part of the picture that the old ones lose: the error of the synthesis
without quantisation is regressed on the features at 1/8 that straight latents are computed from,
and the strongest directions of the regression become the new latents, in quantiser steps
(reduced-rank regression). The ladder computes what it did before, plus what the new latents add.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from service.codec.entropy_model import LEVELS, STEPS
from service.codec.sizes import Sizes
from service.errors import BadParameter
from service.nets.backbone import Down, Unshuffle, Up, in_turn
from service.nets.model import LOG_STEP, SIGMA_MIN, Backbone
from service.train.ladder import RateLadder
from service.train.start import best_step, layer_of, scaled_linear
from service.train.tunes import BASE, LADDER

HEAD: Final = re.compile(r"(head0|ctx\.\d\.2)(\.|$)")
"""Names of the layers that predict means and levels."""


@torch.no_grad()
def widen_ladder(ladder: RateLadder, sizes: Sizes, crops: Tensor) -> RateLadder:
    """Return a copy of a ladder with more straight latents; the ladder itself if sizes are equal.

    Args:
        sizes: the ladder's, except for a larger M.
        crops: [N, H, W, 3] in [0, 1], sides multiples of 64; the regression is computed on them.

    Raises:
        BadParameter: the sizes differ in more than M, or M is smaller.
    """
    old = ladder.base.sizes
    if sizes == old:
        return ladder
    if replace(sizes, M=old.M) != old or sizes.M < old.M:
        raise BadParameter(f"a model of sizes {old} cannot take sizes {sizes}: only M may grow")
    wide = RateLadder(Backbone(sizes), ladder.rates)
    state = wide.base.state_dict()
    for name, tensor in ladder.base.state_dict().items():
        state[name] = _enlarged(name, state[name], tensor)
    wide.base.load_state_dict(state)
    _add_latents(wide.base, ladder.base, crops)
    _copy_changes(wide, ladder)
    return wide


def _enlarged(name: str, wide: Tensor, tensor: Tensor) -> Tensor:
    """Return an initialised tensor of the new sizes with a tensor of the old sizes in its place."""
    if wide.shape == tensor.shape:
        return tensor
    out = wide.clone()
    if name.endswith("weight"):
        out.mul_(0.1)
        out[:, tensor.shape[1] :] = 0  # no layer reads the new latents yet
    _place(out, tensor, HEAD.match(name) is not None)
    return out


def _place(out: Tensor, tensor: Tensor, head: bool) -> None:
    """Copy a tensor to the start of a larger one; means and levels of a head separately."""
    pairs = zip(out.chunk(2), tensor.chunk(2), strict=True) if head else [(out, tensor)]
    for larger, part in pairs:
        larger[tuple(slice(0, n) for n in part.shape)] = part


def _copy_changes(wide: RateLadder, ladder: RateLadder) -> None:
    """Copy what rates change; no rate changes the rows and columns of the new latents."""
    new = wide.layout.changes(wide.factors.data.zero_())
    old = ladder.layout.changes(ladder.factors.data)
    pairs = ((new.d, old.d, True), (new.b, old.b, True), (new.a, old.a, False))
    for targets, sources, has_rows in pairs:
        for name, part in sources.items():
            for at, of_rate in enumerate(part):
                _place(targets[name][at], of_rate, has_rows and HEAD.match(name) is not None)
    M, first = wide.base.sizes.M, ladder.base.sizes.M
    wide.vectors.data[:, :first] = ladder.vectors.data[:, :first]
    wide.vectors.data[:, M:] = ladder.vectors.data[:, first:]


def _add_latents(wide: Backbone, old: Backbone, crops: Tensor) -> None:
    """Set the weights of the new latents."""
    s, first = wide.sizes, old.sizes.M
    features, error = _features_and_errors(old, crops)
    last = scaled_linear(list(old.g_s.children())[-1]).effective_weight()
    mean = features.mean(0)
    centred = (features - mean).double()
    gram = centred.T @ centred
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    regression = torch.linalg.solve(gram, centred.T @ error.double())
    explained = centred @ regression
    _, basis = torch.linalg.eigh(explained.T @ explained)
    basis = basis.flip(1)[:, : s.M - first]
    step = best_step(LADDER[BASE])
    encode = ((regression @ basis).T / step).float()
    inverse = torch.block_diag(*[torch.linalg.pinv(last.double(), rtol=0.3)] * 4)
    decode = (inverse @ basis * step).float()
    deviation = (centred.float() @ encode.T).std(0)

    down = layer_of(wide.g_a, Down, 1)
    rows = encode / down.si
    down.so[first:] = rows.square().mean(1).sqrt() * math.sqrt(rows.shape[1])
    down.weight[first:] = rows / down.so[first:, None]
    down.bias[first:] = -(encode @ mean) / down.so[first:]
    up = layer_of(wide.g_s, Up, 0)
    columns = decode / up.so[:, None]
    up.si[first:] = columns.square().mean(0).sqrt() * math.sqrt(up.in_features)
    up.weight[:, first:] = columns / up.si[first:]
    reads = 1 / deviation.clamp_min(0.2)
    scaled_linear(wide.h_a[0]).si[first:] = reads
    level = torch.log(deviation.clamp(SIGMA_MIN, 100) / SIGMA_MIN) / LOG_STEP / 8
    for t in range(STEPS):
        if t:
            scaled_linear(wide.step(t)[0]).si[s.cp + first :] = reads
        head = scaled_linear(wide.head0 if t == 0 else wide.step(t)[2])
        mu, idx = slice(first, s.M), slice(s.M + first, 2 * s.M)
        head.so[mu], head.so[idx] = deviation.clamp_min(0.2), 1
        head.bias[mu], head.bias[idx] = 0, level.clamp(0, (LEVELS - 1) / 8)


def _features_and_errors(model: Backbone, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the inputs of straight latents and the errors of a model without quantisation.

    Returns:
        Features [n, 4·c8] and errors [n, 4·192], each of 16×16 pixels, in the order of Unshuffle.
    """
    layers = list(model.g_a.children())
    before = [i for i, m in enumerate(layers) if isinstance(m, Down)][1]
    features, errors = [], []
    for x in crops.split(8):
        eighth = in_turn(layers[:before], x - 0.5)
        error = x - 0.5 - model.g_s(model.g_a(x - 0.5))
        features.append(Unshuffle(2)(eighth).flatten(0, 2))
        errors.append(Unshuffle(2)(Unshuffle(8)(error)).flatten(0, 2))
    return torch.cat(features), torch.cat(errors)
