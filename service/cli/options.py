"""Options that several commands have in common: the settings, codec or server that they select."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.process import say
from service.errors import (
    BadParameter,
    MissingExtra,
    RateUnavailable,
    RemoteFailure,
    ServerUnreachable,
)
from service.files import check_target, write_whole

if TYPE_CHECKING:
    import torch
    from rankpress_client import Rankpress

    from service.engine.types import Codec
    from service.nets import compiling
    from service.settings import Settings

DeviceName = Literal["auto", "cpu", "cuda"]


def _check_record(record: Path | None) -> Path | None:
    """Refuse a file that could not be written, before any work is done for it."""
    if record is not None:
        check_target(record, overwrite=True)
    return record


Record = Annotated[
    Path | None,
    typer.Option(callback=_check_record, help="Also write the results to this JSON file."),
]

Store = Annotated[Path | None, typer.Option(help="Folder of models; default: the built-in.")]
Model = Annotated[str | None, typer.Option(help="Compress with this model of the store.")]
Device = Annotated[DeviceName | None, typer.Option(help="Where the networks run.")]
Check = Annotated[
    bool | None, typer.Option("--check/--no-check", help="Decode each new stream and compare.")
]
Metadata = Annotated[
    Literal["none", "icc", "all"],
    typer.Option(help="Keep nothing, the colour profile, or also Exif with GPS."),
]
Frame = Annotated[
    int | None,
    typer.Option(min=0, help="Frame or page of a file that has several, from 0."),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="RANKPRESS_SERVER", help="Let the server at this URL do the work."
    ),
]
RateOrLossless = Annotated[
    str | None,
    typer.Option(
        metavar="1-8|lossless",
        show_default="4 without a target",
        help="1 is smallest, 8 is best, lossless keeps every pixel exactly.",
    ),
]
TargetBpp = Annotated[float | None, typer.Option(help="Most bits per pixel, in place of a rate.")]
MaxBytes = Annotated[int | None, typer.Option(help="Most bytes of a stream, in place of a rate.")]
TargetPsnr = Annotated[float | None, typer.Option(help="Least PSNR in dB, in place of a rate.")]
Quality = Annotated[
    int | None, typer.Option(min=1, max=100, help="Quality of jpeg, avif and lossy webp.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace existing files.")]
Threads = Annotated[int | None, typer.Option(min=0, help="CPU threads; 0: all cores.")]
Compile = Annotated[
    Literal["auto", "off", "blocks", "whole"],
    typer.Option(
        "--compile", help="Parts to compile with torch.compile; auto: blocks, on CUDA whole."
    ),
]
Rate = Annotated[float, typer.Option(min=1, max=8, help="1 is smallest, 8 is best.")]
Tune = Annotated[
    Literal["psnr", "ms-ssim"], typer.Option(help="Quality measure that the rate is trained for.")
]

Measure = Annotated[Path, typer.Option(help="Folder of pictures for the figures in the manifest.")]


@contextmanager
def require_extra(what: str, extra: str) -> Iterator[None]:
    """Raise MissingExtra, "WHAT PACKAGE: pip install ...", if a package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "service").startswith("service"):
            raise
        raise MissingExtra(f"{what} {error.name}: pip install 'rankpress[{extra}]'") from error


def settings_of(**options: object) -> Settings:
    """Return settings with the options that are not None, else from the environment or defaults.

    Raises:
        BadParameter: a value is wrong; the message names the setting.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings.model_validate({k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        messages = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadParameter("; ".join(messages)) from error


def open_codec(settings: Settings, *, warm: bool = False) -> Codec:
    """Load the models of the store, `warm` or not, or the CompressAI model that is always warm."""
    if settings.zoo is None:
        from service.engine.opening import open_engine

        return open_engine(settings, warm=warm)
    from service.zoo.opening import open_zoo

    return open_zoo(
        settings.zoo,
        settings.zoo_adapters,
        settings.machine_key or settings.state_folder / "machine.key",
        settings.max_pixels,
        settings.threads,
    )


@contextmanager
def open_server(url: str, local: Mapping[str, object]) -> Iterator[Rankpress]:
    """Open the client of a server.

    Args:
        local: options of work on this machine, with None where they were not given.

    Raises:
        BadParameter: one of them was given, or the URL is none.
        MissingExtra: httpx is not installed.
        ServerUnreachable: there is no connection.
    """
    given = [name for name, value in local.items() if value is not None]
    if given:
        raise BadParameter(
            f"the server at {url} is to do the work, so {' and '.join(given)} would have no effect"
        )
    with require_extra("--server needs", "client"):
        from rankpress_client import ProblemError, Rankpress
        from rankpress_client.errors import UnexpectedAnswerError
    try:
        client = Rankpress(url)
    except ValueError as error:
        raise BadParameter(str(error)) from error
    with client:
        # Say at once that nobody is there. A proxy may hide the path that is asked for here.
        with client_errors(), suppress(ProblemError, UnexpectedAnswerError):
            client.health()
        yield client


@contextmanager
def client_errors() -> Iterator[None]:
    """Raise errors of the client as those of a command."""
    from rankpress_client import RankpressClientError, errors, problems

    try:
        yield
    except problems.RateUnavailableError as error:
        raise RateUnavailable(error.detail, error.available or ()) from error
    except (
        errors.ConnectionFailedError,
        problems.UnauthorizedError,
        problems.JobsOffError,
    ) as error:
        raise ServerUnreachable(str(error)) from error
    except RankpressClientError as error:
        raise RemoteFailure(str(error)) from error


def write_results(results: Mapping[str, Any], *paths: Path | None) -> dict[str, Any]:
    """Write results as JSON to the paths that are given; return them as they are written."""
    from service.eval.evaluation import to_json

    text = to_json(results)
    for path in paths:
        if path is not None:
            write_whole(path, text.encode())
    rounded: dict[str, Any] = json.loads(text)
    return rounded


def training_device(threads: int | None, device: str | None = None) -> torch.device:
    """Set torch's threads and return the device to train on; the settings stand in for None."""
    import torch

    from service.transforms.synthesis_torch import pick_device

    settings = settings_of(threads=threads, device=device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return pick_device(settings.device)


def prepare(
    threads: int | None, device: str | None, compiled: compiling.Compile
) -> tuple[torch.device, compiling.Compile]:
    """Set torch's threads; return the device to train on, and what to compile on it."""
    from service.nets.compiling import choose_compile

    where = training_device(threads, device)
    mode, note = choose_compile(compiled, where)
    if note:
        say(note)
    return where, mode


def whole_rates(text: str, offered: Collection[int] = range(1, 9)) -> tuple[int, ...]:
    """Parse rates such as 1,4,8. Raises BadParameter if one of them is not offered."""
    parts = [part.strip() for part in text.split(",")]
    if not {str(rate) for rate in offered}.issuperset(parts):
        raise BadParameter(f"rates are {text!r}, expected some of {sorted(offered)}")
    return tuple(map(int, parts))
