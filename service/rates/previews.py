"""Training of the preview network, which makes small pictures of latents without g_s.

    rankpress train previews PICTURES --model model_store/light --scratch runs/previews

Everything else is frozen. The inputs are latents of crops that were really coded, each at a random
rate of a random ladder, and the targets are the pictures that g_s makes of them, shrunk by Lanczos.
So one network serves all rates. A part of the crops are generated pictures, for text and drawings.

The coded crops are kept in the scratch folder. Random draws are functions of (seed, step).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from service.codec.entropy_model import Y_FRAC
from service.codec.lowrank import PARTS
from service.codec.tiles import PATCH, SCALES, Box
from service.datasets.crops import Crops
from service.datasets.procedural import procedural_tiles
from service.files import write_whole
from service.images.resize import shrink
from service.nets.previews import PreviewNetwork
from service.picture import U8, Picture, View
from service.runtime.loading import load_models
from service.runtime.pipeline import encode, paint
from service.store.model import StoredModel
from service.store.read import load_model
from service.store.write import publish_previews
from service.train.progress import Meter

BETAS = (0.9, 0.98)
"""Decay rates of Adam's moments."""

WARMUP = 100
"""Steps over which the learning rate rises."""


@dataclass(frozen=True)
class PreviewRecipe:
    """How the preview network is trained."""

    channels: int = 96  # of the trunk
    blocks: int = 1  # of the trunk; each reads one latent further
    crops: int = 2400  # number of coded crops
    generated: float = 0.25  # share of the crops that are generated pictures
    crop: int = 256  # side of the crops in pixels, a multiple of 16
    steps: int = 8000  # optimiser steps
    batch: int = 8  # crops per step
    lr: float = 3e-3  # peak of the learning rate, which falls to 0 along a cosine
    seed: int = 0  # of crops, rates, draws and initial weights


@dataclass(frozen=True)
class PreviewProgress:
    """One progress report, with the PSNR in dB by scale, of a running mean of the error."""

    step: int
    steps: int
    psnr_db: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class CodedCrops:
    """Coded crops.

    Attributes:
        y_hat: [N, h, w, M] int16 in units of 2^-Y_FRAC.
        targets: by scale s, [N, 16h/s, 16w/s, 3] uint8.
    """

    y_hat: Tensor
    targets: Mapping[int, Tensor]


def train_previews(
    folder: Path,
    crops: Crops,
    scratch: Path,
    recipe: PreviewRecipe,
    record: Mapping[str, object],
    report: Callable[[PreviewProgress], None],
) -> StoredModel:
    """Train the preview network of a model and publish it in the model's folder.

    Args:
        crops: of pictures, of the recipe's size. scratch: folder for the coded crops.
        record: further entries of the manifest. report: called about every ten seconds.
    """
    stored = load_model(folder)
    coded = _coded_crops(stored, crops, scratch / "previews.safetensors", recipe)
    began = time.process_time()
    network, errors = _train(stored.sizes.M, coded, recipe, report)
    training = {
        **asdict(recipe),
        **record,
        "psnr_db": {str(s): round(_psnr_db(e), 2) for s, e in errors.items()},
        "cpu_minutes": round((time.process_time() - began) / 60, 1),
    }
    tensors = {n: t.detach().half().numpy() for n, t in network.state_dict().items()}
    return publish_previews(folder, tensors, training)


