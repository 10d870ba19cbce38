"""What a bulk run costs besides the engine: the coordinator's memory, and time.

Every figure comes from a process of its own, which prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_model import photo_like

from service.bulk.options import BulkCompression
from service.bulk.progress import RunProgress
from service.bulk.run import BulkRun
from service.bulk.runner import LocalRunner, Runner
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.bulk.sources import SourceFile
from service.engine.opening import open_engine
from service.images.read import read_image
from service.images.write import write_image
from service.picture import Picture
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
SIMULATED_SHARD_ROWS = {"local": 100, "ray": 500}
"""Rows of a shard where the work is simulated. Each 512 shards start the workers of Ray anew."""

SPEED_SIZE = (384, 512)
"""Rows and columns of the pictures whose speed is measured."""


def runner_of(name: str, workers: int) -> Runner:
    """The runner of a name; Ray is imported only where it is used."""
    if name == "local":
        return LocalRunner(workers)
    from service.bulk.ray_runner import RayRunner

    return RayRunner(workers)


def in_process(call: str) -> dict[str, Any]:
    """Evaluate a call of this module in a new process; return what it returns."""
    code = f"import json\nfrom bulk.costs import *\nprint(json.dumps({call}))"
    code = "\n    ".join(["if __name__ == '__main__':", *code.splitlines()])
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        out = subprocess.run(
            [sys.executable, file.name], env=os.environ | paths, stdout=subprocess.PIPE, check=True
        )
    return dict(json.loads(out.stdout.splitlines()[-1]))


# Memory.


@dataclass(frozen=True)
class SimulatedFiles:
    """A listing that takes no memory."""

    count: int

    def __iter__(self) -> Iterator[SourceFile]:
        for number in range(self.count):
            yield SourceFile(f"{number % 100:02d}/{number:09d} picture.jpg", 100_000 + number)


@dataclass(frozen=True)
class SimulatedWork:
    """Work that does nothing; a row of each shard fails."""

    rows: int
    timeout_s: float = 60.0

    def open(self) -> SimulatedWork:
        return self

    def do(self, shard: Shard, _: object = None) -> ShardOutcome:
        rows = self.rows
        totals = Totals(rows, rows - 1, 0, 1, rows * 100_000, rows * 60_000, rows * 10**6, 1.0)
        failure = (f"{shard.number}.jpg", "the file has 100000 bytes, expected another file")
        return ShardOutcome(shard.number, totals, (failure,))


def coordinate(runner: str, rows: int) -> dict[str, Any]:
    """Coordinate a run with simulated listing and work; return the peak of this process's memory.

    What is real: the manifest, which is written to a folder, the runner, two worker processes, and
    the progress that is kept.
    """
    start, shard_rows = time.monotonic(), SIMULATED_SHARD_ROWS[runner]
    with tempfile.TemporaryDirectory() as folder:
        source, dest = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        files: Any = SimulatedFiles(rows)
        run = BulkRun(
            str(source), str(dest), BulkCompression(rate="4"), Settings(),
            shard_rows=shard_rows, only=files,
        )  # fmt: skip
        run.work = SimulatedWork(shard_rows)  # type: ignore[assignment]
        progress = RunProgress()
        for outcome in run.outcomes(runner_of(runner, 2)):
            progress.add(outcome)
        assert progress.done.rows == rows, progress.done
    return {"rows": rows, "peak_mb": peak_mb(), "seconds": round(time.monotonic() - start, 1)}


def peak_mb() -> float:
    """The most memory that this process has had, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(kib * 1024 / 1e6, 1)


def memory_law(runner: str, parts: Path, sizes: tuple[int, ...]) -> bool:
    """Peak memory of the coordinator for runs of growing size."""
    peaks = []
    for rows in sizes:
        peaks.append(in_process(f"coordinate({runner!r}, {rows})"))
        print(peaks[-1], flush=True)  # noqa: T201
        (parts / f"memory-{runner}.json").write_text(json.dumps({"runner": runner, "of": peaks}))
    return peaks[-1]["peak_mb"] < 1.2 * peaks[0]["peak_mb"]


# Time.


def write_pictures(folder: Path, count: int) -> None:
    """Write pictures of the same size, as PNG."""
    folder.mkdir(parents=True)
    for number in range(count):
        data = write_image(Picture(photo_like(*SPEED_SIZE, number)), "png")
        (folder / f"{number:04d}.png").write_bytes(data)


def engine_speed(folder: str) -> dict[str, Any]:
    """The engine in a loop over the files of a folder: read, decode, compress."""
    settings = Settings(threads=1, device="cpu")
    engine = open_engine(settings)
    files = sorted(Path(folder).iterdir())
    engine.compress(read_image(files[0].read_bytes(), max_pixels=10**6), 4)
    start = time.monotonic()
    for path in files:
        engine.compress(read_image(path.read_bytes(), max_pixels=10**6), 4)
    return {"pictures_per_s": len(files) / (time.monotonic() - start)}


def bulk_speed(runner: str, folder: str, shard_rows: int) -> dict[str, Any]:
    """A run with one worker of one thread, from the end of its first shard to that of its last."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as dest:
        run = BulkRun(
            folder, dest, BulkCompression(rate="4"), Settings(threads=1, device="cpu"),
            shard_rows=shard_rows,
        )  # fmt: skip
        outcomes = run.outcomes(runner_of(runner, 1))
        first, rows, work_s = next(outcomes), 0, 0.0
        begun = time.monotonic()
        for outcome in outcomes:
            rows, work_s = rows + outcome.totals.rows, work_s + outcome.seconds
            ended = time.monotonic()
    seconds = max(ended - begun, work_s)  # the first outcome may come late
    return {
        "pictures_per_s": rows / seconds,
        "in_shards": work_s / (ended - begun),
        "before_s": begun - start - first.seconds,
        "after_s": time.monotonic() - ended,
    }


def speed_law(runner: str, parts: Path, folder: Path, pairs: int, shard_rows: int) -> bool:
    """Interleaved pairs of the engine alone and a run."""
    seen = []
    for _ in range(pairs):
        alone = in_process(f"engine_speed({str(folder)!r})")
        bulk = in_process(f"bulk_speed({runner!r}, {str(folder)!r}, {shard_rows})")
        seen.append({"alone": alone, "bulk": bulk})
        print(seen[-1], flush=True)  # noqa: T201
    speed = "pictures_per_s"
    share = statistics.median(one["bulk"][speed] / one["alone"][speed] for one in seen)
    result = {"runner": runner, "share": share, "pairs": seen, "shard_rows": shard_rows}
    result |= {"pictures": len(list(folder.iterdir())), "size": SPEED_SIZE}
    (parts / f"speed-{runner}.json").write_text(json.dumps(result, indent=1))
    print(f"{runner}: {share:.3f} of the engine alone")  # noqa: T201
    return share >= 0.95
