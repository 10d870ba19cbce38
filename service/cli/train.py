"""`rankpress train`: rates and ready updates of a backbone, CompressAI's models too.

Backbones themselves are in cli/backbone.py. Everything heavy is imported inside the commands.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.backbone import MeasureOption, TrainDeviceOption, register, training_device
from service.cli.options import OverwriteOption, ThreadsOption
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.datasets.crops import Crops
    from service.rates.one_rate import Progress
    from service.rates.updates import Progress as UpdateProgress

train_app = typer.Typer(no_args_is_help=True, help="Train backbones and rates, export backbones.")
register(train_app)

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of training pictures.", show_default=False)
]


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
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Start from the rates of this model, which the base is from."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="5,6", help="Train these rates, not all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of crops and initial factors.")] = 0,
    threads: ThreadsOption = None,
    device: TrainDeviceOption = None,
    about: Annotated[str, typer.Option(help="What the manifest says of the data.")] = "",
) -> None:
    """Train the ladder's low-rank adapters on a frozen backbone and publish each in its store."""
    import torch

    from service.eval.machine import device_name
    from service.rates.one_rate import RECIPES
    from service.rates.rates import train_ladder
    from service.store.read import load_model

    recipe = replace(RECIPES[tune], steps=steps, seed=seed)
    order = recipe.loss.order
    chosen = order if only is None else tuple(_rate(text, order) for text in only.split(","))
    where = training_device(threads, device)
    crops = _read_crops(data, recipe.crop, seed)
    record: dict[str, object] = {
        "data": about or f"{len(crops)} pictures, {crops.pixels / 1e6:.0f} Mpixel",
        "device": device_name(where.type),
        "threads": torch.get_num_threads(),
    }
    earlier = None if start is None else load_model(start)
    train_ladder(model, crops, measure, recipe, scratch, chosen, record, _print, where, earlier)


@train_app.command()
def control(
    rate: Annotated[int, typer.Argument(min=1, max=8, help="Whose adapter to judge.")],
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[Path, typer.Option(help="Where `train rates` left its checkpoints.")],
    steps: Annotated[int, typer.Option(min=1, help="As given to `train rates`.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="As given to `train rates`.")] = 0,
    threads: ThreadsOption = None,
) -> None:
    """Fine-tune every weight for one rate and say how much better than its adapter that is."""
    from service.rates.control import compare
    from service.rates.one_rate import Recipe
    from service.store.read import load_model
    from service.train.tunes import BASE

    if rate == BASE:
        raise BadParameter(f"rate {rate} is the base itself, it has no adapter")
    training_device(threads)
    recipe = Recipe(steps=steps, seed=seed)
    crops = _read_crops(data, recipe.crop, seed)
    low, full = compare(load_model(model), crops, measure, rate, recipe, scratch, _print)
    for name, p in (("adapter", low), ("full fine-tune", full)):
        typer.echo(f"{name:15} {p.bpp:.4f} bpp  MSE {p.mse:.3f}  loss {p.loss:.4f}")
    typer.echo(f"the adapter's loss is {low.loss / full.loss - 1:+.2%} of the full fine-tune's")


@train_app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
) -> None:
    """Delete adapters that later ones took the place of: their streams decode no more."""
    from service.store.write import prune as prune_model

    deleted = prune_model(model)
    for name in deleted:
        typer.echo(f"deleted {model / name}")
    if not deleted:
        typer.echo(f"{model} has no superseded adapters")


@train_app.command()
def measure(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures: Kodak.")],
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    threads: ThreadsOption = None,
    device: TrainDeviceOption = None,
) -> None:
    """Measure every rate of a model and replace the figures in its manifest."""
    from service.rates.rates import measure_again

    chosen = training_device(threads, device)
    for rate in measure_again(model, pictures, chosen.type):
        likeness = "" if rate.kodak_ms_ssim is None else f"  MS-SSIM {rate.kodak_ms_ssim:.5f}"
        where = f"{rate.tune} {rate.rate:g}"
        typer.echo(f"{where:10} {rate.kodak_bpp:.4f} bpp  {rate.kodak_psnr_db:.3f} dB{likeness}")


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
    threads: ThreadsOption = None,
    about: Annotated[str, typer.Option(help="What the manifest says of the data.")] = "",
) -> None:
    """Fit ready updates of the decoder, for effort 0 of adaptation, and put them in the store."""
    from service.rates.updates import Recipe, train_updates

    training_device(threads)
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
    overwrite: OverwriteOption = False,
) -> None:
    """Train a rate's low-rank adapter on a frozen CompressAI model.

    An adapter that is there is replaced only where that is asked for: its streams need it.
    """
    from service.files import check_target, write_whole
    from service.zoo.adapters import pretrained
    from service.zoo.train import ZooRecipe, train_adapter

    if crop % 64:
        raise BadParameter(f"crop is {crop}, expected a multiple of 64")
    check_target(out, overwrite=overwrite)
    recipe = ZooRecipe(lmbda, steps, rank, seed=seed)

    def report(step: int, loss: float) -> None:
        if step % 20 == 0:
            typer.echo(f"step {step}/{steps}  loss {loss:.4f}")

    crops = _read_crops(data, crop, seed)
    made = train_adapter(pretrained(name, quality), crops, recipe, report)
    write_whole(out, made)


def _read_crops(data: Path, size: int, seed: int) -> Crops:
    """Read the training pictures and say what was left out of them."""
    from service.datasets.crops import Crops

    crops = Crops(data, size, seed)
    told = f"{len(crops)} pictures of at least {size}x{size} pixels"
    typer.echo(f"{told}, {crops.left_out} files left out", err=True)
    return crops


def _rate(text: str, order: tuple[int, ...]) -> int:
    if text.strip() not in {str(r) for r in order}:
        raise BadParameter(f"rate is {text!r}, expected some of {sorted(order)}")
    return int(text)


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
