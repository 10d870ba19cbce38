"""`rankpress eval` and its relatives, which need the `eval` extra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import options
from service.cli.options import open_codec, settings_of, write_results
from service.cli.process import say

if TYPE_CHECKING:
    from service.engine.types import Codec
    from service.eval.adaptation import AdaptationMeasurement
    from service.eval.evaluation import EvaluationPlan
    from service.eval.measurements import Measurement
    from service.eval.pictures import NamedPicture

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to compress.")]
RatesOption = Annotated[str, typer.Option(help="Our rates: 4, or 1-8, or 2,4,6.5.")]


def evaluate(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="Folder for images.csv, summary.json and figures.")],
    rates: RatesOption = "4",
    tunes: Annotated[str, typer.Option(help="Our tunes: psnr, or psnr,ms-ssim.")] = "psnr",
    against: Annotated[
        str, typer.Option(help="Families or names of peers, by commas; empty for none.")
    ] = "jpeg,webp,avif,jxl",
    anchor: Annotated[
        str | None, typer.Option(help="Anchor of BD-rates; else VTM over Kodak, AVIF elsewhere.")
    ] = None,
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Also SSIMULACRA 2, a second for each file.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the peers again too, not only our codec.")
    ] = False,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure rate and quality over a folder against other codecs, from whole files.

    Our streams have no graphics layer here, because exact pixels have no PSNR to average: see
    `rankpress bench graphics`. Measurements of the peers in OUT/images.csv, for the same pixels and
    settings, are used again.
    """
    from service.eval import evaluation
    from service.eval.machine import this_machine
    from service.eval.measurements import Measurement, read_rows, write_rows
    from service.eval.peer_codecs import choose_peers
    from service.eval.pictures import read_folder
    from service.eval.report import eval_table

    settings = settings_of(store=store, device=device, threads=threads, check=False, graphics=False)
    peers = choose_peers([name for name in against.split(",") if name])
    plan = evaluation.EvaluationPlan(
        evaluation.parse_rates(rates), peers, perceptual, evaluation.parse_tunes(tunes)
    )
    pictures = read_folder(folder)
    codec = open_codec(settings)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "images.csv"
    known = read_rows(table, Measurement) if table.is_file() and not fresh else ()
    machine = this_machine(settings.device)

    rows = _evaluate_with_progress(pictures, codec, plan, known, table)
    write_rows(table, Measurement, rows)
    summary = evaluation.summarise(rows, codec, machine, anchor)
    rounded = write_results(summary, out / "summary.json", record)
    _draw_figures(rows, out, folder.name)
    _draw_sheets(pictures, codec, plan, out)
    typer.echo(eval_table(rounded))


