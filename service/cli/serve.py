"""`rankpress serve`, which needs the `server` extra, or `decode` with --decode-only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli import options
from service.cli.options import open_codec, require_extra, settings_of
from service.cli.process import logged_failure
from service.errors import MissingExtra

if TYPE_CHECKING:
    from service.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: a free one.")] = None,
    uds: Annotated[Path | None, typer.Option(help="UNIX socket to listen on instead.")] = None,
    fd: Annotated[
        int | None, typer.Option(help="Descriptor of an inherited socket to listen on instead.")
    ] = None,
    root_path: Annotated[str | None, typer.Option(help="Path prefix that a proxy removes.")] = None,
    forwarded_allow_ips: Annotated[
        str | None, typer.Option(help="Proxies whose X-Forwarded-* headers are trusted; * for all.")
    ] = None,
    store: options.Store = None,
    model: options.Model = None,
    device: options.Device = None,
    check: options.Check = None,
    workers: Annotated[
        int | None, typer.Option(help="Requests processed at the same time.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads per network call.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels of the largest picture.")] = None,
    decode_only: Annotated[
        bool | None, typer.Option("--decode-only", help="Only decode, with the light decoder.")
    ] = None,
    objects_url: Annotated[
        str | None, typer.Option("--objects", help="Folder or URL of stored streams.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Least severe log lines."),
    ] = None,
    log_format: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Format of log lines, on standard error.")
    ] = None,
) -> None:
    """Serve compress and decompress over HTTP. RANKPRESS_* variables set other options."""
    given = locals()  # each option is named after its setting
    with logged_failure("server failed", log_format):
        _serve(settings_of(**given))


def _serve(settings: Settings) -> None:
    with require_extra("serving needs", "decode" if settings.decode_only else "server"):
        from service.server.run import serve as run_server
    if not settings.decode_only and find_spec("torch") is None:
        raise MissingExtra(
            "serving needs torch: pip install 'rankpress[server]', or serve --decode-only"
        )
    # Loading leaves OpenMP threads with the thread that loads. Together with those of the worker
    # there would be more threads than cores, and a photo would take 186 ms instead of 146. The
    # threads end with this executor.
    with ThreadPoolExecutor(1) as loader:
        codec = loader.submit(open_codec, settings, warm=settings.warm).result()
    run_server(codec, settings)
