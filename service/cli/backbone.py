"""`rankpress train base | export | default`: backbones and their ladders.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.options import CompileOption, Device, ThreadsOption
from service.cli.settings import settings_of
from service.codec.sizes import Sizes
from service.errors import BadParameter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from service.datasets.cut import Cut
    from service.nets.compiling import Compile
    from service.train.ladder import RateLadder
    from service.train.progress import Progress

DataArgument = Annotated[
    list[Path], typer.Argument(metavar="DATA...", help="Folders of pictures, or a file of tiles.")
]
TileOption = Annotated[int, typer.Option(min=64, help="Side of the tiles pictures are cut to.")]
HalveOption = Annotated[
    bool, typer.Option(help="Halve pictures from lossy files, unless they were made smaller.")
]
SizeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="light, base, or a JSON file of sizes.")
]
TrainDeviceOption = Annotated[Device | None, typer.Option(help="Where to train.")]
MeasureOption = Annotated[
    Path, typer.Option(help="Folder of pictures for the figures in the manifest.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `rankpress train`."""
    for command in (base, export, default):
        app.command()(command)


def training_device(threads: int | None, device: Device | None = None) -> torch.device:
    """Set torch's threads and return the device to train on.

    RANKPRESS_THREADS and RANKPRESS_DEVICE say what was not given.
    """
    import torch

    from service.runtime.synthesis_torch import pick_device

    settings = settings_of(threads=threads, device=device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return pick_device(settings.device)


def prepare(
    threads: int | None, device: Device | None, compiled: Compile
) -> tuple[torch.device, Compile]:
    """Set torch's threads; the device to train on, and what to compile there."""
    from service.nets.compiling import choose_compile

    where = training_device(threads, device)
    mode, note = choose_compile(compiled, where)
    if note:
        _say(note)
    return where, mode


def base(
    data: DataArgument,
    run: Annotated[Path, typer.Option(help="Folder of the run; one that is there goes on.")],
    minutes: Annotated[float, typer.Option(min=0, help="Of this piece of the run.")],
    decay: Annotated[
        float, typer.Option(min=0, help="Minutes at its end that are the run's final decay.")
    ] = 0.0,
    start: Annotated[
        Path | None, typer.Option("--from", help="Run, model or state dict; else afresh.")
    ] = None,
    size: SizeOption = None,
    measure: Annotated[
        Path | None, typer.Option(help="Folder of pictures to measure on at the end.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(metavar="1,4,8", help="Trained together, 4 among them; all of a new run."),
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Rates in each step; all of a new run.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 4e-4 of a new run.")] = None,
    warmup: Annotated[int | None, typer.Option(min=1, help="Steps; 500 of a new run.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Crops a step; 8 of a new run, on CUDA 64.")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Side in pixels; 192 of a new run.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a new run; 0.")] = None,
    downscaled: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of crops reduced in size; 0.4.")
    ] = None,
    grain: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of photographs given grain; 0.3.")
    ] = None,
    procedural: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of generated pictures; 0.15.")
    ] = None,
    mix: Annotated[
        list[str],
        typer.Option(metavar="FOLDER=SHARE", help="Mix in other pictures; may be repeated."),
    ] = [],  # noqa: B006
    finish: Annotated[
        bool,
        typer.Option("--finish", help="Keep g_a and h_a, train the rest on rounded latents."),
    ] = False,
    tile: TileOption = 512,
    halve: HalveOption = True,
    device: TrainDeviceOption = None,
    compiled: CompileOption = "auto",
    graph: Annotated[bool, typer.Option(help="Replay steps from a CUDA graph.")] = True,
    moments: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of Adam, in checkpoints; bfloat16 is smaller and resumes inexactly."),
    ] = "float32",
    checkpoint: Annotated[float, typer.Option(min=0.1, help="Minutes between two.")] = 5.0,
    threads: ThreadsOption = None,
) -> None:
    """Train a backbone and its rates for some minutes; `train export` makes them a model.

    Under torchrun, every process trains on a device of its own.
    """
    import torch

    from service.eval.machine import code_commit
    from service.train import run as training
    from service.train.recipe import recipe_for
    from service.train.sources import gather_data
    from service.train.start import draw_crops, fresh_on, from_weights
    from service.train.widen import widened
    from service.train.world import join_world

    where, mode = prepare(threads, device, compiled)
    world, where = join_world(where)
    folders = dict(_share_of(text) for text in mix)
    recipe = recipe_for(
        run,
        where,
        rates=None if rates is None else _rates_of(rates),
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
    sizes = _sizes(size)
    sources = [(data, run / "tiles.safetensors")]
    sources += [([path], run / f"tiles-{path.name}.safetensors") for path in folders]
    if world.first:
        for pictures, path in sources:
            cut, tiles = _tiles(pictures, path, tile, halve)
            _say(
                f"{len(tiles)} tiles of {cut.size}x{cut.size} from {cut.pictures} pictures, "
                f"{cut.left_out} files left out"
            )
    world.agree("cut")
    photographs, *others = (_tiles(pictures, path, tile, halve) for pictures, path in sources)
    mixed = dict(zip((path.name for path in folders), others, strict=True))
    gathered = gather_data(photographs, mixed, recipe, where)

    def begin() -> RateLadder:
        sampler = gathered.sampler(recipe)
        if start is None:
            return fresh_on(sampler, sizes or Sizes(), recipe)
        ladder = from_weights(start, sizes, recipe.rates)
        if sizes is None or sizes == ladder.base.sizes:
            return ladder
        return widened(ladder, sizes, draw_crops(sampler, recipe).cpu())

    piece = training.Piece(
        minutes=minutes, decay=decay, checkpoint_s=60 * checkpoint, measure=measure, compiled=mode,
        graph=graph, moments=getattr(torch, moments), commit=code_commit(),
    )  # fmt: skip
    source = "afresh" if start is None else start.name
    work = training.Run(run, gathered, recipe, begin, piece, source, world)
    measured = work.train(_print_base)
    if world.first:
        _say(
            f"{run} holds step {work.step} in {work.shards} shards"
            + (", decayed: export it" if work.finished else "")
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
    calibrate: Annotated[Path, typer.Option(help="Folder of pictures that set integer ranges.")],
    measure: MeasureOption,
    record: Annotated[
        Path | None, typer.Option(help="JSON file: how a state dict was trained.")
    ] = None,
    size: SizeOption = None,
    default: Annotated[
        bool, typer.Option("--default", help="Have the store compress with it from now on.")
    ] = False,
) -> None:
    """Fold, quantise, verify and write a trained backbone as a model of the store.

    Models that are there stay: streams made with them need them.
    """
    from service.export.export import export as run
    from service.export.export import trained_weights
    from service.store.write import set_default

    agreement = run(trained_weights(weights, _sizes(size), record), out, calibrate, measure, _say)
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
    """Have a store compress with this model from now on; the others go on decoding."""
    from service.store.write import set_default

    set_default(model)


def _sizes(text: str | None) -> Sizes | None:
    """Sizes by their name or file; None where none were asked for."""
    from service.train.recipe import sizes_named

    return None if text is None else sizes_named(text)


def _rates_of(text: str) -> tuple[int, ...]:
    """Rates that are trained together, ascending."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise BadParameter(f"rates are {text!r}, expected whole numbers such as 1,4,8") from None


def _share_of(text: str) -> tuple[Path, float]:
    """A folder and the share of the crops that are from it."""
    folder, _, share = text.rpartition("=")
    try:
        return Path(folder), float(share)
    except ValueError:
        raise BadParameter(f"--mix is {text!r}, expected FOLDER=SHARE") from None


def _tiles(data: list[Path], path: Path, size: int, halve: bool) -> tuple[Cut, Tensor]:
    """The tiles of a file, or of folders, cut into `path` unless they are there."""
    from service.datasets.cut import cut, read_tiles, unchanged

    if len(data) == 1 and data[0].is_file():
        return read_tiles(data[0])
    if not path.is_file() or not unchanged(read_tiles(path)[0], data, size, halve):
        cut(data, path, size, halve, _say)
    return read_tiles(path)


def _say(text: str) -> None:
    """Tell a person what goes on, on standard error."""
    typer.echo(text, err=True)


def _print_base(p: Progress) -> None:
    skipped = f"  skipped {p.skipped}" if p.skipped else ""
    typer.echo(
        f"{p.minutes:.1f} min  step {p.step}  {p.pixels_per_s / 1e6:.2f} Mpixel/s  "
        f"lr {p.lr:.2e}{skipped}"
    )
    for rate, r in p.rates.items():
        typer.echo(f"  rate {rate}  loss {r.loss:.4f}  {r.bpp:.4f} bpp  {r.psnr_db:.2f} dB")
