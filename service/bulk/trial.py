"""A trial of a run on a random sample of its source: it estimates the whole and keeps nothing.

The sample goes through a run of its own, with the same workers, into a temporary folder.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.bulk.options import BulkDecompression, Options
from service.bulk.reports import RowReport, read_report
from service.bulk.run import DEFAULT_SHARD_ROWS, DEFAULT_TIMEOUT_S, BulkRun
from service.bulk.runner import Runner
from service.bulk.shards import RUN_FOLDER, ShardOutcome, Totals
from service.bulk.sources import SourceFile, open_source, select
from service.settings import Settings

SHARDS_PER_WORKER: Final = 4
"""Shards of a sample for each worker, so that all of them end at about the same time."""


@dataclass(frozen=True)
class RunEstimate:
    """What a trial tells of the whole run.

    Attributes:
        rows, bytes_before: files of the source that the run would work on, and their bytes.
        skipped: number of its other entries, by kind.
        sample: totals over the sample.
        failures: source and error of the files of the sample that failed.
        bytes_after: estimated sum of all results. error_bytes: twice its standard error.
        pictures_per_s: of all workers together. hours: that the run would take.
    """

    rows: int
    bytes_before: int
    skipped: dict[str, int]
    sample: Totals
    failures: tuple[tuple[str, str], ...]
    bytes_after: int
    error_bytes: int
    pictures_per_s: float
    hours: float


@dataclass(frozen=True)
class _Census:
    """The numbers of a whole source, and a random sample of its files in order."""

    rows: int
    bytes: int
    skipped: dict[str, int]
    sample: tuple[SourceFile, ...]


def try_run(
    source: str,
    options: Options,
    settings: Settings,
    runner: Runner,
    workers: int,
    sample_size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_outcome: Callable[[int, ShardOutcome], None],
) -> RunEstimate:
    """List a source, do a random sample of its files, and estimate a run of all of them.

    Args:
        source: folder or URL. options, settings, timeout_s: as for BulkRun.
        runner: with so many workers; of this machine, since it writes to a folder of it.
        sample_size: files to do, at most.
        on_outcome: is called with the size of the sample and each shard that has ended.

    Raises:
        RankpressError: as BulkRun and its outcomes do.
    """
    census = _take_census(source, options, settings, sample_size)
    size = len(census.sample)
    outcomes: list[ShardOutcome] = []
    with tempfile.TemporaryDirectory(prefix="rankpress-bulk-") as folder:
        rows = min(DEFAULT_SHARD_ROWS, max(1, size // (SHARDS_PER_WORKER * workers)))
        run = BulkRun(
            source, folder, options, settings,
            shard_rows=rows, timeout_s=timeout_s, only=census.sample,
        )  # fmt: skip
        for outcome in run.outcomes(runner):
            outcomes.append(outcome)
            on_outcome(size, outcome)
        files = sorted(Path(folder, RUN_FOLDER, "reports").glob("*.parquet"))
        reports = [row for file in files for row in read_report(file.read_bytes())]
    total = sum((outcome.totals for outcome in outcomes), Totals())
    failures = tuple(failure for outcome in outcomes for failure in outcome.failures)
    ratio, error = _ratio([row for row in reports if row.status != "failed"])
    seconds = sum(outcome.seconds for outcome in outcomes)
    speed = workers * size / seconds if seconds else 0.0
    return RunEstimate(
        census.rows,
        census.bytes,
        census.skipped,
        total,
        failures,
        round(ratio * census.bytes),
        round(2 * error * census.bytes),
        speed,
        census.rows / speed / 3600 if speed else 0.0,
    )


def _take_census(source: str, options: Options, settings: Settings, sample_size: int) -> _Census:
    """List a source; every set of files of the sample's size is as likely (reservoir sampling)."""
    skipped: dict[str, int] = {}

    def skip(kind: str) -> None:
        skipped[kind] = skipped.get(kind, 0) + 1

    listing = open_source(source, settings.objects_timeout_s).files(skip)
    chance, sample = random.Random(0), list[SourceFile]()
    rows = total_bytes = 0
    for file in select(listing, skip, isinstance(options, BulkDecompression)):
        place = rows if rows < sample_size else chance.randrange(rows + 1)
        if place < len(sample):
            sample[place] = file
        elif place < sample_size:
            sample.append(file)
        rows, total_bytes = rows + 1, total_bytes + file.size_bytes
    ordered = tuple(sorted(sample, key=lambda file: file.key))
    return _Census(rows, total_bytes, skipped, ordered)


def _ratio(rows: Sequence[RowReport]) -> tuple[float, float]:
    """Return the bytes after for each byte before, and the standard error of that ratio."""
    before = sum(row.bytes_before for row in rows)
    if not before:
        return 0.0, 0.0
    ratio = sum(row.bytes_after or 0 for row in rows) / before
    if len(rows) < 2:
        return ratio, 0.0
    squared = sum(((row.bytes_after or 0) - ratio * row.bytes_before) ** 2 for row in rows)
    return ratio, math.sqrt(squared * len(rows) / (len(rows) - 1)) / before