def evaluate_adaptation(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="Folder for adapted.csv and adapted.json.")],
    efforts: Annotated[str, typer.Option(help="Efforts, 0 to 4: 2, or 1,2,4.")] = "2",
    rates: RatesOption = "4",
    latents: Annotated[
        bool, typer.Option("--latents/--no-latents", help="Also adapt the latents alone.")
    ] = True,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure what adapting to each picture of a folder gains over the same codec without it.

    OUT/adapted.csv keeps all measurements, so an interrupted run continues. Those of other efforts
    in it are reported too. Streams have no graphics layer here, as in `rankpress eval`.
    """
    from service.engine.opening import open_engine
    from service.eval import adaptation
    from service.eval.adaptation import AdaptationMeasurement
    from service.eval.evaluation import parse_rates
    from service.eval.machine import this_machine
    from service.eval.measurements import read_rows, write_rows
    from service.eval.pictures import read_folder
    from service.eval.report import adaptation_table

    settings = settings_of(store=store, device=device, threads=threads, check=False, graphics=False)
    kinds = (adaptation.BOTH, adaptation.LATENTS) if latents else (adaptation.BOTH,)
    plan = adaptation.AdaptationEvaluation(
        parse_rates(rates), adaptation.parse_efforts(efforts), kinds
    )
    pictures = read_folder(folder)
    engine = open_engine(settings)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "adapted.csv"
    known = read_rows(table, AdaptationMeasurement) if table.is_file() else ()
    rows = list(known)

    def keep(row: AdaptationMeasurement) -> None:
        if row not in known:
            rows.append(row)
            write_rows(table, AdaptationMeasurement, rows)
        gain = f"{row.psnr_db - row.plain_psnr_db:+.2f} dB"
        sizes = f"{row.bytes} of {row.plain_bytes} bytes"
        name = f"{row.image} rate {row.rate:g} effort {row.effort} {row.kind}"
        say(f"{name}: {sizes}, {gain}, {row.seconds:.0f} s")

    results = adaptation.measure_adaptation(pictures, engine, plan, known, keep)
    summary = adaptation.summarise_adaptation(results, engine, this_machine(settings.device))
    typer.echo(adaptation_table(write_results(summary, out / "adapted.json", record)))


def evaluate_parts(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="Folder for parts.csv and parts.json.")],
    rates: RatesOption = "1,4,8",
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure what parts of streams show: each segment, and decoding at 1/8, 1/4 and 1/2.

    Segments are compared with the originals, scales with the shrunk whole picture. Streams have no
    graphics layer here, as in `rankpress eval`.
    """
    from service.eval.evaluation import parse_rates
    from service.eval.machine import this_machine
    from service.eval.measurements import write_rows
    from service.eval.partial import PartMeasurement, measure_parts, summarise_parts
    from service.eval.pictures import read_folder
    from service.eval.report import parts_table

    settings = settings_of(store=store, device=device, threads=threads, check=False, graphics=False)
    pictures, codec = read_folder(folder), open_codec(settings)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[PartMeasurement] = []
    measure_parts(pictures, codec, parse_rates(rates), rows.append)
    write_rows(out / "parts.csv", PartMeasurement, rows)
    summary = summarise_parts(rows, codec, this_machine(settings.device))
    typer.echo(parts_table(write_results(summary, out / "parts.json", record)))


def evaluate_latent(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Pictures, by folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, figures and crops.")],
    autoencoders: Annotated[str, typer.Option(help="Names of autoencoders.")] = "kl,own",
    qualities: Annotated[str, typer.Option(help="Qualities, 1 to 8.")] = "1,2.5,4,5.5,7",
    efforts: Annotated[str, typer.Option(help="Efforts, 0 to 4.")] = "1",
    rates: RatesOption = "1,2",
    sheets: Annotated[str, typer.Option(help="Bits per pixel of sheets of crops.")] = "0.05,0.1",
    record: options.Record = None,
    store: options.Store = None,
    threads: options.Threads = None,
) -> None:
    """Compare latent streams with our lowest rates and with AVIF and WebP at their smallest.

    OUT/latent.csv and OUT/images.csv keep all measurements, so an interrupted run continues.
    """
    from service.engine.opening import open_engine
    from service.errors import BadParameter
    from service.eval import contact_sheet, latent_streams
    from service.eval.adaptation import parse_efforts
    from service.eval.evaluation import EvaluationPlan, parse_rates
    from service.eval.latent_streams import LatentMeasurement
    from service.eval.machine import this_machine
    from service.eval.measurements import Measurement, read_rows, write_rows
    from service.eval.peer_codecs import installed
    from service.eval.pictures import read_folder
    from service.eval.report import latent_tables

    settings = settings_of(store=store, device="cpu", threads=threads, check=False, graphics=False)
    names = tuple(autoencoders.split(","))
    plan = latent_streams.LatentPlan(
        names, parse_rates(qualities, "qualities"), parse_efforts(efforts)
    )
    peers = installed(latent_streams.PEERS)
    groups = {folder.name: read_folder(folder) for folder in folders}
    if len(groups) < len(folders):
        raise BadParameter("two folders have one name, expected a name for each table")
    pictures = [picture for group in groups.values() for picture in group]
    engine = open_engine(settings)
    out.mkdir(parents=True, exist_ok=True)
    machine = this_machine(settings.device)
    latent, images = out / "latent.csv", out / "images.csv"
    known = read_rows(latent, LatentMeasurement) if latent.is_file() else ()
    rows: list[LatentMeasurement] = []

    def keep(row: LatentMeasurement) -> None:
        rows.append(row)
        if row in known:
            return
        kept = {r.fit for r in rows}
        write_rows(latent, LatentMeasurement, [*rows, *(r for r in known if r.fit not in kept)])
        name = f"{row.image} {row.codec} {row.setting} effort {row.effort}"
        say(f"{name}: {row.bpp:.4f} bpp, {row.psnr_db:.2f} dB, {row.encode_ms / 1000:.0f} s")

    latent_streams.measure_latents(pictures, engine, plan, known, keep)
    known_files = read_rows(images, Measurement) if images.is_file() else ()
    files = EvaluationPlan(parse_rates(rates), peers, perceptual=True)
    others = _evaluate_with_progress(pictures, engine, files, known_files, images)
    write_rows(images, Measurement, others)
    summary = latent_streams.summarise_latents(groups, rows, others, engine, machine)
    rounded = write_results(summary, out / "latent.json", record)
    for name, group in groups.items():
        hashes = {picture.sha256 for picture in group}
        points = [r for r in rows if r.setting != latent_streams.CEILING]
        drawn = [r for r in (*points, *others) if r.sha256 in hashes]
        _draw_low_rates(drawn, out, name)
        for bpp in parse_bpp(sheets):
            chosen = contact_sheet.choose_pictures(group, 3)
            sheet = contact_sheet.draw_latent_sheet(chosen, engine, rows, bpp)
            sheet.save(out / f"crops-{name}-{bpp:g}.png", optimize=True)
    typer.echo(latent_tables(rounded))


