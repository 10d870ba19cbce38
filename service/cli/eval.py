"""`rankpress eval` and `rankpress bench`: how good and how fast it is, beside what others use.

Kept apart from cli/main.py, which registers them, because they need the `eval` extra.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from service.cli.options import CompileOption, Device, DeviceOption, StoreOption, ThreadsOption
from service.cli.settings import settings_of
from service.cli.train_backbone import prepare
from service.errors import BadParameter
from service.files import check_target, write_whole

if TYPE_CHECKING:
    from service.eval.pictures import Named
    from service.eval.rows import Row
    from service.eval.run import Plan
    from service.settings import Settings



def _checked(record: Path | None) -> Path | None:
    """Refuse a file that could not be written before it is worked for."""
    if record is not None:
        check_target(record, overwrite=True)
    return record


RecordOption = Annotated[
    Path | None,
    typer.Option(callback=_checked, help="Also write the results here, for README tables."),
]


BENCH_HELP = "Measure the codec, jobs or training: times and memory. Without a name: the codec."


class _CodecFirst(TyperGroup):
    """`rankpress bench` and `rankpress bench DIR` mean `rankpress bench codec ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name in where none was given."""
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["codec", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command("eval")(evaluate)
    group = typer.Typer(cls=_CodecFirst, no_args_is_help=False, help=BENCH_HELP)
    group.command("codec")(bench)
    group.command("jobs")(bench_jobs)
    group.command("train")(bench_train)
    app.add_typer(group, name="bench")


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to compress.")],
    out: Annotated[Path, typer.Option(help="Folder for images.csv, summary.json and figures.")],
    rates: Annotated[str, typer.Option(help="Ours: 4, or 1-8, or 2,4,6.5.")] = "4",
    tunes: Annotated[
        str, typer.Option(help="Our ladders: psnr, or psnr,ms-ssim.")
    ] = "psnr",
    against: Annotated[
        str, typer.Option(help="Families or names of peers, by commas; empty for none.")
    ] = "jpeg,webp,avif,jxl",
    anchor: Annotated[
        str | None, typer.Option(help="Of BD-rate; else VTM over Kodak, AVIF elsewhere.")
    ] = None,
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Also SSIMULACRA 2, a second for each file.")
    ] = False,
    adapt: Annotated[
        str | None,
        typer.Option(metavar="0,1", help="Instead: what adapting with these efforts gains."),
    ] = None,
    latents: Annotated[
        bool,
        typer.Option("--latents/--no-latents", help="With --adapt: also adapt latents alone."),
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the peers again too, not only ours.")
    ] = False,
    record: RecordOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure rate and quality over a folder against other codecs, from whole files.

    What OUT/images.csv holds of the peers, for the same pixels and settings, is not measured again.
    """
    settings = settings_of(store=store, device=device, threads=threads, check=False)
    if adapt is not None:
        _measure_adaptation(folder, out, rates, adapt, latents, settings, record)
        return
    from service.cli.opening import open_codec
    from service.eval import run
    from service.eval.machine import this_machine
    from service.eval.peers import choose
    from service.eval.pictures import read_folder
    from service.eval.rows import read_rows, write_rows

    peers = choose([name for name in against.split(",") if name])
    plan = run.Plan(run.parse_rates(rates), peers, perceptual, run.parse_tunes(tunes))
    pictures = read_folder(folder)
    codec = open_codec(settings)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "images.csv"
    known = read_rows(table) if table.is_file() and not fresh else ()
    machine = this_machine(settings.device)
    rows = _followed(len(pictures) * plan.files, table, known, lambda done: run.evaluate(
        pictures, codec, plan, known, done))  # fmt: skip
    write_rows(table, rows)
    text = run.to_json(run.summarise(rows, codec, machine, anchor))
    write_whole(out / "summary.json", text.encode())
    if record is not None:
        write_whole(record, text.encode())
    _draw(rows, out, folder.name)
    _make_sheets(pictures, codec, plan, out)
    _print_results(json.loads(text))


def _measure_adaptation(
    folder: Path,
    out: Path,
    rates: str,
    efforts: str,
    latents: bool,
    settings: Settings,
    record: Path | None,
) -> None:
    """Adapt to every picture; OUT/adapted.csv keeps the rows, and a run goes on from them.

    What it holds of other efforts is told too.
    """
    from service.engine.opening import open_engine
    from service.eval import adapted
    from service.eval.machine import this_machine
    from service.eval.pictures import read_folder
    from service.eval.report import adaptation_table
    from service.eval.run import parse_rates, to_json

    kinds = (adapted.BOTH, adapted.LATENTS) if latents else (adapted.BOTH,)
    plan = adapted.Plan(parse_rates(rates), adapted.parse_efforts(efforts), kinds)
    pictures = read_folder(folder)
    engine = open_engine(settings)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "adapted.csv"
    known = adapted.read_rows(table) if table.is_file() else ()
    rows = list(known)

    def done(row: adapted.Row) -> None:
        if row not in known:
            rows.append(row)
            adapted.write_rows(table, rows)
        change = f"{row.bytes} of {row.plain_bytes} bytes"
        change += f", {row.psnr_db - row.plain_psnr_db:+.2f} dB, {row.seconds:.0f} s"
        _say(f"{row.image} rate {row.rate:g} effort {row.effort} {row.kind}: {change}")

    made = adapted.measure(pictures, engine, plan, known, done)
    text = to_json(adapted.summarise(made, engine, this_machine(settings.device)))
    write_whole(out / "adapted.json", text.encode())
    if record is not None:
        write_whole(record, text.encode())
    typer.echo(adaptation_table(json.loads(text)))


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
    rates: Annotated[
        bool, typer.Option("--rates", help="Nothing but what a change of rate costs.")
    ] = False,
    decoder: Annotated[
        bool, typer.Option("--decoder", help="The light decoder alone; with DIR, its pixels.")
    ] = False,
    record: RecordOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure times and memory beside AVIF and WebP; a table, then one line of JSON."""
    s = _bench_settings(store, device, threads)
    if decoder:
        _bench_decoder(folder, rate, s.store, s.threads, record)
        return
    from service.bench import bench as benchmark
    from service.bench.report import bench_tables
    from service.eval.run import to_json

    wanted = benchmark.Wanted(rate, s.device, s.threads, s.store, large, service, memory, rates)
    result = json.loads(to_json(benchmark.bench(wanted, folder, _say)))
    typer.echo("\n\n".join(bench_tables(result).values()))
    if record is not None:
        write_whole(record, to_json(result).encode())
    typer.echo(json.dumps(result))


def _bench_settings(store: Path | None, device: Device | None, threads: int | None) -> Settings:
    """The settings of a measurement. Raises BadParameter: they name a model of their own."""
    settings = settings_of(store=store, device=device, threads=threads)
    if settings.model is not None or settings.zoo is not None:
        raise BadParameter(
            "RANKPRESS_MODEL or RANKPRESS_ZOO is set, but bench measures the model that the store "
            "itself names: set RANKPRESS_STORE or --store instead"
        )
    return settings


def _bench_decoder(
    folder: Path | None, rate: float, store: Path | None, threads: int, record: Path | None
) -> None:
    """Measure the light decoder, or compare its pixels over a folder with torch's."""
    from service.bench import decoder as benchmark
    from service.bench.report import agreement_table, decoder_table
    from service.eval.run import to_json

    if folder is None:
        found = benchmark.measure(benchmark.Wanted(rate, threads, store), _say)
        typer.echo(decoder_table(found))
    else:
        found = benchmark.compare(folder, store, _say)
        typer.echo(agreement_table(found))
    if record is not None:
        write_whole(record, to_json(found).encode())
    typer.echo(json.dumps(found))


def bench_jobs(
    rate: Annotated[float, typer.Option(min=1, max=8, help="Of the ladder.")] = 4.0,
    record: RecordOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure what a job costs the requests beside it; a table, then one line of JSON."""
    from service.bench.beside import beside_a_job
    from service.bench.report import jobs_table
    from service.eval.run import to_json

    s = _bench_settings(store, device, threads)
    text = to_json(beside_a_job(rate, s.device, s.threads, s.store, _say))
    result = json.loads(text)
    typer.echo(jobs_table(result))
    if record is not None:
        write_whole(record, text.encode())
    typer.echo(json.dumps(result))


def bench_train(
    size: Annotated[
        str, typer.Option(metavar="NAME", help="light, base, or a JSON file of sizes.")
    ] = "light",
    batch: Annotated[int | None, typer.Option(min=1, help="Crops a step; 8, on CUDA 64.")] = None,
    groups: Annotated[int, typer.Option(min=1, max=8, help="Rates in each step.")] = 8,
    crop: Annotated[int, typer.Option(min=64, help="Side of the crops in pixels.")] = 192,
    compiled: CompileOption = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="To time steps for.")] = 15.0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    record: RecordOption = None,
) -> None:
    """Measure pixels per second of training steps, and what bounds them; a line, then JSON."""
    from dataclasses import asdict, replace

    import torch

    from service.bench import training
    from service.eval.machine import this_machine
    from service.train.recipe import recipe_for, sizes_named

    where, mode = prepare(threads, device, compiled)
    machine = this_machine(where.type)
    shipped = recipe_for(Path("no run"), where, batch=batch, groups=groups)
    recipe = replace(shipped, crop=crop)
    found = training.measure(sizes_named(size), recipe, where, mode, seconds)
    result = {
        "what": "bench train", "size": size, "batch": recipe.batch, "groups": recipe.groups,
        "crop": crop, "compiled": mode,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": asdict(machine), **asdict(found),
    }  # fmt: skip
    typer.echo(training.told(found))
    if record is not None:
        write_whole(record, (json.dumps(result, indent=2) + "\n").encode())
    typer.echo(json.dumps(result))


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


def _make_sheets(pictures: Sequence[Named], codec: Any, plan: Plan, out: Path) -> None:
    """Write the contact sheets at the lowest rate, where differences are seen."""
    from service.eval import sheet

    _say("contact sheet")
    chosen, lowest = sheet.choose(pictures), min(plan.rates)
    sheet.make(chosen, codec, lowest).save(out / "crops.png", optimize=True)
    if len(plan.tunes) > 1:
        image = sheet.between_tunes(chosen, codec, lowest)
        image.save(out / "crops-tunes.png", optimize=True)


def _print_results(summary: dict[str, Any]) -> None:
    from service.eval.report import eval_table

    typer.echo(eval_table(summary))
