"""Tiles of training pictures as the plain codec leaves them: pixels, decoded latents, losses.

What fits a ready update (updates.py) never moves latents, so they are made once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.adapt.synthesis import updatable
from service.codec.lowrank import PARTS
from service.codec.tiles import Box
from service.errors import BadParameter
from service.images.folder import read_folder
from service.nets.twin import float_twin
from service.picture import U8, Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, encode, paint
from service.store.model import StoredModel, Tensors


@dataclass(frozen=True, eq=False)
class RateNet:
    """g_s of one rate, to differentiate.

    Attributes:
        rate: whole, of tune PSNR. lmbda: of its loss. transforms: merged for it. g_s: the network.
    """

    rate: int
    lmbda: float
    transforms: Tensors
    g_s: nn.Module


@dataclass(frozen=True, eq=False)
class Tile:
    """A square piece of a picture.

    Attributes:
        picture: number of the picture, of all folders. rgb: [S, S, 3].
        y_hat: by rate, [S/16, S/16, M] int16 in units of 2^-Y_FRAC.
        plain: by rate, R + lmbda·D of the piece, bits per pixel.
    """

    picture: int
    rgb: U8
    y_hat: Mapping[int, NDArray[np.int16]]
    plain: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Group:
    """The tiles of one folder of pictures, by its name."""

    name: str
    tiles: tuple[Tile, ...]


def rate_nets(stored: StoredModel, rates: Sequence[int]) -> dict[int, RateNet]:
    """The rates of the PSNR ladder to train for.

    Raises:
        BadParameter: a rate that the model does not hold, or one that does not say its lmbda.
    """
    out = {}
    for rate in rates:
        lmbda = stored.lmbda_at(PARTS * rate) if stored.offers(PARTS * rate) else None
        if lmbda is None:
            raise BadParameter(f"rate {rate} of model {stored.name} is missing or has no lmbda")
        merged = stored.at_rate(PARTS * rate)
        g_s = updatable(merged.sizes, float_twin(merged).g_s, torch.float32)
        out[rate] = RateNet(rate, lmbda, merged.transforms, g_s)
    return out


def read_groups(
    folders: Sequence[Path],
    stored: StoredModel,
    nets: Mapping[int, RateNet],
    size: int,
    count: int,
    seed: int,
) -> tuple[Group, ...]:
    """Cut tiles from pictures and code each as a picture of its own.

    Args:
        folders: of pictures, a group each. stored: the model. nets: rates to code at.
        size: side in pixels, a multiple of 16. count: tiles of a folder, its pictures in turn.
        seed: of where tiles are cut.

    Raises:
        BadParameter: a folder without a picture of at least that size, or two of one name.
        BadImage, OSError: a picture that cannot be read.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise BadParameter(f"folders are {', '.join(names)}, expected different names")
    (base,) = load_models((stored,), "cpu", torch.float32)
    assert base.build is not None
    models = {rate: base.build(stored.at_rate(PARTS * rate)) for rate in nets}
    groups, first = [], 0
    for number, folder in enumerate(folders):
        pictures = list(_pictures(folder, size))
        if not pictures:
            raise BadParameter(f"{folder} has no picture of at least {size}x{size} pixels")
        rng = np.random.default_rng((seed, number))
        tiles = []
        for k in range(count):
            rgb = _cut(pictures[k % len(pictures)], size, rng)
            tiles.append(_tile(first + k % len(pictures), rgb, models, nets))
        groups.append(Group(folder.name, tuple(tiles)))
        first += len(pictures)
    return tuple(groups)


def digest_of(groups: Sequence[Group]) -> str:
    """Hash of every tile's pixels and of which picture it is of."""
    data = hashlib.sha256()
    for group in groups:
        data.update(group.name.encode())
        for tile in group.tiles:
            data.update(tile.picture.to_bytes(4, "little") + tile.rgb.tobytes())
    return data.hexdigest()


def _pictures(folder: Path, size: int) -> Iterator[U8]:
    for _, picture in read_folder(folder):
        if min(picture.width, picture.height) >= size:
            yield picture.on_white().rgb


def _cut(rgb: U8, size: int, rng: np.random.Generator) -> U8:
    top, left = (int(rng.integers(side - size + 1)) for side in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + size, left : left + size])


def _tile(
    picture: int, rgb: U8, models: Mapping[int, LoadedModel], nets: Mapping[int, RateNet]
) -> Tile:
    y_hat, plain = {}, {}
    everything = Box(0, 0, *rgb.shape[:2])
    for rate, model in models.items():
        data, latents = encode(model, Picture(rgb), PARTS * rate)
        error = paint(model, latents, everything, False).astype(np.float64) - rgb
        y_hat[rate] = latents.y_hat
        bpp = 8 * len(data) / (rgb.shape[0] * rgb.shape[1])
        plain[rate] = bpp + nets[rate].lmbda * float(np.square(error).mean())
    return Tile(picture, rgb, y_hat, plain)
