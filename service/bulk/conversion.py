"""What a run does to one file: compress it, adapt a stream to it, or decompress it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from service.bulk.options import BulkCompression, BulkDecompression
from service.bulk.reports import Status
from service.bulk.sources import FileSource
from service.codec.container import LOSSLESS, describe
from service.engine.target import Target
from service.errors import MissingExtra, RankpressError, RateUnavailable
from service.files import STREAM_SUFFIX
from service.images.read import read_image
from service.images.write import write_with_notes
from service.picture import Picture

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.types import Compressed

Result = TypeVar("Result")

ADVANCE_S: Final = 1.0
"""Seconds of an adaptation after which it shows that it goes on."""

SUFFIXES: Final = {
    "png": (".png",),
    "webp": (".webp",),
    "jpeg": (".jpg", ".jpeg"),
    "avif": (".avif",),
}
"""Suffixes of the formats that streams are decompressed to; the first is written."""


@dataclass(frozen=True, eq=False)
class LoadedFile:
    """A source file that was read, and its picture where it is to be compressed."""

    key: str
    data: bytes
    picture: Picture | None = None


@dataclass(frozen=True, eq=False)
class ConvertedRow:
    """The bytes to store for a row, and what its report says of them (see RowReport)."""

    key: str
    data: bytes
    status: Status = "stored"
    width: int | None = None
    height: int | None = None
    bpp: float | None = None
    psnr_db: float | None = None
    rate: float | None = None
    graphics_share: float | None = None
    notes: tuple[str, ...] = ()


class Converter(Protocol):
    """Converts files. `load` may run in other threads, while `convert` converts those before."""

    batch: int
    """Files that `convert` takes at a time."""

    def load(self, key: str, data: bytes) -> LoadedFile:
        """Read a file. Raises RankpressError: it cannot be converted."""

    def convert(self, files: Sequence[LoadedFile]) -> list[ConvertedRow | Exception]:
        """Return what is to be stored for each file, or the error that it fails with.

        Raises:
            RateUnavailable, MissingExtra: no file can be converted with these options.
        """


class Compressor:
    """Compresses pictures, or adapts streams to them."""

    def __init__(
        self,
        engine: Engine,
        options: BulkCompression,
        max_pixels: int,
        on_advance: Callable[[], None],
    ) -> None:
        """Compress with an engine that checks; `on_advance` is called as an adaptation goes on."""
        self._engine, self._options, self._on_advance = engine, options, on_advance
        self._requested = options.requested()
        self._read = partial(
            read_image, max_pixels=max_pixels, metadata=options.metadata, frame=options.frame
        )
        alone = isinstance(self._requested, Target) or self._requested == LOSSLESS
        self.batch = 1 if alone or options.effort is not None else engine.max_batch

    def load(self, key: str, data: bytes) -> LoadedFile:
        return LoadedFile(key, data, self._read(data))

    def convert(self, files: Sequence[LoadedFile]) -> list[ConvertedRow | Exception]:
        pictures = [file.picture for file in files if file.picture is not None]
        results = self._compress(pictures)
        return [
            result if isinstance(result, Exception) else self._choose(file, result)
            for file, result in zip(files, results, strict=True)
        ]

    def _compress(self, pictures: Sequence[Picture]) -> list[ConvertedRow | Exception]:
        if self._options.effort is not None:
            return [attempt(partial(self._adapt, picture)) for picture in pictures]
        if len(pictures) > 1 and not isinstance(self._requested, Target):
            together = attempt(partial(self._compress_together, pictures, self._requested))
            if not isinstance(together, Exception):
                return together
        return [attempt(partial(self._compress_one, picture)) for picture in pictures]

    def _compress_one(self, picture: Picture) -> ConvertedRow:
        return _row_of(self._engine.compress(picture, self._requested, self._options.tune))

    def _compress_together(
        self, pictures: Sequence[Picture], rate: float
    ) -> list[ConvertedRow | Exception]:
        results = self._engine.compress_batch(pictures, rate, self._options.tune)
        return [r if isinstance(r, RankpressError) else _row_of(r) for r in results]

    def _adapt(self, picture: Picture) -> ConvertedRow:
        options = self._options
        assert options.effort is not None and not isinstance(self._requested, Target)
        adaptation = self._engine.adapt(
            picture, self._requested, effort=options.effort, max_seconds=options.max_seconds
        )
        while not adaptation.done:
            adaptation.advance(ADVANCE_S)
            self._on_advance()
        data, end = adaptation.best(), adaptation.progress
        info = describe(data)
        return ConvertedRow(
            "",
            data,
            width=info.width,
            height=info.height,
            bpp=end.bpp,
            psnr_db=end.psnr_db,
            rate=info.rate,
            graphics_share=info.graphics_share,
        )

    def _choose(self, file: LoadedFile, row: ConvertedRow) -> ConvertedRow:
        """Return the stream with its key, or the original file where that is to be kept."""
        if not self._options.keep_smaller or len(row.data) < len(file.data):
            notes = () if file.picture is None else file.picture.notes
            return replace(row, key=file.key + STREAM_SUFFIX, notes=notes)
        assert row.width and row.height
        bpp = 8 * len(file.data) / (row.width * row.height)
        return ConvertedRow(
            file.key, file.data, "kept", width=row.width, height=row.height, bpp=bpp
        )


class Decompressor:
    """Decompresses streams to image files; originals that a run kept are copied."""

    batch = 1

    def __init__(self, engine: Engine, options: BulkDecompression, source: FileSource) -> None:
        """Write pictures in the format of the options."""
        self._engine, self._options, self._source = engine, options, source

    def load(self, key: str, data: bytes) -> LoadedFile:
        return LoadedFile(key, data)

    def convert(self, files: Sequence[LoadedFile]) -> list[ConvertedRow | Exception]:
        return [attempt(partial(self._decompress, file)) for file in files]

    def _decompress(self, file: LoadedFile) -> ConvertedRow:
        if not file.key.endswith(STREAM_SUFFIX):
            return ConvertedRow(file.key, file.data, "kept")
        key = self._picture_key(file.key)
        decompressed = self._engine.decompress(file.data)
        picture, rate = decompressed.picture, decompressed.rate
        written = write_with_notes(
            picture, self._options.format, quality=self._options.quality, small_png=True
        )
        return ConvertedRow(
            key,
            written.data,
            width=picture.width,
            height=picture.height,
            bpp=8 * len(file.data) / (picture.width * picture.height),
            rate=rate,
            graphics_share=describe(file.data).graphics_share,
            notes=picture.notes + written.notes,
        )

    def _picture_key(self, key: str) -> str:
        """Return the key of the picture of a stream: "a.jpg" or "a.jpg.png" for "a.jpg.rkp".

        Raises:
            RankpressError: another file of the source has the same one.
        """
        stem, suffixes = key.removesuffix(STREAM_SUFFIX), SUFFIXES[self._options.format]
        has_suffix = PurePosixPath(stem).suffix.lower() in suffixes
        target = stem if has_suffix else stem + suffixes[0]
        rivals = {target, target + STREAM_SUFFIX, target.removesuffix(suffixes[0]) + STREAM_SUFFIX}
        for rival in sorted(rivals - {key}):
            if self._source.has(rival):
                raise RankpressError(f"{rival} of the source would become {target} too")
        return target


def _row_of(compressed: Compressed) -> ConvertedRow:
    """Return a stream as a row whose key is not chosen yet."""
    c = compressed
    return ConvertedRow(
        "",
        c.data,
        width=c.width,
        height=c.height,
        bpp=c.bpp,
        psnr_db=c.psnr_db,
        rate=c.rate,
        graphics_share=c.graphics_share,
    )


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """Return what work returns, or the error that it raises.

    Raises:
        RateUnavailable, MissingExtra: the work of every other row would raise it too.
    """
    try:
        return work()
    except (RateUnavailable, MissingExtra):
        raise
    except Exception as error:  # a bug that one picture shows must not end the run
        return error


def reason_of(error: Exception) -> str:
    """Return the reason of a failure for the report, as one line."""
    if isinstance(error, RankpressError):
        text = str(error)
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error}"
    return " ".join(text.split())
