"""Which backbone, and how it is trained: short runs that differ in one thing, at equal pixels.

    rankpress train compare PICTURES --others DRAWINGS --measure KODAK --out compare.json

Every variant starts as a transform codec, sees as many pixels in crops drawn by the same seed, and
is judged by its averaged weights with real rounding. Short runs say how training begins, not where
it ends: they are there to find what is not worth a long run, and what a variant costs to decode.
Each result is written as it comes, and is not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.sizes import Sizes
from service.nets.backbone import Block
from service.nets.model import Backbone
from service.train.compiling import Compile
from service.train.evaluate import evaluate
from service.train.publish import write_whole
from service.train.recipe import NAMED_SIZES, Decay, Recipe, learning_rate
from service.train.sample import Sampler
from service.train.start import fresh_on
from service.train.step import TrainingStep
from service.train.throughput import kmac

WARMUP_SHARE: Final = 0.2
"""Of a short run's steps."""

SHOWN: Final = (512, 768)
"""Height and width of the picture that g_s is timed on."""

TIMED: Final = 9
"""Calls."""


class WideBlock(Block):
    """A block whose depthwise layer sees 5×5."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        near = self.dw
        self.dw = nn.Conv2d(c, c, 5, padding=2, groups=c)
        assert self.dw.bias is not None
        with torch.no_grad():
            self.dw.weight.zero_()
            self.dw.weight[:, :, 1:4, 1:4] = near.weight
            self.dw.bias.zero_()

    def depthwise(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> the same."""
        out: Tensor = self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class SmoothBlock(Block):
    """A block with SiLU in the place of LeakyReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> the same."""
        x = x + self.pw2(self.depthwise(F.silu(self.pw1(x))))
        out: Tensor = x + self.f2(F.silu(self.f1(x)))
        return out


class MuonStep(TrainingStep):
    """Muon for every matrix, scaled to the size of Adam's steps; AdamW for the rest."""

    def __init__(
        self, model: Backbone, sampler: Sampler, recipe: Recipe, compiled: Compile, graph: bool
    ) -> None:
        super().__init__(model, sampler, recipe, compiled, graph)
        self._matrices = [w for w in self.parameters.values() if w.ndim == 2]
        self._muon = torch.optim.Muon(
            self._matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )

    def run(self, step: int, lr: float) -> None:
        """Do step number `step`."""
        for group in self._muon.param_groups:
            group["lr"] = lr
        super().run(step, lr)

    def update(self, divisor: Tensor, finite: Tensor) -> None:
        """Move the matrices by Muon, the rest by AdamW, which leaves out what has no gradient."""
        grads = [w.grad for w in self._matrices]
        for weight in self._matrices:
            weight.grad = None
        super().update(divisor, finite)
        for weight, grad in zip(self._matrices, grads, strict=True):
            weight.grad = None if grad is None or not finite else grad / divisor
        self._muon.step()


@dataclass(frozen=True)
class Variant:
    """What is different from the shipped size and its recipe.

    Attributes:
        sizes: of the backbone. recipe: fields of Recipe that differ.
        block: kind of block of g_a and g_s. step: kind of step.
        others: whether tiles of other kinds of pictures are mixed in.
    """

    sizes: Sizes = Sizes()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    block: type[Block] = Block
    step: type[TrainingStep] = TrainingStep
    others: bool = False


VARIANTS: Final[Mapping[str, Variant]] = {
    "light": Variant(),
    "light, another seed": Variant(recipe={"seed": 1}),
    "learning rate 2e-4": Variant(recipe={"lr": 2e-4}),
    "learning rate 8e-4": Variant(recipe={"lr": 8e-4}),
    "16 crops a step": Variant(recipe={"batch": 16}),
    "4 crops a step": Variant(recipe={"batch": 4}),
    "4 crops of 256 a step": Variant(recipe={"batch": 4, "crop": 256}),
    "Muon for matrices": Variant(step=MuonStep),
    "Muon, learning rate 1e-4": Variant(step=MuonStep, recipe={"lr": 1e-4}),
    "5×5 depthwise": Variant(block=WideBlock),
    "SiLU": Variant(block=SmoothBlock),
    "deeper: 5 and 3 blocks": Variant(Sizes(ne8=5, nd8=5, ne16=3, nd16=3)),
    "wider: c8 = 256, 2 and 1 blocks": Variant(Sizes(c8=256, ne8=2, nd8=2, ne16=1, nd16=1)),
    "other pictures mixed in": Variant(others=True),
    "base, learning rate 2e-4": Variant(NAMED_SIZES["base"], {"lr": 2e-4}),
}


