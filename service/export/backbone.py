"""Export of a trained ladder as a model of the store: fold, quantise, verify, measure, write.

    rankpress train export RUN OUT --calibrate DIR --measure DIR

RUN is the folder of a `train base` run, or a safetensors state dict of nets.model.Backbone
(float32, scale vectors included) with a --record of its training. The model is written only if the
exact codec agrees with the float model on the measured pictures: on average, real bytes within
0.5 % of the float estimate and PSNR within 0.02 dB. Rates that were trained with the backbone are
quantised and published too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from service.codec.container import read_stream
from service.codec.entropy_model import MU_MAX, Y_FRAC
from service.codec.sizes import Sizes
from service.codec.tiles import Box, latent_box
from service.datasets.procedural import procedural_tiles
from service.engine.engine import Engine
from service.errors import BadParameter
from service.export.agreement import CodecAgreement, ExportFailed, measure_agreement
from service.export.graphs import build_graphs
from service.export.quantise import MARGIN, calibrate, quantise
from service.nets.adapters import domains
from service.nets.backbone import folded
from service.nets.lora import RateAdapter
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.picture import U8, Picture
from service.rates.ladder import publish
from service.rates.rate_training import TrainedRate
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
from service.train.checkpoint import has_state, read_about, training_record
from service.train.evaluate import as_tensor, pictures_in
from service.train.ladder import RANKS, RateLadder, divide_latents, write_adapter
from service.train.start import from_weights
from service.train.tunes import BASE, LADDER, PSNR


@dataclass(frozen=True, eq=False)
class TrainedBackbone:
    """A trained ladder to export, and the record of its training."""

    ladder: RateLadder
    record: Mapping[str, object]


def trained_weights(path: Path, sizes: Sizes | None, record: Path | None) -> TrainedBackbone:
    """Load the averaged weights of a run, or a state dict.

    Args:
        path: the folder of a run, or a safetensors state dict.
        sizes: of the model in a state dict; None for the default sizes.
        record: JSON file about the training; required for a state dict, an addition for a run.

    Raises:
        BadParameter: the path leads to neither, or a state dict has no record.
    """
    extra = {} if record is None else json.loads(record.read_text())
    if has_state(path):
        about = read_about(path)
        ladder = from_weights(path, None, about["recipe"]["rates"])
        ladder.rebase()
        return TrainedBackbone(ladder, training_record(about) | extra)
    if not path.is_file():
        raise BadParameter(f"{path} is neither the folder of a run nor a state dict")
    if record is None:
        raise BadParameter(f"{path} does not contain a record of its training: give a --record")
    return TrainedBackbone(from_weights(path, sizes, (BASE,)), extra)


def folded_backbone(base: Backbone, changes: dict[str, Tensor] | None = None) -> Backbone:
    """Return a float model with its scales folded into its weights, ready to evaluate.

    `changes` are tensors that take the place of the base's, as RateLadder.merged returns them.
    """
    state = base.state_dict() | {"y_step": base.y_step, "z_step": base.z_step} | (changes or {})
    model = Backbone(base.sizes, nn.Linear)
    model.y_step, model.z_step = (state.pop(n).detach().clone() for n in ("y_step", "z_step"))
    model.unit_step = base.unit_step.clone()
    model.load_state_dict(folded(state))
    return model.eval().requires_grad_(False)


def folded_rates(ladder: RateLadder) -> list[Backbone]:
    """Return the folded model of every rate except BASE."""
    return [
        folded_backbone(ladder.base, ladder.merged(torch.tensor([at])))
        for at, rate in enumerate(ladder.rates)
        if rate != BASE
    ]


def stored_model(
    name: str,
    model: Backbone,
    pictures: list[Tensor],
    training: Mapping[str, object],
    rates: Sequence[Backbone] = (),
) -> tuple[StoredModel, bytes]:
    """Quantise a folded model; returns it with its golden stream, and base.safetensors.

    Args:
        name: of the model's folder.
        model: from `folded_backbone`.
        pictures: [1, H, W, 3] in [0, 1], sides multiples of 64, to calibrate ranges on.
        training: record of the training, JSON values.
        rates: from `folded_rates`; the integer formats leave room for their weights.
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
    return replace(
        unmeasured, golden=make_golden(unmeasured), graphs=build_graphs(unmeasured)
    ), base


def make_golden(model: StoredModel) -> Golden:
    """Compress a small generated picture: its stream, its latents, and its pixels in float32."""
    (loaded,) = load_models((model,), "cpu", torch.float32)
    engine = Engine((loaded,))
    picture = Picture(golden_picture())
    data = engine.compress(picture, BASE).data
    box = latent_box(picture.width, picture.height)
    decoded = loaded.coder.decode(read_stream(data).tiles, Box(0, 0, box.height, box.width))
    return Golden(data, decoded.y_hat[0], engine.decompress(data).picture.rgb)


