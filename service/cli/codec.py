"""`rankpress compress`, `decompress`, `maps` and `adapt`: files and folders in, files out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import typer

from service.cli import options
from service.cli.options import client_errors, open_codec, open_server, settings_of
from service.errors import BadParameter
from service.files import IMAGE_SUFFIXES, STREAM_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from rankpress_client import Rankpress
    from rankpress_client.options import AdaptOptions, CompressOptions, Rate

    from service.adapt.task import Adaptation
    from service.cli.batch import ConvertedFile
    from service.cli.plan import BatchPlan
    from service.picture import Picture

Loaded = TypeVar("Loaded")

Format = Literal["png", "webp", "jpeg", "avif"]
Method = Literal["model", "latent"]
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


def compress(
    sources: SourcesArgument,
    out: OutArgument,
    rate: options.RateOrLossless = None,
    target_bpp: options.TargetBpp = None,
    max_bytes: options.MaxBytes = None,
    target_psnr: options.TargetPsnr = None,
    tune: options.Tune = "psnr",
    metadata: options.Metadata = "icc",
    frame: options.Frame = None,
    store: options.Store = None,
    model: options.Model = None,
    device: options.Device = None,
    check: options.Check = None,
    server: options.Server = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compress pictures, and all pictures in folders, to .rkp streams."""
    from service.cli.batch import ConvertedFile, check_output
    from service.cli.plan import plan_batch
    from service.engine.target import Target, rate_or_target
    from service.images.read import read_image

    check_output(out, json)
    requested = rate_or_target(
        rate,
        target_bpp,
        max_bytes,
        target_psnr,
        spelling=lambda name: "--" + name.replace("_", "-"),
    )
    plan = plan_batch(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    if server:
        local = {"--store": store, "--device": device, "--check": check}
        asked: CompressOptions = {
            "rate": None if isinstance(requested, Target) else _rate_option(requested),
            "target_bpp": target_bpp,
            "max_bytes": max_bytes,
            "target_psnr": target_psnr,
            "tune": tune,
            "model": model,
            "metadata": metadata,
            "frame": frame,
        }
        with open_server(server, local) as remote:
            convert_there = partial(_compress_on, remote, asked)
            _run(plan, bytes, convert_there, json=json, overwrite=overwrite)
        return
    settings = settings_of(store=store, model=model, device=device, check=check)
    codec = open_codec(settings)

    def convert(picture: Picture) -> ConvertedFile:
        c = codec.compress(picture, requested, tune)
        return ConvertedFile(
            c.data, c.width, c.height, c.rate, c.bpp, c.psnr_db, picture.notes, is_stream=True
        )

    limit = settings.max_pixels
    read = partial(read_image, max_pixels=limit, metadata=metadata, frame=frame)
    _run(plan, read, convert, json=json, overwrite=overwrite)


def decompress(
    sources: SourcesArgument,
    out: OutArgument,
    format: Annotated[
        Format | None,
        typer.Option(help="Default: by the suffix of OUT, else png.", show_default=False),
    ] = None,
    quality: options.Quality = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Decode only this part.")
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Shrink the longest side to this many pixels.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Decode what there is of a stream that is cut.")
    ] = False,
    store: options.Store = None,
    device: options.Device = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Decompress .rkp streams, and all streams in folders, to pictures. PNGs are made small."""
    from service.cli.batch import ConvertedFile, check_output
    from service.cli.plan import plan_batch
    from service.images.write import write_with_notes
    from service.picture import Region, View

    check_output(out, json)
    by_suffix = FORMAT_OF_SUFFIX.get(Path(out).suffix.lower())
    chosen = format or by_suffix or "png"
    suffix = next(s for s, f in FORMAT_OF_SUFFIX.items() if f == chosen)
    plan = plan_batch(sources, out, frozenset({STREAM_SUFFIX}), suffix)
    if not (format or by_suffix) and any(task.target == Path(out) for task in plan.tasks):
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise BadParameter(f"OUT is {out}, expected a suffix of {known}, or --format")
    if quality is not None and chosen == "png":
        raise BadParameter("PNG is lossless: --quality is for webp, jpeg and avif")
    part = None if region is None else Region.parse(region)
    view = View(part, max_size, partial=partial)
    codec = open_codec(settings_of(store=store, device=device))

    def convert(data: bytes) -> ConvertedFile:
        decompressed = codec.decompress(data, view)
        picture, bpp = decompressed.picture, None
        if part is None:
            shape = codec.preview_stream(data, view).shape
            bpp = 8 * len(data) / (shape.width * shape.height)
        written = write_with_notes(picture, chosen, quality=quality, small_png=True)
        size, notes = (picture.width, picture.height), picture.notes + written.notes
        return ConvertedFile(written.data, *size, decompressed.rate, bpp, None, notes)

    _run(plan, lambda data: data, convert, json=json, overwrite=overwrite)


def maps(
    sources: SourcesArgument,
    out: OutArgument,
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...",
            help="Rates to show; default: the lowest, the one nearest to 4 and the highest.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Show what a token of a Swin model attends to.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Pixel of that token; default: the middle."),
    ] = None,
    store: options.Store = None,
    model: options.Model = None,
    device: options.Device = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw where streams, or pictures at several rates, spend their bits, as PNG files."""
    from service.cli.batch import ConvertedFile, check_output
    from service.cli.plan import plan_batch
    from service.maps.drawing import DrawMaps, begins_as_stream
    from service.maps.request import MapRequest

    check_output(out, json)
    request = MapRequest.parse(rates, model, attention, at)
    plan = plan_batch(sources, out, IMAGE_SUFFIXES | {STREAM_SUFFIX}, ".png")
    settings = settings_of(store=store, model=model, device=device)
    codec = open_codec(settings)

    def convert(data: bytes) -> ConvertedFile:
        drawn = DrawMaps(codec, data, begins_as_stream(data), request, settings.max_pixels)()
        return ConvertedFile(drawn.data, drawn.width, drawn.height, None, None, None, ())

    _run(plan, bytes, convert, json=json, overwrite=overwrite)


def adapt(
    sources: SourcesArgument,
    out: OutArgument,
    method: Annotated[
        Method,
        typer.Option(help="Adapt a model at a rate, or fit the latents of an autoencoder."),
    ] = "model",
    rate: Annotated[
        float | None,
        typer.Option(min=1, max=8, show_default="4", help="1 is smallest, 8 is best."),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=1, max=8, help="In place of a rate with --method latent."),
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Of --method latent; default: the first.")
    ] = None,
    effort: Annotated[
        int,
        typer.Option(min=0, max=4, help="0: a ready update; 1 to 4: 100 to 2000 steps a phase."),
    ] = 2,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop each picture after about this time.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    metadata: options.Metadata = "icc",
    frame: options.Frame = None,
    store: options.Store = None,
    device: options.Device = None,
    server: options.Server = None,
    json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compress pictures with minutes of optimisation for each; any decoder reads the streams."""
    from service.cli.batch import check_output
    from service.cli.output import run_adaptation
    from service.cli.plan import plan_batch
    from service.engine.target import adaptation_level
    from service.images.read import read_image

    check_output(out, json)
    level = adaptation_level(method, rate, quality, autoencoder, spelling=lambda name: f"--{name}")
    plan = plan_batch(sources, out, IMAGE_SUFFIXES, STREAM_SUFFIX)
    quiet = json or len(plan.tasks) > 1
    if server:
        local: dict[str, object] = {
            "--max-seconds": max_seconds,
            "--seed": seed or None,
            "--metadata": None if metadata == "icc" else metadata,
            "--store": store,
            "--device": device,
        }
        asked: AdaptOptions = {
            "method": method,
            "rate": level if method == "model" else None,
            "quality": quality,
            "autoencoder": autoencoder,
            "effort": effort,
            "frame": frame,
        }
        with open_server(server, local) as remote:
            convert_there = partial(_adapt_on, remote, asked, quiet)
            _run(plan, bytes, convert_there, json=json, overwrite=overwrite)
        return
    from service.engine.opening import open_engine

    settings = settings_of(store=store, device=device)
    engine = open_engine(settings)

    begin: Callable[..., Adaptation] = engine.adapt
    if method == "latent":
        begin = partial(engine.fit_latents, autoencoder=autoencoder)

    def convert(picture: Picture) -> ConvertedFile:
        adaptation = begin(picture, level, effort=effort, seed=seed, max_seconds=max_seconds)
        return run_adaptation(adaptation, picture, quiet)

    limit = settings.max_pixels
    read = partial(read_image, max_pixels=limit, metadata=metadata, frame=frame)
    _run(plan, read, convert, json=json, overwrite=overwrite)


def _compress_on(server: Rankpress, asked: CompressOptions, data: bytes) -> ConvertedFile:
    """Compress an image file on a server."""
    with client_errors():
        stream = server.compress(data, **asked)
    return _converted(data, stream.data, stream.psnr_db, stream.notes)


def _adapt_on(server: Rankpress, asked: AdaptOptions, quiet: bool, data: bytes) -> ConvertedFile:
    """Adapt the codec to an image file on a server, as a job; an interrupt cancels it."""
    from service.cli.output import adaptation_gain, run_job

    with client_errors():
        job = server.adapt(data, **asked)
        end = run_job(job, quiet)
        stream = job.result()
    notes = (*stream.notes, adaptation_gain(end))
    return _converted(data, stream.data, end.psnr_db, notes)


def _converted(
    source: bytes, data: bytes, psnr_db: float | None, notes: tuple[str, ...]
) -> ConvertedFile:
    """Return a server's stream as the result of a task, which notes by itself if it is larger."""
    from service.cli.batch import ConvertedFile
    from service.codec.container import describe
    from service.picture import larger_note

    info, larger = describe(data), larger_note(len(data), len(source))
    bpp = 8 * len(data) / (info.width * info.height)
    others = tuple(note for note in notes if note not in larger)
    return ConvertedFile(data, info.width, info.height, info.rate, bpp, psnr_db, others, True)


def _rate_option(rate: float) -> Rate:
    from service.engine.target import LOSSLESS

    return "lossless" if rate == LOSSLESS else rate


def _run(
    plan: BatchPlan,
    load: Callable[[bytes], Loaded],
    convert: Callable[[Loaded], ConvertedFile],
    *,
    json: bool,
    overwrite: bool,
) -> None:
    """Do the tasks of a plan and report them; exit with 1 when any failed."""
    from service.cli.batch import run_batch
    from service.cli.output import report_outcomes

    outcomes = report_outcomes(
        run_batch(plan, load, convert, overwrite=overwrite), plan, json_lines=json
    )
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
