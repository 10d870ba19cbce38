"""Work can be stopped between tiles and windows, wherever it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.codec.container import read_stream
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.engine.target import Target
from service.picture import Picture
from service.runtime.interruption import (
    WorkAbandoned,
    allow_interruption,
    interruptible,
    map_tiles,
)
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, decode_latents, encode
from service.store.model import StoredModel

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


def test_work_can_be_stopped_at_each_tile_and_window(engine: Engine, loaded: LoadedModel) -> None:
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


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_tiles_keep_their_order_and_no_more_than_allowed_are_worked_on(at_once: int) -> None:
    running, most, lock = 0, 0, threading.Lock()
    second_ended = threading.Event()

    def work(tile: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if at_once > 1 and tile == 0:
            assert second_ended.wait(30)
        if tile == 1:
            second_ended.set()
        with lock:
            running -= 1
        return tile * tile

    assert list(map_tiles(work, range(9), at_once)) == [n * n for n in range(9)]
    assert most <= at_once and (most > 1) == (at_once > 1)


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_error_of_the_first_tile_in_order_is_raised(at_once: int) -> None:
    fourth_failed, worked_on = threading.Event(), []

    def work(tile: int) -> int:
        worked_on.append(tile)
        if tile == 2:
            assert at_once == 1 or fourth_failed.wait(30)
            raise ValueError(tile)
        if tile == 3:
            fourth_failed.set()
            raise KeyError(tile)
        return tile

    results = []
    with pytest.raises(ValueError, match="2"):
        results.extend(map_tiles(work, range(9), at_once))
    assert max(worked_on) <= 2 + at_once


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_tile_is_begun_after_work_was_stopped(at_once: int) -> None:
    worked_on: list[int] = []
    with pytest.raises(WorkAbandoned), interruptible(Stop(at=3)):
        list(map_tiles(worked_on.append, range(9), at_once))
    assert set(worked_on) <= {0, 1}


def test_two_tiles_at_once_give_the_same_stream_and_latents(loaded: LoadedModel) -> None:
    two = replace(loaded, tiles_at_once=2)
    data, latents = encode(loaded, PICTURE, 64)
    assert encode(two, PICTURE, 64)[0] == data
    everything = Box(0, 0, PICTURE.height, PICTURE.width)
    decoded = decode_latents(two, read_stream(data), everything)
    assert np.array_equal(decoded.y_hat, latents.y_hat)


def test_torch_works_on_two_tiles_only_where_it_may_use_two_cores(
    small_model: StoredModel, torch_threads: Callable[[int], None]
) -> None:
    for threads in (1, 2):
        torch_threads(threads)
        (model,) = load_models((small_model,), "cpu", torch.float32)
        assert model.tiles_at_once == threads
