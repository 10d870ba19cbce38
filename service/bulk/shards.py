"""The shards of a bulk run and what doing one of them ends with.

A shard is a range of rows of the manifest, and a row is one file of the source. Everything that a
run writes besides its results lies below `RUN_FOLDER` in the destination:

    run.json                    the options that decide what is written (options.py)
    manifest/SHARD.jsonl        the rows of each shard, with their hash (manifest.py)
    manifest.json               how many rows and shards there are, once the source is listed
    begun/SHARD/ATTEMPT         attempts at a shard that have not ended
    reports/SHARD.parquet       how each row of a shard ended (reports.py)
    done/SHARD.json             the marker of a shard that is done, written last
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RUN_FOLDER: Final = "_rankpress"
"""Folder of a destination that holds what a run writes besides its results."""


@dataclass(frozen=True)
class Shard:
    """A shard of a run, by its number from 0."""

    number: int

    @property
    def name(self) -> str:
        """The number with ten digits, so that names are in the order of the shards."""
        return f"{self.number:010d}"

    @property
    def manifest_key(self) -> str:
        """Key of the object with the rows."""
        return f"{RUN_FOLDER}/manifest/{self.name}.jsonl"

    @property
    def report_key(self) -> str:
        """Key of the report."""
        return f"{RUN_FOLDER}/reports/{self.name}.parquet"

    @property
    def marker_key(self) -> str:
        """Key of the marker of a finished shard."""
        return f"{RUN_FOLDER}/done/{self.name}.json"

    def attempt_key(self, attempt: int) -> str:
        """Key that marks that an attempt has begun, from 0."""
        return f"{RUN_FOLDER}/begun/{self.name}/{attempt}"


@dataclass(frozen=True)
class Totals:
    """Sums over rows.

    Attributes:
        rows: all of them. stored: rows with a stream, or with a picture when decompressing.
        kept: rows whose original file was copied. failed: rows with an error.
        bytes_before, bytes_after: of the rows that did not fail.
        pixels: likewise. seconds: of work, summed over rows.
    """

    rows: int = 0
    stored: int = 0
    kept: int = 0
    failed: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    pixels: int = 0
    seconds: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.stored + other.stored,
            self.kept + other.kept,
            self.failed + other.failed,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
            self.pixels + other.pixels,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class ShardOutcome:
    """How a shard ended: its report is in the destination.

    Attributes:
        shard: its number. totals: over the rows of its report.
        failures: source and error of each row that failed.
        seconds: that a worker took for it now.
        earlier: totals over those of its rows that earlier starts of the run had done.
    """

    shard: int
    totals: Totals
    failures: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    earlier: Totals = Totals()
