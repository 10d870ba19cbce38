"""How `rankpress adapt` runs one adaptation and shows what it gains while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.batch import Made
from service.cli.output import errors_console

if TYPE_CHECKING:
    from service.adapt.types import Adaptation, AdaptProgress
    from service.picture import Picture

GLANCE_S: Final = 1.0
"""Seconds of optimisation between two looks."""


def run_adaptation(adaptation: Adaptation, picture: Picture, rate: float, quiet: bool) -> Made:
    """Run to the end, with a line on standard error that says where it is.

    Args:
        adaptation: just begun. picture: that it adapts to. rate: of it. quiet: show no line.
    """
    console = errors_console()
    shown = [TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn()]
    with Progress(
        *shown,
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        bar = progress.add_task("", total=max(1, adaptation.progress.total))
        while not adaptation.done:
            now = adaptation.advance(GLANCE_S)
            progress.update(bar, completed=now.step, description=line_of(now))
    end = adaptation.progress
    size = picture.width, picture.height
    notes = (*picture.notes, gain_of(end))
    return Made(adaptation.best(), *size, rate, end.bpp, end.psnr_db, notes, True)


def line_of(now: AdaptProgress) -> str:
    """Where an adaptation is: phase, step, and the best stream so far."""
    return f"{now.phase} {now.step}/{now.total}: {now.bpp:.3f} bpp, {gain_of(now)}"


def gain_of(now: AdaptProgress) -> str:
    """What the best stream so far is, beside the plain one."""
    bytes_percent = 100 * (now.bytes / now.first_bytes - 1)
    change_db = now.psnr_db - now.first_psnr_db
    return f"{now.psnr_db:.2f} dB ({bytes_percent:+.1f} % bytes, {change_db:+.2f} dB)"
