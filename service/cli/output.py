"""Output of the commands: tables for people, one JSON object a line for programs.

Tables, progress and errors go to standard error. Standard output gets only streams, pictures and
JSON, and the answers of `info` and `models`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from statistics import fmean
from typing import TYPE_CHECKING, Final

import typer
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.batch import ConvertedFile, Outcome
from service.cli.plan import STANDARD, BatchPlan
from service.cli.process import say

if TYPE_CHECKING:
    from rankpress_client import AdaptJob, JobState

    from service.adapt.task import Adaptation, AdaptProgress
    from service.codec.container import StreamInfo
    from service.engine.types import ModelInfo
    from service.picture import Picture

MAX_ROWS: Final = 40
"""Files that get a row of their own in a table."""

ADVANCE_S: Final = 1.0
"""Seconds of an adaptation between two updates of its progress."""


def errors_console() -> Console:
    """Return a console on standard error that does not colour numbers or break lines."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(console: Console, message: str) -> None:
    """Print `error: message` as one line."""
    line = " ".join(printable(message).split())
    console.print(Text.assemble(("error:", "bold red"), " ", line))


def printable(text: str) -> str:
    """Return a text, such as the name of a file, that any terminal can show."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c.isspace() else "?" for c in encodable)


def _answers() -> Console:
    """Return a console on standard output, which does not colour numbers or break lines either."""
    return Console(highlight=False, soft_wrap=True)


def _progress(console: Console, *columns: bars.ProgressColumn, hidden: bool) -> bars.Progress:
    """Return a progress line, with columns in its middle, that goes away at the end."""
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        *columns,
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def as_json(values: Mapping[str, object]) -> str:
    """Return one line of JSON; infinite numbers become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite)


def _outcome_json(outcome: Outcome) -> str:
    """Return an outcome as a line of JSON: the result, or only the error."""
    values: dict[str, object] = {"source": outcome.source, "target": outcome.target}
    if outcome.error is not None:
        return as_json(values | {"ok": False, "error": outcome.error})
    done = asdict(outcome)
    del done["error"]
    return as_json(values | {"ok": True} | done)


def report_outcomes(
    outcomes: Iterable[Outcome], plan: BatchPlan, *, json_lines: bool
) -> list[Outcome]:
    """Report outcomes as they come, and in a table at the end, or each as JSON; return them."""
    count = len(plan.tasks) + len(plan.unreadable)
    quiet = any(task.target is None for task in plan.tasks)
    console, done = errors_console(), list[Outcome]()
    columns = bars.BarColumn(), bars.MofNCompleteColumn()
    with _progress(console, *columns, hidden=count < 2) as progress:
        bar = progress.add_task("", total=count)
        for outcome in outcomes:
            done.append(outcome)
            _report(console, outcome, json_lines)
            progress.update(bar, advance=1, description=printable(outcome.source)[-40:])
    for sentence in plan.skipped:
        console.print(Text(f"skipped: {printable(sentence)}", "dim"))
    if not json_lines and not quiet:
        succeeded = sum(outcome.error is None for outcome in done)
        larger = sum(outcome.larger_than_source for outcome in done)
        if larger and succeeded > 1:
            console.print(f"{larger} of {succeeded} streams are larger than their source files")
        console.print(_summary(done) if succeeded else f"no file was written, {len(done)} failed")
    return done


def _report(console: Console, outcome: Outcome, json_lines: bool) -> None:
    name = "standard input" if outcome.source == STANDARD else outcome.source
    if json_lines:
        typer.echo(_outcome_json(outcome))
    if outcome.error is not None:
        print_error(console, f"{name}: {outcome.error}")
    elif not json_lines:
        for note in outcome.notes:
            console.print(Text(f"{printable(name)}: {note}", "dim"))


