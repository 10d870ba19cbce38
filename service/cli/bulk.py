"""`rankpress bulk`: a folder or bucket in, a folder or bucket out; it needs the `bulk` extra."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import typer
from rich import progress as bars
from rich.text import Text

from service.cli import options
from service.cli.options import require_extra, settings_of
from service.cli.output import as_json, errors_console, print_error, printable
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.bulk.manifest import ManifestSums
    from service.bulk.options import Options
    from service.bulk.run import BulkRun
    from service.bulk.runner import Runner
    from service.bulk.shards import ShardOutcome, Totals
    from service.settings import Settings

PLAIN_S: Final = 10.0
"""Seconds between two lines about progress where standard error is no terminal."""

UNLISTED: Final = "folders that cannot be listed"
"""The kind of entries of a source because of which a run fails, as walk_in_order names it."""

MOST_FAILURES: Final = 20
"""Failures that are printed; all of them are in the reports."""

RunnerName = Literal["local", "ray"]
FormatName = Literal["png", "webp", "jpeg", "avif"]


def bulk(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, or s3://, gs://, az://")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Folder, or s3://, gs://, az://")],
    rate: options.RateOrLossless = None,
    target_bpp: options.TargetBpp = None,
    max_bytes: options.MaxBytes = None,
    target_psnr: options.TargetPsnr = None,
    tune: options.Tune = "psnr",
    metadata: options.Metadata = "icc",
    frame: options.Frame = None,
    keep_smaller: Annotated[
        bool, typer.Option("--keep-smaller", help="Copy originals that no stream is smaller than.")
    ] = False,
    effort: Annotated[
        int | None, typer.Option(min=0, max=4, help="Adapt each stream to its picture.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop each adaptation after about this time.")
    ] = None,
    decompress: Annotated[
        bool, typer.Option("--decompress", help="Turn streams back into pictures.")
    ] = False,
    format: Annotated[
        FormatName | None, typer.Option(help="Of the pictures.", show_default="png")
    ] = None,
    quality: options.Quality = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate from a random sample; write nothing.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Pictures of a dry run.")] = 100,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do the failed rows of finished shards again.")
    ] = False,
    overwrite: options.Overwrite = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one for each core, or GPU.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    runner: Annotated[
        RunnerName, typer.Option(help="Processes of this machine, or workers of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, HOST:PORT or auto; else one starts here.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each Ray worker, such as 0.5.")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of a shard.")] = 32,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without progress after which a picture fails.")
    ] = 1800.0,
    store: options.Store = None,
    model: options.Model = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Compress all pictures of a folder or bucket, or decompress all streams.

    The same command continues a run that was cut.
    """
    settings = settings_of(store=store, model=model, device=device, threads=threads)
    compressing = {
        "rate": rate,
        "target_bpp": target_bpp,
        "max_bytes": max_bytes,
        "target_psnr": target_psnr,
        "keep_smaller": keep_smaller or None,
        "effort": effort,
        "max_seconds": max_seconds,
        "frame": frame,
        "tune": None if tune == "psnr" else tune,
        "metadata": None if metadata == "icc" else metadata,
    }
    decompressing = {"format": format, "quality": quality}
    with require_extra("bulk runs need", "bulk"):
        import obstore  # noqa: F401

        import service.bulk.runner  # noqa: F401
        from service.bulk.options import compression_by, decompression
    asked: Options
    if decompress:
        _refuse(compressing, "decompressing")
        asked = decompression(decompressing)
    else:
        _refuse(decompressing, "compressing")
        asked = compression_by(settings, compressing)
    if dry_run and address is not None:
        raise BadParameter("--dry-run works on this machine, expected no --address with it")
    if address is not None and workers is None:
        raise BadParameter("--address needs --workers, as the cluster may have room for more")
    count = workers or _default_workers(settings)
    with _interrupted_by_sigterm(), _Display(json) as display:
        chosen = _runner(runner, display, count, threads, address, gpus_per_worker)
        if dry_run:
            _try(display, source, asked, settings, chosen, count, sample, timeout)
            return
        from service.bulk.run import BulkRun

        run = BulkRun(
            source,
            dest,
            asked,
            settings,
            shard_rows=shard_rows,
            timeout_s=timeout,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        _do(display, run, chosen)


def _runner(
    name: RunnerName,
    display: _Display,
    workers: int,
    threads: int,
    address: str | None,
    gpus_per_worker: float | None,
) -> Runner:
    """Return the runner of a name."""
    if name == "local":
        from service.bulk.runner import LocalRunner

        ray_only = {"address": address, "gpus_per_worker": gpus_per_worker}
        _refuse(ray_only, "--runner is local")
        return LocalRunner(workers, display.set_in_progress)
    with require_extra("--runner ray needs", "ray"):
        from service.bulk.ray_runner import RayRunner
    return RayRunner(
        workers,
        display.set_in_progress,
        address=address,
        threads=threads,
        gpus_per_worker=gpus_per_worker or 0.0,
    )


def _try(
    display: _Display,
    source: str,
    asked: Options,
    settings: Settings,
    runner: Runner,
    workers: int,
    sample: int,
    timeout_s: float,
) -> None:
    """Try a run on a sample and print what it tells of the whole."""
    from service.bulk.manifest import ManifestSums
    from service.bulk.progress import estimate_lines
    from service.bulk.trial import try_run

    def show(size: int, outcome: ShardOutcome) -> None:
        display.listed = lambda: ManifestSums(rows=size, complete=True)
        display.add(outcome)

    estimate = try_run(
        source, asked, settings, runner, workers, sample, timeout_s=timeout_s, on_outcome=show
    )
    display.close()
    if display.json:
        typer.echo(as_json(asdict(estimate)))
    else:
        display.print(*estimate_lines(estimate, workers))


def _do(display: _Display, run: BulkRun, runner: Runner) -> None:
    """Do a run and print its summary; exit with 1 if something failed."""
    from service.bulk.progress import summary_lines

    display.listed = lambda: run.listed
    try:
        for outcome in run.outcomes(runner):
            display.add(outcome)
    except BaseException:
        if run.listed.rows:
            display.print("what is done stays: the same command continues the run")
        raise
    display.close()
    totals, skipped = display.progress.done, run.listed.skipped or {}
    if display.json:
        pictures_per_s, bytes_per_s = display.progress.speed()
        seconds = display.progress.seconds
        speed = {"seconds": seconds, "pictures_per_s": pictures_per_s, "bytes_per_s": bytes_per_s}
        values = {"source": run.work.source, "dest": run.work.dest, **asdict(totals)}
        earlier = {"rows_earlier": display.progress.earlier.rows, "skipped": skipped}
        typer.echo(as_json(values | earlier | speed))
    else:
        display.print(*summary_lines(display.progress, skipped, run.work.dest))
    if totals.failed or skipped.get(UNLISTED):
        raise typer.Exit(1)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the workers and the command as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(given: Mapping[str, object], where: str) -> None:
    """Raise BadParameter if an option was given that has no effect."""
    names = ["--" + name.replace("_", "-") for name, value in given.items() if value is not None]
    if names:
        raise BadParameter(f"{' and '.join(names)} would have no effect when {where}")


def _default_workers(settings: Settings) -> int:
    """Return one for a GPU, else as many as the cores allow."""
    if find_spec("torch") is not None:
        from service.transforms.synthesis_torch import pick_device

        if pick_device(settings.device).type == "cuda":
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // settings.threads)


class _Display:
    """Progress on standard error: a bar on a terminal, and else a line now and then.

    Attributes:
        progress: that it shows. json: whether the summary is for a program.
        listed: gives the sums over what is to be done, as far as they are known.
    """

    listed: Callable[[], ManifestSums]

    def __init__(self, json: bool) -> None:
        from service.bulk.manifest import ManifestSums
        from service.bulk.progress import RunProgress

        self.listed = ManifestSums
        self.progress, self.json = RunProgress(), json
        self._console = errors_console()
        self._failures = 0
        self._printed_s = monotonic()
        self._bars = bars.Progress(
            bars.BarColumn(bar_width=20),
            bars.TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar = self._bars.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        self._bars.stop()

    def print(self, *lines: str) -> None:
        """Print lines above the bar."""
        for line in lines:
            self._console.print(Text(printable(line)))

    def add(self, outcome: ShardOutcome) -> None:
        """Count a shard that has ended, and print its failures."""
        self.progress.add(outcome)
        for source, error in outcome.failures:
            self._failures += 1
            if self._failures <= MOST_FAILURES:
                print_error(self._console, f"{source}: {error}")
            elif self._failures == MOST_FAILURES + 1:
                self.print("further failures are in the reports only")

    def set_in_progress(self, totals: Totals) -> None:
        """Draw the progress, with totals over the rows that are done in unfinished shards."""
        progress, listed = self.progress, self.listed()
        progress.total, progress.complete = listed.rows, listed.complete
        progress.in_progress = totals
        now, known = progress.done.rows + totals.rows, progress.total if progress.complete else None
        lines = [text for text in (progress.line(), progress.details()) if text]
        self._bars.update(self._bar, completed=now, total=known, description="\n".join(lines))
        if not self._console.is_terminal and monotonic() - self._printed_s >= PLAIN_S:
            self._printed_s = monotonic()
            self.print(", ".join(lines))
