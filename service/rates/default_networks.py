"""Fitting an autoencoder's default networks, from which those of every picture start.

    rankpress train networks TILES OUT --autoencoder kl

Crops of all qualities are fitted at the same time, as adapt/overfit.py fits one picture, but with
one set of networks for all. Each group of crops has a quality; a step fits one group. The loss of a
group is divided by its running mean, so that all qualities count the same.

Grids stand for the directions of the latents in which most error, as the decoder shows it, can be
saved. With S the covariance of the latents and M their sensitivity
(adapt.latent_start.measure_sensitivity), these are the eigenvectors of M^(1/2) S M^(1/2). An
autoencoder of many channels has a grid for each channel instead, because a trained transform is
sparse along its channels: with 320 of them, that takes 4 % less in R + lmbda·D. Grids are scaled so
that one step is right for quality 5 by the high-rate rule D'(R) = -2 ln 2 · D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from service.adapt.latent_networks import LatentNetworksTorch, UsedGrids, pyramid, rounded
from service.adapt.latent_start import (
    PATTERN_QUALITY,
    gain_of_quality,
    high_rate_step,
    lmbda_of_quality,
    measure_sensitivity,
    used_grids,
    weighted_inverse,
)
from service.adapt.overfit import GRID_LR
from service.autoencoders.interfaces import DifferentiableAutoencoder
from service.codec.container import RATE_UNIT
from service.codec.overfit import WEIGHT_FRAC, WEIGHT_MAX, LatentNetworks, plain_networks
from service.train.sampler import Sampler

QUALITIES: Final = range(1, 9)
MANY: Final = 64
"""Channels from which on a grid stands for a channel."""
LR: Final = 0.004
"""Learning rate of the networks at the start."""
CLIP: Final = 1.0
"""Largest norm of their gradient."""
LR_END: Final = 0.05
"""Share of the learning rates that is left at the end."""
MEMORY: Final = 0.8
"""Share of the old mean of a quality's loss that each step keeps."""


@dataclass(frozen=True, eq=False)
class CropGroup:
    """Crops of one quality.

    Attributes:
        latents: [B, rows, columns, C]. sensitivities: [B, C, C]. pixels: of all crops.
    """

    quality: int
    latents: Tensor
    sensitivities: Tensor
    pixels: int


@dataclass(frozen=True, eq=False)
class GroupFit:
    """A group while it is fitted: its grids, and what moves them."""

    group: CropGroup
    grids: tuple[Tensor, ...]
    used: UsedGrids
    gain: Tensor
    adam: torch.optim.Adam


@dataclass(frozen=True)
class NetworkProgress:
    """One progress report: R + lmbda·D in bits per pixel, running means by quality."""

    step: int
    steps: int
    losses: dict[int, float]


def crop_groups(
    autoencoder: DifferentiableAutoencoder, sampler: Sampler, rounds: int, seed: int = 0
) -> list[CropGroup]:
    """Groups of crops that a sampler draws, `rounds` of each quality."""
    groups = []
    for number in range(rounds):
        for quality in QUALITIES:
            torch.manual_seed(1000 * seed + 10 * number + quality)
            crops = (sampler.draw() * 255).round().to(torch.uint8).numpy()
            latents = torch.from_numpy(np.stack([autoencoder.encode(crop) for crop in crops]))
            sensitivities = [
                measure_sensitivity(autoencoder, one, quality * RATE_UNIT, seed) for one in latents
            ]
            pixels = crops.size // 3
            groups.append(CropGroup(quality, latents, torch.stack(sensitivities), pixels))
    return groups