@dataclass(frozen=True)
class Found:
    """What a variant measured.

    Attributes:
        steps: that its pixels make. parameters: of the whole model.
        train_s: processor seconds of its steps, after the first that compiles.
        kmac_per_pixel: of g_s. decode_ms: processor time of g_s on a 768×512 picture, float32.
        bpp, psnr_db, loss: means over each folder of pictures, in the order they were given.
    """

    steps: int
    parameters: int
    train_s: float
    kmac_per_pixel: float
    decode_ms: float
    bpp: list[float]
    psnr_db: list[float]
    loss: list[float]


Report = Callable[[str, Found], None]


def compare(
    photos: Tensor,
    others: Tensor,
    measure: Sequence[Path],
    pixels: int,
    compiled: Compile,
    out: Path,
    record: Mapping[str, Any],
    report: Report,
    variants: Mapping[str, Variant] = VARIANTS,
) -> dict[str, Any]:
    """Run the variants that a file does not hold yet.

    Args:
        photos, others: [N, S, S, 3] uint8 tiles, on the device to train on.
        measure: folders of pictures. pixels: that each run sees. compiled: what to compile.
        out: JSON file of the results. record: what it says of data and machine.
        report: is told of each result.

    Returns:
        What the file then holds: the record, "pixels", "measured" (names of the folders) and
        "found", a Found by name.
    """
    told = {**record, "pixels": pixels, "measured": [folder.name for folder in measure]}
    found = json.loads(out.read_text())["found"] if out.is_file() else {}
    for name, variant in variants.items():
        if name not in found:
            tiles = torch.cat([photos, others]) if variant.others else photos
            one = run_variant(variant, tiles, measure, pixels, compiled)
            found[name] = asdict(one)
            write_whole(out, (json.dumps({**told, "found": found}, indent=2) + "\n").encode())
            report(name, one)
    return {**told, "found": found}


def run_variant(
    variant: Variant, tiles: Tensor, measure: Sequence[Path], pixels: int, compiled: Compile
) -> Found:
    """Train one variant from the transform start, and measure it."""
    recipe = replace(Recipe(), **variant.recipe)
    steps = max(1, round(pixels / recipe.pixels))
    recipe = replace(recipe, warmup=max(1, round(WARMUP_SHARE * steps)))
    model = _start(variant, tiles, recipe)
    sampler = Sampler(tiles, recipe.crop, recipe.batch)
    work = variant.step(model, sampler, recipe, compiled, False)
    decay = Decay(steps // 2, steps - steps // 2)
    begun = 0.0
    for step in range(steps):
        work.run(step, learning_rate(recipe, step, decay))
        if step == 0:
            begun = time.process_time()
    train_s = time.process_time() - begun
    averaged = _start(variant, tiles, recipe)  # not compiled, for pictures of any size
    averaged.load_state_dict(work.averaged())
    averaged.eval()
    quality = [evaluate(averaged, folder, recipe.lmbda) for folder in measure]
    height, width = SHOWN
    latents = torch.zeros(1, height // 16, width // 16, variant.sizes.M, device=tiles.device)
    return Found(
        steps, sum(p.numel() for p in averaged.parameters()), round(train_s, 1),
        round(kmac(lambda: averaged.g_s(latents)) / (height * width), 2),
        round(_decode_ms(averaged.g_s, latents), 1),
        [round(q.bpp, 4) for q in quality], [round(q.psnr_db, 3) for q in quality],
        [round(q.loss, 4) for q in quality],
    )  # fmt: skip


def _start(variant: Variant, tiles: Tensor, recipe: Recipe) -> Backbone:
    """The variant as a transform codec, on the tiles' device."""
    model = fresh_on(tiles, variant.sizes, recipe)
    if variant.block is not Block:
        for net in (model.g_a, model.g_s):
            for index, layer in enumerate(net):
                if isinstance(layer, Block):
                    net[index] = variant.block(layer.pw1.in_features)
    return model.to(tiles.device).train()


@torch.inference_mode()
def _decode_ms(g_s: nn.Module, latents: Tensor) -> float:
    """Median processor time of a call in float32."""
    times = []
    for _ in range(TIMED):
        begun = time.process_time()
        g_s(latents)
        times.append(time.process_time() - begun)
    return 1e3 * sorted(times)[TIMED // 2]
