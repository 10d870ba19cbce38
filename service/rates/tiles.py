"""Training tiles of ready updates: pixels, and the latents and losses of the codec without updates.

Fitting an update of the decoder (updates.py) does not change latents, so each tile is coded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.adapt.synthesis import updatable
from service.codec.lowrank import PARTS
from service.codec.sizes import conv_sizes
from service.codec.tiles import Box
from service.errors import BadParameter
from service.images.read import read_folder
from service.nets.twin import float_twin
from service.picture import U8, Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, encode, paint
from service.store.model import StoredModel, Tensors


@dataclass(frozen=True, eq=False)
class RateSynthesis:
    """The synthesis network of one rate, in a form that can be differentiated."""

    lmbda: float  # of its loss
    transforms: Tensors  # the model's weights merged for the rate
    g_s: nn.Module


@dataclass(frozen=True, eq=False)
class CodedTile:
    """A square part of a picture, coded at several rates."""

    picture: int  # number of the picture, counted over all folders
    rgb: U8  # pixels [S, S, 3]
    # decoded latents by rate, [S/16, S/16, M] int16 in units of 2^-Y_FRAC
    y_hat: Mapping[int, NDArray[np.int16]]
    plain: Mapping[int, float]  # loss without an update by rate, R + lmbda·D in bits per pixel


TileGroups = Mapping[str, Sequence[CodedTile]]
"""The tiles of each folder of pictures, by the folder's name."""


def rate_networks(stored: StoredModel, rates: Sequence[int]) -> dict[int, RateSynthesis]:
    """Return the synthesis networks of rates of the PSNR ladder.

    Raises:
        BadParameter: the model does not have a rate, or not its lmbda.
    """
    out = {}
    for rate in rates:
        lmbda = stored.lmbda_at(PARTS * rate) if stored.offers(PARTS * rate) else None
        if lmbda is None:
            raise BadParameter(f"rate {rate} of model {stored.name} is missing or has no lmbda")
        merged = stored.at_rate(PARTS * rate)
        g_s = updatable(conv_sizes(merged.sizes), float_twin(merged).g_s, torch.float32)
        out[rate] = RateSynthesis(lmbda, merged.transforms, g_s)
    return out


def read_groups(
    folders: Sequence[Path],
    stored: StoredModel,
    networks: Mapping[int, RateSynthesis],
    size: int,
    count: int,
    seed: int,
) -> TileGroups:
    """Cut random tiles from the pictures of folders, and code each tile as a picture of its own.

    Args:
        folders: of pictures; the tiles of each are a group.
        networks: of the rates to code at.
        size: side of a tile in pixels, a multiple of 16.
        count: tiles per folder, cut from its pictures in turn.

    Raises:
        BadParameter: a folder has no picture of at least that size, or two folders have one name.
        BadImage, OSError: a picture cannot be read.
    """
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise BadParameter(f"folders are {', '.join(names)}, expected different names")
    (base,) = load_models((stored,), "cpu", torch.float32)
    assert base.build is not None
    models = {rate: base.build(stored.at_rate(PARTS * rate)) for rate in networks}
    groups: dict[str, list[CodedTile]] = {}
    first = 0
    for number, folder in enumerate(folders):
        read = [picture.on_white().rgb for _, picture in read_folder(folder)]
        pictures = [rgb for rgb in read if min(rgb.shape[:2]) >= size]
        if not pictures:
            raise BadParameter(f"{folder} has no picture of at least {size}x{size} pixels")
        rng = np.random.default_rng((seed, number))
        tiles = groups[folder.name] = []
        for k in range(count):
            rgb = _cut(pictures[k % len(pictures)], size, rng)
            tiles.append(_code(first + k % len(pictures), rgb, models, networks))
        first += len(pictures)
    return groups


def digest_of(groups: TileGroups) -> str:
    """Return a hash of the pixels of all tiles and of the numbers of their pictures."""
    data = hashlib.sha256()
    for name, tiles in groups.items():
        data.update(name.encode())
        for tile in tiles:
            data.update(tile.picture.to_bytes(4, "little") + tile.rgb.tobytes())
    return data.hexdigest()


def _cut(rgb: U8, size: int, rng: np.random.Generator) -> U8:
    top, left = (int(rng.integers(side - size + 1)) for side in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + size, left : left + size])


def _code(
    picture: int, rgb: U8, models: Mapping[int, LoadedModel], networks: Mapping[int, RateSynthesis]
) -> CodedTile:
    y_hat, plain = {}, {}
    whole = Box(0, 0, *rgb.shape[:2])
    for rate, model in models.items():
        data, latents = encode(model, Picture(rgb), PARTS * rate)
        error = paint(model, latents, whole, False).astype(np.float64) - rgb
        y_hat[rate] = latents.y_hat
        bpp = 8 * len(data) / (rgb.shape[0] * rgb.shape[1])
        plain[rate] = bpp + networks[rate].lmbda * float(np.square(error).mean())
    return CodedTile(picture, rgb, y_hat, plain)
