"""How far a run is, and what a run or a trial comes to, in numbers and as text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from service.bulk.shards import RUN_FOLDER, ShardOutcome, Totals
from service.bulk.trial import RunEstimate


def size_text(count: float) -> str:
    """Return a number of bytes with three digits or so: "999 bytes", "1.23 MB"."""
    if abs(count) < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.5 or unit == "TB":
            break
    return f"{count:.{2 if abs(count) < 10 else 1 if abs(count) < 100 else 0}f} {unit}"


def speed_text(pictures_per_s: float, bytes_per_s: float) -> str:
    """Return a speed with two digits or more."""
    numbers = (f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in (pictures_per_s, bytes_per_s / 1e6))
    return "{} pictures/s, {} MB/s".format(*numbers)


def saved_text(before: int, after: int) -> str:
    """Return how many bytes of those before were saved, or came in addition."""
    share = abs(before - after) / before if before else 0.0
    return (
        f"{size_text(abs(before - after))} ({share:.1%}) {'saved' if after <= before else 'more'}"
    )


@dataclass(eq=False)
class RunProgress:
    """The progress of a run, for a display that is drawn now and then.

    Attributes:
        total: rows that are known. complete: whether there are no others.
        done: totals over all finished shards. earlier: those over rows of earlier starts.
        in_progress: totals over the rows that are done in other shards.
    """

    total: int = 0
    complete: bool = False
    done: Totals = Totals()
    earlier: Totals = Totals()
    in_progress: Totals = Totals()
    _start_s: float = field(default_factory=time.monotonic)
    _first_s: float | None = None
    _first_rows: int = 0

    def add(self, outcome: ShardOutcome) -> None:
        """Count a shard that has ended."""
        self.done += outcome.totals
        self.earlier += outcome.earlier

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start_s

    def speed(self) -> tuple[float, float]:
        """Return pictures and source bytes a second over the whole run, with its start."""
        rows = self.done.rows - self.earlier.rows
        size = self.done.bytes_before - self.earlier.bytes_before
        return rows / self.seconds, size / self.seconds

    def line(self) -> str:
        """Return how much is done, and how long the rest takes at the speed so far."""
        now = self.done + self.in_progress
        known = f"{self.total:,}" if self.complete else f"at least {self.total:,}"
        if not now.rows:
            return f"{known} files, starting"
        text = f"{now.rows:,} of {known} files"
        pictures_per_s, _ = self._present_speed()
        if pictures_per_s and self.complete:
            left = timedelta(seconds=round((self.total - now.rows) / pictures_per_s))
            text += f", {left} left"
        return text

    def details(self) -> str:
        """Return speed, bytes saved and failures; nothing before the first row."""
        now = self.done + self.in_progress
        if not now.rows:
            return ""
        saved = saved_text(now.bytes_before, now.bytes_after)
        return f"{speed_text(*self._present_speed())}, {saved}, {now.failed:,} failed"

    def _present_speed(self) -> tuple[float, float]:
        """Return pictures and source bytes a second since the first row that was done now."""
        now = self.done + self.in_progress
        rows = now.rows - self.earlier.rows
        size = now.bytes_before - self.earlier.bytes_before
        if self._first_s is None and rows:
            self._first_s, self._first_rows = time.monotonic(), rows
        if self._first_s is None or rows == self._first_rows:
            return rows / self.seconds, size / self.seconds
        seconds = time.monotonic() - self._first_s
        new = rows - self._first_rows
        return new / seconds, size * (new / rows) / seconds


def summary_lines(progress: RunProgress, skipped: Mapping[str, int], dest: str) -> Iterator[str]:
    """Yield the summary of a run for people."""
    totals, before = progress.done, progress.earlier.rows
    yield f"{totals.rows:,} files: {_counts(totals)}" + (
        f"; {before:,} of them by an earlier start" if before else ""
    )
    if totals.bytes_before:
        sizes = f"{size_text(totals.bytes_before)} became {size_text(totals.bytes_after)}"
        yield f"{sizes}, {saved_text(totals.bytes_before, totals.bytes_after)}"
    if totals.rows > before:
        yield f"{speed_text(*progress.speed())}, {timedelta(seconds=round(progress.seconds))}"
    if skipped:
        yield _skipped_line(skipped)
    yield f"reports: {dest}/{RUN_FOLDER}/reports"


def estimate_lines(estimate: RunEstimate, workers: int) -> Iterator[str]:
    """Yield what a trial tells for people."""
    e = estimate
    yield f"sample of {e.sample.rows:,} files: {_counts(e.sample)}, " + saved_text(
        e.sample.bytes_before, e.sample.bytes_after
    )
    yield f"all {e.rows:,} files: {size_text(e.bytes_before)} would become about " + (
        f"{size_text(e.bytes_after)} ± {size_text(e.error_bytes)}, "
        f"{saved_text(e.bytes_before, e.bytes_after)}"
    )
    plural = "s" if workers > 1 else ""
    took = timedelta(seconds=round(3600 * e.hours))
    yield f"{e.pictures_per_s:.2f} pictures/s with {workers} worker{plural}: about {took}"
    if e.skipped:
        yield _skipped_line(e.skipped)
    yield "nothing was written"


def _counts(totals: Totals) -> str:
    """Return how many rows ended in which way."""
    counts = {"converted": totals.stored, "kept": totals.kept, "failed": totals.failed}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"


def _skipped_line(skipped: Mapping[str, int]) -> str:
    return "skipped: " + ", ".join(f"{count:,} {kind}" for kind, count in skipped.items())
