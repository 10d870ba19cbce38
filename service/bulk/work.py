"""The work on a shard, which is the same whoever schedules it.

Each result is in the destination before the report of its shard, and the report before the marker.
A worker process that is killed leaves a shard without a marker; the shard is then done again, and
gives the same objects.

A picture may kill its process, for instance by the memory that it takes, or never end. Attempts at
a shard are therefore counted in the destination. From the third on, each row is done in a process
of its own (process.py), so that the one to blame is found and fails alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any, Final

from service.blobs import digest_of, open_objects
from service.bulk.conversion import Compressor, Converter, Decompressor
from service.bulk.manifest import ManifestRows, read_rows
from service.bulk.options import BulkCompression, Options
from service.bulk.pipeline import RowPipeline
from service.bulk.process import ShardProcess, Watchdog
from service.bulk.reports import RowReport, failures_of, read_report, total_of, write_report
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.bulk.sources import SourceFile, open_source
from service.engine.opening import open_engine
from service.errors import DamagedObject, NoSuchObject, ObjectsUnavailable
from service.settings import Settings

FIRST_ISOLATED: Final = 2
"""The attempt at a shard, from 0, from which on each row is done in a process of its own."""

MOST_ATTEMPTS: Final = 4
"""Attempts of one run at a shard, each of which has killed its worker, before it is given up."""

_SETTINGS: Final = frozenset(
    "store model device threads decode_only graphics max_pixels cache_bytes max_batch adapters "
    "objects_timeout_s".split()
)
"""The settings that a worker needs."""

_CHECKED: Final = {"check": True, "measure": True}
"""Every stream is decoded and compared before it is stored, whatever the settings say."""

OnRow = Callable[[Totals], None]


@dataclass(frozen=True)
class ShardWork:
    """All that a worker process needs to know of a run; plain values only.

    Attributes:
        source, dest: absolute folders, or URLs. options: of the run.
        settings: of the engine and the stores, see `worker_settings`.
        session: random text that is the same for all attempts of one start of the run.
        timeout_s: seconds without progress on a picture, after which a worker process ends itself.
        retry_failed: whether the failed rows of finished shards are done again.
        overwrite: whether objects that this run did not write may be replaced.
    """

    source: str
    dest: str
    options: Options
    settings: Mapping[str, Any]
    session: str
    timeout_s: float
    retry_failed: bool = False
    overwrite: bool = False

    def open(self) -> ShardWorker:
        """Open the stores, once in each worker process.

        Raises:
            RankpressError: they cannot be opened.
        """
        return ShardWorker(self)


def worker_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that workers need as plain values, for any process of any machine."""
    values = settings.model_dump(mode="json", include=set(_SETTINGS))
    if settings.store is not None:
        values["store"] = str(settings.store.absolute())
    return values


