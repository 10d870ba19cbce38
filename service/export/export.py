"""A trained ladder -> a model in the store: folded, quantised, verified, measured, written.

    rankpress train export RUN OUT --calibrate DIR --measure DIR

RUN is the folder of a `train base` run, or a safetensors state dict of nets.model.Backbone
(float32, scale vectors included) with a --record of how it was trained. The model is written only
if the exact codec agrees with the float model on every measured picture: real bytes within 0.5 % of
the float estimate and PSNR within 0.02 dB, on average. Rates that were trained with the backbone
are quantised and published too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from service.codec.container import read_stream
from service.codec.entropy_model import MU_MAX, Y_FRAC
from service.codec.sizes import Sizes
from service.codec.tiles import Box, latent_box
from service.datasets.procedural import procedural_tiles
from service.engine.engine import Engine
from service.errors import BadParameter, RankpressError
from service.export.quantise import MARGIN, calibrate, quantise
from service.nets.backbone import folded
from service.nets.lora import RateAdapter
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.picture import Picture
from service.rates.one_rate import Trained as Finished
from service.rates.rates import measured_rate, publish
from service.runtime.loading import load_models
from service.store.model import (
    ENTROPY,
    TRANSFORMS,
    Golden,
    StoredModel,
    StoredRate,
    Tensors,
    identity,
)
from service.store.write import write_model
from service.train.adapters import domains
from service.train.checkpoint import has_state, read_about
from service.train.evaluate import as_tensor, pictures_in
from service.train.ladder import RANKS, RateLadder, divide_latents
from service.train.run import training_record
from service.train.start import from_weights, write_adapter
from service.train.tunes import BASE, LADDER, PSNR

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
    """Weights to export: a ladder, and the record of its training."""

    ladder: RateLadder
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
        ladder = from_weights(path, None, about["recipe"]["rates"])
        ladder.rebase()
        return Trained(ladder, training_record(about) | more)
    if not path.is_file():
        raise BadParameter(f"{path} is no run's folder and no state dict")
    if record is None:
        raise BadParameter(f"{path} does not say how it was trained: give a --record")
    return Trained(from_weights(path, sizes, (BASE,)), more)


def folded_backbone(base: Backbone) -> Backbone:
    """A float model with its scales folded in, ready to evaluate."""
    model = Backbone(base.sizes, nn.Linear)
    model.load_state_dict(folded(base.state_dict()))
    model.y_step, model.z_step = base.y_step.clone(), base.z_step.clone()
    model.unit_step = base.unit_step.clone()
    return model.eval().requires_grad_(False)


def folded_rates(ladder: RateLadder) -> list[Backbone]:
    """What each rate but BASE makes of the base, as `folded_backbone` gives it."""
    out = []
    for at, rate in enumerate(ladder.rates):
        if rate != BASE:
            changes = ladder.merged(torch.tensor([at]))
            model = Backbone(ladder.base.sizes)
            state = ladder.base.state_dict() | changes
            steps = {n: state.pop(n) for n in ("y_step", "z_step")}
            model.load_state_dict(state)
            model.y_step, model.z_step = steps["y_step"].detach(), steps["z_step"].detach()
            model.unit_step = ladder.base.unit_step
            out.append(folded_backbone(model))
    return out


def stored_model(
    name: str,
    model: Backbone,
    pictures: list[Tensor],
    training: Mapping[str, object],
    rates: Sequence[Backbone] = (),
) -> tuple[StoredModel, bytes]:
    """Quantise a folded model.

    Args:
        name: of the model's folder.
        model: from `folded_backbone`.
        pictures: [1, H, W, 3] in [0, 1], sides multiples of 64, to calibrate ranges on.
        training: record of how the weights were made, plain JSON values.
        rates: from `folded_rates`, for which room is left.

    Returns:
        The model (its golden stream made by itself) and the bytes of base.safetensors.
    """
    ranges = calibrate([model, *rates], pictures)
    entropy: Tensors = dict(quantise(model, ranges, rates))
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


def extreme_pictures() -> list[Tensor]:
    """Plain colours of the cube's corners, and generated pictures, [1, 256, 256, 3] in [0, 1].

    Their ranges are wider than those of photographs.
    """
    corners = [torch.tensor(c).float().expand(1, 256, 256, 3) for c in product((0, 1), repeat=3)]
    generated = torch.from_numpy(procedural_tiles(64, 256, seed=1)).float() / 255
    return [*corners, *generated.split(1)]


@torch.inference_mode()
def fit_latents(model: Backbone, pictures: list[Tensor]) -> None:
    """Divide channels of y that go beyond what the codec holds by powers of two, and their steps.

    Args:
        model: with scale vectors, its steps 1; changed in place, it computes the same.
        pictures: [1, H, W, 3] in [0, 1], whose latents are to fit.
    """
    largest = torch.stack([model.g_a(x - 0.5).abs().amax((0, 1, 2)) for x in pictures]).amax(0)
    room = MU_MAX / 2**Y_FRAC / MARGIN
    factor = torch.exp2((largest / room).clamp_min(1).log2().ceil())
    divide_latents(model, factor)
    model.y_step.div_(factor)
    model.unit_step.div_(factor)


def measure(engine: Engine, model: Backbone, folder: Path) -> Agreement:
    """Real files against the float model's estimates, averaged over a folder of pictures."""
    rows = []
    for _, picture in pictures_in(folder):
        x = as_tensor(picture)
        with torch.inference_mode():
            estimate = model(x, relax=None)
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


