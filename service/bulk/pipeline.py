"""The rows of a shard done by several threads: some read and decode, one converts, some store.

So the delays of stores cost little, and a GPU does not wait for files to be decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Final

from service.blobs import Objects, digest_of
from service.bulk.conversion import ConvertedRow, Converter, LoadedFile, attempt, reason_of
from service.bulk.options import RECORD_KEY
from service.bulk.reports import RowReport
from service.bulk.sources import FileSource, SourceFile, read_checked
from service.errors import ObjectsFull, ObjectsUnavailable, RankpressError

FILE_BYTES_PER_PIXEL: Final = 8
"""Bytes for each of max_pixels that a source file may have: those of four samples of 16 bits."""

READERS: Final = 2
"""Threads that read and decode files for one that converts; more of them where it takes many."""

WRITERS: Final = 4
"""Threads that store results."""


@dataclass(frozen=True, eq=False)
class _ReadFile:
    """A row whose file was read: what was loaded, or the error; and the seconds that it took."""

    file: SourceFile
    sha256: str | None
    loaded: LoadedFile | Exception
    seconds: float
    size_bytes: int


class RowPipeline:
    """Does rows. Not thread-safe."""

    def __init__(
        self,
        source: FileSource,
        dest: Objects,
        converter: Converter,
        on_progress: Callable[[], None],
        max_pixels: int,
    ) -> None:
        """Convert files of a source to objects; `on_progress` is called as rows go on."""
        self._source, self._dest, self._converter = source, dest, converter
        self._on_progress = on_progress
        self._most_bytes = FILE_BYTES_PER_PIXEL * max_pixels
        self._readers = READERS if converter.batch == 1 else converter.batch

    def run(self, files: Sequence[SourceFile], replace: bool) -> Iterator[RowReport]:
        """Yield how each row ended, in order; its result is then stored.

        Args:
            files: the rows. replace: whether other objects of the same keys are replaced.

        Raises:
            ObjectsUnavailable: one of the stores does not answer any more.
            RateUnavailable, MissingExtra: no row can be done.
        """
        stored: deque[Future[RowReport]] = deque()
        with (
            ThreadPoolExecutor(self._readers, "read") as readers,
            ThreadPoolExecutor(WRITERS, "store") as writers,
        ):
            try:
                for batch in self._batches(iter(files), readers):
                    self._on_progress()
                    stored.extend(writers.submit(self._finish, *one, replace) for one in batch)
                    while len(stored) > WRITERS or (stored and stored[0].done()):
                        yield stored.popleft().result()
                while stored:
                    yield stored.popleft().result()
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)

    def _batches(
        self, files: Iterator[SourceFile], readers: ThreadPoolExecutor
    ) -> Iterator[list[tuple[_ReadFile, ConvertedRow | Exception, float]]]:
        """Yield batches of rows with what they were converted to, and the seconds for each."""
        size = self._converter.batch
        reading = deque(readers.submit(self._read, f) for f in islice(files, size + self._readers))
        while reading:
            read = [reading.popleft().result() for _ in range(min(size, len(reading)))]
            reading.extend(readers.submit(self._read, file) for file in islice(files, len(read)))
            start = perf_counter()
            loaded = [one.loaded for one in read if isinstance(one.loaded, LoadedFile)]
            results = iter(self._converter.convert(loaded) if loaded else ())
            seconds = (perf_counter() - start) / len(read)
            yield [
                (one, one.loaded if isinstance(one.loaded, Exception) else next(results), seconds)
                for one in read
            ]

    def _read(self, file: SourceFile) -> _ReadFile:
        """Read and decode the file of a row."""
        start = perf_counter()
        data = attempt(partial(read_checked, self._source, file, self._most_bytes))
        if isinstance(data, Exception):
            if isinstance(data, ObjectsUnavailable | OSError):
                self._source.check()
            return _ReadFile(file, None, data, perf_counter() - start, file.size_bytes)
        loaded = attempt(partial(self._converter.load, file.key, data))
        return _ReadFile(file, digest_of(data), loaded, perf_counter() - start, len(data))

    def _finish(
        self, read: _ReadFile, row: ConvertedRow | Exception, seconds: float, replace: bool
    ) -> RowReport:
        """Store the result of a row; return its report."""
        start = perf_counter()
        error = row if isinstance(row, Exception) else None
        if isinstance(row, ConvertedRow):
            try:
                self._store(row.key, row.data, replace)
            except ObjectsUnavailable:
                raise
            except Exception as failure:  # as in `attempt`
                error = failure
        seconds += read.seconds + perf_counter() - start
        report = partial(RowReport, read.file.key, sha256=read.sha256, seconds=seconds)
        if error is not None or isinstance(row, Exception):
            reason = "" if error is None else reason_of(error)
            return report("failed", read.size_bytes, error=reason)
        return report(
            row.status,
            read.size_bytes,
            key=row.key,
            bytes_after=len(row.data),
            width=row.width,
            height=row.height,
            bpp=row.bpp,
            psnr_db=row.psnr_db,
            rate=row.rate,
            graphics_share=row.graphics_share,
            notes="; ".join(row.notes) or None,
        )

    def _store(self, key: str, data: bytes, replace: bool) -> None:
        """Write an object, unless it is there with the same bytes.

        Raises:
            RankpressError: another object has the key, or the key cannot be written.
            ObjectsUnavailable: the store does not answer any more.
        """
        try:
            if replace:
                self._dest.remove_unfinished(key)
            if self._dest.create(key, data) or self._dest.get(key) == data:
                return
            if not replace:
                raise RankpressError(
                    f"{key} is in the destination with other bytes; --overwrite replaces it"
                )
            self._dest.put_named(key, data)
        except ObjectsFull:
            raise
        except ObjectsUnavailable as error:
            self._dest.head(RECORD_KEY)  # where the store answers, the fault is the key's
            raise RankpressError(str(error)) from error
