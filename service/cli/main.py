"""The `rankpress` command: one function per command.

Whatever a command needs is imported inside its function, so that `rankpress --help` is quick and
the base install, without PyTorch and web framework, can do all that it can do. Exit codes: 0 done,
1 something failed, 2 wrong usage, 70 a bug, 130 interrupted.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer
from typer.core import TyperGroup

from service.cli.errors import is_typers, reason_and_code
from service.cli.eval import register as register_eval
from service.cli.jobs import register as register_jobs
from service.cli.opening import open_codec
from service.cli.options import (
    CheckOption,
    DeviceOption,
    FrameOption,
    JsonOption,
    MetadataOption,
    ModelOption,
    OverwriteOption,
    StoreOption,
)
from service.cli.serve import register as register_serve
from service.cli.settings import settings_of
from service.cli.streams import drop_unwritten, hold_closed_streams, reason_of
from service.cli.train import train_app
from service.errors import BadParameter, RankpressError
from service.files import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.cli.batch import Made, Plan
    from service.images.read import Metadata
    from service.picture import Picture

Loaded = TypeVar("Loaded")

STREAM_SUFFIX: Final = ".rkp"
Format = Literal["png", "webp", "jpeg", "avif"]
FORMAT_OF_SUFFIX: Final[dict[str, Format]] = {
    ".png": "png",
    ".webp": "webp",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".avif": "avif",
}

SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="IN", show_default=False, help="Files or folders, or -.")
]
OutArgument = Annotated[
    str, typer.Argument(metavar="OUT", show_default=False, help="A file, a folder, or -.")
]
TuneOption = Annotated[
    Literal["psnr", "ms-ssim"], typer.Option(help="What the rate was trained for.")
]


def _option(name: str) -> str:
    """An option as it is typed: --max-bytes for max_bytes."""
    return "--" + name.replace("_", "-")


class _Group(TyperGroup):
    """Turns what commands raise into one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read our output has seen enough; typer ends quietly
            raise
        except KeyboardInterrupt as error:
            raise _stop("interrupted", 130) from error
        except Exception as error:
            reason, code = reason_and_code(error)
            if is_typers(error) or (code == 70 and ctx.params["debug"]):
                raise
            if code == 70:
                reason += "; rankpress --debug shows where"
            raise _stop(reason, code) from error


def _stop(message: str, code: int) -> typer.Exit:
    """Print the message and return what ends the program with that exit code."""
    from service.cli.output import errors_console, print_error

    print_error(errors_console(), message)
    return typer.Exit(code)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Neural image codec: pictures to small .rkp streams and back.",
)


app.add_typer(train_app, name="train")


def main() -> None:
    """Run the command line."""
    # GNU OpenMP threads that spin for long while they wait take a busy machine's cores from one
    # another; too short a spin costs more than it saves. Compressing a photo on two cores, idle and
    # with one core taken: 168 and 205 ms at 1000, 119 and 128 ms here, 119 and up to 302 ms at the
    # library's own value, seconds with more load. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # numpy's own threads wait for one another in the same way: the light decoder's entropy networks
    # took 50 ms on one thread and 190 to 630 on two where others used both cores too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    hold_closed_streams()
    try:
        app()
    except OSError as error:  # not of a command's work: --help could not be written
        raise SystemExit(_stop(reason_of(error), 1).exit_code) from error
    finally:
        drop_unwritten()


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("rankpress"))
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show where a bug struck.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    del debug, version  # the group reads the one, the callback the other
    warnings.filterwarnings("ignore", module=r"PIL\.")  # flaws in files that do no harm


