"""Doing a plan of tasks: read a file, convert it, write the result, for one file after the other.

The next file is read while one is converted, and a file that fails does not stop the later ones. No
file is left half written, see service/files.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from service.cli.plan import STANDARD, BatchPlan, Task, target_of
from service.errors import (
    BadParameter,
    MissingExtra,
    RankpressError,
    RateUnavailable,
    ServerUnreachable,
)
from service.files import check_target, write_whole

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, eq=False)
class ConvertedFile:
    """The bytes of one result, to be written, and the size in pixels and rate of its picture.

    Attributes:
        rate: None where the result has none.
        bpp: bits of the stream per pixel, None where a part of a stream was decoded.
        psnr_db: as measured by the codec, None where it was not measured.
        is_stream: whether `data` is a stream, which should be smaller than its source.
    """

    data: bytes
    width: int
    height: int
    rate: float | None
    bpp: float | None
    psnr_db: float | None
    notes: tuple[str, ...]
    is_stream: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one task ended: with an error, or with all the later fields set."""

    source: str
    target: str
    seconds: float
    error: str | None = None
    input_bytes: int = 0
    output_bytes: int = 0
    width: int = 0
    height: int = 0
    rate: float | None = None
    bpp: float | None = None
    psnr_db: float | None = None
    notes: tuple[str, ...] = ()
    larger_than_source: bool = False


def check_output(out: str, json: bool) -> None:
    """Raise BadParameter or OSError if standard output cannot take what a command writes to it."""
    if target_of(out) is not None and not json:
        return
    with _writing(None):
        check_target(Path("/dev/stdout"), overwrite=True)
    if target_of(out) is not None:
        return
    if json:
        raise BadParameter("--json and OUT are both standard output, expected a file for OUT")
    if sys.stdout.isatty():
        raise BadParameter("standard output is a terminal, expected a file or a pipe")


def run_batch(
    plan: BatchPlan,
    load: Callable[[bytes], Loaded],
    convert: Callable[[Loaded], ConvertedFile],
    *,
    overwrite: bool,
) -> Iterator[Outcome]:
    """Do the tasks in order.

    Raises:
        RateUnavailable, MissingExtra, ServerUnreachable: no file can be converted.
    """
    for error in plan.unreadable:
        yield Outcome(str(error.filename), str(plan.folder), 0.0, error=message_of(error))
    tasks = plan.tasks
    if not tasks:
        return
    if len(tasks) == 1:  # in this thread, so that Ctrl-C ends a wait for standard input
        yield _finish(tasks[0], lambda: _fetch(tasks[0], load, overwrite), convert, overwrite)
        return
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        following = reader.submit(_fetch, tasks[0], load, overwrite)
        for position, task in enumerate(tasks):
            fetched = following
            if position + 1 < len(tasks):
                following = reader.submit(_fetch, tasks[position + 1], load, overwrite)
            yield _finish(task, fetched.result, convert, overwrite)


def read_bytes(source: Path | None) -> bytes:
    """Return the bytes of a file, or of standard input."""
    return sys.stdin.buffer.read() if source is None else source.read_bytes()


def message_of(error: Exception) -> str:
    """Return the message of an error; only the reason of a system error."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _fetch(task: Task, load: Callable[[bytes], Loaded], overwrite: bool) -> tuple[int, Loaded]:
    """Return the size of a source and what was loaded from it, if its target can be written."""
    if task.target is not None:
        with _writing(task.target):
            check_target(task.target, overwrite=overwrite)
    data = read_bytes(task.source)
    return len(data), load(data)


def _write(target: Path | None, data: bytes, overwrite: bool) -> None:
    """Write a file, unless one has appeared there since the task began; or standard output."""
    with _writing(target):
        if target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            check_target(target, overwrite=overwrite)
            write_whole(target, data)


@contextmanager
def _writing(target: Path | None) -> Iterator[None]:
    """Name the target in errors about it, because a task's errors are reported with its source."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if target is None else target
        reason = f"cannot write {name}: {message_of(error)}"
        raise OSError(error.errno, reason) from error


def _finish(
    task: Task,
    fetch: Callable[[], tuple[int, Loaded]],
    convert: Callable[[Loaded], ConvertedFile],
    overwrite: bool,
) -> Outcome:
    """Convert the source of one task and write the result."""
    start = perf_counter()
    source, target = (STANDARD if p is None else str(p) for p in (task.source, task.target))
    try:
        input_bytes, loaded = fetch()
        result = convert(loaded)
        _write(task.target, result.data, overwrite)
    except (RateUnavailable, MissingExtra, ServerUnreachable, BrokenPipeError):
        raise  # every other file would meet them
    except (RankpressError, OSError) as error:
        return Outcome(source, target, perf_counter() - start, error=message_of(error))
    from service.picture import larger_note  # numpy comes with it

    larger = larger_note(len(result.data), input_bytes) if result.is_stream else ()
    return Outcome(
        source,
        target,
        perf_counter() - start,
        input_bytes=input_bytes,
        output_bytes=len(result.data),
        width=result.width,
        height=result.height,
        rate=result.rate,
        bpp=result.bpp,
        psnr_db=result.psnr_db,
        notes=result.notes + larger,
        larger_than_source=bool(larger),
    )
