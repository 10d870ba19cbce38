"""`rankpress worker` and `rankpress jobs`, for adaptation jobs; they need the `server` extra."""

from __future__ import annotations

import importlib.util
import json as json_text
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli import options
from service.cli.options import require_extra, settings_of
from service.cli.process import logged_failure
from service.errors import MissingExtra

if TYPE_CHECKING:
    from rich.table import Table

    from service.jobs.job import Job, JobSpec
    from service.jobs.jobs import Jobs

StateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]
StateOption = Annotated[
    Path | None, typer.Option(help="Folder of the jobs; default: one of the user.")
]

jobs_app = typer.Typer(no_args_is_help=True, help="List, show, cancel and rescue jobs.")


def worker(
    store: options.Store = None,
    device: options.Device = None,
    state: StateOption = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0: all cores.")] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run adaptation jobs until stopped; any number of workers may share a database."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("a worker needs torch: pip install 'rankpress[server]'")
    with logged_failure("worker failed", log_format=None) as details:
        settings = settings_of(store=store, device=device, state=state, job_threads=threads)
        with require_extra("jobs need", "server"):
            from service.engine.opening import open_engine
            from service.jobs.database import place_of
            from service.jobs.worker import run_worker
            from service.logs import configure_logs
        configure_logs(settings.log_format, settings.log_level)
        details |= {"database": place_of(settings), "objects": settings.objects_place}

        job_settings = settings.model_copy(
            update={"threads": settings.job_threads, "decode_only": False}
        )
        run_worker(lambda: open_engine(job_settings), settings, parent)


@jobs_app.command("list")
def list_jobs(
    status: Annotated[StateName | None, typer.Option(help="Only jobs of this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 50,
    state: StateOption = None,
    json: options.Json = False,
) -> None:
    """List jobs, the newest first."""
    with _open_jobs(state) as jobs:
        recent = jobs.table.recent((status,) if status else (), limit)
    if json:
        for job in recent:
            typer.echo(_json(job))
    else:
        _print(_table(recent))


@jobs_app.command()
def show(
    job_id: Annotated[str, typer.Argument(metavar="JOB")],
    state: StateOption = None,
    json: options.Json = False,
) -> None:
    """Show all details of a job."""
    with _open_jobs(state) as jobs:
        job = jobs.table.get(job_id)
    if json:
        typer.echo(_json(job))
    else:
        _print(_details(job))


@jobs_app.command()
def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB...")], state: StateOption = None
) -> None:
    """Stop jobs. Their best streams so far are kept."""
    with _open_jobs(state) as jobs:
        for job_id in job_ids:
            jobs.cancel(job_id)
            typer.echo(f"{job_id} cancelled")


@jobs_app.command()
def rescue(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB...]", show_default=False)
    ] = None,
    state: StateOption = None,
) -> None:
    """Queue jobs again: the given ones, else those of workers that died.

    Workers rescue the jobs of a worker that died a minute ago by themselves. A given job is taken
    from its worker, or continues after it was cancelled or failed.
    """
    with _open_jobs(state) as jobs:
        rescued = jobs.rescue(job_ids or ())
    for job_id in rescued:
        typer.echo(f"{job_id} queued again")
    if not rescued:
        typer.echo("nothing to rescue", err=True)


@contextmanager
def _open_jobs(state: Path | None) -> Iterator[Jobs]:
    with require_extra("jobs need", "server"):
        from service.jobs import database
        from service.jobs.jobs import open_jobs
    settings = settings_of(state=state)
    with closing(open_jobs(settings, database.prepare(settings))) as jobs:
        yield jobs


def _json(job: Job) -> str:
    """Return a job as a line of JSON; an infinite PSNR becomes null."""
    record = job.record and job.record.to_json()
    values: dict[str, Any] = asdict(job) | {"record": record, "notes": job.notes}
    return json_text.dumps(values)


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(table)


def _table(jobs: list[Job]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("job", no_wrap=True)
    table.add_column("status")
    for name in ("rate", "effort", "priority", "step", "bpp", "plain bpp", "dB", "plain dB", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("submitted", no_wrap=True)
    for job in jobs:
        cells = [_level(job.spec), str(job.spec.effort), str(job.priority), *[""] * 6]
        if job.record is not None:
            p = job.record.progress
            cells[3:] = [f"{p.step}/{p.total}", f"{p.bpp:.3f}", f"{p.first_bpp:.3f}"]
            cells += [f"{p.psnr_db:.2f}", f"{p.first_psnr_db:.2f}", f"{job.record.seconds:.0f}"]
        table.add_row(job.id, job.state, *cells, _date(job.created_s))
    return table


def _details(job: Job) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    spec = job.spec
    frame = "" if spec.frame is None else f", frame or page {spec.frame}"
    rows = {
        "job": job.id,
        "status": job.state,
        "picture": f"{spec.width}x{spec.height}, sha256 {spec.image}",
        "source": f"{spec.image_bytes:,} bytes{frame}",
        "options": f"{_method(spec)}, effort {spec.effort}, priority {job.priority}",
        "submitted": _date(job.created_s),
        "worker": f"{job.worker or 'none yet'}, started {job.attempts} times",
    }
    if job.record is not None:
        p = job.record.progress
        gain = 100 * (p.bytes / p.first_bytes - 1)
        rows |= {
            "progress": f"{p.phase}, step {p.step} of {p.total}, {job.record.seconds:.1f} s",
            "size": f"{p.bytes:,} bytes, {p.bpp:.4f} bpp ({gain:+.1f} %)",
            "plain size": f"{p.first_bytes:,} bytes, {p.first_bpp:.4f} bpp",
            "quality": f"{_db(p.psnr_db)}, plain {_db(p.first_psnr_db)}",
        }
    if job.waiting_since_s is not None:
        rows["waiting"] = f"for storage, since {_date(job.waiting_since_s)}"
    if job.ended_s is not None and job.expires_s is not None:
        rows |= {"ended": _date(job.ended_s), "kept until": _date(job.expires_s)}
    if job.notes:
        rows["notes"] = "; ".join(job.notes)
    if job.error is not None:
        rows["error"] = job.error
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _level(spec: JobSpec) -> str:
    """Return the rate, or the quality with the method."""
    return f"{spec.level:g}" if spec.method == "model" else f"{spec.method} {spec.level:g}"


def _method(spec: JobSpec) -> str:
    if spec.method == "model":
        return f"rate {spec.level:g}"
    return f"method {spec.method}, quality {spec.level:g}, autoencoder {spec.autoencoder}"


def _db(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.2f} dB"


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
