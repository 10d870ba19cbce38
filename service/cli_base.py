"""`rankpress train base | compare | export | default`: backbones.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli_options import CompileOption, Device, ThreadsOption
from service.codec.sizes import Sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from service.nets.model import Backbone
    from service.train.base import Progress
    from service.train.compare import Found
    from service.train.compiling import Compile
    from service.train.cut import Cut

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
TrainDeviceOption = Annotated[Device, typer.Option(help="Where to train.")]
MeasureOption = Annotated[
    Path, typer.Option(help="Folder of pictures for the figures in the manifest.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `rankpress train`."""
    for command in (base, compare, export, default):
        app.command()(command)


def prepare(threads: int, device: Device, compiled: Compile) -> tuple[torch.device, Compile]:
    """Set torch's threads; the device to train on, and what to compile there."""
    import torch

    from service.engine.synthesis_torch import pick_device
    from service.train.compiling import choose

    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    mode, note = choose(compiled, where)
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
    lr: Annotated[float | None, typer.Option(help="Learning rate; 4e-4 of a new run.")] = None,
    warmup: Annotated[int | None, typer.Option(min=1, help="Steps; 500 of a new run.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Crops a step; 8 of a new run, on CUDA 64.")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="Side in pixels; 192 of a new run.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a new run; 0.")] = None,
    tile: TileOption = 256,
    halve: HalveOption = True,
    device: TrainDeviceOption = "auto",
    compiled: CompileOption = "auto",
    graph: Annotated[bool, typer.Option(help="Replay steps from a CUDA graph.")] = True,
    moments: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of Adam, in checkpoints; bfloat16 is smaller and resumes inexactly."),
    ] = "float32",
    checkpoint: Annotated[float, typer.Option(min=0.1, help="Minutes between two.")] = 5.0,
    threads: ThreadsOption = 0,
) -> None:
    """Train a backbone for some minutes, or go on with one; `train export` makes it a model."""
    import torch

    from service.eval.machine import code_commit
    from service.train import base as training
    from service.train.recipe import recipe_for
    from service.train.start import fresh_on, from_weights

    where, mode = prepare(threads, device, compiled)
    recipe = recipe_for(
        run, where, lr=lr, warmup=warmup, batch=batch, crop=crop, seed=seed
    )
    sizes = _sizes(size)
    made, tiles = _tiles(data, run, tile, halve)
    _say(f"{len(tiles)} tiles of {made.size}x{made.size} from {made.pictures} pictures, "
         f"{made.left_out} files left out")  # fmt: skip
    tiles = tiles.to(where)

    def begin() -> Backbone:
        if start is not None:
            return from_weights(start, sizes)
        return fresh_on(tiles, sizes or Sizes(), recipe)

    piece = training.Piece(
        minutes=minutes, decay=decay, checkpoint_s=60 * checkpoint, measure=measure, compiled=mode,
        graph=graph, moments=getattr(torch, moments), commit=code_commit(),
    )  # fmt: skip
    told = "afresh" if start is None else str(start.name)
    work = training.Run(run, tiles, made, recipe, begin, piece, told)
    found = work.train(_print_base)
    _say(f"{run} holds step {work.step} in {work.shards} shards"
         + (", decayed: export it" if work.finished else ""))  # fmt: skip
    if found is not None:
        typer.echo(
            f"{found.pictures} pictures, real rounding: {found.bpp:.4f} bpp, "
            f"{found.psnr_db:.3f} dB, loss {found.loss:.4f}"
        )


def compare(
    data: DataArgument,
    measure: Annotated[
        list[Path], typer.Option(help="Folder of pictures to measure on; give it again for more.")
    ],
    out: Annotated[Path, typer.Option(help="JSON file of results; those it holds are kept.")],
    others: Annotated[
        list[Path], typer.Option(help="Folder of other kinds of pictures, to mix in.")
    ],
    mpixels: Annotated[float, typer.Option(min=0, help="Megapixels that each run sees.")] = 60.0,
    tile: TileOption = 256,
    halve: HalveOption = True,
    device: TrainDeviceOption = "auto",
    compiled: CompileOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Compare sizes, blocks and recipes by short runs at equal pixels; a table, then JSON."""
    import json
    from dataclasses import asdict

    import torch

    from service.eval.machine import this_machine
    from service.eval.report import compare_table
    from service.train import compare as comparing

    where, mode = prepare(threads, device, compiled)
    scratch = out.with_suffix(".tiles")
    cut, photos = _tiles(data, scratch / "data", tile, halve)
    more, drawn = _tiles(others, scratch / "others", tile, halve)
    record = {
        "what": "compare", "data": asdict(cut), "others": asdict(more),
        "machine": asdict(this_machine(device)), "threads": torch.get_num_threads(),
    }  # fmt: skip
    result = comparing.compare(
        photos.to(where), drawn.to(where), measure, round(mpixels * 1e6), mode, out, record,
        _print_found,
    )  # fmt: skip
    typer.echo(compare_table(result))
    typer.echo(json.dumps(result))


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
    from service.train.export import export as run
    from service.train.export import trained_weights
    from service.train.publish import set_default

    agreement = run(trained_weights(weights, _sizes(size), record), out, calibrate, measure)
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
    from service.train.publish import set_default

    set_default(model)


def _sizes(text: str | None) -> Sizes | None:
    """Sizes by their name or file; None where none were asked for."""
    from service.train.recipe import sizes_named

    return None if text is None else sizes_named(text)


def _tiles(data: list[Path], run: Path, size: int, halve: bool) -> tuple[Cut, Tensor]:
    """The tiles of a file, or of folders, cut into the run's folder unless they are there."""
    from service.train.cut import cut, read_tiles, unchanged

    if len(data) == 1 and data[0].is_file():
        return read_tiles(data[0])
    path = run / "tiles.safetensors"
    if not path.is_file() or not unchanged(read_tiles(path)[0], data, size, halve):
        cut(data, path, size, halve, _say)
    return read_tiles(path)


def _say(text: str) -> None:
    """Tell a person what goes on, on standard error."""
    typer.echo(text, err=True)


def _print_base(p: Progress) -> None:
    skipped = f"  skipped {p.skipped}" if p.skipped else ""
    typer.echo(
        f"{p.minutes:.1f} min  step {p.step}  loss {p.loss:.4f}  {p.bpp:.4f} bpp  "
        f"{p.psnr_db:.2f} dB  {p.pixels_per_s / 1e6:.2f} Mpixel/s  lr {p.lr:.2e}{skipped}"
    )


def _print_found(name: str, found: Found) -> None:
    losses = ", ".join(f"{loss:.4f}" for loss in found.loss)
    typer.echo(f"{name}: loss {losses} after {found.steps} steps in {found.train_s:.0f} s")
