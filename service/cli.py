"""The `rankpress` command: one function per command.

Whatever a command needs is imported inside its function, so that `rankpress --help` is quick and
the base install, without PyTorch and web framework, can do all that it can do. Exit codes: 0 done,
1 something failed, 2 wrong usage, 70 a bug, 130 interrupted.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer
from typer.core import TyperGroup

from service.cli_eval import register as register_eval
from service.cli_jobs import register as register_jobs
from service.cli_settings import settings_of as _settings
from service.cli_train import train_app
from service.errors import BadParameter, MissingExtra, RankpressError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.cli_batch import Made, Task
    from service.engine.engine import Engine
    from service.engine.types import Codec
    from service.picture import Picture
    from service.settings import Settings

Loaded = TypeVar("Loaded")

STREAM_SUFFIX: Final = ".rkp"
IMAGE_SUFFIXES: Final = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
Device = Literal["auto", "cpu", "cuda"]
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
StoreOption = Annotated[Path | None, typer.Option(help="Folder of models, if not the built-in.")]
ModelOption = Annotated[str | None, typer.Option(help="Compress with this model of the store.")]
DeviceOption = Annotated[Device | None, typer.Option(help="Where the networks run.")]
CheckOption = Annotated[
    bool | None, typer.Option("--check/--no-check", help="Decode each fresh stream and compare.")
]
TuneOption = Annotated[
    Literal["psnr", "ms-ssim"], typer.Option(help="What the rate was trained for.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace files.")]


class _Group(TyperGroup):
    """Turns what commands raise into one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except RankpressError as error:
            raise _stop(str(error), 2 if isinstance(error, BadParameter) else 1) from error
        except BrokenPipeError:  # whoever read our output has seen enough; typer ends quietly
            raise
        except OSError as error:
            raise _stop(f"{error.filename or ''}: {error.strerror or error}", 1) from error
        except KeyboardInterrupt as error:
            raise _stop("interrupted", 130) from error
        except Exception as error:
            own = hasattr(error, "exit_code") or isinstance(error, typer.Abort)  # typer's
            if own or ctx.params["debug"]:
                raise
            bug = f"unexpected {type(error).__name__}: {error}; rankpress --debug shows where"
            raise _stop(bug, 70) from error


