"""Work can be stopped between tiles and windows, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_model import photo_like

from service.engine.engine import Engine
from service.engine.target import Target
from service.picture import Picture
from service.runtime.interruption import WorkAbandoned, allow_interruption, interruptible
from service.runtime.pipeline import LoadedModel

TILES = 2 * 3
PICTURE = Picture(photo_like(1040, 2064))
"""Of 65 x 129 latents: two rows of three tiles."""


class Stop:
    """Counts interruption points, and stops the work at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.points = at, 0

    def __call__(self) -> None:
        self.points += 1
        if self.points == self.at:
            raise WorkAbandoned


def points_of(work: Callable[[], object]) -> int:
    count = Stop()
    with interruptible(count):
        work()
    return count.points


def test_outside_of_an_interruptible_block_nothing_happens() -> None:
    stop = Stop(at=1)
    with pytest.raises(WorkAbandoned), interruptible(stop):
        allow_interruption()
    allow_interruption()
    assert stop.points == 1


def test_work_can_be_stopped_at_each_tile_and_window(
    engine: Engine, loaded: LoadedModel
) -> None:
    stream = engine.compress(PICTURE, 4).data
    painted = points_of(lambda: engine.decompress(stream)) - TILES
    assert painted >= 2
    alone = Engine((loaded,), check=False)
    works: dict[str, tuple[Callable[[], object], int]] = {
        "compress": (lambda: alone.compress(PICTURE, 4), TILES),
        "check": (lambda: engine.compress(PICTURE, 4), 2 * TILES + painted),
        "target": (lambda: engine.compress(PICTURE, Target(psnr_db=1)), 2 * TILES + painted),
        "decompress": (lambda: engine.decompress(stream), TILES + painted),
    }
    for name, (work, least) in works.items():
        points = points_of(work)
        assert points >= least, name
        for at in {1, TILES, points // 2, points}:
            stop = Stop(at)
            with pytest.raises(WorkAbandoned), interruptible(stop):
                work()
            assert stop.points == at, f"{name} went on after it was stopped"
