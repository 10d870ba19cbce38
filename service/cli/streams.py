"""Standard streams that were closed before the command began, as by `rankpress ... >&-`."""

from __future__ import annotations

import errno
import io
import os
import sys

import typer


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


def _closed_stream(flags: int, mode: str) -> io.TextIOWrapper:
    """Return a stream that fails when it is used, unbuffered: nothing is left when Python ends."""
    descriptor = os.open(os.devnull, flags)
    os.set_inheritable(descriptor, True)  # as those of standard streams are
    raw = io.FileIO(descriptor, mode, closefd=False)
    return io.TextIOWrapper(raw, "utf-8", write_through=True)