def parse_bpp(text: str) -> tuple[float, ...]:
    """Bits per pixel that commas separate. Raises BadParameter: one is not a positive number."""
    from service.errors import BadParameter

    try:
        values = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        values = (0.0,)
    if not all(0 < value < math.inf for value in values):
        raise BadParameter(f"bits per pixel are {text!r}, expected such as 0.05,0.1")
    return values


def _draw_low_rates(rows: Sequence[Measurement], out: Path, name: str) -> None:
    """Draw a figure for each metric, from the lowest bits per pixel on."""
    from service.eval import curves, plots

    measured = curves.average(rows)
    for metric in curves.METRICS:
        path = out / f"{name}-{metric.replace('_', '-')}.png"
        shown = [c for c in measured if c.has(metric)]
        plots.draw(shown, metric, f"{name}: mean of the pictures", path, plots.LOW_SPAN)


def _evaluate_with_progress(
    pictures: Sequence[NamedPicture],
    codec: Codec,
    plan: EvaluationPlan,
    known: Sequence[Measurement],
    table: Path,
) -> tuple[Measurement, ...]:
    """Measure under a progress bar, and write the table after each picture."""
    from rich.console import Console
    from rich.progress import Progress

    from service.eval.evaluation import evaluate as evaluate_codecs
    from service.eval.measurements import Measurement, write_rows

    rows: list[Measurement] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=len(pictures) * plan.files)

        def keep(row: Measurement) -> None:
            if rows and rows[-1].image != row.image:
                keys = {r.key for r in rows}
                others = (r for r in known if r.key not in keys)
                write_rows(table, Measurement, [*rows, *others])
            rows.append(row)
            progress.advance(task)

        return evaluate_codecs(pictures, codec, plan, known, keep)


def _draw_figures(rows: Sequence[Measurement], out: Path, name: str) -> None:
    """Draw a figure for each metric that was measured."""
    from service.eval import curves, plots

    measured = curves.average(rows)
    images = dict.fromkeys(r.image for r in rows)
    references = curves.published() if curves.is_kodak(images) else ()
    for metric in curves.METRICS:
        shown = [c for c in (*measured, *references) if c.has(metric)]
        if any(c.source is None for c in shown):
            title = f"{name}: mean of {len(images)} pictures"
            plots.draw(shown, metric, title, out / f"rd-{metric.replace('_', '-')}.png")


def _draw_sheets(
    pictures: Sequence[NamedPicture], codec: Codec, plan: EvaluationPlan, out: Path
) -> None:
    """Draw the contact sheets at the lowest rate, where differences are visible."""
    from service.eval import contact_sheet

    say("contact sheet")
    chosen, lowest = contact_sheet.choose_pictures(pictures), min(plan.rates)
    sheet = contact_sheet.draw_peers_sheet(chosen, codec, lowest)
    sheet.save(out / "crops.png", optimize=True)
    if len(plan.tunes) > 1:
        sheet = contact_sheet.draw_tunes_sheet(chosen, codec, lowest)
        sheet.save(out / "crops-tunes.png", optimize=True)