class ShardWorker:
    """Does shards, one after the other, in the process that opened it; not thread-safe."""

    def __init__(self, work: ShardWork) -> None:
        """Open the stores; the engine is opened when there is a row to do."""
        self._work, self._settings = work, Settings(**{**work.settings, **_CHECKED})
        self._dest = open_objects(work.dest, self._settings.objects_timeout_s)
        self._watchdog = Watchdog(work.timeout_s)

    def prepare(self) -> None:
        """Open the engine now. Raises RankpressError: it cannot be opened."""
        assert self._rows

    @cached_property
    def _rows(self) -> RowPipeline:
        work, settings = self._work, self._settings
        source = open_source(work.source, settings.objects_timeout_s)
        engine, on_progress = open_engine(settings), self._watchdog.restart
        converter: Converter
        if isinstance(work.options, BulkCompression):
            converter = Compressor(engine, work.options, settings.max_pixels, on_progress)
        else:
            converter = Decompressor(engine, work.options, source)
        return RowPipeline(source, self._dest, converter, on_progress, settings.max_pixels)

    def do(self, shard: Shard, on_row: OnRow | None = None) -> ShardOutcome:
        """Do the rows of a shard, write their report and then the marker.

        A shard that has its marker is only read, unless failed rows are to be done again. A process
        that dies in the middle, or ends itself because a picture takes too long, leaves the shard
        to another; the third attempt finds the row that is to blame. A shard is given up after
        `MOST_ATTEMPTS`, with every row as failed.

        Args:
            shard: to do. on_row: is called with the totals of each row as it ends.

        Raises:
            ObjectsUnavailable: a store does not answer. DamagedObject: the manifest is damaged.
            BadParameter, MissingExtra: no picture can be done with these options.
        """
        earlier = self._finished(shard)
        if earlier is not None and not (self._work.retry_failed and failures_of(earlier)):
            totals = total_of(earlier)
            return ShardOutcome(shard.number, totals, failures_of(earlier), earlier=totals)
        start, manifest = perf_counter(), read_rows(self._dest, shard)
        if earlier is not None:  # from here on, a cut leaves a shard to be done again as a whole
            self._dest.delete(shard.marker_key)
        succeeded = tuple(row for row in earlier or () if row.status != "failed")
        with self._watchdog:
            reports = self._attempt(shard, manifest, succeeded, on_row or (lambda _: None))
        return ShardOutcome(
            shard.number,
            total_of(reports),
            failures_of(reports),
            perf_counter() - start,
            total_of(succeeded),
        )

    def do_row(self, file: SourceFile, replace: bool) -> RowReport:
        """Do one row, see RowPipeline.run."""
        with self._watchdog:
            return next(self._rows.run([file], replace))

    def _finished(self, shard: Shard) -> tuple[RowReport, ...] | None:
        """Return the report of a shard that is done; None if it is to be done."""
        try:
            marker = json.loads(self._dest.get(shard.marker_key))
            report = self._dest.get(shard.report_key)
            if marker["report"] == digest_of(report):
                return read_report(report)
        except (NoSuchObject, DamagedObject, ValueError, KeyError, TypeError):
            pass
        return None

    def _attempt(
        self,
        shard: Shard,
        manifest: ManifestRows,
        succeeded: tuple[RowReport, ...],
        on_row: OnRow,
    ) -> list[RowReport]:
        """Do the rows that have not succeeded before, and write report and marker."""
        attempt, attempts_here = self._begin(shard)
        reports = {row.source: row for row in succeeded}
        files = [file for file in manifest.files if file.key not in reports]
        try:
            for row in self._do(files, attempt, attempts_here):
                reports[row.source] = row
                on_row(row.totals)
        except BaseException:  # also a signal: this attempt killed nobody
            with suppress(ObjectsUnavailable):
                self._dest.delete(shard.attempt_key(attempt))
            raise
        done = [reports[file.key] for file in manifest.files]
        report = write_report(done)
        marker = {"manifest": manifest.sha256, "report": digest_of(report)}
        self._dest.put_named(shard.report_key, report)
        self._dest.put_named(shard.marker_key, json.dumps(marker).encode())
        for number in range(attempt + 1):
            self._dest.delete(shard.attempt_key(number))
        return done

    def _begin(self, shard: Shard) -> tuple[int, int]:
        """Note that an attempt begins; return its number, and how many before were of this run."""
        session, number, here = self._work.session.encode(), 0, 0
        while not self._dest.create(shard.attempt_key(number), session):
            with suppress(NoSuchObject):
                here += self._dest.get(shard.attempt_key(number)) == session
            number += 1
        return number, here

    def _do(self, files: list[SourceFile], attempt: int, attempts_here: int) -> Iterator[RowReport]:
        replace = self._work.overwrite or attempt > 0
        if attempts_here >= MOST_ATTEMPTS:
            reason = f"the worker process died in each of {attempts_here} attempts at its shard"
            return (_failed(file, reason) for file in files)
        if attempt >= FIRST_ISOLATED:
            return self._do_isolated(files, replace)
        return self._rows.run(files, replace)

    def _do_isolated(self, files: list[SourceFile], replace: bool) -> Iterator[RowReport]:
        """Do each row in another process, which is replaced when a row has ended it."""
        process: ShardProcess | None = None
        self._watchdog.stop()  # the other process has its own
        try:
            for file in files:
                if process is None:
                    process = ShardProcess(self._work, expendable=True)
                    process.wait_until_open()
                report = process.do_row(file, replace)
                if report is None:
                    yield _failed(file, f"its process {process.how_it_ended()}")
                    process.stop()
                    process = None
                else:
                    yield report
        finally:
            if process is not None:
                process.stop()


def _failed(file: SourceFile, reason: str) -> RowReport:
    return RowReport(file.key, "failed", file.size_bytes, 0.0, error=reason)