def export(
    trained: Trained, out: Path, calibration: Path, test: Path, say: Callable[[str], None]
) -> Agreement:
    """The whole way from trained weights to a folder of the store.

    Args:
        trained: what to export. out: the model's folder.
        calibration, test: folders of pictures that set integer ranges, and to measure on.
        say: is called with a line about each rate.

    Raises:
        BadParameter: the folder holds a model already.
        ExportFailed: the exact codec strays too far from the float model; nothing is written.
    """
    if (out / "manifest.json").exists():
        raise BadParameter(
            f"{out} holds a model, and streams made with it need it: export under another name"
        )
    pictures = [p for _, p in pictures_in(calibration)]
    chosen = [as_tensor(p) for p in pictures[:: max(1, len(pictures) // 100)]]
    chosen += extreme_pictures()
    fit_latents(trained.ladder.base, chosen)
    model = folded_backbone(trained.ladder.base)
    rates = folded_rates(trained.ladder)
    stored, base = stored_model(out.name, model, chosen, trained.record, rates)
    engine = Engine(load_models((stored,), "cpu", None))
    agreement = measure(engine, model, test)
    agreement.check()
    measured = measured_rate(engine, stored.rates[0], test)
    write_model(out, replace(stored, rates=(measured,)), base)
    _publish_rates(trained.ladder, out, stored, test, say)
    return agreement


def _publish_rates(
    ladder: RateLadder, out: Path, stored: StoredModel, test: Path, say: Callable[[str], None]
) -> None:
    """Quantise and publish every rate of a ladder but the base's own."""
    for at, rate in ((at, rate) for at, rate in enumerate(ladder.rates) if rate != BASE):
        adapter = RateAdapter(float_twin(stored), domains(stored, dict(RANKS)), 0)
        write_adapter(ladder, at, adapter)
        finished = Finished(rate, adapter, LADDER[rate], 0.0)
        ranks = dict(RANKS)
        how: dict[str, object] = {"tune": PSNR.name, "ranks": ranks, "trained": "with the backbone"}
        rate_now = publish(out, stored, rate, finished, test, how, "cpu")
        say(f"rate {rate}: {rate_now.kodak_bpp:.4f} bpp, {rate_now.kodak_psnr_db:.3f} dB")


def _float16(name: str, tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """A weight in float16; refuses what does not fit its range."""
    half = tensor.to(torch.float16)
    if not torch.isfinite(half).all():
        raise ExportFailed(f"{name} reaches {float(tensor.abs().max()):g}, beyond float16")
    out: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = half.numpy()
    return out
