"""`rankpress train base`, `export` and `default`: backbones with their ladders of rates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli import options
from service.cli.options import prepare, whole_rates
from service.cli.process import say
from service.codec.sizes import ConvSizes
from service.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from service.datasets.tile_file import TileRecord
    from service.train.ladder import RateLadder
    from service.train.progress import BackboneProgress

TILES = "tiles.safetensors"
"""File in a run's folder of the tiles that its pictures are cut into."""

DataArgument = Annotated[
    list[Path],
    typer.Argument(metavar="DATA...", help="Folders of pictures, or one file of tiles."),
]
RunOption = Annotated[Path, typer.Option(help="Folder of the run; a run in it is resumed.")]
MinutesOption = Annotated[float, typer.Option(min=0, help="Length of this session of the run.")]
DecayOption = Annotated[
    float, typer.Option(min=0, help="Last minutes of the session; they are the final decay.")
]
SizeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Size: light, base, or a JSON file of sizes.")
]


def base(
    data: DataArgument,
    run: RunOption,
    minutes: MinutesOption,
    decay: DecayOption = 0.0,
    start: Annotated[
        Path | None, typer.Option("--from", help="Start from this run, model or state dict.")
    ] = None,
    size: SizeOption = None,
    measure: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure on at the end.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(metavar="1,4,8", help="Rates to train, with 4; all in a new run."),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Rates in each step; all in a new run.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 4e-4 in a new run.")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, help="Warm-up steps; 500 in a new run.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Crops per step; 8 in a new run, 64 on CUDA.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Side of the crops in pixels; 192 in a new run.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new run; 0.")] = None,
    downscaled: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of crops that are reduced; 0.4 in a new run."),
    ] = None,
    grain: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of photographs with grain; 0.3 in a new run."),
    ] = None,
    procedural: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of generated pictures; 0.15 in a new run."),
    ] = None,
    mix: Annotated[
        list[str],
        typer.Option(metavar="FOLDER=SHARE", help="Mix in a share of other pictures; repeatable."),
    ] = [],  # noqa: B006
    finish: Annotated[
        bool,
        typer.Option("--finish", help="Keep g_a and h_a; train the rest on rounded latents."),
    ] = False,
    tile: Annotated[
        int, typer.Option(min=64, help="Side in pixels of the tiles that pictures are cut into.")
    ] = 512,
    halve: Annotated[
        bool,
        typer.Option(help="Halve pictures from lossy files; needless if they were reduced before."),
    ] = True,
    device: options.Device = None,
    compiled: options.Compile = "auto",
    graph: Annotated[bool, typer.Option(help="Replay steps from a CUDA graph.")] = True,
    moments: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            help="Adam's moments in checkpoints; bfloat16 is smaller, but resumes inexactly."
        ),
    ] = "float32",
    checkpoint: Annotated[float, typer.Option(min=0.1, help="Minutes between checkpoints.")] = 5.0,
    threads: options.Threads = None,
) -> None:
    """Train a backbone and its rates for some minutes.

    `train export` then makes a model of them. Under torchrun, every process uses its own device.
    """
    import torch

    from service.eval.machine import code_commit
    from service.train.recipe import recipe_for, sizes_named
    from service.train.run import TrainingRun, TrainingSession
    from service.train.sampler import Sampler, gather_data
    from service.train.start import draw_crops, from_weights, new_ladder
    from service.train.widening import widen_ladder
    from service.train.world import join_world

    where, mode = prepare(threads, device, compiled)
    world, where = join_world(where)
    folders = dict(_share_of(text) for text in mix)
    recipe = recipe_for(
        run,
        where,
        rates=None if rates is None else tuple(sorted(set(whole_rates(rates)))),
        groups=groups,
        lr=lr,
        warmup=warmup,
        batch=batch,
        crop=crop,
        seed=seed,
        downscaled=downscaled,
        grain=grain,
        procedural=procedural,
        mixed={path.name: share for path, share in folders.items()} or None,
        frozen=finish or None,
    )
    sizes = None if size is None else sizes_named(size)
    sources = [(data, run / TILES)]
    sources += [([path], run / f"tiles-{path.name}.safetensors") for path in folders]
    if world.first:
        for pictures, path in sources:
            say_tiles(*tiles_of(pictures, path, tile, halve))
    world.agree("the first process has cut the tiles")
    photographs, *others = (tiles_of(pictures, path, tile, halve) for pictures, path in sources)
    mixed = dict(zip((path.name for path in folders), others, strict=True))
    training_data = gather_data(photographs, mixed, recipe, where)

    def initial_ladder() -> RateLadder:
        sampler = Sampler(training_data.sources, recipe)
        if start is None:
            return new_ladder(sampler, sizes or ConvSizes(), recipe)
        ladder = from_weights(start, sizes, recipe.rates)
        if sizes is None or sizes == ladder.base.sizes:
            return ladder
        return widen_ladder(ladder, sizes, draw_crops(sampler, recipe).cpu())

    session = TrainingSession(
        minutes=minutes, decay=decay, checkpoint_s=60 * checkpoint, measure=measure, compiled=mode,
        graph=graph, moments=getattr(torch, moments), commit=code_commit(),
    )  # fmt: skip
    source = "afresh" if start is None else start.name
    work = TrainingRun(run, training_data, recipe, initial_ladder, session, source, world)
    measured = work.train(_print_progress)
    if world.first:
        say(
            f"{run} holds step {work.step} in {work.shards} shards"
            + (", and is finished: export it" if work.finished else "")
        )
    for rate, quality in measured.items():
        typer.echo(
            f"rate {rate}: {quality.pictures} pictures, real rounding: {quality.bpp:.4f} bpp, "
            f"{quality.psnr_db:.3f} dB, loss {quality.loss:.4f}"
        )


