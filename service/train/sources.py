"""What a backbone trains on: tiles of photographs, of further folders, and generated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from service.datasets.cut import Cut
from service.datasets.procedural import procedural_tiles
from service.errors import BadParameter
from service.train.recipe import Recipe
from service.train.sample import Sampler, Source
from service.train.world import World

GENERATED: Final = 512
"""Generated pictures that a run draws crops from."""


@dataclass(frozen=True, eq=False)
class Data:
    """The tiles of a run, on the device to train on, and what its record says of them."""

    sources: Sequence[Source]
    record: Mapping[str, Any]

    def sampler(self, recipe: Recipe, world: World | None = None) -> Sampler:
        """Crops for a recipe's steps."""
        return Sampler(
            self.sources,
            recipe.crop,
            recipe.groups,
            recipe.batch // recipe.groups,
            recipe.downscaled,
            recipe.grain,
            world,
        )


def gather_data(
    photographs: tuple[Cut, Tensor],
    mixed: Mapping[str, tuple[Cut, Tensor]],
    recipe: Recipe,
    device: torch.device,
) -> Data:
    """Put tiles on a device, and generate those that a recipe asks for.

    Args:
        photographs: how they were cut, and tiles [N, S, S, 3] uint8.
        mixed: the same for each further folder that the recipe names.

    Raises:
        BadParameter: the folders are not those that the recipe names.
    """
    if mixed.keys() != recipe.mixed.keys():
        raise BadParameter(
            f"the run mixes in folders {sorted(recipe.mixed)}, given are {sorted(mixed)}"
        )
    cut, tiles = photographs
    rest = 1 - recipe.procedural - sum(recipe.mixed.values())
    sources = [Source(tiles.to(device), rest, True)]
    record: dict[str, Any] = {"tiles": len(tiles), **asdict(cut)}
    for name, (other, more) in mixed.items():
        sources.append(Source(more.to(device), recipe.mixed[name], False))
        record[f"mixed {name}"] = {"tiles": len(more), **asdict(other)}
    if recipe.procedural:
        generated = torch.from_numpy(procedural_tiles(GENERATED, cut.size, recipe.seed))
        sources.append(Source(generated.to(device), recipe.procedural, False))
        record["generated"] = GENERATED
    return Data(sources, record)