@app.command()
def compress(
    sources: SourcesArgument,
    out: OutArgument,
    rate: Annotated[
        float | None, typer.Option(min=1, max=8, help="1 smallest, 8 best; 4 if nothing is given.")
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(help="At most so many bits per pixel, in place of a rate.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="At most so many bytes a stream, in place of a rate.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(help="At least so many dB, in place of a rate.")
    ] = None,
    tune: TuneOption = "psnr",
    metadata: MetadataOption = "icc",
    frame: FrameOption = None,
    store: StoreOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    check: CheckOption = None,
    json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compress pictures, and all pictures in folders, to .rkp streams."""
    from service.cli.batch import Made, check_output, plan
    from service.engine.target import rate_or_target

    check_output(out, json)
    wanted = rate_or_target(rate, target_bpp, max_bytes, target_psnr, spelling=_option)
    planned = plan(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    settings = settings_of(store=store, model=model, device=device, check=check)
    codec = open_codec(settings)

    def make(picture: Picture) -> Made:
        c = codec.compress(picture, wanted, tune)
        return Made(c.data, c.width, c.height, c.rate, c.bpp, c.psnr_db, picture.notes, True)

    read = _reader(settings.max_pixels, metadata, frame)
    _work(planned, read, make, json=json, overwrite=overwrite)


@app.command()
def decompress(
    sources: SourcesArgument,
    out: OutArgument,
    format: Annotated[
        Format | None, typer.Option(help="Else by the suffix of OUT, else png.", show_default=False)
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of jpeg, avif and lossy webp.")
    ] = None,
    region: Annotated[str | None, typer.Option(metavar="X,Y,W,H", help="Only this part.")] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Shrink the longest side to this many pixels.")
    ] = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Decompress .rkp streams, and all streams in folders, to pictures. PNGs are made small."""
    from service.cli.batch import Made, check_output, plan
    from service.images.read import of_another_view, shrink, write_with_notes
    from service.picture import Region

    check_output(out, json)
    named = FORMAT_OF_SUFFIX.get(Path(out).suffix.lower())
    chosen = format or named or "png"
    suffix = next(s for s, f in FORMAT_OF_SUFFIX.items() if f == chosen)
    planned = plan(sources, out, frozenset({STREAM_SUFFIX}), suffix)
    if not (format or named) and any(task.target == Path(out) for task in planned.tasks):
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise BadParameter(f"OUT is {out}, expected a name in {known}, or --format")
    if quality is not None and chosen == "png":
        raise BadParameter("PNG is lossless: --quality is for webp, jpeg and avif")
    part = None if region is None else Region.parse(region)
    codec = open_codec(settings_of(store=store, device=device))

    def make(data: bytes) -> Made:
        decompressed = codec.decompress(data, part)
        whole = decompressed.picture
        bpp = 8 * len(data) / (whole.width * whole.height) if part is None else None
        picture = whole if part is None else of_another_view(whole)
        picture = picture if max_size is None else shrink(picture, max_size)
        written = write_with_notes(picture, chosen, quality=quality, small_png=True)
        size, notes = (picture.width, picture.height), picture.notes + written.notes
        return Made(written.data, *size, decompressed.rate, bpp, None, notes)

    _work(planned, lambda data: data, make, json=json, overwrite=overwrite)


@app.command()
def adapt(
    sources: SourcesArgument,
    out: OutArgument,
    rate: Annotated[float, typer.Option(min=1, max=8, help="1 smallest, 8 best.")] = 4.0,
    effort: Annotated[
        int, typer.Option(min=0, max=4, help="0: a ready update; 100 to 2000 steps a phase.")
    ] = 2,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="End about then, picture by picture.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    metadata: MetadataOption = "icc",
    frame: FrameOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compress pictures with minutes of optimisation for each; any decoder reads the streams."""
    from service.cli.adapt import run_adaptation
    from service.cli.batch import check_output, plan
    from service.engine.opening import open_engine

    check_output(out, json)
    planned = plan(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    settings = settings_of(store=store, device=device)
    codec = open_engine(settings)

    def make(picture: Picture) -> Made:
        begun = codec.adapt(picture, rate, effort=effort, seed=seed, max_seconds=max_seconds)
        return run_adaptation(begun, picture, rate, quiet=json or len(planned.tasks) > 1)

    read = _reader(settings.max_pixels, metadata, frame)
    _work(planned, read, make, json=json, overwrite=overwrite)


@app.command()
def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False)],
    json: JsonOption = False,
) -> None:
    """Say what .rkp streams hold, without decoding them."""
    from service.cli.batch import STANDARD, message_of, read_bytes
    from service.cli.output import errors_console, print_error, print_stream, stream_json
    from service.codec.container import describe

    failed = False
    for name in files:
        try:
            told = describe(read_bytes(None if name == STANDARD else Path(name)))
        except (RankpressError, OSError) as error:
            print_error(errors_console(), f"{name}: {message_of(error)}")
            failed = True
            continue
        if json:
            typer.echo(stream_json(name, told))
        else:
            print_stream(name, told)
    if failed:
        raise typer.Exit(1)


@app.command()
def models(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the models of the store and the rates they offer."""
    from service.cli.output import model_json, print_model

    for model in open_codec(settings_of(store=store, device="cpu", check=False)).models():
        if json:
            typer.echo(model_json(model))
        else:
            print_model(model)


register_serve(app)
register_eval(app)
register_jobs(app)


def _reader(max_pixels: int, metadata: Metadata, frame: int | None) -> Callable[[bytes], Picture]:
    """What reads image files."""
    from service.images.read import read_image

    return partial(read_image, max_pixels=max_pixels, metadata=metadata, frame=frame)


def _work(
    planned: Plan,
    load: Callable[[bytes], Loaded],
    make: Callable[[Loaded], Made],
    *,
    json: bool,
    overwrite: bool,
) -> None:
    """Do the tasks and report; exit with 1 when any failed."""
    from service.cli.batch import run
    from service.cli.output import follow

    outcomes = follow(
        run(planned, load, make, overwrite=overwrite),
        planned,
        json_lines=json,
    )
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
