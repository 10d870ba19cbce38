"""The `rankpress` command: its groups of commands, and how errors end it.

A command imports what it needs inside its function, so that `rankpress --help` is fast and the base
install, without PyTorch and web framework, can run every command that does not need them. Exit
codes: 0 success, 1 something failed, 2 wrong usage, 70 a bug, 130 interrupted.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from service.cli import options
from service.cli.bench import bench_app
from service.cli.bulk import bulk
from service.cli.codec import adapt, compress, decompress, maps
from service.cli.eval import evaluate, evaluate_adaptation, evaluate_latent, evaluate_parts
from service.cli.jobs import jobs_app, worker
from service.cli.options import open_codec, settings_of
from service.cli.process import (
    discard_unwritten,
    is_typer_exit,
    reason_and_code,
    reason_of,
    replace_closed_streams,
)
from service.cli.serve import serve
from service.cli.train import train_app
from service.errors import BadParameter, RankpressError


class _ErrorHandlingGroup(TyperGroup):
    """Turns the exceptions of commands into one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the command line names."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has closed it; typer ends silently
            raise
        except KeyboardInterrupt as error:
            raise _stop("interrupted", 130) from error
        except Exception as error:
            reason, code = reason_and_code(error)
            if is_typer_exit(error) or (code == 70 and ctx.params["debug"]):
                raise
            if code == 70:
                reason += "; rankpress --debug shows where"
            raise _stop(reason, code) from error


def _stop(message: str, code: int) -> typer.Exit:
    """Print the message and return an exception that ends the program with an exit code."""
    from service.cli.output import errors_console, print_error

    print_error(errors_console(), message)
    return typer.Exit(code)


app = typer.Typer(
    cls=_ErrorHandlingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Neural image codec: pictures to small .rkp streams and back.",
)


def main() -> None:
    """Run the command line."""
    # GNU OpenMP threads spin while they wait. A long spin takes the cores of a busy machine from
    # other threads; a short one costs more than it saves. Compressing a photo took, on two idle
    # cores and with one of them in use, 168 and 205 ms at 1000, 119 and 128 ms at 10000, and 119
    # and up to 302 ms at the library's default. The variable is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # The threads of numpy spin too: the light decoder's entropy networks took 50 ms on one thread,
    # and 190 to 630 ms on two where other programs used both cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    replace_closed_streams()
    try:
        app()
    except OSError as error:  # outside of any command: --help could not be written
        raise SystemExit(_stop(reason_of(error), 1).exit_code) from error
    finally:
        discard_unwritten()


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(version("rankpress"))
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a bug.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del debug, version  # the group reads `debug`, the callback `version`
    warnings.filterwarnings("ignore", module=r"PIL\.")  # harmless flaws in image files


def info(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", show_default=False)],
    json: options.Json = False,
) -> None:
    """Show what .rkp streams contain, without decoding them."""
    from service.cli.batch import message_of, read_bytes
    from service.cli.output import errors_console, print_error, print_stream, stream_json
    from service.cli.plan import STANDARD
    from service.codec.container import describe

    failed = False
    for name in files:
        try:
            stream = describe(read_bytes(None if name == STANDARD else Path(name)))
        except (RankpressError, OSError) as error:
            print_error(errors_console(), f"{name}: {message_of(error)}")
            failed = True
            continue
        if json:
            typer.echo(stream_json(name, stream))
        else:
            print_stream(name, stream)
    if failed:
        raise typer.Exit(1)


def models(store: options.Store = None, json: options.Json = False) -> None:
    """List the models of the store and the rates they offer."""
    from service.cli.output import as_json, print_model

    for model in open_codec(settings_of(store=store, device="cpu", check=False)).models():
        if json:
            typer.echo(as_json(asdict(model)))
        else:
            print_model(model)


def decoder_files(
    folder: Annotated[Path, typer.Argument(help="Folder to write; a server shows it to pages.")],
    store: options.Store = None,
) -> None:
    """Write what decoders of web pages need of the models, as a server has it at /weights."""
    from service.files import write_whole

    written = open_codec(settings_of(store=store, decode_only=True, check=False)).decoder_files()
    if not written.files:
        raise BadParameter("no model here makes streams that web pages can decode")
    for name, data in written.files.items():
        write_whole(folder / name, data)
    write_whole(folder / "index.json", written.index)  # last: it names only what is there
    total_mb = sum(map(len, written.files.values())) / 1e6
    typer.echo(f"{folder}: index.json and {len(written.files)} files, {total_mb:.1f} MB")


for command in (compress, decompress, maps, adapt, bulk, info, models, decoder_files, serve):
    app.command()(command)
app.command("eval")(evaluate)
app.command("eval-adaptation")(evaluate_adaptation)
app.command("eval-latent")(evaluate_latent)
app.command("eval-parts")(evaluate_parts)
app.command()(worker)
app.add_typer(jobs_app, name="jobs")
app.add_typer(bench_app, name="bench")
app.add_typer(train_app, name="train")