def _stop(message: str, code: int) -> typer.Exit:
    """Print the message and return what ends the program with that exit code."""
    from service.cli_print import errors_console, print_error

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
    app()


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
    metadata: Annotated[
        Literal["none", "icc", "all"],
        typer.Option(help="Keep the colour profile, that and Exif, or nothing."),
    ] = "icc",
    store: StoreOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    check: CheckOption = None,
    json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compress pictures, and all pictures in folders, to .rkp streams."""
    from service.cli_batch import Made, check_output, plan, rate_or_target
    from service.images import read_image

    check_output(out, json)
    wanted = rate_or_target(rate, target_bpp, max_bytes, target_psnr)
    tasks = plan(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    settings = _settings(store=store, model=model, device=device, check=check)
    codec = _open(settings)

    def load(data: bytes) -> Picture:
        return read_image(data, max_pixels=settings.max_pixels, metadata=metadata)

    def make(picture: Picture) -> Made:
        if isinstance(wanted, float):
            c = codec.compress(picture, wanted, tune)
        else:
            c = codec.compress_to(picture, wanted, tune)
        return Made(c.data, c.width, c.height, c.rate, c.bpp, c.psnr_db, picture.notes)

    _work(tasks, load, make, json=json, overwrite=overwrite)


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
    from service.cli_batch import Made, check_output, plan
    from service.images import PNG_SMALL, shrink, write_image
    from service.picture import Region

    check_output(out, json)
    named = FORMAT_OF_SUFFIX.get(Path(out).suffix.lower())
    chosen = format or named or "png"
    suffix = next(s for s, f in FORMAT_OF_SUFFIX.items() if f == chosen)
    tasks = plan(sources, out, frozenset({STREAM_SUFFIX}), suffix)
    if not (format or named) and tasks[0].target == Path(out):
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise BadParameter(f"OUT is {out}, expected a name in {known}, or --format")
    if quality is not None and chosen == "png":
        raise BadParameter("PNG is lossless: --quality is for webp, jpeg and avif")
    part = None if region is None else Region.parse(region)
    codec = _open(_settings(store=store, device=device))

    def make(data: bytes) -> Made:
        decompressed = codec.decompress(data, part)
        whole = decompressed.picture
        bpp = 8 * len(data) / (whole.width * whole.height) if part is None else None
        picture = whole if max_size is None else shrink(whole, max_size)
        written = write_image(picture, chosen, quality=quality, png_level=PNG_SMALL)
        size = picture.width, picture.height
        return Made(written, *size, decompressed.rate, bpp, None, picture.notes)

    _work(tasks, lambda data: data, make, json=json, overwrite=overwrite)


@app.command()
def adapt(
    sources: SourcesArgument,
    out: OutArgument,
    rate: Annotated[float, typer.Option(min=1, max=8, help="1 smallest, 8 best.")] = 4.0,
    effort: Annotated[
        int, typer.Option(min=0, max=4, help="0, 100, 500, 1000 or 2000 steps of each phase.")
    ] = 2,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="End about then, picture by picture.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    metadata: Annotated[
        Literal["none", "icc", "all"],
        typer.Option(help="Keep the colour profile, that and Exif, or nothing."),
    ] = "icc",
    store: StoreOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Compress pictures with minutes of optimisation for each; any decoder reads the streams."""
    from service.cli_adapt import run_adaptation
    from service.cli_batch import check_output, plan
    from service.images import read_image

    check_output(out, json)
    tasks = plan(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    settings = _settings(store=store, device=device)
    codec = _open_engine(settings)

    def load(data: bytes) -> Picture:
        return read_image(data, max_pixels=settings.max_pixels, metadata=metadata)

    def make(picture: Picture) -> Made:
        begun = codec.adapt(picture, rate, effort=effort, seed=seed, max_seconds=max_seconds)
        return run_adaptation(begun, picture, rate, quiet=json or len(tasks) > 1)

    _work(tasks, load, make, json=json, overwrite=overwrite)


@app.command()
def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False)],
    json: JsonOption = False,
) -> None:
    """Say what .rkp streams hold, without decoding them."""
    from service.cli_batch import STANDARD, message_of, read_bytes
    from service.cli_print import errors_console, print_error, print_stream, stream_json
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
    from service.cli_print import model_json, print_model

    for model in _open(_settings(store=store, device="cpu", check=False)).models():
        if json:
            typer.echo(model_json(model))
        else:
            print_model(model)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    store: StoreOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    check: CheckOption = None,
    workers: Annotated[int | None, typer.Option(help="Requests worked on at a time.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a network call.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels of the largest picture.")] = None,
    decode_only: Annotated[
        bool | None, typer.Option("--decode-only", help="Only decode, with the light decoder.")
    ] = None,
    objects_url: Annotated[
        str | None, typer.Option("--objects", help="Folder or URL of stored streams.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Least severe.")
    ] = None,
    log_format: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Of log lines, on stderr.")
    ] = None,
) -> None:
    """Serve compress and decompress over HTTP; RANKPRESS_* variables set what is not given."""
    settings = _settings(
        host=host,
        port=port,
        store=store,
        model=model,
        device=device,
        check=check,
        workers=workers,
        threads=threads,
        max_pixels=max_pixels,
        decode_only=decode_only,
        objects_url=objects_url,
        log_level=log_level,
        log_format=log_format,
    )
    try:
        from service.api.server import serve as run_server
    except ModuleNotFoundError as error:
        if (error.name or "service").startswith("service"):
            raise
        extra = "decode" if settings.decode_only else "server"
        needs = f"serving needs {error.name}: pip install 'rankpress[{extra}]'"
        raise MissingExtra(needs) from error
    if not settings.decode_only and find_spec("torch") is None:
        needs = "serving needs torch: pip install 'rankpress[server]', or serve --decode-only"
        raise MissingExtra(needs)
    # A thread that loads leaves an OpenMP team behind; with the worker's there would be more
    # threads than cores, and all would wait slowly (186 ms a photo, not 146). This one ends first.
    with ThreadPoolExecutor(1) as loader:
        codec = loader.submit(_open_to_serve, settings).result()
    run_server(codec, settings)


register_eval(app)
register_jobs(app)


def _open_to_serve(settings: Settings) -> Codec:
    """Load the models for many requests."""
    return _open(settings, max_batch=settings.max_batch, warm=settings.warm)


def _open(settings: Settings, **serving: Any) -> Codec:
    """Load the models: those of the store, or the one of CompressAI that is set."""
    if settings.zoo is None:
        return _open_engine(settings, **serving)
    from service.engine.zoo import open_zoo

    return open_zoo(
        settings.zoo,
        settings.zoo_adapters,
        settings.machine_key,
        settings.max_pixels,
        settings.threads,
    )


def _open_engine(settings: Settings, **serving: Any) -> Engine:
    """Load the models of the store."""
    from service.engine.engine import open_engine

    return open_engine(
        store=settings.store,
        device=settings.device,
        check=settings.check,
        max_pixels=settings.max_pixels,
        threads=settings.threads,
        cache_bytes=settings.cache_bytes,
        adapters=settings.adapters,
        decode_only=settings.decode_only,
        model=settings.model,
        **serving,
    )


def _work(
    tasks: Sequence[Task],
    load: Callable[[bytes], Loaded],
    make: Callable[[Loaded], Made],
    *,
    json: bool,
    overwrite: bool,
) -> None:
    """Do the tasks and report; exit with 1 when any failed."""
    from service.cli_batch import run
    from service.cli_print import follow

    outcomes = follow(
        run(tasks, load, make, overwrite=overwrite),
        len(tasks),
        json_lines=json,
        quiet=tasks[0].target is None,
    )
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