def export(
    weights: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or a state dict.")
    ],
    out: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
    calibrate: Annotated[
        Path, typer.Option(help="Folder of pictures that set the integer ranges.")
    ],
    measure: options.Measure,
    record: Annotated[
        Path | None, typer.Option(help="JSON record of a state dict's training.")
    ] = None,
    size: SizeOption = None,
    default: Annotated[
        bool, typer.Option("--default", help="Make it the store's default model.")
    ] = False,
) -> None:
    """Fold, quantise, verify and write a trained backbone as a model of the store.

    A model that exists is never replaced, because its streams need it.
    """
    from service.export.backbone import export_backbone, trained_weights
    from service.store.write import set_default
    from service.train.recipe import sizes_named

    sizes = None if size is None else sizes_named(size)
    trained = trained_weights(weights, sizes, record)
    agreement = export_backbone(trained, out, calibrate, measure, say)
    typer.echo(
        f"{agreement.pictures} pictures: {agreement.real_bpp:.4f} bpp, "
        f"{agreement.real_psnr_db:.3f} dB; the float model estimates "
        f"{agreement.estimated_bpp:.4f} bpp, {agreement.float_psnr_db:.3f} dB"
    )
    if default:
        set_default(out)


def default(
    model: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
) -> None:
    """Make this the model that its store compresses with where a request names none."""
    from service.store.write import set_default

    set_default(model)


def _share_of(text: str) -> tuple[Path, float]:
    """Parse a folder and the share of the crops from it."""
    folder, _, share = text.rpartition("=")
    try:
        return Path(folder), float(share)
    except ValueError:
        raise BadParameter(f"--mix is {text!r}, expected FOLDER=SHARE") from None


def tiles_of(
    data: list[Path], path: Path, size: int = 512, halve: bool = True
) -> tuple[TileRecord, Tensor]:
    """Read a file of tiles, or cut folders into the file `path` if it is not up to date."""
    from service.datasets.tile_file import cut_tiles, is_current, read_tiles

    if len(data) == 1 and data[0].is_file():
        return read_tiles(data[0])
    if not path.is_file() or not is_current(read_tiles(path)[0], data, size, halve):
        cut_tiles(data, path, size, halve, say)
    return read_tiles(path)


def say_tiles(record: TileRecord, tiles: Tensor) -> None:
    """Report how many tiles there are, and of how many pictures."""
    say(
        f"{len(tiles)} tiles of {record.size}x{record.size} from {record.pictures} "
        f"pictures, {record.left_out} files left out"
    )


def _print_progress(p: BackboneProgress) -> None:
    skipped = f"  skipped {p.skipped}" if p.skipped else ""
    typer.echo(
        f"{p.minutes:.1f} min  step {p.step}  {p.pixels_per_s / 1e6:.2f} Mpixel/s  "
        f"lr {p.lr:.2e}{skipped}"
    )
    for rate, r in p.rates.items():
        typer.echo(f"  rate {rate}  loss {r.loss:.4f}  {r.bpp:.4f} bpp  {r.psnr_db:.2f} dB")
