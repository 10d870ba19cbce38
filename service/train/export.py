"""A trained backbone -> a model in the store: folded, quantised, verified, measured, written.

    rankpress train export RUN OUT --calibrate DIR --measure DIR

RUN is the folder of a `train base` run, or a safetensors state dict of nets.model.Backbone
(float32, scale vectors included) with a --record of how it was trained. The model is written only
if the exact codec agrees with the float model on every measured picture: real bytes within 0.5 % of
the float estimate and PSNR within 0.02 dB, on average.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from service.codec.container import read_stream
from service.codec.sizes import Sizes
from service.codec.tiles import Box, latent_box
from service.engine.engine import Engine
from service.engine.loading import load_models
from service.errors import BadParameter, RankpressError
from service.nets.backbone import folded
from service.nets.model import Backbone
from service.picture import Picture
from service.stored import ENTROPY, TRANSFORMS, Golden, StoredModel, StoredRate, Tensors, identity
from service.train.base import training_record
from service.train.checkpoint import has_state, read_about, read_tensors
from service.train.evaluate import as_tensor, pictures_in
from service.train.publish import write_model
from service.train.quantise import calibrate, quantise
from service.train.tunes import BASE, LADDER

MAX_RATE_EXCESS = 0.005
MAX_PSNR_LOSS_DB = 0.02


class ExportFailed(RankpressError):
    """The exported model does not reproduce the float model closely enough."""


@dataclass(frozen=True)
class Agreement:
    """Averages over the measured pictures, float model against exact codec."""

    pictures: int
    estimated_bpp: float
    real_bpp: float
    float_psnr_db: float
    real_psnr_db: float

    def check(self) -> None:
        """Raise ExportFailed when outside the limits."""
        excess = self.real_bpp / self.estimated_bpp - 1
        loss = self.float_psnr_db - self.real_psnr_db
        if abs(excess) > MAX_RATE_EXCESS or abs(loss) > MAX_PSNR_LOSS_DB:
            raise ExportFailed(
                f"real size is {excess:+.2%} off the estimate (limit {MAX_RATE_EXCESS:.1%}), "
                f"PSNR {-loss:+.3f} dB (limit {MAX_PSNR_LOSS_DB} dB)"
            )


@dataclass(frozen=True, eq=False)
class Trained:
    """Weights to export: a state dict with scale vectors, its sizes, and the record of training."""

    state: Mapping[str, Tensor]
    sizes: Sizes
    record: Mapping[str, object]


def trained_weights(path: Path, sizes: Sizes | None, record: Path | None) -> Trained:
    """The averaged weights of a run's folder, or a state dict with a record beside it.

    Args:
        path: of either. sizes: of a state dict, None for the shipped ones; a run knows its own.
        record: JSON file, needed with a state dict; a run has its own, to which this adds.

    Raises:
        BadParameter: neither, or no record of how the weights were made.
    """
    more = {} if record is None else json.loads(record.read_text())
    if has_state(path):
        about = read_about(path)
        told = Sizes.from_dict(about["sizes"])
        return Trained(read_tensors(path, "ema."), told, training_record(about) | more)
    if not path.is_file():
        raise BadParameter(f"{path} is no run's folder and no state dict")
    if record is None:
        raise BadParameter(f"{path} does not say how it was trained: give a --record")
    return Trained(load_file(path), sizes or Sizes(), more)


def folded_backbone(trained: Trained) -> Backbone:
    """The float model with its scales folded in, ready to evaluate."""
    model = Backbone(trained.sizes, nn.Linear)
    model.load_state_dict(folded(trained.state))
    return model.eval().requires_grad_(False)


def stored_model(
    name: str, model: Backbone, pictures: list[Tensor], training: Mapping[str, object]
) -> tuple[StoredModel, bytes]:
    """Quantise a folded model.

    Args:
        name: of the model's folder.
        model: from `folded_backbone`.
        pictures: [1, H, W, 3] in [0, 1], sides multiples of 64, to calibrate ranges on.
        training: record of how the weights were made, plain JSON values.

    Returns:
        The model (its golden stream made by itself) and the bytes of base.safetensors.
    """
    entropy: Tensors = dict(quantise(model, calibrate(model, pictures)))
    transforms: Tensors = {
        n: _float16(n, t) for n, t in model.state_dict().items() if n.startswith(TRANSFORMS)
    }
    tensors = transforms | {ENTROPY + n: t for n, t in entropy.items()}
    base = save_safetensors(tensors, {"sizes": json.dumps(asdict(model.sizes))})
    digest = hashlib.sha256(base)
    unmeasured = StoredModel(
        name,
        model.sizes,
        digest.hexdigest(),
        identity([digest.digest()]),
        transforms,
        entropy,
        (StoredRate(BASE, LADDER[BASE], None, None),),
        training,
        Golden(b"", np.zeros((0, 0, 0), np.int16), np.zeros((0, 0, 3), np.uint8)),
        len(base),
    )
    return replace(unmeasured, golden=make_golden(unmeasured)), base


def make_golden(model: StoredModel) -> Golden:
    """A small generated picture as a stream, its latents, and its float32 pixels."""
    (loaded,) = load_models((model,), "cpu", torch.float32)
    engine = Engine((loaded,))
    picture = Picture(golden_picture(50, 75))
    data = engine.compress(picture, BASE).data
    box = latent_box(picture.width, picture.height)
    decoded = loaded.coder.decode(read_stream(data).tiles, Box(0, 0, box.height, box.width))
    return Golden(data, decoded.y_hat[0], engine.decompress(data).picture.rgb)


def golden_picture(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Smooth gradients, an edge and texture, [height, width, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    texture = 20 * np.sin(x * 1.3) * np.cos(y * 0.9)
    edge = 60.0 * (x + y > (height + width) / 2)
    channels = [40 + 1.5 * x + texture, 60 + 2 * y + edge, 200 - x - y + texture]
    return np.stack(channels, -1).round().clip(0, 255).astype(np.uint8)


def measure(engine: Engine, model: Backbone, folder: Path) -> Agreement:
    """Real files against the float model's estimates, averaged over a folder of pictures."""
    rows = []
    for _, picture in pictures_in(folder):
        x = as_tensor(picture)
        with torch.inference_mode():
            estimate = model(x, noise=False)
        pixels = picture.width * picture.height
        bits = float(estimate.bits_y + estimate.bits_z)
        rounded = (estimate.x_hat.clamp(0, 1) * 255).round() / 255
        float_psnr = -10 * math.log10(float((rounded - x).square().mean()))
        real = engine.compress(picture, BASE)
        if real.psnr_db is None:
            raise ExportFailed("the engine must check its streams to measure PSNR")
        rows.append((bits / pixels, real.bpp, float_psnr, real.psnr_db))
    if not rows:
        raise ExportFailed(f"no pictures in {folder}")
    mean = np.mean(rows, 0).tolist()
    return Agreement(len(rows), *mean)


