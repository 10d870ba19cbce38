"""`rankpress train`: rates and ready updates of backbones, and rates of CompressAI's models.

The commands for backbones are in cli/train_backbone.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli import options
from service.cli.options import training_device, whole_rates
from service.cli.process import say
from service.cli.train_backbone import (
    TILES,
    DecayOption,
    MinutesOption,
    RunOption,
    base,
    default,
    export,
    say_tiles,
    tiles_of,
)
from service.cli.train_backbone import DataArgument as TilesArgument
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.datasets.crops import Crops
    from service.rates.default_networks import NetworkProgress
    from service.rates.previews import PreviewProgress
    from service.rates.rate_training import RateProgress
    from service.rates.updates import UpdateProgress
    from service.train.autoencoder import AutoencoderProgress
    from service.train.sampler import Sampler

train_app = typer.Typer(no_args_is_help=True, help="Train backbones and rates, export backbones.")
for command in (base, export, default):
    train_app.command()(command)

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of training pictures.", show_default=False)
]
ModelFolderOption = Annotated[Path, typer.Option(help="The model's folder in a store.")]
ScratchOption = Annotated[
    Path, typer.Option(help="Folder for finished parts; an interrupted run resumes from it.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of crops, draws and initial factors.")]
AboutOption = Annotated[str, typer.Option(help="Description of the data for the manifest.")]


@train_app.command()
def rates(
    data: DataArgument,
    measure: options.Measure,
    model: ModelFolderOption,
    scratch: ScratchOption,
    tune: options.Tune = "psnr",
    by: Annotated[
        Literal["lowrank", "prompts"],
        typer.Option(help="Low-rank updates of all layers, or prompts of a Swin backbone."),
    ] = "lowrank",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps per rate.")] = 600,
    start: Annotated[
        Path | None, typer.Option("--from", help="Start from the rates of this earlier model.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="5,6", help="Train only these rates.")] = None,
    seed: SeedOption = 0,
    threads: options.Threads = None,
    device: options.Device = None,
    about: AboutOption = "",
) -> None:
    """Train adapters of a frozen backbone, one per rate, and publish them in its store."""
    import torch

    from service.eval.machine import device_name
    from service.rates.ladder import train_ladder
    from service.rates.rate_training import recipe_by
    from service.store.read import load_model

    recipe = replace(recipe_by(by, tune), steps=steps, seed=seed)
    order = recipe.loss.order
    chosen = order if only is None else whole_rates(only, order)
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
def prune(
    model: Annotated[Path, typer.Argument(help="The model's folder in a store.")],
) -> None:
    """Delete superseded adapters; streams that need them cannot be decoded any more."""
    from service.store.write import prune as prune_model

    deleted = prune_model(model)
    for name in deleted:
        typer.echo(f"deleted {model / name}")
    if not deleted:
        typer.echo(f"{model} has no superseded adapters")


@train_app.command()
def measure(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures: Kodak.")],
    model: ModelFolderOption,
    threads: options.Threads = None,
    device: options.Device = None,
) -> None:
    """Measure every rate of a model, and replace the figures in its manifest."""
    from service.rates.figures import measure_model

    chosen = training_device(threads, device)
    for rate in measure_model(model, pictures, chosen.type):
        ms_ssim = "" if rate.kodak_ms_ssim is None else f"  MS-SSIM {rate.kodak_ms_ssim:.5f}"
        name = f"{rate.tune} {rate.rate:g}"
        typer.echo(f"{name:10} {rate.kodak_bpp:.4f} bpp  {rate.kodak_psnr_db:.3f} dB{ms_ssim}")


@train_app.command()
def updates(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of pictures, one per kind.")
    ],
    model: ModelFolderOption,
    scratch: ScratchOption,
    rates: Annotated[str, typer.Option(metavar="2,4,6", help="Rates to fit for.")] = "2,4,6",
    rank: Annotated[int, typer.Option(min=1, max=8, help="Largest rank of a layer.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps per update, first round.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of fitting and regrouping.")] = 2,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles cut from each folder.")] = 48,
    seed: SeedOption = 0,
    threads: options.Threads = None,
    about: AboutOption = "",
) -> None:
    """Fit ready updates of the decoder, for effort 0 of adaptation, and publish them."""
    from service.rates.updates import UpdateRecipe, train_updates

    training_device(threads)
    recipe = UpdateRecipe(whole_rates(rates), rank, rounds, steps, tiles=tiles, seed=seed)
    record: dict[str, object] = {"data": about} if about else {}
    for update in train_updates(model, pictures, scratch, recipe, record, _print_update):
        change = update.training["change_of_loss"]
        typer.echo(f"{update.name:16} {len(update.data):8,} bytes  loss {change:+.2%}")


@train_app.command()
def previews(
    data: DataArgument,
    model: ModelFolderOption,
    scratch: ScratchOption,
    channels: Annotated[int, typer.Option(min=1, max=512, help="Channels of its trunk.")] = 96,
    crops: Annotated[int, typer.Option(min=1, help="Crops that are coded to train on.")] = 2400,
    crop: Annotated[int, typer.Option(min=64, help="Side of the crops in pixels.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 8000,
    seed: SeedOption = 0,
    threads: options.Threads = None,
    about: AboutOption = "",
) -> None:
    """Train the network that decodes small pictures, and publish it in place of an earlier one."""
    from service.rates.previews import PreviewRecipe, train_previews

    if crop % 16:
        raise BadParameter(f"crop is {crop}, expected a multiple of 16")
    training_device(threads)
    recipe = PreviewRecipe(channels, crops=crops, crop=crop, steps=steps, seed=seed)
    read = _read_crops(data, crop, seed)
    record: dict[str, object] = {
        "data": about or f"{len(read)} pictures, {read.pixels / 1e6:.0f} Mpixel"
    }
    train_previews(model, read, scratch, recipe, record, _print_previews)


@train_app.command()
def zoo(
    name: Annotated[str, typer.Argument(help="Name of a CompressAI model: mbt2018-mean.")],
    quality: Annotated[int, typer.Argument(min=1, help="Quality of its published weights.")],
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File of the adapter, named after its rate.")],
    lmbda: Annotated[float, typer.Option(min=0, help="Weight of the error, as in CompressAI.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 400,
    rank: Annotated[int, typer.Option(min=1, max=64, help="Rank of every layer's factors.")] = 2,
    crop: Annotated[int, typer.Option(min=64, help="Side of the training crops, pixels.")] = 256,
    seed: SeedOption = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a rate's low-rank adapter of a frozen CompressAI model.

    An existing adapter is replaced only with --overwrite, because its streams need it.
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
    write_whole(out, train_adapter(pretrained(name, quality), crops, recipe, report))


@train_app.command()
def autoencoder(
    data: TilesArgument,
    run: RunOption,
    minutes: MinutesOption,
    decay: DecayOption = 0.0,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Model whose layers a new run starts from; default: light."),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 4e-4,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of the crops in pixels, over 160.")] = 192,
    seed: SeedOption = 0,
    threads: options.Threads = None,
) -> None:
    """Train the KL autoencoder of latent streams for some minutes, on the CPU."""
    from service.codec.sizes import AutoencoderSizes, conv_sizes
    from service.store.read import default_path, load_model
    from service.train.autoencoder import AutoencoderRun, from_backbone

    training_device(threads, "cpu")
    sampler = _sampler(data, run / TILES, batch, crop)
    model = load_model(start or default_path() / "light")
    sizes = AutoencoderSizes(width=conv_sizes(model.sizes).c8)
    work = AutoencoderRun(run, sampler, lambda: from_backbone(model, sampler, sizes), lr, seed)
    work.train(minutes, decay, _print_autoencoder)
    say(f"{run} holds step {work.step}")


@train_app.command("export-autoencoder")
def export_autoencoder(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="The autoencoder's folder in a store.")],
) -> None:
    """Write a trained autoencoder, with default networks that `train networks` replaces."""
    from service.export import autoencoder as export_run

    export_run.export_autoencoder(run, out)
    say(f"{out} holds the autoencoder {out.name}")


@train_app.command()
def networks(
    data: TilesArgument,
    out: Annotated[Path, typer.Argument(help="File of the default networks.")],
    name: Annotated[str, typer.Option("--autoencoder", help="Name of the autoencoder.")] = "kl",
    levels: Annotated[
        str, typer.Option(metavar="16,4,3,2", help="Grids at 1:1, 1:2, 1:4 ... of the latents.")
    ] = "16,4,3,2",
    widths: Annotated[
        str, typer.Option(metavar="8,16", help="Channels of the two small networks.")
    ] = "8,16",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2400,
    rounds: Annotated[int, typer.Option(min=1, help="Groups of crops for each quality.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a group.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 256,
    store: options.Store = None,
    seed: SeedOption = 0,
    threads: options.Threads = None,
) -> None:
    """Fit the default networks of an autoencoder; streams that were made with others need those."""
    from service.adapt.overfit import differentiable
    from service.autoencoders.registry import open_autoencoders
    from service.export.autoencoder import export_networks
    from service.rates.default_networks import crop_groups, fit_default_networks
    from service.runtime.loading import load_models
    from service.store.read import load_store

    training_device(threads, "cpu")
    models = load_models(load_store(store)[:1], "cpu", None, threads or 0)
    chosen = open_autoencoders(store, models, "cpu", decode_only=False).named(name)
    sampler = _sampler(data, out.with_suffix(".tiles.safetensors"), batch, crop)
    groups = crop_groups(differentiable(chosen), sampler, rounds, seed)
    narrow, wide = numbers(widths, "widths", 2)
    fitted = fit_default_networks(
        groups, numbers(levels, "levels"), steps, _print_networks, (narrow, wide), seed
    )
    export_networks(fitted, out)
    say(f"{out} holds the default networks of {name}")


def numbers(text: str, name: str, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers from 1 on that commas separate. Raises BadParameter: it is something else."""
    try:
        values = tuple(map(int, text.split(",")))
    except ValueError:
        values = ()
    if not values or min(values) < 1 or count not in (None, len(values)):
        expected = "whole numbers" if count is None else f"{count} whole numbers"
        raise BadParameter(f"{name} is {text[:100]!r}, expected {expected} with commas")
    return values