def fit_default_networks(
    groups: list[CropGroup],
    levels: tuple[int, ...],
    steps: int,
    report: Callable[[NetworkProgress], None],
    widths: tuple[int, int] = (8, 8),
    seed: int = 0,
) -> LatentNetworks:
    """Fit networks to all groups in turn.

    Args:
        levels: number of grids at 1:1, 1:2, ...
        widths: of the autoregressive and of the synthesis network.
    """
    start = starting_point(groups, levels, widths)
    networks = LatentNetworksTorch(start)
    pattern = networks.gain.clone()
    fits = [_group_fit(group, networks, start) for group in groups]
    # A grid for each channel stays one: any other weight would be a multiply-add more.
    networks.weight("syn.skip").requires_grad_(start.channels <= MANY)
    trained = [p for p in networks.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=LR, betas=(0.9, 0.99))
    means: dict[int, float] = {}
    order = np.random.default_rng(seed)
    queue: list[int] = []
    for step in range(steps):
        queue = queue or order.permutation(len(fits)).tolist()
        fit = fits[queue.pop()]
        networks.gain = fit.gain
        share = step / steps
        for optimiser, peak in ((adam, LR), (fit.adam, GRID_LR)):
            for group in optimiser.param_groups:
                group["lr"] = peak * max(LR_END, 1 - share)
        generator = torch.Generator().manual_seed(1000003 * seed + step)
        loss = _loss(networks, fit, rounded(fit.grids, share, generator))
        quality, value = fit.group.quality, float(loss.detach())
        means[quality] = MEMORY * means.get(quality, value) + (1 - MEMORY) * value
        adam.zero_grad()
        fit.adam.zero_grad()
        (loss / means[quality]).backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        adam.step()
        fit.adam.step()
        if (step + 1) % max(1, steps // 20) == 0:
            report(NetworkProgress(step + 1, steps, dict(sorted(means.items()))))
    networks.gain = pattern
    return networks.rounded(levels)


def starting_point(
    groups: list[CropGroup], levels: tuple[int, ...], widths: tuple[int, int]
) -> LatentNetworks:
    """Networks whose first grids stand for the directions that save most error."""
    channels = groups[0].latents.shape[-1]
    latents = torch.cat([group.latents.reshape(-1, channels) for group in groups]).double()
    sensitivity = torch.cat([group.sensitivities for group in groups]).double().mean(0)
    mean = latents.mean(0)
    covariance = (latents - mean).T @ (latents - mean) / len(latents)
    count = min(levels[0], channels)
    find = _channels if channels > MANY else _directions
    basis = find(covariance, sensitivity)[:, :count]
    step = high_rate_step(PATTERN_QUALITY * RATE_UNIT)
    networks = plain_networks(channels, levels, *widths)
    tensors = dict(networks.tensors)
    unit = 2**WEIGHT_FRAC
    skip = np.zeros_like(tensors["syn.skip"])
    whole = np.rint((basis * step).numpy() * unit)
    skip[:, :count] = whole.clip(-WEIGHT_MAX, WEIGHT_MAX)
    place = levels[0]
    for own in levels[1:]:
        skip[:, place : place + own] = skip[:, :own]
        place += own
    tensors["syn.skip"] = skip
    tensors["syn.b2"] = np.rint(mean.numpy() * unit).astype(np.int32)
    return LatentNetworks(levels, tensors)


def _directions(covariance: Tensor, sensitivity: Tensor) -> Tensor:
    """Directions [C, C] along which a unit shows as 1, those that save most error first."""
    values, vectors = torch.linalg.eigh(sensitivity)
    values = values.clamp_min(1e-6 * values.max())
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    inverse_root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    _, directions = torch.linalg.eigh(root @ covariance @ root)
    out: Tensor = inverse_root @ directions.flip(1)
    return out


def _channels(covariance: Tensor, sensitivity: Tensor) -> Tensor:
    """The same along channels."""
    shown = sensitivity.diagonal().clamp_min(1e-6 * sensitivity.diagonal().max())
    order = torch.argsort(covariance.diagonal() * shown, descending=True)
    return torch.diag(shown.rsqrt())[:, order]


def _group_fit(group: CropGroup, networks: LatentNetworksTorch, start: LatentNetworks) -> GroupFit:
    levels = start.levels
    gain = networks.gain + gain_of_quality(group.quality * RATE_UNIT) / 4
    skip = networks.weight("syn.skip").detach()[:, : levels[0]]
    projection = weighted_inverse(skip, group.sensitivities.mean(0))
    features = (group.latents - networks.weight("syn.b2").detach()) @ projection.T
    taps = networks.weight("up").detach()
    whole = pyramid(features.permute(0, 3, 1, 2), levels, gain, taps)
    used = used_grids(whole, levels)
    starts = np.cumsum([0, *levels]).tolist()
    grids = [
        grid[:, [place - start for place in places]]
        for grid, places, start in zip(whole, used.levels, starts, strict=False)
    ]
    variables = tuple(grid.clone().requires_grad_() for grid in grids)
    return GroupFit(group, variables, used, gain, torch.optim.Adam(variables, lr=GRID_LR))


def _loss(networks: LatentNetworksTorch, fit: GroupFit, grids: list[Tensor]) -> Tensor:
    """R + lmbda·D of a group, in bits per pixel."""
    group = fit.group
    bits = networks.bits(grids, fit.used) / group.pixels
    difference = (networks.latents(grids, fit.used) - group.latents).flatten(1, 2)
    error = (torch.bmm(difference, group.sensitivities) * difference).sum()
    error = 255**2 * error / (3 * group.pixels)
    return bits + lmbda_of_quality(group.quality * RATE_UNIT) * error