def export(trained: Trained, out: Path, calibration: Path, test: Path) -> Agreement:
    """The whole way from trained weights to a folder of the store.

    Raises:
        BadParameter: the folder holds a model already.
        ExportFailed: the exact codec strays too far from the float model; nothing is written.
    """
    if (out / "manifest.json").exists():
        raise BadParameter(
            f"{out} holds a model, and streams made with it need it: export under another name"
        )
    model = folded_backbone(trained)
    pictures = [p for _, p in pictures_in(calibration)]
    chosen = [as_tensor(p) for p in pictures[:: max(1, len(pictures) // 100)]]
    stored, base = stored_model(out.name, model, chosen, trained.record)
    agreement = measure(Engine(load_models((stored,), "cpu", None)), model, test)
    agreement.check()
    measured = StoredRate(
        BASE, LADDER[BASE], round(agreement.real_bpp, 4), round(agreement.real_psnr_db, 3)
    )
    write_model(out, replace(stored, rates=(measured,)), base)
    return agreement


def _float16(name: str, tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """A weight in float16; refuses what does not fit its range."""
    half = tensor.to(torch.float16)
    if not torch.isfinite(half).all():
        raise ExportFailed(f"{name} reaches {float(tensor.abs().max()):g}, beyond float16")
    out: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = half.numpy()
    return out