def _sampler(data: list[Path], path: Path, batch: int, crop: int) -> Sampler:
    """Crops of tiles, cut into the file `path` where folders are given."""
    import torch

    from service.train.recipe import BackboneRecipe
    from service.train.sampler import Sampler, gather_data

    path.parent.mkdir(parents=True, exist_ok=True)
    record, tiles = tiles_of(data, path)
    say_tiles(record, tiles)
    recipe = BackboneRecipe(batch=batch, crop=crop, groups=1)
    return Sampler(gather_data((record, tiles), {}, recipe, torch.device("cpu")).sources, recipe)


def _read_crops(data: Path, size: int, seed: int) -> Crops:
    """Read the training pictures, and report how many files are left out."""
    from service.datasets.crops import Crops

    crops = Crops(data, size, seed)
    pictures = f"{len(crops)} pictures of at least {size}x{size} pixels"
    typer.echo(f"{pictures}, {crops.left_out} files left out", err=True)
    return crops


def _print_update(p: UpdateProgress) -> None:
    typer.echo(
        f"round {p.round + 1}  {p.group}  step {p.step}/{p.steps}  "
        f"error {p.loss:.4f} of the loss without update  {p.bits / 8:,.0f} bytes"
    )


def _print_previews(p: PreviewProgress) -> None:
    psnr = "  ".join(f"1/{scale} {db:.2f} dB" for scale, db in p.psnr_db.items())
    typer.echo(f"step {p.step}/{p.steps}  {psnr}")


def _print(p: RateProgress) -> None:
    typer.echo(
        f"rate {p.rate}  step {p.step}/{p.steps}  lmbda {p.lmbda:.5g}  loss {p.loss:.4f}  "
        f"{p.bpp:.4f} bpp  error {p.error:.5g}  {p.pixels_per_s / 1e6:.2f} Mpixel/s"
    )


def _print_autoencoder(p: AutoencoderProgress) -> None:
    typer.echo(
        f"{p.minutes:.1f} min  step {p.step}  loss {p.loss:.4f}  KL {p.kl_bpp:.4f} bpp  "
        f"{p.psnr_db:.2f} dB  MS-SSIM {p.ms_ssim:.4f}  lr {p.lr:.2e}"
    )


def _print_networks(p: NetworkProgress) -> None:
    losses = "  ".join(f"{quality}: {loss:.4f}" for quality, loss in p.losses.items())
    typer.echo(f"step {p.step} of {p.steps}  loss by quality  {losses}")
