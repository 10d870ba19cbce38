"""The process of a command: its standard streams, and how an exception ends it.

Standard streams may have been closed before the command began, as by `rankpress ... >&-`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer

from service.errors import BadParameter, MissingExtra, RankpressError


def replace_closed_streams() -> None:
    """Replace closed standard streams, for which Python has None.

    Reading standard input and writing standard output then fail with EBADF, as in other programs;
    text for standard error is lost. The descriptors are taken too: otherwise the next file that is
    opened would get that of standard output, and a library's output would be written into it.
    """
    if sys.stdin is None:
        sys.stdin = _closed_stream(os.O_WRONLY, "r")
    if sys.stdout is None:
        sys.stdout = _closed_stream(os.O_RDONLY, "w")
    if sys.stderr is None:
        sys.stderr = _closed_stream(os.O_WRONLY, "w")


def say(text: str) -> None:
    """Write a line about progress to standard error."""
    typer.echo(text, err=True)


def discard_unwritten() -> None:
    """Discard unwritten output: Python would try again when it ends, and exit with 120."""
    try:
        sys.stdout.flush()
    except ValueError:  # standard output was closed
        return
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def reason_of(error: OSError) -> str:
    """Return the system's message for an error, with the name of its file."""
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    if reason == os.strerror(errno.EBADF):  # only standard output is written to without a name
        return f"standard output: {reason}"
    return reason


def reason_and_code(error: Exception) -> tuple[str, int]:
    """Return the message and exit code of an exception that ends a command; 70 is a bug."""
    if isinstance(error, RankpressError):
        return str(error), 2 if isinstance(error, BadParameter) else 1
    if isinstance(error, OSError):
        return reason_of(error), 1
    return f"unexpected {type(error).__name__}: {error}", 70


def is_typer_exit(error: Exception) -> bool:
    """Return whether an exception is typer's own way to end a program."""
    return hasattr(error, "exit_code") or isinstance(error, typer.Abort)


@contextmanager
def logged_failure(event: str, log_format: str | None) -> Iterator[dict[str, str]]:
    """Write an exception that ends a service as one line of its log, not as plain text.

    The line includes the entries of the dictionary that is yielded. The exception of a missing
    extra is raised again, since the logging library may be missing. A format of None is read from
    the environment, because the settings themselves may be wrong.
    """
    details: dict[str, str] = {}
    try:
        yield details
    except MissingExtra:
        raise
    except Exception as error:
        if is_typer_exit(error) or find_spec("structlog") is None:
            raise
        import structlog

        from service.logs import configure_logs

        configure_logs(log_format or os.environ.get("RANKPRESS_LOG_FORMAT") or "json")
        reason, code = reason_and_code(error)
        log = structlog.get_logger("rankpress")
        log.critical(event, reason=reason, exit_code=code, **details, exc_info=code == 70)
        raise typer.Exit(code) from error


def _closed_stream(flags: int, mode: str) -> io.TextIOWrapper:
    """Return a stream that fails when it is used, unbuffered: nothing is left when Python ends."""
    descriptor = os.open(os.devnull, flags)
    os.set_inheritable(descriptor, True)  # as those of standard streams are
    raw = io.FileIO(descriptor, mode, closefd=False)
    return io.TextIOWrapper(raw, "utf-8", write_through=True)
