"""Bulk runs that are killed at random points, compared with one that nobody interrupts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bulk.library import (
    BUCKET,
    Left,
    as_json,
    left_in,
    open_shards,
    open_with,
    processes_with,
    report_times,
    s3_server,
    upload,
    write_library,
    write_store,
)
from service.blobs import Objects

ROOT = Path(__file__).resolve().parent.parent.parent
WORKERS = 2
SHARD_ROWS = 20
MARK = "BULK_LAWS"
"""Variable of the environment by which processes of a run are known, whoever started them."""


@dataclass(frozen=True)
class Run:
    """A command that does a run, and its destination."""

    source: str
    dest: str
    runner: str
    store: Path
    variables: dict[str, str]
    log: Path
    shard_rows: int = SHARD_ROWS

    def start(self) -> subprocess.Popen[bytes]:
        """Start or continue the run in a process group of its own."""
        words = [sys.executable, "-m", "service", "bulk", self.source, self.dest, "--rate", "4"]
        words += ["--runner", self.runner, "--workers", str(WORKERS), "--store", str(self.store)]
        words += ["--shard-rows", str(self.shard_rows)]
        environment = os.environ | self.variables | {MARK: str(self.log), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                words, env=environment, cwd=ROOT, stderr=log, start_new_session=True
            )

    def objects(self) -> Objects:
        """The destination."""
        return open_with(self.dest, self.variables)

    def processes(self) -> list[int]:
        """All processes of the run that live, also those that have left its group."""
        return processes_with(MARK, str(self.log))

    def kill(self, process: subprocess.Popen[bytes]) -> float:
        """Kill the group; return the seconds until the last process of the run was gone."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return self.wait_until_gone()

    def wait_until_gone(self) -> float:
        """Wait until no process of the run lives; return the seconds that it took."""
        start = time.monotonic()
        while living := self.processes():
            time.sleep(0.02)
            assert time.monotonic() - start < 60, f"processes live on: {living}"
        return time.monotonic() - start


def kill_law(runner: str, place: str, parts: Path, pictures: int, kills: int) -> bool:
    """Kill a run many times, and compare what it ends with to an uninterrupted run."""
    root = parts / "library"
    if not (root / "store").exists():
        shutil.rmtree(root, ignore_errors=True)
        write_library(root / "pictures", pictures)
        write_store(root / "store")
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        work = parts / f"{runner}-{place}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        source, dest = str(root / "pictures"), str(work / "dest")
        if place == "s3":
            variables = stack.enter_context(s3_server(work / "s3.log"))
            source, dest = f"s3://{BUCKET}/in", f"s3://{BUCKET}/out"
            upload(root / "pictures", open_with(source, variables))
        reference = whole_run(root, parts)
        run = Run(source, dest, runner, root / "store", variables, work / "log")
        result = killed_run(run, kills)
        left = left_in(run.objects())
    result |= {"runner": runner, "place": place, "pictures": pictures}
    result |= differences(left, reference)
    (parts / f"kills-{runner}-{place}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))  # noqa: T201
    return not result["faults"] and not result["differing"]


def whole_run(root: Path, parts: Path) -> Left:
    """What a run leaves that nobody interrupts, by the local runner from folder to folder."""
    dest = parts / "whole"
    run = Run(str(root / "pictures"), str(dest), "local", root / "store", {}, parts / "whole.log")
    if not dest.exists():
        start = time.monotonic()
        assert run.start().wait() == 1, run.log.read_text()  # 1: files have failed
        print(f"uninterrupted: {time.monotonic() - start:.0f} s")  # noqa: T201
    return left_in(run.objects())


def killed_run(run: Run, kills: int) -> dict[str, object]:
    """Kill a run at random points, then let it end; return what was seen."""
    rng = random.Random(run.dest + run.runner)
    gone_s, begun, redone, points = [], [], [], []
    finished: dict[str, float] = {}
    for _ in range(kills):
        process, before = run.start(), len(finished)
        wait_for_point(rng, run, process, before)
        gone_s.append(round(run.kill(process), 2))
        now = report_times(run.objects())
        redone += [key for key in finished if now.get(key) != finished[key]]
        finished = now
        begun.append(len(open_shards(run.objects())))
        points.append(len(finished))
        print(f"killed with {len(finished)} shards done, {begun[-1]} open")  # noqa: T201
    last = run.start()
    code = last.wait()
    now = report_times(run.objects())
    redone += [key for key in finished if now.get(key) != finished[key]]
    faults = [f"finished shard {key} was done again" for key in redone]
    if code != 1:
        faults.append(f"the last run ended with {code}: {run.log.read_text()[-2000:]}")
    if max(begun) > WORKERS:
        faults.append(f"{max(begun)} shards were open after a kill")
    run.wait_until_gone()
    return {
        "kills": kills, "shards": len(now), "points": points, "open": begun,
        "gone_s": gone_s, "faults": faults,
    }  # fmt: skip


def wait_for_point(
    rng: random.Random, run: Run, process: subprocess.Popen[bytes], before: int
) -> None:
    """Wait for a random point: in a quarter of cases of the start, else after some more shards."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 8))
        return
    more, objects = rng.randint(1, 10), run.objects()
    while len(report_times(objects)) < before + more and process.poll() is None:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 0.5))


def differences(left: Left, reference: Left) -> dict[str, object]:
    """How what is left differs from the reference; "same" says whether it does."""
    pairs: dict[str, Callable[[Left], object]] = {
        "objects": lambda one: one.objects,
        "reports": lambda one: one.reports,
        "manifest": lambda one: one.manifest,
        "other keys": lambda one: sorted(one.others),
    }
    differing = [n for n, get in pairs.items() if as_json(get(left)) != as_json(get(reference))]
    if left.attempts:
        differing.append(f"shards that are not finished: {left.attempts}")
    return {
        "objects": len(left.objects),
        "rows": sum(map(len, left.reports.values())),
        "failures": left.failures,
        "differing": differing,
    }
