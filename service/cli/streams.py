"""Standard streams that were closed before the command began, as by `rankpress ... >&-`."""

from __future__ import annotations

import errno
import io
import os
import sys


def hold_closed_streams() -> None:
    """Put something in the place of closed standard streams, for which Python has None.

    Reading standard input and writing standard output then fail with EBADF, as they do elsewhere;
    what goes to standard error is lost. Their descriptors are taken too: the next file that is
    opened would get that of standard output, and what a library prints would be written into it.
    """
    if sys.stdin is None:
        sys.stdin = _stream(os.O_WRONLY, "r")
    if sys.stdout is None:
        sys.stdout = _stream(os.O_RDONLY, "w")
    if sys.stderr is None:
        sys.stderr = _stream(os.O_WRONLY, "w")


def drop_unwritten() -> None:
    """Drop what standard output could not take: Python would try again as it ends, and exit 120."""
    try:
        sys.stdout.flush()
    except ValueError:  # it was closed
        return
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def reason_of(error: OSError) -> str:
    """Return what the system says, with the file that it is about."""
    reason = error.strerror or str(error)
    if error.filename:
        return f"{error.filename}: {reason}"
    if reason == os.strerror(errno.EBADF):  # the one descriptor that is written to without a name
        return f"standard output: {reason}"
    return reason


def _stream(way: int, mode: str) -> io.TextIOWrapper:
    """Return a stream without a buffer, so that nothing is left to write when Python ends."""
    descriptor = os.open(os.devnull, way)
    os.set_inheritable(descriptor, True)  # as standard streams are
    raw = io.FileIO(descriptor, mode, closefd=False)
    return io.TextIOWrapper(raw, "utf-8", write_through=True)
