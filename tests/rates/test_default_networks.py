"""Default networks of an autoencoder, from which those of every latent stream start."""

from __future__ import annotations

import numpy as np
import torch
from small_autoencoder import CellMeans
from small_model import photo_like

from service.adapt.overfit import LatentAdaptation, LatentTask
from service.codec.overfit import LatentNetworks
from service.picture import Picture
from service.rates.default_networks import (
    QUALITIES,
    CropGroup,
    NetworkProgress,
    crop_groups,
    fit_default_networks,
    starting_point,
)
from service.store.latent_networks import read_networks, write_networks
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler, Source

AUTOENCODER = CellMeans("means")
LEVELS, WIDTHS = (3, 1), (4, 4)


def groups(crop: int = 128) -> list[CropGroup]:
    tiles = torch.from_numpy(np.stack([photo_like(crop, crop, seed=seed) for seed in range(4)]))
    recipe = BackboneRecipe(batch=2, crop=crop, groups=1, downscaled=0, grain=0, procedural=0)
    return crop_groups(AUTOENCODER, Sampler([Source(tiles, 1.0, True)], recipe), 1)


def test_networks_that_were_fitted_take_fewer_bits_for_other_pictures() -> None:
    reports: list[NetworkProgress] = []
    every = groups()
    assert [group.quality for group in every] == list(QUALITIES)
    fitted = fit_default_networks(every, LEVELS, 160, reports.append, WIDTHS)
    assert all(reports[-1].losses[q] < reports[0].losses[q] for q in QUALITIES)
    start = starting_point(every, LEVELS, WIDTHS)
    picture = Picture(photo_like(160, 200, seed=77))

    def size(networks: LatentNetworks) -> int:
        class Other(CellMeans):
            @property
            def networks(self) -> LatentNetworks:
                return networks

        return LatentAdaptation(Other("other"), LatentTask(picture, 96, 0)).progress.bytes

    assert size(fitted) < 0.92 * size(start)


def test_the_first_grid_stands_for_the_direction_that_saves_most_error() -> None:
    """All directions of this autoencoder are equally visible, so it is that of most variance."""
    every = groups()
    start = starting_point(every, LEVELS, WIDTHS)
    first = start.weight("syn.skip")[:, 0]
    latents = torch.cat([group.latents.reshape(-1, 3) for group in every]).numpy()
    _, vectors = np.linalg.eigh(np.cov(latents.T))
    assert abs(first @ vectors[:, -1]) > 0.95 * np.linalg.norm(first)
    assert np.array_equal(start.weight("syn.skip")[:, 3], first)


def test_networks_come_back_from_their_file() -> None:
    start = starting_point(groups(64), LEVELS, WIDTHS)
    back = read_networks(write_networks(start), 3)
    assert back.levels == LEVELS
    assert all(np.array_equal(back.tensors[n], t) for n, t in start.tensors.items())
