"""`rankpress bench`: times and memory of the codec, a server, jobs and training.

Each command prints a table, then its results as one line of JSON, and needs the `eval` extra.
`graphics` prints its table alone, because its results are long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import options
from service.cli.options import prepare, settings_of, training_device, write_results
from service.cli.process import say
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.settings import Settings

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure times and memory of the codec, a server, jobs or training."
)


@bench_app.command("codec")
def codec(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Pictures; else generated ones.")
    ] = None,
    rate: options.Rate = 4.0,
    large: Annotated[bool, typer.Option("--large", help="Also 8660x5774 pixels.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Peak memory, in fresh processes.")
    ] = True,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure times and memory of compressing and decompressing, with AVIF and WebP."""
    from service.bench.codec import bench_codec
    from service.bench.report import bench_tables

    settings = _bench_settings(store, device, threads)
    result = bench_codec(settings, rate, folder, say, large=large, peak_memory=memory)
    _publish(result, lambda r: "\n\n".join(bench_tables(r).values()), record)


@bench_app.command("service")
def service(
    rate: options.Rate = 4.0,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure the throughput of a server over loopback, up to twice its capacity."""
    from service.bench.report import service_table
    from service.bench.server_load import bench_server

    settings = _bench_settings(store, device, threads)
    _publish(bench_server(settings, rate, say), service_table, record)


@bench_app.command("rates")
def rates(
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure what a change of rate costs, and a server that gets all rates mixed."""
    from service.bench.rate_changes import bench_rate_changes
    from service.bench.report import swap_table

    settings = _bench_settings(store, device, threads)
    _publish(bench_rate_changes(settings, say), swap_table, record)


@bench_app.command("decoder")
def decoder(
    rate: options.Rate = 4.0,
    record: options.Record = None,
    store: options.Store = None,
    threads: options.Threads = None,
) -> None:
    """Measure start, times, memory and installed size of the light decoder."""
    from service.bench.decoder import bench_decoder
    from service.bench.report import decoder_table

    settings = _bench_settings(store, "cpu", threads)
    _publish(bench_decoder(settings, rate, say), decoder_table, record)


@bench_app.command("agreement")
def agreement(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to compress.")],
    record: options.Record = None,
    store: options.Store = None,
) -> None:
    """Compare the pixels of the light decoder with those of PyTorch over a folder."""
    from service.bench.decoder import compare_pixels
    from service.bench.report import agreement_table

    settings = _bench_settings(store, "cpu", None)
    _publish(compare_pixels(folder, settings.store, say), agreement_table, record)


@bench_app.command("jobs")
def jobs(
    rate: options.Rate = 4.0,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure how much a job slows down the requests that are answered meanwhile."""
    from service.bench.during_job import bench_during_job
    from service.bench.report import jobs_table

    settings = _bench_settings(store, device, threads)
    _publish(bench_during_job(settings, rate, say), jobs_table, record)


@bench_app.command("graphics")
def graphics(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR]...", help="Pictures; comic-0 and comic-1 are of the group comic."
        ),
    ] = None,
    rates: Annotated[str, typer.Option(help="Whole rates: 4, or 2,4,6.")] = "2,4,6",
    drawn: Annotated[
        bool, typer.Option("--drawn/--no-drawn", help="Also pictures drawn by the generator.")
    ] = True,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each group at most.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the record file holds of an earlier run.")
    ] = False,
    record: options.Record = None,
    store: options.Store = None,
    device: options.Device = None,
    threads: options.Threads = None,
) -> None:
    """Measure what the graphics layer gains and costs, with AVIF and lossless WebP.

    The record file is written after every picture.
    """
    from service.bench.graphics import (
        bench_graphics,
        draw_pictures,
        first_of_groups,
        read_pictures,
        read_record,
    )
    from service.bench.report import graphics_table

    if resume and record is None:
        raise BadParameter("--resume needs --record, the file to go on from")
    settings = _bench_settings(store, device, threads)
    whole = [float(rate) for rate in options.whole_rates(rates)]
    pictures = [*read_pictures(folders or []), *(draw_pictures() if drawn else [])]
    known = read_record(record) if resume and record else {}
    result = bench_graphics(
        settings,
        first_of_groups(pictures, limit),
        whole,
        known,
        say,
        lambda so_far: write_results(so_far, record),
    )
    typer.echo(graphics_table(write_results(result, record)))


@bench_app.command("training")
def training(
    size: Annotated[
        str, typer.Option(metavar="NAME", help="light, base, or a JSON file of sizes.")
    ] = "light",
    batch: Annotated[int | None, typer.Option(min=1, help="Crops a step; 8, on CUDA 64.")] = None,
    groups: Annotated[int, typer.Option(min=1, max=8, help="Rates in each step.")] = 8,
    crop: Annotated[int, typer.Option(min=64, help="Side of the crops in pixels.")] = 192,
    compiled: options.Compile = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to time steps for.")] = 15.0,
    device: options.Device = None,
    threads: options.Threads = None,
    record: options.Record = None,
) -> None:
    """Measure the pixels per second of training steps, and what bounds them."""
    from dataclasses import asdict

    import torch

    from service.bench.training import bench_training, summarise
    from service.eval.machine import this_machine
    from service.train.recipe import recipe_for, sizes_named

    where, mode = prepare(threads, device, compiled)
    machine = this_machine(where.type)
    recipe = recipe_for(Path("no run"), where, batch=batch, groups=groups, crop=crop)
    throughput = bench_training(sizes_named(size), recipe, where, mode, seconds)
    result = {
        "what": "bench train",
        "size": size,
        "batch": recipe.batch,
        "groups": recipe.groups,
        "crop": crop,
        "compiled": mode,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": asdict(machine),
        **asdict(throughput),
    }
    _publish(result, lambda _: summarise(throughput), record)


@bench_app.command("variable-rate")
def variable_rate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of training pictures.")],
    model: Annotated[Path, typer.Option(help="Folder of a model of the family swin.")],
    measure: Annotated[Path, typer.Option(help="Folder of pictures to measure on.")],
    scratch: Annotated[Path, typer.Option(help="Folder for checkpoints, to resume from.")],
    rates: Annotated[
        str, typer.Option(metavar="1,2,6,8", help="Rates to train besides the base's own.")
    ] = "1,2,6,8",
    end: Annotated[
        int | None, typer.Option(help="One of the rates, as a second base; none by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps per way and rate.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of crops and initial factors.")] = 0,
    threads: options.Threads = None,
    record: options.Record = None,
) -> None:
    """Train prompts, low-rank updates and all weights for each rate, and compare them."""
    from dataclasses import asdict

    from service.datasets.crops import Crops
    from service.eval.machine import this_machine
    from service.eval.report import ways_table
    from service.rates.comparison import compare_ways
    from service.rates.rate_training import RateProgress, RateRecipe
    from service.store.read import load_model
    from service.train.tunes import PSNR

    chosen = options.whole_rates(rates, PSNR.order)
    if end is not None and end not in chosen:
        raise BadParameter(f"--end is {end}, expected one of the rates {rates}")
    machine = this_machine(training_device(threads, "cpu").type)
    stored, recipe = load_model(model), RateRecipe(steps=steps, batch=batch, crop=256, seed=seed)

    def report(p: RateProgress) -> None:
        say(f"rate {p.rate}  step {p.step}/{p.steps}  loss {p.loss:.4f}")

    crops = Crops(data, recipe.crop, seed)
    figures = compare_ways(stored, crops, measure, recipe, scratch, chosen, end, report)
    result = {
        "what": "bench variable-rate",
        "model": stored.name,
        "parameters": stored.parameters,
        "steps": steps,
        "pixels": steps * batch * recipe.crop**2,
        "machine": asdict(machine),
        "ways": [asdict(f) for f in figures],
    }
    _publish(result, ways_table, record)


def _bench_settings(store: Path | None, device: str | None, threads: int | None) -> Settings:
    """Return the settings of a measurement. Raises BadParameter if they name a model."""
    settings = settings_of(store=store, device=device, threads=threads)
    if settings.model is not None or settings.zoo is not None:
        raise BadParameter(
            "RANKPRESS_MODEL or RANKPRESS_ZOO is set, but bench measures the model that the store "
            "itself names: set RANKPRESS_STORE or --store instead"
        )
    return settings


def _publish(
    result: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], str], record: Path | None
) -> None:
    """Print the description of a result and the result as a line of JSON; write it to `record`."""
    rounded = write_results(result, record)
    typer.echo(describe(rounded))
    typer.echo(json.dumps(rounded))
