"""How fast training steps are, and what bounds them: `rankpress bench train`.

The step is the real one (step.py) on random tiles from the transform start. Beside its time stand
what the hardware does at best in the same minute: a large bfloat16 product for arithmetic, and a
copy for memory. The share of that product's speed that a step reaches says how far it is from
being bound by its GEMMs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from service.codec.sizes import Sizes
from service.nets.compiling import Compile
from service.nets.model import add_noise
from service.train.recipe import BackboneRecipe
from service.train.sampler import Source, TrainingData
from service.train.step import WARM_UP_STEPS, TrainingStep
from service.train.transform_start import new_ladder

TILES: Final = 256


@dataclass(frozen=True)
class Throughput:
    """What a step costs.

    Attributes:
        pixels_per_s: seen by training. step_ms: median of single steps on the CPU, mean on CUDA.
        first_s: of the first step, compiling included.
        kmac_per_pixel: multiply-adds of the networks' forward pass.
        tflops: that a step reaches, counting a forward and a backward pass as three forwards.
        peak_tflops: of one large bfloat16 product here. copy_gb_s: read and written by a copy.
        memory_gib: most that was allocated on CUDA; 0 on the CPU.
    """

    pixels_per_s: float
    step_ms: float
    first_s: float
    kmac_per_pixel: float
    tflops: float
    peak_tflops: float
    copy_gb_s: float
    memory_gib: float


def measure(
    sizes: Sizes, recipe: BackboneRecipe, device: torch.device, compiled: Compile, seconds: float
) -> Throughput:
    """Time training steps for about so many seconds, after those that compile and capture."""
    side = 2 * recipe.crop  # room for every reduction
    tiles = torch.randint(256, (TILES, side, side, 3), dtype=torch.uint8, device=device)
    sampler = TrainingData([Source(tiles, 1.0, True)], {}).sampler(recipe)
    ladder = new_ladder(sampler, sizes, recipe)
    x = torch.rand(1, 128, 128, 3)
    kmac_per_pixel = kmac(lambda: ladder.base(x, relax=add_noise)) / 128**2
    work = TrainingStep(ladder.to(device), sampler, recipe, compiled, graph=True)
    begun = perf_counter()
    work.run(0, 1e-5)
    work.wait()
    first_s = perf_counter() - begun
    for step in range(1, WARM_UP_STEPS + 2):
        work.run(step, 1e-5)
    work.wait()
    step_s = _step_seconds(work, device, seconds)
    flops = 6e3 * kmac_per_pixel * recipe.pixels / step_s
    size = 8192 if device.type == "cuda" else 2048
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return Throughput(
        recipe.pixels / step_s, 1e3 * step_s, first_s, kmac_per_pixel, flops / 1e12,
        _product_tflops(device, size), _copy_gb_s(device), memory,
    )  # fmt: skip


def told(found: Throughput) -> str:
    """The figures and what they say of the bound, for people."""
    share = found.tflops / found.peak_tflops
    bound = "its products" if share > 0.5 else "what lies between its products, and memory"
    return (
        f"{found.pixels_per_s / 1e6:.2f} Mpixel/s, {found.step_ms:.1f} ms a step; "
        f"{found.tflops:.2f} TFLOP/s, {share:.0%} of one large bfloat16 product's "
        f"{found.peak_tflops:.2f}: bound by {bound} (a copy moves {found.copy_gb_s:.0f} GB/s)"
    )


@torch.no_grad()
def kmac(call: Callable[[], object]) -> float:
    """Thousand multiply-adds that a call takes, counted in one."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops: int = counter.get_total_flops()
    return flops / 2e3


def _step_seconds(work: TrainingStep, device: torch.device, seconds: float) -> float:
    """On CUDA steps follow one another without waiting, as in training; else each is timed."""
    if device.type == "cuda":
        return _mean_seconds(lambda i: work.run(100 + i, 1e-5), work.wait, seconds)
    times: list[float] = []
    while not times or sum(times) < seconds:
        begun = perf_counter()
        work.run(100 + len(times), 1e-5)
        times.append(perf_counter() - begun)
    return sorted(times)[len(times) // 2]


def _mean_seconds(call: Callable[[int], object], wait: Callable[[], None], seconds: float) -> float:
    done, begun = 0, perf_counter()
    while perf_counter() - begun < seconds:
        for _ in range(10):
            call(done)
            done += 1
        wait()
    return (perf_counter() - begun) / done


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
        begun = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - begun)
    return min(times)
