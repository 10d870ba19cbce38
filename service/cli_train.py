"""`rankpress train`: commands for people who train; everything heavy is imported inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli_options import CompileOption, Device, ThreadsOption
from service.codec.sizes import Sizes
from service.errors import BadParameter

if TYPE_CHECKING:
    from torch import Tensor

    from service.nets.model import Backbone
    from service.train.base import Progress as BaseProgress
    from service.train.cut import Cut
    from service.train.one_rate import Progress
    from service.train.updates import Progress as UpdateProgress

train_app = typer.Typer(no_args_is_help=True, help="Train backbones and rates, export backbones.")

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of training pictures.", show_default=False)
]
SizeOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="light, base, or a JSON file of sizes.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to train.")]
MeasureOption = Annotated[
    Path, typer.Option(help="Folder of pictures for the figures in the manifest.")
]


@train_app.command()
def base(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA...", help="Folders of pictures, or a file of tiles."),
    ],
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
    tile: Annotated[int, typer.Option(min=64, help="Side of the tiles pictures are cut to.")] = 256,
    halve: Annotated[
        bool, typer.Option(help="Halve pictures from lossy files, unless they were made smaller.")
    ] = True,
    device: DeviceOption = "auto",
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

    from service.engine.synthesis_torch import pick_device
    from service.eval.machine import code_commit
    from service.train import base as training
    from service.train.compiling import choose
    from service.train.recipe import START_CROPS, recipe_for
    from service.train.sample import Sampler
    from service.train.start import fresh, from_weights

    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    mode, note = choose(compiled, where)
    if note:
        _say(note)
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
        torch.manual_seed(recipe.seed)
        crops = Sampler(tiles, recipe.crop, START_CROPS).draw()
        return fresh(sizes or Sizes(), crops, recipe.lmbda, recipe.seed)

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


@train_app.command()
def rates(
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[
        Path, typer.Option(help="Folder for checkpoints; a run that was cut off goes on from it.")
    ],
    tune: Annotated[
        Literal["psnr", "ms-ssim"], typer.Option(help="Which of the model's ladders.")
    ] = "psnr",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a rate.")] = 600,
    only: Annotated[
        str | None, typer.Option(metavar="5,6", help="Train these rates, not all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of crops and initial factors.")] = 0,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    about: Annotated[str, typer.Option(help="What the manifest says of the data.")] = "",
) -> None:
    """Train the ladder's low-rank adapters on a frozen backbone and publish each in its store."""
    import torch

    from service.engine.synthesis_torch import pick_device
    from service.eval.machine import device_name
    from service.train.data import Crops
    from service.train.one_rate import RECIPES
    from service.train.rates import train_ladder

    recipe = replace(RECIPES[tune], steps=steps, seed=seed)
    order = recipe.loss.order
    chosen = order if only is None else tuple(_rate(text, order) for text in only.split(","))
    if threads:
        torch.set_num_threads(threads)
    crops = Crops(data, recipe.crop, seed)
    record: dict[str, object] = {
        "data": about or f"{len(crops)} pictures, {crops.pixels / 1e6:.0f} Mpixel",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    where = pick_device(device)
    train_ladder(model, crops, measure, recipe, scratch, chosen, record, _print, where)


@train_app.command()
def control(
    rate: Annotated[int, typer.Argument(min=1, max=8, help="Whose adapter to judge.")],
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[Path, typer.Option(help="Where `train rates` left its checkpoints.")],
    steps: Annotated[int, typer.Option(min=1, help="As given to `train rates`.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="As given to `train rates`.")] = 0,
    threads: ThreadsOption = 0,
) -> None:
    """Fine-tune every weight for one rate and say how much better than its adapter that is."""
    import torch

    from service.store import load_model
    from service.train.control import compare
    from service.train.data import Crops
    from service.train.one_rate import Recipe
    from service.train.tunes import BASE

    if rate == BASE:
        raise BadParameter(f"rate {rate} is the base itself, it has no adapter")
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(steps=steps, seed=seed)
    crops = Crops(data, recipe.crop, seed)
    low, full = compare(load_model(model), crops, measure, rate, recipe, scratch, _print)
    for name, p in (("adapter", low), ("full fine-tune", full)):
        typer.echo(f"{name:15} {p.bpp:.4f} bpp  MSE {p.mse:.3f}  loss {p.loss:.4f}")
    typer.echo(f"the adapter's loss is {low.loss / full.loss - 1:+.2%} of the full fine-tune's")


@train_app.command()
def measure(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures: Kodak.")],
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    threads: ThreadsOption = 0,
) -> None:
    """Measure every rate of a model and replace the figures in its manifest."""
    import torch

    from service.train.rates import measure_again

    if threads:
        torch.set_num_threads(threads)
    for rate in measure_again(model, pictures):
        likeness = "" if rate.kodak_ms_ssim is None else f"  MS-SSIM {rate.kodak_ms_ssim:.5f}"
        where = f"{rate.tune} {rate.rate:g}"
        typer.echo(f"{where:10} {rate.kodak_bpp:.4f} bpp  {rate.kodak_psnr_db:.3f} dB{likeness}")


@train_app.command()
def trials(
    rate: Annotated[int, typer.Argument(help="3 or 5, a neighbour of the base.")],
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[Path, typer.Option(help="Folder for checkpoints.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a trial.")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="Of crops and initial factors.")] = 0,
    threads: ThreadsOption = 0,
) -> None:
    """Try ranks and placements of a rate's adapter, and record what they cost and gain."""
    from dataclasses import asdict

    import torch

    from service.store import load_model
    from service.train.data import Crops
    from service.train.one_rate import Recipe
    from service.train.publish import record_trials
    from service.train.trials import run_trials

    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(steps=steps, seed=seed)
    crops = Crops(data, recipe.crop, seed)
    start, tried = run_trials(load_model(model), crops, measure, rate, recipe, scratch, _print)
    for trial in tried:
        typer.echo(f"{trial.name:40} {trial.bytes:8,} bytes  loss {trial.loss:.4f}")
    record = {"steps": steps, "start": asdict(start), "found": [asdict(t) for t in tried]}
    record_trials(model, rate, record)


@train_app.command()
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


@train_app.command()
def default(
    model: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
) -> None:
    """Have a store compress with this model from now on; the others go on decoding."""
    from service.train.publish import set_default

    set_default(model)


@train_app.command()
def updates(
    pictures: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Folders of pictures, one for each kind."),
    ],
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[
        Path, typer.Option(help="Folder for finished rounds; a run that was cut off goes on.")
    ],
    rates: Annotated[str, typer.Option(metavar="2,4,6", help="To fit for.")] = "2,4,6",
    rank: Annotated[int, typer.Option(min=1, max=8, help="Pieces of a layer.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Of an update in the first round.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Of fitting and sorting pictures.")] = 2,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles cut from each folder.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Of tiles, draws and factors.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all.")] = 0,
    about: Annotated[str, typer.Option(help="What the manifest says of the data.")] = "",
) -> None:
    """Fit ready updates of the decoder, for effort 0 of adaptation, and put them in the store."""
    import torch

    from service.train.updates import Recipe, train_updates

    if threads:
        torch.set_num_threads(threads)
    chosen = tuple(_rate(text, tuple(range(1, 9))) for text in rates.split(","))
    recipe = Recipe(chosen, rank, rounds, steps, tiles=tiles, seed=seed)
    record: dict[str, object] = {"data": about} if about else {}
    for made in train_updates(model, pictures, scratch, recipe, record, _print_update):
        change = made.training["change_of_loss"]
        typer.echo(f"{made.name:16} {len(made.data):8,} bytes  loss {change:+.2%}")


@train_app.command()
def zoo(
    name: Annotated[str, typer.Argument(help="CompressAI's name of a model: mbt2018-mean.")],
    quality: Annotated[int, typer.Argument(min=1, help="Which of its published weights.")],
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="The adapter's file, named by its rate.")],
    lmbda: Annotated[float, typer.Option(min=0, help="Weight of the error, as in CompressAI.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 400,
    rank: Annotated[int, typer.Option(min=1, max=64, help="Of every layer's factors.")] = 2,
    crop: Annotated[int, typer.Option(min=64, help="Side of the training crops, pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of crops and initial factors.")] = 0,
) -> None:
    """Train a rate's low-rank adapter on a frozen CompressAI model."""
    from service.nets.zoo import pretrained
    from service.train.data import Crops
    from service.train.zoo import ZooRecipe, train_adapter

    if crop % 64:
        raise BadParameter(f"crop is {crop}, expected a multiple of 64")
    recipe = ZooRecipe(lmbda, steps, rank, seed=seed)

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            typer.echo(f"step {step}/{steps}  loss {loss:.4f}")

    made = train_adapter(pretrained(name, quality), Crops(data, crop, seed), recipe, report)
    out.write_bytes(made)


def _rate(text: str, order: tuple[int, ...]) -> int:
    if text.strip() not in {str(r) for r in order}:
        raise BadParameter(f"rate is {text!r}, expected some of {sorted(order)}")
    return int(text)


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


def _print_base(p: BaseProgress) -> None:
    skipped = f"  skipped {p.skipped}" if p.skipped else ""
    typer.echo(
        f"{p.minutes:.1f} min  step {p.step}  loss {p.loss:.4f}  {p.bpp:.4f} bpp  "
        f"{p.psnr_db:.2f} dB  {p.pixels_per_s / 1e6:.2f} Mpixel/s  lr {p.lr:.2e}{skipped}"
    )


def _print_update(p: UpdateProgress) -> None:
    typer.echo(
        f"round {p.round + 1}  {p.group}  step {p.step}/{p.steps}  "
        f"error {p.loss:.4f} of the plain loss  {p.bits / 8:,.0f} bytes"
    )


def _print(p: Progress) -> None:
    typer.echo(
        f"rate {p.rate}  step {p.step}/{p.steps}  lmbda {p.lmbda:.5g}  loss {p.loss:.4f}  "
        f"{p.bpp:.4f} bpp  error {p.error:.5g}  {p.pixels_per_s / 1e6:.2f} Mpixel/s"
    )
