"""`rankpress train`: commands for people who train; everything heavy is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.errors import BadParameter

if TYPE_CHECKING:
    from service.train.rates import Progress

train_app = typer.Typer(no_args_is_help=True, help="Train rates, and export trained backbones.")

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of training pictures.", show_default=False)
]
MeasureOption = Annotated[
    Path, typer.Option(help="Folder of pictures for the figures in the manifest.")
]


@train_app.command()
def rates(
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[
        Path, typer.Option(help="Folder for checkpoints; a run that was cut off goes on from it.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a rate.")] = 600,
    only: Annotated[
        str | None, typer.Option(metavar="5,6", help="Train these rates, not all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of crops and initial factors.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all.")] = 0,
    about: Annotated[str, typer.Option(help="What the manifest says of the data.")] = "",
) -> None:
    """Train the ladder's low-rank adapters on a frozen backbone and publish each in its store."""
    import torch

    from service.train.data import Crops
    from service.train.rates import ORDER, Recipe, train_ladder

    chosen = ORDER if only is None else tuple(_rate(text) for text in only.split(","))
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(steps=steps, seed=seed)
    crops = Crops(data, recipe.crop, seed)
    record: dict[str, object] = {
        "data": about or f"{len(crops)} pictures, {crops.pixels / 1e6:.0f} Mpixel",
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    train_ladder(model, crops, measure, recipe, scratch, chosen, record, _print)


@train_app.command()
def control(
    rate: Annotated[int, typer.Argument(min=1, max=8, help="Whose adapter to judge.")],
    data: DataArgument,
    measure: MeasureOption,
    model: Annotated[Path, typer.Option(help="The model's folder in a store.")],
    scratch: Annotated[Path, typer.Option(help="Where `train rates` left its checkpoints.")],
    steps: Annotated[int, typer.Option(min=1, help="As given to `train rates`.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="As given to `train rates`.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all.")] = 0,
) -> None:
    """Fine-tune every weight for one rate and say how much better than its adapter that is."""
    import torch

    from service.store import load_model
    from service.train.control import compare
    from service.train.data import Crops
    from service.train.rates import BASE, Recipe

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
def export(
    weights: Annotated[Path, typer.Argument(help="State dict of a Backbone, safetensors.")],
    out: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
    calibrate: Annotated[Path, typer.Option(help="Folder of pictures that set integer ranges.")],
    measure: MeasureOption,
    record: Annotated[Path, typer.Option(help="JSON file: how the weights were trained.")],
) -> None:
    """Fold, quantise, verify and write a trained backbone as a model of the store."""
    from service.train.export import export as run

    agreement = run(weights, out, calibrate, measure, record)
    typer.echo(
        f"{agreement.pictures} pictures: {agreement.real_bpp:.4f} bpp, "
        f"{agreement.real_psnr_db:.3f} dB; the float model estimates "
        f"{agreement.estimated_bpp:.4f} bpp, {agreement.float_psnr_db:.3f} dB"
    )


def _rate(text: str) -> int:
    from service.train.rates import ORDER

    if text.strip() not in {str(r) for r in ORDER}:
        raise BadParameter(f"rate is {text!r}, expected some of {sorted(ORDER)}")
    return int(text)


def _print(p: Progress) -> None:
    typer.echo(
        f"rate {p.rate}  step {p.step}/{p.steps}  loss {p.loss:.4f}  {p.bpp:.4f} bpp  "
        f"{p.psnr_db:.2f} dB  {p.pixels_per_s / 1e6:.2f} Mpixel/s"
    )
