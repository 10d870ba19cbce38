"""Bulk runs on a Ray cluster of this machine: RANKPRESS_RAY=1 pytest tests/bulk.

Not by default: Ray takes half a minute to start and to do a few pictures. tests/bulk/laws.py tries
the same at full size.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
from small_model import photo_like

from bulk.library import left_in, poisoned_files
from service.blobs import open_objects
from service.bulk import ray_runner
from service.bulk.options import BulkCompression
from service.bulk.ray_runner import RayRunner
from service.bulk.run import BulkRun
from service.bulk.runner import MOST_FAILED_STARTS, LocalRunner, Runner
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.errors import BadParameter, RunStopped
from service.images.write import write_image
from service.picture import Picture
from service.settings import Settings

# Ray warns of its own options as it starts.
pytestmark = [pytest.mark.platform, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TESTS = Path(__file__).resolve().parent.parent
SHARDS = [Shard(number) for number in range(4)]


@dataclass(frozen=True)
class SimulatedWork:
    """Work that only notes which processes did what, in a folder.

    Attributes:
        folder: of the notes. fatal: shards whose first attempt kills its process.
        wrong: a shard that raises BadParameter. opens: whether the process survives to begin.
    """

    folder: Path
    fatal: tuple[int, ...] = ()
    wrong: int | None = None
    opens: bool = True

    def open(self) -> SimulatedWork:
        self.note("opened")
        if not self.opens:
            os.kill(os.getpid(), signal.SIGKILL)
        return self

    def do(self, shard: Shard) -> ShardOutcome:
        if shard.number == self.wrong:
            raise BadParameter("no picture can be done")
        if self.note(f"shard {shard.number}") == 1 and shard.number in self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return ShardOutcome(shard.number, Totals(rows=1))

    def note(self, event: str) -> int:
        """Note an event; return how often it has happened."""
        with (self.folder / event).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(self.processes(event))

    def processes(self, event: str) -> list[int]:
        """The processes in which an event happened."""
        path = self.folder / event
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster for all tests, which the runner finds connected."""
    if os.environ.get("RANKPRESS_RAY") != "1":
        pytest.skip("runs with RANKPRESS_RAY=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")  # for the workers
        with RayRunner(2).connected():
            yield


@pytest.fixture
def simulated(tmp_path: Path, cluster: None) -> SimulatedWork:  # noqa: ARG001
    return SimulatedWork(tmp_path)


def run(runner: Runner, work: object, shards: list[Shard] = SHARDS) -> list[int]:
    """Run simulated work; return the shards in the order of their ends."""
    return [outcome.shard for outcome in runner.run(iter(shards), work)]  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "somewhere", "a:b"])
def test_an_address_without_a_cluster_is_refused_at_once(address: str) -> None:
    with pytest.raises(BadParameter, match="cluster"):
        run(RayRunner(1, address=address), None)
    assert not ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_both_runners_give_the_same_objects_and_reports(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in several rounds, with new workers in each."""
    monkeypatch.setattr(ray_runner, "ROUND_SHARDS", 4)
    monkeypatch.setattr(ray_runner, "ROUND_SHARDS_PER_WORKER", 1)
    source = tmp_path / "source"
    source.mkdir()
    for seed in range(8):
        data = write_image(Picture(photo_like(32, 40, seed)), "png")
        (source / f"{seed}.png").write_bytes(data)
    for name, data in poisoned_files().items():
        (source / name).write_bytes(data)
    settings = Settings(store=store, threads=1, device="cpu")
    left = {}
    for name, runner in {"ray": RayRunner(2), "local": LocalRunner(1)}.items():
        dest = str(tmp_path / name)
        bulk = BulkRun(str(source), dest, BulkCompression(), settings, shard_rows=3)
        outcomes = list(bulk.outcomes(runner))
        assert sorted(outcome.shard for outcome in outcomes) == list(range(6))
        left[name] = left_in(open_objects(dest))
    assert left["ray"] == left["local"]
    assert len(left["ray"].objects) == 8
    assert left["ray"].failures.keys() == poisoned_files().keys()


def test_a_worker_that_dies_has_its_shard_done_again_and_no_other(
    simulated: SimulatedWork,
) -> None:
    work = replace(simulated, fatal=(1, 2))
    assert sorted(run(RayRunner(2), work)) == [0, 1, 2, 3]
    tries = [len(work.processes(f"shard {shard.number}")) for shard in SHARDS]
    assert tries == [1, 2, 2, 1]


def test_a_worker_opens_its_engine_once_for_all_its_shards(simulated: SimulatedWork) -> None:
    assert sorted(run(RayRunner(1), simulated)) == [0, 1, 2, 3]
    (process,) = simulated.processes("opened")
    assert all(simulated.processes(f"shard {one.number}") == [process] for one in SHARDS)


def test_workers_that_die_as_they_start_end_the_run(simulated: SimulatedWork) -> None:
    with pytest.raises(RunStopped, match="died 3 times as it started"):
        run(RayRunner(1), replace(simulated, opens=False))
    assert len(simulated.processes("opened")) == MOST_FAILED_STARTS


def test_an_error_of_the_work_ends_the_run_as_itself(simulated: SimulatedWork) -> None:
    with pytest.raises(BadParameter, match="no picture can be done"):
        run(RayRunner(2), replace(simulated, wrong=2))


def test_workers_end_when_nobody_waits_for_outcomes(simulated: SimulatedWork) -> None:
    outcomes = RayRunner(1).run(iter(SHARDS), simulated)  # type: ignore[arg-type]
    next(outcomes)
    assert isinstance(outcomes, Generator)
    outcomes.close()
    (process,) = simulated.processes("opened")
    for _ in range(100):
        if not Path(f"/proc/{process}/cmdline").exists():
            return
        threading.Event().wait(0.1)
    raise AssertionError("the worker lives on")