def _summary(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with a row for each file that was written, and one for all."""
    table = Table(box=None, pad_edge=False, show_footer=False)
    table.add_column("file", overflow="fold")
    for name in ("pixels", "bytes in", "bytes out", "bpp", "dB", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    written = [outcome for outcome in outcomes if outcome.error is None]
    for outcome in written[:MAX_ROWS] if len(written) > 1 else ():
        table.add_row(printable(outcome.target), *_cells([outcome]))
    if len(written) > MAX_ROWS:
        table.add_row(f"and {len(written) - MAX_ROWS} more")
    failed = len(outcomes) - len(written)
    label = printable(written[0].target) if len(written) == 1 else f"{len(written)} files"
    if failed:
        label += f", {failed} failed"
    table.add_row(label, *_cells(written), style="bold")
    return table


def _cells(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the cells of a row: sums over files, and means over pixels (bpp) and files (dB)."""
    pixels = sum(o.width * o.height for o in outcomes)
    bpps = [(o.bpp, o.width * o.height) for o in outcomes if o.bpp is not None]
    decibels = [o.psnr_db for o in outcomes if o.psnr_db is not None]
    size = f"{pixels / 1e6:.1f} M"
    if len(outcomes) == 1:
        size = f"{outcomes[0].width}x{outcomes[0].height}"
    bpp = sum(b * n for b, n in bpps) / sum(n for _, n in bpps) if bpps else None
    return (
        size,
        f"{sum(o.input_bytes for o in outcomes):,}",
        f"{sum(o.output_bytes for o in outcomes):,}",
        _number(bpp, ".3f"),
        _mean_db(decibels),
        f"{sum(o.seconds for o in outcomes):.2f}",
    )


def _number(value: float | None, format: str) -> str:
    return "" if value is None else f"{value:{format}}"


def _mean_db(values: list[float]) -> str:
    """Return the mean of the finite values; exact files have no number of decibels."""
    finite = [v for v in values if math.isfinite(v)]
    return f"{fmean(finite):.2f}" if finite else "exact" if values else ""


def stream_json(source: str, info: StreamInfo) -> str:
    """Return the description of a stream as a line of JSON; the rate is null if it is lossless."""
    return as_json({"source": source, **asdict(info), "bpp": _bpp(info)})


def print_stream(source: str, info: StreamInfo) -> None:
    """Print the description of a stream."""
    channels = "grey" if info.grey else "colour"
    tiles = f", {info.tiles} tile{'s' if info.tiles > 1 else ''}" if info.tiles else ""
    table = Table(box=None, show_header=False, pad_edge=False)
    alpha = " with alpha" if info.has_alpha else ""
    table.add_row("picture", f"{info.width}x{info.height} {channels}{alpha}")
    if info.method == "latent":
        table.add_row("quality", f"{info.rate:g}, method latent")
        table.add_row("autoencoder", info.model)
    elif math.isinf(info.rate):
        table.add_row("rate", "lossless, needs no model")
    else:
        table.add_row("rate", f"{info.rate:g}, tune {info.tune}")
        table.add_row("model", info.model)
    if info.graphics_share:
        table.add_row("graphics", f"{info.graphics_share:.1%} of the blocks are exact")
    if info.ready is not None:
        table.add_row("ready update", info.ready)
    table.add_row("format", f"version {info.version}{tiles}")
    table.add_row("size", f"{info.total_bytes:,} bytes, {_bpp(info):.3f} bits per pixel")
    for name, length in info.sections:
        table.add_row(f"  {name}", f"{length:,} bytes")
    for segment, end in info.marks:
        table.add_row(f"  up to {segment}", f"{end:,} bytes, {end / info.total_bytes:.1%}")
    console = _answers()
    console.print(Text(printable(source), "bold"))
    console.print(table)


def _bpp(info: StreamInfo) -> float:
    return 8 * info.total_bytes / (info.width * info.height)


def print_model(model: ModelInfo) -> None:
    """Print a model of the store, and the measurements of each rate when it was published."""
    table = Table(box=None, pad_edge=False)
    for name in ("tune", "rate", "lmbda", "Kodak bpp", "Kodak dB", "MS-SSIM", "bytes"):
        table.add_column(name, justify="left" if name == "tune" else "right")
    for rate in model.rates:
        lmbda, bpp = _number(rate.lmbda, "g"), _number(rate.kodak_bpp, ".3f")
        psnr, ms_ssim = _number(rate.kodak_psnr_db, ".2f"), _number(rate.kodak_ms_ssim, ".4f")
        size = f"{rate.file_bytes:,}" if rate.sha256 else "base"
        table.add_row(rate.tune, f"{rate.rate:g}", lmbda, bpp, psnr, ms_ssim, size)
    console = _answers()
    console.print(Text(model.name, "bold"))
    size = f"{model.parameters:,} weights in {model.file_bytes:,} bytes"
    console.print(f"family {model.family}, {size}")
    console.print(f"sha256 {model.sha256}")
    console.print(table)


def run_adaptation(adaptation: Adaptation, picture: Picture, quiet: bool) -> ConvertedFile:
    """Run an adaptation to its end, with a progress line on standard error unless it is quiet."""
    from service.codec.container import describe

    with _progress(errors_console(), bars.BarColumn(bar_width=20), hidden=quiet) as display:
        bar = display.add_task("", total=max(1, adaptation.progress.total))
        while not adaptation.done:
            progress = adaptation.advance(ADVANCE_S)
            display.update(bar, completed=progress.step, description=adaptation_line(progress))
    end = adaptation.progress
    size = picture.width, picture.height
    notes = (*picture.notes, adaptation_gain(end))
    data = adaptation.best()
    return ConvertedFile(data, *size, describe(data).rate, end.bpp, end.psnr_db, notes, True)


def run_job(job: AdaptJob, quiet: bool) -> AdaptProgress:
    """Wait for a job of a server, and show its progress as `run_adaptation` does.

    An interrupt cancels the job, unless it was running before this command asked for it: then
    somebody else waits for it too.
    """
    from rankpress_client import RankpressClientError

    is_ours = job.state.status == "queued"
    with _progress(errors_console(), bars.BarColumn(bar_width=20), hidden=quiet) as display:
        bar = display.add_task(f"job {job.id[:8]} waits for its turn", total=None)

        def show(state: JobState) -> None:
            if state.step is not None:
                progress = _job_progress(state)
                line = adaptation_line(progress)
                total = max(1, progress.total)
                display.update(bar, completed=progress.step, total=total, description=line)

        try:
            return _job_progress(job.wait(show))
        except KeyboardInterrupt:
            if is_ours:
                with suppress(RankpressClientError):
                    job.cancel()
            else:
                say(f"job {job.id} was running before, and continues on the server")
            raise


def _job_progress(state: JobState) -> AdaptProgress:
    """Return how far a job has come, as of an adaptation on this machine."""
    from service.adapt.task import AdaptProgress

    values = {field.name: getattr(state, field.name) for field in fields(AdaptProgress)}
    exact = {name: math.inf for name in ("psnr_db", "first_psnr_db") if values[name] is None}
    return AdaptProgress(**values | exact)


def adaptation_line(progress: AdaptProgress) -> str:
    """Return phase, step and best stream so far of an adaptation as one line."""
    position = f"{progress.phase} {progress.step}/{progress.total}"
    return f"{position}: {progress.bpp:.3f} bpp, {adaptation_gain(progress)}"


def adaptation_gain(progress: AdaptProgress) -> str:
    """Return quality and gain of an adaptation's best stream against the plain one, as text."""
    bytes_percent = 100 * (progress.bytes / progress.first_bytes - 1)
    if math.isinf(progress.psnr_db):
        return f"exact ({bytes_percent:+.1f} % bytes)"
    change_db = progress.psnr_db - progress.first_psnr_db
    return f"{progress.psnr_db:.2f} dB ({bytes_percent:+.1f} % bytes, {change_db:+.2f} dB)"
