"""How fast training steps are, and what bounds them: `rankpress bench training`.

The step is the real one (train/step.py) on random tiles, from freshly initialised weights. In the
same minute the best speed of the hardware is measured: that of a large bfloat16 matrix product and
that of a copy in memory. A step that reaches most of the product's speed is bound by its own matrix
products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter
from typing import Final

import torch

from service.codec.sizes import Sizes
from service.nets.compiling import Compile
from service.nets.counting import kmac
from service.nets.model import add_noise
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler, Source
from service.train.start import new_ladder
from service.train.step import WARM_UP_STEPS, TrainingStep

TILES: Final = 256
"""Random tiles that the steps take their crops from."""


@dataclass(frozen=True)
class TrainingThroughput:
    """Speed of training steps, and of the hardware.

    Attributes:
        pixels_per_s: pixels of crops that training processes in a second.
        step_ms: milliseconds of a step: the median on the CPU, the mean on CUDA.
        first_s: seconds of the first step, compiling included.
        kmac_per_pixel: thousand multiply-adds per pixel of the networks' forward pass.
        tflops: speed of a step, where forward and backward pass count as three forward passes.
        peak_tflops: speed of one large bfloat16 matrix product on this machine.
        copy_gb_s: gigabytes that a copy in memory reads and writes in a second.
        memory_gib: most memory that was allocated on CUDA; 0 on the CPU.
    """

    pixels_per_s: float
    step_ms: float
    first_s: float
    kmac_per_pixel: float
    tflops: float
    peak_tflops: float
    copy_gb_s: float
    memory_gib: float


def bench_training(
    sizes: Sizes, recipe: BackboneRecipe, device: torch.device, compiled: Compile, seconds: float
) -> TrainingThroughput:
    """Time training steps for about `seconds`, after those that compile and capture a graph."""
    side = 2 * recipe.crop  # room for every reduction
    tiles = torch.randint(256, (TILES, side, side, 3), dtype=torch.uint8, device=device)
    sampler = Sampler([Source(tiles, 1.0, True)], recipe)
    ladder = new_ladder(sampler, sizes, recipe)
    x = torch.rand(1, 128, 128, 3)
    kmac_per_pixel = kmac(lambda: ladder.base(x, relax=add_noise)) / 128**2
    work = TrainingStep(ladder.to(device), sampler, recipe, compiled, graph=True)
    begin = perf_counter()
    work.run(0, 1e-5)
    work.wait()
    first_s = perf_counter() - begin
    for step in range(1, WARM_UP_STEPS + 2):
        work.run(step, 1e-5)
    work.wait()
    step_s = _step_seconds(work, device, seconds)
    flops = 6e3 * kmac_per_pixel * recipe.pixels / step_s
    size = 8192 if device.type == "cuda" else 2048
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return TrainingThroughput(
        recipe.pixels / step_s, 1e3 * step_s, first_s, kmac_per_pixel, flops / 1e12,
        _product_tflops(device, size), _copy_gb_s(device), memory,
    )  # fmt: skip


def summarise(throughput: TrainingThroughput) -> str:
    """Return the figures and what bounds a step, as one line of text."""
    share = throughput.tflops / throughput.peak_tflops
    bound = "its matrix products" if share > 0.5 else "other operations and memory"
    return (
        f"{throughput.pixels_per_s / 1e6:.2f} Mpixel/s, {throughput.step_ms:.1f} ms per step; "
        f"{throughput.tflops:.2f} TFLOP/s, {share:.0%} of the {throughput.peak_tflops:.2f} TFLOP/s "
        f"of one large bfloat16 product: bound by {bound} (a copy moves "
        f"{throughput.copy_gb_s:.0f} GB/s)"
    )


def _step_seconds(work: TrainingStep, device: torch.device, seconds: float) -> float:
    """Return the seconds of a step: on CUDA the mean, with a wait after ten; else the median."""
    together, average = (10, fmean) if device.type == "cuda" else (1, median)
    times: list[float] = []
    while not times or together * sum(times) < seconds:
        begin = perf_counter()
        for i in range(together):
            work.run(100 + len(times) * together + i, 1e-5)
        work.wait()
        times.append((perf_counter() - begin) / together)
    return average(times)


def _product_tflops(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, device) / 1e12


def _copy_gb_s(device: torch.device) -> float:
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device) / 1e9


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(8):
        begin = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - begin)
    return min(times)
