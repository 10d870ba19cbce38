"""Which ranks, and where: short runs of one rate that differ in nothing else.

    rankpress train trials 5 DATA --measure DIR --model model_store/light --scratch DIR

Every run starts from the base, sees the same crops for as many steps at the same learning rates,
and is judged as a float model with real rounding by the loss over a folder of pictures. What came
out is recorded with the rate that was tried, in the manifest. The rate must be a neighbour of the
base, because factors of one rank cannot start from those of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.numpy import save

from service.codec.lowrank import pack
from service.errors import BadParameter
from service.nets.lora import RateAdapter
from service.nets.twin import float_twin
from service.stored import StoredModel, layer_shapes
from service.train.adapters import domains, quantised
from service.train.control import Point, point
from service.train.data import Crops
from service.train.one_rate import Recipe, Report, train_rate
from service.train.tunes import BASE

PLACEMENTS: Mapping[str, Mapping[str, int]] = {
    "biases and steps only": {"g_a": 0, "g_s": 0, "h_a": 0, "entropy": 0},
    "transforms, rank 2": {"g_a": 2, "g_s": 2, "h_a": 0, "entropy": 0},
    "all but the entropy networks, 2 and 1": {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 0},
    "all, 2 and 1": {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1},
    "the same and kernels": {"g_a": 2, "g_s": 2, "h_a": 1, "entropy": 1, "kernels": 9},
    "all, 4 and 2": {"g_a": 4, "g_s": 4, "h_a": 2, "entropy": 2},
    "all, 8 and 4": {"g_a": 8, "g_s": 8, "h_a": 4, "entropy": 4},
}
"""What is tried: ranks of the transforms, and of h_a and the entropy networks."""


@dataclass(frozen=True)
class Trial:
    """One run: its ranks, the bytes of its adapter, and what it measured.

    Attributes:
        loss: bpp + lmbda · MSE, means over the pictures.
    """

    name: str
    ranks: dict[str, int]
    bytes: int
    bpp: float
    mse: float
    loss: float


def run_trials(
    stored: StoredModel,
    crops: Crops,
    measure: Path,
    rate: int,
    recipe: Recipe,
    scratch: Path,
    report: Report,
) -> tuple[Point, tuple[Trial, ...]]:
    """The base's own point at the rate's lmbda, and a trial of each placement.

    Args:
        stored: the base. crops: training pictures. measure: folder of pictures.
        rate: 3 or 5. recipe: whose ranks are replaced.
        scratch: folder for checkpoints; a trial that is there is not run again.

    Raises:
        BadParameter: the rate is no neighbour of the base.
    """
    if abs(rate - BASE) != 1:
        raise BadParameter(f"rate is {rate}, expected a neighbour of the base's {BASE}")
    base = float_twin(stored)
    untrained = RateAdapter(base, domains(stored, recipe.ranks), recipe.seed)
    found = []
    for number, (name, ranks) in enumerate(PLACEMENTS.items()):
        tried = replace(recipe, ranks=dict(ranks))
        checkpoint = scratch / f"trial-{rate}-{number}.safetensors"
        adapter = train_rate(stored, crops, rate, None, tried, checkpoint, report).adapter
        packed = pack(quantised(stored, adapter), layer_shapes(stored.transforms, stored.entropy))
        at = point(base, adapter, rate, measure)
        found.append(Trial(name, dict(ranks), len(save(packed)), **_rounded(at)))
    return point(base, untrained, rate, measure), tuple(found)


def _rounded(at: Point) -> dict[str, float]:
    return {name: round(value, 5) for name, value in asdict(at).items()}
