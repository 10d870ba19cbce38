"""What the command line prints: tables for people, one JSON object a line for programs.

Tables, progress and errors go to standard error; standard output has data and JSON alone, and the
answers of `info` and `models`, which are data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from service.cli.batch import STANDARD, Outcome, Plan

if TYPE_CHECKING:
    from service.codec.container import StreamInfo
    from service.engine.types import ModelInfo

MAX_ROWS: Final = 40
"""Files of a run that get a row of their own."""


def errors_console() -> Console:
    """Return a console on standard error that does not colour numbers or break lines."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(console: Console, message: str) -> None:
    """Print `error: message` as one line."""
    line = " ".join(shown(message).split())
    console.print(Text.assemble(("error:", "bold red"), " ", line))


def shown(text: str) -> str:
    """Return a text, such as a file's name, that any terminal can show."""
    printable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() or c.isspace() else "?" for c in printable)


def _as_json(values: Mapping[str, object]) -> str:
    """Return one line of JSON; infinite numbers, which JSON has not, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite)


def _outcome_json(outcome: Outcome) -> str:
    """Return an outcome as a line of JSON: what was made, or the error alone."""
    values: dict[str, object] = {"source": outcome.source, "target": outcome.target}
    if outcome.error is not None:
        return _as_json(values | {"ok": False, "error": outcome.error})
    done = asdict(outcome)
    del done["error"]
    return _as_json(values | {"ok": True} | done)


def follow(outcomes: Iterable[Outcome], planned: Plan, *, json_lines: bool) -> list[Outcome]:
    """Report outcomes as they come and, at the end, as a table; return them all.

    Args:
        outcomes: of a run, still running. planned: what it is to do.
        json_lines: print each as JSON on standard output, and no table.
    """
    count = len(planned.tasks) + len(planned.unreadable)
    quiet = any(task.target is None for task in planned.tasks)
    console, done = errors_console(), list[Outcome]()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=count < 2 or not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        bar = progress.add_task("", total=count)
        for outcome in outcomes:
            done.append(outcome)
            _report(console, outcome, json_lines)
            progress.update(bar, advance=1, description=shown(outcome.source)[-40:])
    for sentence in planned.passed_over:
        console.print(Text(f"passed over: {shown(sentence)}", "dim"))
    if not json_lines and not quiet:
        made = sum(outcome.error is None for outcome in done)
        larger = sum(outcome.larger_than_source for outcome in done)
        if larger and made > 1:
            console.print(f"{larger} of {made} streams are larger than their source files")
        console.print(_summary(done) if made else f"nothing was made, {len(done)} failed")
    return done


def _report(console: Console, outcome: Outcome, json_lines: bool) -> None:
    name = "standard input" if outcome.source == STANDARD else outcome.source
    if json_lines:
        typer.echo(_outcome_json(outcome))
    if outcome.error is not None:
        print_error(console, f"{name}: {outcome.error}")
    elif not json_lines:
        for note in outcome.notes:
            console.print(Text(f"{shown(name)}: {note}", "dim"))


def _summary(outcomes: Sequence[Outcome]) -> Table:
    """Return a row for each file that was made, and one for all."""
    table = Table(box=None, pad_edge=False, show_footer=False)
    table.add_column("file", overflow="fold")
    for name in ("pixels", "bytes in", "bytes out", "bpp", "dB", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    made = [outcome for outcome in outcomes if outcome.error is None]
    for outcome in made[:MAX_ROWS] if len(made) > 1 else ():
        table.add_row(shown(outcome.target), *_cells([outcome]))
    if len(made) > MAX_ROWS:
        table.add_row(f"and {len(made) - MAX_ROWS} more")
    failed = len(outcomes) - len(made)
    one = shown(made[0].target) if len(made) == 1 else f"{len(made)} files"
    label = f"{one}, {failed} failed" if failed else one
    table.add_row(label, *_cells(made), style="bold")
    return table


def _cells(made: Sequence[Outcome]) -> tuple[str, ...]:
    """Return sums, and means over pixels (bpp) and files (dB)."""
    pixels = sum(o.width * o.height for o in made)
    bpps = [(o.bpp, o.width * o.height) for o in made if o.bpp is not None]
    decibels = [o.psnr_db for o in made if o.psnr_db is not None]
    size = f"{made[0].width}x{made[0].height}" if len(made) == 1 else f"{pixels / 1e6:.1f} M"
    bpp = sum(b * n for b, n in bpps) / sum(n for _, n in bpps) if bpps else None
    return (
        size,
        f"{sum(o.input_bytes for o in made):,}",
        f"{sum(o.output_bytes for o in made):,}",
        "" if bpp is None else f"{bpp:.3f}",
        f"{sum(decibels) / len(decibels):.2f}" if decibels else "",
        f"{sum(o.seconds for o in made):.2f}",
    )


def stream_json(source: str, info: StreamInfo) -> str:
    """Return what a stream says of itself as a line of JSON."""
    return _as_json({"source": source, **asdict(info), "bpp": _bpp(info)})


def print_stream(source: str, info: StreamInfo) -> None:
    """Print what a stream says of itself."""
    channels = "grey" if info.grey else "colour"
    tiles = f"{info.tiles} tile{'s' if info.tiles > 1 else ''}"
    table = Table(box=None, show_header=False, pad_edge=False)
    alpha = " with alpha" if info.has_alpha else ""
    table.add_row("picture", f"{info.width}x{info.height} {channels}{alpha}")
    table.add_row("rate", f"{info.rate:g}, tune {info.tune}")
    table.add_row("model", info.model)
    if info.ready is not None:
        table.add_row("ready update", info.ready)
    table.add_row("format", f"version {info.version}, {tiles}")
    table.add_row("size", f"{info.total_bytes:,} bytes, {_bpp(info):.3f} bits per pixel")
    for name, length in info.sections:
        table.add_row(f"  {name}", f"{length:,} bytes")
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(shown(source), "bold"))
    console.print(table)


def _bpp(info: StreamInfo) -> float:
    return 8 * info.total_bytes / (info.width * info.height)


def model_json(model: ModelInfo) -> str:
    """Return a model of the store as a line of JSON."""
    return _as_json(asdict(model))


def print_model(model: ModelInfo) -> None:
    """Print a model of the store and what each rate measured when it was published."""
    table = Table(box=None, pad_edge=False)
    for name in ("tune", "rate", "lmbda", "Kodak bpp", "Kodak dB", "MS-SSIM", "bytes"):
        table.add_column(name, justify="left" if name == "tune" else "right")
    for rate in model.rates:
        bpp = "" if rate.kodak_bpp is None else f"{rate.kodak_bpp:.3f}"
        psnr = "" if rate.kodak_psnr_db is None else f"{rate.kodak_psnr_db:.2f}"
        likeness = "" if rate.kodak_ms_ssim is None else f"{rate.kodak_ms_ssim:.4f}"
        lmbda = "" if rate.lmbda is None else f"{rate.lmbda:g}"
        size = f"{rate.file_bytes:,}" if rate.sha256 else "base"
        table.add_row(rate.tune, f"{rate.rate:g}", lmbda, bpp, psnr, likeness, size)
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(model.name, "bold"))
    console.print(f"{model.parameters:,} weights in {model.file_bytes:,} bytes")
    console.print(f"sha256 {model.sha256}")
    console.print(table)