def golden_picture() -> U8:
    """Return a picture of smooth gradients, an edge and texture, [50, 75, 3]."""
    y, x = np.mgrid[:50, :75].astype(np.float64)
    texture = 20 * np.sin(x * 1.3) * np.cos(y * 0.9)
    edge = 60.0 * (x + y > 62.5)
    channels = [40 + 1.5 * x + texture, 60 + 2 * y + edge, 200 - x - y + texture]
    rgb: U8 = np.stack(channels, -1).round().clip(0, 255).astype(np.uint8)
    return rgb


def extreme_pictures() -> list[Tensor]:
    """Return pictures with wider ranges than photographs, [1, 256, 256, 3] in [0, 1].

    They are plain areas in the colours of the cube's corners, and generated pictures.
    """
    corners = [torch.tensor(c).float().expand(1, 256, 256, 3) for c in product((0, 1), repeat=3)]
    generated = torch.from_numpy(procedural_tiles(64, 256, seed=1)).float() / 255
    return [*corners, *generated.split(1)]


@torch.inference_mode()
def fit_latents(model: Backbone, pictures: list[Tensor]) -> None:
    """Divide channels of y that exceed the codec's range, and their steps, by powers of two.

    The model has scale vectors and steps of 1, and computes the same afterwards; the latents of
    the pictures, [1, H, W, 3] in [0, 1], fit.
    """
    largest = torch.stack([model.g_a(x - 0.5).abs().amax((0, 1, 2)) for x in pictures]).amax(0)
    limit = MU_MAX / 2**Y_FRAC / MARGIN
    factor = torch.exp2((largest / limit).clamp_min(1).log2().ceil())
    divide_latents(model, factor)
    model.y_step.div_(factor)
    model.unit_step.div_(factor)


def export_backbone(
    trained: TrainedBackbone,
    out: Path,
    calibration: Path,
    test: Path,
    report: Callable[[str], None],
) -> CodecAgreement:
    """Export trained weights as a model in the folder `out`.

    Args:
        trained: weights to export.
        out: the model's folder.
        calibration: folder of pictures that set the integer ranges.
        test: folder of pictures to measure on.
        report: called with a line about each rate.

    Raises:
        BadParameter: the folder contains a model already.
        ExportFailed: the exact codec differs too much from the float model; nothing is written.
    """
    if (out / "manifest.json").exists():
        raise BadParameter(
            f"{out} contains a model that its streams need: export under another name"
        )
    pictures = list(pictures_in(calibration))
    inputs = [as_tensor(picture) for picture in pictures[:: max(1, len(pictures) // 100)]]
    inputs += extreme_pictures()
    fit_latents(trained.ladder.base, inputs)
    model = folded_backbone(trained.ladder.base)
    rates = folded_rates(trained.ladder)
    stored, base = stored_model(out.name, model, inputs, trained.record, rates)
    engine = Engine(load_models((stored,), "cpu", None))
    agreement, figures = measure_agreement(engine, model, test)
    agreement.check()
    write_model(out, replace(stored, rates=(figures.entered_in(stored.rates[0]),)), base)
    _publish_rates(trained.ladder, out, stored, test, report)
    return agreement


def _publish_rates(
    ladder: RateLadder, out: Path, stored: StoredModel, test: Path, report: Callable[[str], None]
) -> None:
    """Quantise and publish every rate of a ladder except the base's own."""
    ranks = dict(RANKS)
    record: dict[str, object] = {"tune": PSNR.name, "ranks": ranks, "trained": "with the backbone"}
    for at, rate in enumerate(ladder.rates):
        if rate == BASE:
            continue
        adapter = RateAdapter(float_twin(stored), domains(stored, ranks), 0)
        write_adapter(ladder, at, adapter)
        trained = TrainedRate(rate, adapter, LADDER[rate], 0.0)
        entry = publish(out, stored, trained, test, record, "cpu")
        report(f"rate {rate}: {entry.kodak_bpp:.4f} bpp, {entry.kodak_psnr_db:.3f} dB")


def _float16(name: str, tensor: Tensor) -> NDArray[np.float16]:
    """Convert a weight to float16. Raises ExportFailed if it exceeds the range."""
    half: NDArray[np.float16] = tensor.to(torch.float16).numpy()
    if not np.isfinite(half).all():
        largest = float(tensor.abs().max())
        raise ExportFailed(f"{name} reaches {largest:g}, which float16 cannot hold")
    return half
