"""A bulk run: the source is listed into the manifest while a runner has its shards done.

Starting a run again continues it: finished shards are only read, so what it returns is the sum over
all reports, whenever they were written.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service.blobs import open_objects
from service.bulk.manifest import ManifestSums, ManifestWriter
from service.bulk.options import BulkDecompression, Options, claim, record_of
from service.bulk.runner import Runner
from service.bulk.shards import Shard, ShardOutcome
from service.bulk.sources import (
    SourceFile,
    absolute_place,
    check_apart,
    folder_of,
    open_source,
    select,
)
from service.bulk.work import ShardWork, worker_settings
from service.settings import Settings

DEFAULT_SHARD_ROWS = 32
"""Rows of a shard: the work that a killed worker loses, at most."""

DEFAULT_TIMEOUT_S = 1800.0
"""Seconds without progress on a picture after which it fails: the largest take minutes."""


class BulkRun:
    """A run from a source to a destination, new or continued."""

    def __init__(
        self,
        source: str,
        dest: str,
        options: Options,
        settings: Settings,
        *,
        shard_rows: int = DEFAULT_SHARD_ROWS,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry_failed: bool = False,
        overwrite: bool = False,
        only: Sequence[SourceFile] | None = None,
    ) -> None:
        """Open both places and claim the destination for these options.

        Args:
            source, dest: folders or URLs. options: of every picture. settings: of the engine.
            shard_rows: files of a shard. timeout_s, retry_failed, overwrite: see ShardWork.
            only: the files of the source to work on, in order; None takes all.

        Raises:
            BadParameter: a place is none, one lies in the other, or the destination holds a run
                with other options. ObjectsUnavailable: a store fails.
        """
        check_apart(source, dest)
        self._source = open_source(source, settings.objects_timeout_s)
        objects = open_objects(folder_of(dest) or dest, settings.objects_timeout_s)
        self.is_new = claim(objects, record_of(absolute_place(source), shard_rows, options))
        self._only = only
        self._manifest = ManifestWriter(objects, shard_rows)
        self._streams = isinstance(options, BulkDecompression)
        self.work = ShardWork(
            absolute_place(source),
            absolute_place(dest),
            options,
            worker_settings(settings),
            secrets.token_hex(8),
            timeout_s,
            retry_failed,
            overwrite,
        )

    @property
    def listed(self) -> ManifestSums:
        """What is listed of the source so far."""
        return self._manifest.sums

    def outcomes(self, runner: Runner) -> Iterator[ShardOutcome]:
        """Have all shards done; yield outcomes as they end, also of those that were done before.

        Raises:
            RankpressError: the run cannot go on, see ShardWorker.do; it can be continued.
        """
        with self._listing() as shards:
            yield from runner.run(shards, self.work)

    @contextmanager
    def _listing(self) -> Iterator[Iterator[Shard]]:
        """List the source in a thread, and yield the shards as they are written."""
        manifest = self._manifest
        thread = threading.Thread(
            target=lambda: manifest.write(self._files()), name="listing", daemon=True
        )
        thread.start()
        try:
            yield manifest.follow()
        finally:
            manifest.stop()
            thread.join()

    def _files(self) -> Iterator[SourceFile]:
        skip = self._manifest.skip
        if self._only is not None:
            return iter(self._only)
        return select(self._source.files(skip, self._manifest.last_key), skip, self._streams)
