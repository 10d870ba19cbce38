"""How the rows of a shard ended, as a Parquet file that any program for tables can read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import pyarrow
import pyarrow.parquet

from service.bulk.shards import Totals
from service.errors import DamagedObject

Status = Literal["stored", "kept", "failed"]


@dataclass(frozen=True)
class RowReport:
    """How one row ended.

    Attributes:
        source: key of the file in the source. key: of the object in the destination.
        status: "stored", a new stream or picture; "kept", the original; or "failed".
        sha256: of the source file, hex; None where it could not be read.
        bytes_before: of the source file. bytes_after: of the object.
        width, height: pixels. bpp: bits per pixel of the stream.
        psnr_db: of the stream, inf where it is exact. rate: of the stream, inf without loss.
        graphics_share: share of the blocks that the graphics layer holds exactly, 0-1.
        seconds: of reading, converting and storing it.
        notes: on what reading or writing an image file changed, such as samples of 16 bits.
        error: the reason of a failure. All that does not apply is None.
    """

    source: str
    status: Status
    bytes_before: int
    seconds: float
    key: str | None = None
    sha256: str | None = None
    bytes_after: int | None = None
    width: int | None = None
    height: int | None = None
    bpp: float | None = None
    psnr_db: float | None = None
    rate: float | None = None
    graphics_share: float | None = None
    notes: str | None = None
    error: str | None = None

    @property
    def totals(self) -> Totals:
        """The sums over this row alone."""
        if self.status == "failed":
            return Totals(rows=1, failed=1, seconds=self.seconds)
        return Totals(
            rows=1,
            stored=int(self.status == "stored"),
            kept=int(self.status == "kept"),
            bytes_before=self.bytes_before,
            bytes_after=self.bytes_after or 0,
            pixels=(self.width or 0) * (self.height or 0),
            seconds=self.seconds,
        )


_SCHEMA: Final = pyarrow.schema(
    [
        ("source", pyarrow.string()),
        ("key", pyarrow.string()),
        ("status", pyarrow.string()),
        ("sha256", pyarrow.string()),
        ("bytes_before", pyarrow.int64()),
        ("bytes_after", pyarrow.int64()),
        ("width", pyarrow.int32()),
        ("height", pyarrow.int32()),
        ("bpp", pyarrow.float64()),
        ("psnr_db", pyarrow.float64()),
        ("rate", pyarrow.float64()),
        ("graphics_share", pyarrow.float64()),
        ("seconds", pyarrow.float64()),
        ("notes", pyarrow.string()),
        ("error", pyarrow.string()),
    ]
)


def write_report(rows: Sequence[RowReport]) -> bytes:
    """Return the report of a shard as a Parquet file, with a column for each field."""
    table = pyarrow.Table.from_pylist([asdict(row) for row in rows], _SCHEMA)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_report(data: bytes) -> tuple[RowReport, ...]:
    """Return the rows of a report. Raises DamagedObject: it is none."""
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        return tuple(RowReport(**row) for row in table.to_pylist())
    except (pyarrow.ArrowException, OSError, TypeError) as error:
        raise DamagedObject(f"the report is damaged: {error}") from error


def total_of(rows: Iterable[RowReport]) -> Totals:
    """Return the sums over the rows of a report."""
    return sum((row.totals for row in rows), Totals())


def failures_of(rows: Iterable[RowReport]) -> tuple[tuple[str, str], ...]:
    """Return source and error of each row that failed."""
    return tuple((row.source, row.error or "") for row in rows if row.status == "failed")