def _train(
    M: int,
    coded: CodedCrops,
    recipe: PreviewRecipe,
    report: Callable[[PreviewProgress], None],
) -> tuple[PreviewNetwork, dict[int, float]]:
    """Train a network; also returns the running means of its squared error by scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = PreviewNetwork(M, recipe.channels, recipe.blocks)
    optimiser = torch.optim.Adam(network.parameters(), betas=BETAS)
    meter, means = Meter(0), dict.fromkeys(SCALES, 0.0)
    for step in range(recipe.steps):
        warm = min(1.0, (step + 1) / WARMUP)
        lr = recipe.lr * warm * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = lr
        rng = np.random.default_rng((recipe.seed, step))
        chosen = torch.from_numpy(rng.integers(len(coded.y_hat), size=recipe.batch))
        errors = _errors(network, coded, chosen)
        optimiser.zero_grad()
        # errors of larger pictures are larger
        torch.stack([s * error for s, error in errors.items()]).sum().backward()
        optimiser.step()
        for s, error in errors.items():
            means[s] += (error.item() - means[s]) / min(step + 1, 100)
        if meter.due(10) or step + 1 == recipe.steps:
            meter.lap(step + 1)
            psnr_db = {s: _psnr_db(mean) for s, mean in means.items()}
            report(PreviewProgress(step + 1, recipe.steps, psnr_db))
    return network, means


def _errors(network: PreviewNetwork, coded: CodedCrops, chosen: Tensor) -> dict[int, Tensor]:
    """Mean squared error on the chosen crops by scale, of samples in [0, 1]."""
    made = network(coded.y_hat[chosen].float() / 2**Y_FRAC)
    return {
        s: (made[s] + 0.5 - coded.targets[s][chosen].float() / 255).square().mean() for s in SCALES
    }


def _psnr_db(error: float) -> float:
    return -10 * math.log10(max(error, 1e-10))


def _coded_crops(
    stored: StoredModel, crops: Crops, path: Path, recipe: PreviewRecipe
) -> CodedCrops:
    """The coded crops of a recipe, read from a file if it holds them, else coded and written."""
    pictures = _pictures(crops, recipe)
    digest = hashlib.sha256(repr([stored.sha256, recipe.seed, *stored.rates]).encode())
    for picture in pictures:
        digest.update(picture.tobytes())
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("digest") == digest.hexdigest():
                targets = {s: file.get_tensor(f"target.{s}") for s in SCALES}
                return CodedCrops(file.get_tensor("y_hat"), targets)
    coded = _code(stored, pictures, recipe.seed)
    tensors = {"y_hat": coded.y_hat} | {f"target.{s}": t for s, t in coded.targets.items()}
    write_whole(path, save(tensors, {"digest": digest.hexdigest()}))
    return coded


def _pictures(crops: Crops, recipe: PreviewRecipe) -> Sequence[U8]:
    """Crops of pictures and generated ones, [crop, crop, 3] each."""
    generated = round(recipe.generated * recipe.crops)
    drawn = [crops.batch(i, 1)[0] for i in range(recipe.crops - generated)]
    made = procedural_tiles(generated, recipe.crop, recipe.seed)
    return [*((x * 255).round().byte().numpy() for x in drawn), *made]


def _code(stored: StoredModel, pictures: Sequence[U8], seed: int) -> CodedCrops:
    """Code pictures of one size, each at a random rate; every rate is merged once."""
    (base,) = load_models((stored,), "cpu", torch.float32)
    assert base.build is not None
    height, width = pictures[0].shape[:2]
    whole = Box(0, 0, height, width)
    chosen = np.random.default_rng(seed).integers(len(stored.rates), size=len(pictures))
    y_hat = np.empty((len(pictures), height // PATCH, width // PATCH, stored.sizes.M), np.int16)
    targets = {s: np.empty((len(pictures), height // s, width // s, 3), np.uint8) for s in SCALES}
    for number, rate in enumerate(stored.rates):
        rate16 = round(PARTS * rate.rate)
        model = base.build(stored.at_rate(rate16, rate.tune))
        for i in np.flatnonzero(chosen == number).tolist():
            _, latents = encode(model, Picture(pictures[i]), rate16, rate.tune)
            y_hat[i] = latents.y_hat
            picture = Picture(paint(model, latents, whole, grey=False))
            for s in SCALES:
                targets[s][i] = shrink(picture, View(size=(width // s, height // s))).rgb
    return CodedCrops(torch.from_numpy(y_hat), {s: torch.from_numpy(t) for s, t in targets.items()})
