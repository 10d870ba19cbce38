"""A folder of small pictures, and the work on it with the small model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_model import photo_like

from service.bulk.options import BulkCompression, Options
from service.bulk.run import BulkRun
from service.bulk.shards import Shard, ShardOutcome
from service.bulk.work import ShardWork
from service.images.write import write_image
from service.picture import Picture
from service.settings import Settings

Open = Callable[..., ShardWork]
DEFAULT = BulkCompression()


def png(seed: int, width: int = 40) -> bytes:
    """A small photograph."""
    return write_image(Picture(photo_like(32, width, seed)), "png")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder, and a text."""
    folder = tmp_path / "source"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "below/b.PNG", "c.png")):
        (folder / name).write_bytes(png(seed))
    (folder / "text.txt").write_text("no picture")
    return folder


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


@pytest.fixture
def settings(store: Path) -> Settings:
    return Settings(store=store, threads=1, device="cpu", graphics=False)


@pytest.fixture
def begin(source: Path, dest: Path, settings: Settings) -> Open:
    """Begins a run of the source, whose whole manifest is one shard, and returns its work."""

    def open_run(options: Options = DEFAULT, **values: Any) -> ShardWork:
        arguments: dict[str, Any] = {"source": source, "dest": dest, **values}
        places = str(arguments.pop("source")), str(arguments.pop("dest"))
        run = BulkRun(*places, options, settings, **arguments)
        assert [*run.outcomes(ListingOnly())] == []
        return run.work

    return open_run


class ListingOnly:
    """A runner that has nothing done, but waits until everything is listed."""

    def run(self, shards: Iterable[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        del work
        assert [*shards] == [Shard(0)]
        return iter(())


class InThisProcess:
    """A runner that needs no other process."""

    def run(self, shards: Iterable[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        worker = work.open()
        return map(worker.do, shards)
