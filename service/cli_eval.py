"""`rankpress eval` and `rankpress bench`: how good and how fast it is, beside what others use.

Kept apart from cli.py, which registers them, because they need the `eval` extra.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from service.eval.pictures import Named
    from service.eval.rows import Row

Device = Literal["auto", "cpu", "cuda"]
StoreOption = Annotated[Path | None, typer.Option(help="Folder of models, if not the built-in.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the networks run.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores.")]
RecordOption = Annotated[
    Path | None, typer.Option(help="Also write the results here, for README tables.")
]


def register(app: typer.Typer) -> None:
    """Add the two commands to an app."""
    app.command("eval")(evaluate)
    app.command("bench")(bench)


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to compress.")],
    out: Annotated[Path, typer.Option(help="Folder for images.csv, summary.json and figures.")],
    rates: Annotated[str, typer.Option(help="Ours: 4, or 1-8, or 2,4,6.5.")] = "4",
    against: Annotated[
        str, typer.Option(help="Families or names of peers, by commas; empty for none.")
    ] = "jpeg,webp,avif,jxl",
    anchor: Annotated[
        str | None, typer.Option(help="Of BD-rate; else VTM over Kodak, AVIF elsewhere.")
    ] = None,
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Also SSIMULACRA 2, a second for each file.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the peers again too, not only ours.")
    ] = False,
    record: RecordOption = None,
    store: StoreOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure rate and quality over a folder against other codecs, from whole files.

    What OUT/images.csv holds of the peers, for the same pixels and settings, is not measured again.
    """
    from service.engine.engine import open_engine
    from service.eval import run
    from service.eval.machine import this_machine
    from service.eval.peers import choose
    from service.eval.pictures import read_folder
    from service.eval.rows import read_rows, write_rows

    peers = choose([name for name in against.split(",") if name])
    plan = run.Plan(run.parse_rates(rates), peers, perceptual)
    pictures = read_folder(folder)
    codec = open_engine(store=store, device=device, check=False, threads=threads)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "images.csv"
    known = read_rows(table) if table.is_file() and not fresh else ()
    machine = this_machine(device)
    rows = _followed(len(pictures) * plan.files, table, known, lambda done: run.evaluate(
        pictures, codec, plan, known, done))  # fmt: skip
    write_rows(table, rows)
    text = run.to_json(run.summarise(rows, codec, machine, anchor))
    (out / "summary.json").write_text(text)
    if record is not None:
        _write(record, text)
    _draw(rows, out, folder.name)
    _make_sheet(pictures, codec, plan.rates, out)
    _print_results(json.loads(text))


def bench(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Pictures; else made from a seed.")
    ] = None,
    rate: Annotated[float, typer.Option(min=1, max=8, help="Of the ladder.")] = 4.0,
    large: Annotated[bool, typer.Option("--large", help="Also 8660x5774 pixels.")] = False,
    service: Annotated[
        bool, typer.Option("--service", help="Also throughput of a server over loopback.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory, in fresh processes.")
    ] = True,
    record: RecordOption = None,
    store: StoreOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure times and memory beside AVIF and WebP; a table, then one line of JSON."""
    from service.eval import bench as benchmark
    from service.eval.report import bench_tables
    from service.eval.run import to_json

    wanted = benchmark.Wanted(rate, device, threads, store, large, service, memory)
    result = json.loads(to_json(benchmark.bench(wanted, folder, _say)))
    typer.echo("\n\n".join(bench_tables(result).values()))
    if record is not None:
        _write(record, to_json(result))
    typer.echo(json.dumps(result))


def _write(path: Path, text: str) -> None:
    """Write a text file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _say(text: str) -> None:
    """Tell a person what goes on, on standard error."""
    typer.echo(text, err=True)


def _followed(
    files: int,
    table: Path,
    known: Sequence[Row],
    work: Callable[[Callable[[Row], None]], tuple[Row, ...]],
) -> tuple[Row, ...]:
    """Do the work under a progress bar; the rows so far are kept on disk, picture by picture."""
    from rich.console import Console
    from rich.progress import Progress

    from service.eval.rows import write_rows

    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=files)

        def done(row: Row) -> None:
            if rows and rows[-1].image != row.image:
                finished = {r.key for r in rows}
                write_rows(table, [*rows, *(r for r in known if r.key not in finished)])
            rows.append(row)
            progress.advance(task)

        return work(done)


def _draw(rows: Sequence[Row], out: Path, name: str) -> None:
    """Write a figure for each metric that was measured."""
    from service.eval import curves, plots

    measured = curves.average(rows)
    images = dict.fromkeys(r.image for r in rows)
    references = curves.published() if curves.is_kodak(images) else ()
    for metric in curves.METRICS:
        shown = [c for c in (*measured, *references) if c.has(metric)]
        if any(c.source is None for c in shown):
            title = f"{name}: mean of {len(images)} pictures"
            plots.draw(shown, metric, title, out / f"rd-{metric.replace('_', '-')}.png")


def _make_sheet(pictures: Sequence[Named], codec: Any, rates: Sequence[float], out: Path) -> None:
    """Write the contact sheet at the lowest rate, where differences are seen."""
    from service.eval import sheet

    _say("contact sheet")
    image = sheet.make(sheet.choose(pictures), codec, min(rates))
    image.save(out / "crops.png", optimize=True)


def _print_results(summary: dict[str, Any]) -> None:
    from service.eval.report import eval_table

    typer.echo(eval_table(summary))
