"""Files and folders in, files out: what the compress and decompress commands share.

`plan` says which file becomes which, `run` does it one after the other while the next is read, and
a file that fails does not stop those after it. No file is half written, see files.py.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, TypeVar

from service.errors import BadParameter, MissingExtra, RankpressError, RateUnavailable
from service.files import check_target, descriptor_of, list_folder, write_whole
from service.picture import larger_note

STANDARD: Final = "-"
"""Standard input or output, in place of a path."""

_STOPS_THE_RUN: Final = (RateUnavailable, MissingExtra)
"""Errors that every other file would meet too."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Task:
    """One file to make of another; None is standard input or output."""

    source: Path | None
    target: Path | None


@dataclass(frozen=True)
class Plan:
    """What a run is to do, and what it will not.

    Attributes:
        tasks: in order.
        unreadable: folders that cannot be listed, with the reason; the run fails for each.
        passed_over: sentences about what folders hold besides: files of other kinds, loops.
    """

    tasks: Sequence[Task]
    unreadable: Sequence[Outcome] = ()
    passed_over: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Made:
    """What was made of one file.

    Attributes:
        data: the bytes to write.
        width: pixels of the picture.
        height: pixels of the picture.
        rate: 1–8.
        bpp: bits of the stream per pixel, None where part of a stream was decoded.
        psnr_db: as measured by the codec, None when not measured.
        notes: sentences for the user.
        is_stream: it is one, which should be smaller than its source.
    """

    data: bytes
    width: int
    height: int
    rate: float
    bpp: float | None
    psnr_db: float | None
    notes: tuple[str, ...]
    is_stream: bool = False


@dataclass(frozen=True)
class Outcome:
    """How one task ended: with an error, or with all the rest set."""

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
    """Check that standard output can take what it will get.

    Raises:
        BadParameter: it would get bytes that it should not. OSError: it is closed.
    """
    if _target_of(out) is not None and not json:
        return
    with _writing(None):
        check_target(Path("/dev/stdout"), overwrite=True)
    if _target_of(out) is not None:
        return
    if json:
        raise BadParameter("--json and OUT are both standard output, expected a file for OUT")
    if sys.stdout.isatty():
        raise BadParameter("standard output is a terminal, expected a file or a pipe")


def plan(sources: Sequence[str], out: str, suffixes: frozenset[str], suffix: str) -> Plan:
    """Return what becomes what.

    OUT is a folder when it is one, ends in a slash, or there is more than one file to make. A
    folder's files go there under their paths in that folder, and, of several inputs, under the
    folder's name. `a.jpg` becomes `a` + suffix, or `a.jpg` + suffix beside an `a.png`.

    Args:
        sources: files, folders, or "-".
        out: a file, a folder, or "-".
        suffixes: of files taken from folders, lower case, with the dot.
        suffix: of the files made in folders.

    Raises:
        BadParameter: the inputs and OUT do not go together, or nothing was found.
    """
    folders = [source for source in sources if os.path.isdir(source)]
    into_folder = out.endswith(("/", os.sep)) or os.path.isdir(out)
    if not (into_folder or folders or len(sources) > 1):
        source = None if sources[0] == STANDARD else Path(sources[0])
        task = Task(source, _target_of(out))
        _check_not_itself(task)
        return Plan([task])
    if _target_of(out) is None:
        raise BadParameter("standard output takes one file, expected a folder for OUT")
    if STANDARD in sources:
        raise BadParameter("standard input has no name, expected a file for OUT and no other input")
    if os.path.exists(out) and not into_folder:
        raise BadParameter(f"OUT is the file {out}, expected a folder for several files")
    found, unreadable, passed_over = _find_all(sources, suffixes)
    if not found and not unreadable:
        holds = "; ".join(passed_over) or "no files"
        raise BadParameter(f"nothing to do in {', '.join(folders)}: {holds}")
    tasks = _name(found, Path(out), suffixes, suffix)
    for task in tasks:
        _check_not_itself(task)
    failed = [
        Outcome(str(error.filename), str(Path(out)), 0.0, error=message_of(error))
        for error in unreadable
    ]
    return Plan(tasks, failed, passed_over)


def run(
    planned: Plan,
    load: Callable[[bytes], Loaded],
    make: Callable[[Loaded], Made],
    *,
    overwrite: bool,
) -> Iterator[Outcome]:
    """Do the tasks in order, reading and loading the next file while one is made.

    Raises:
        RateUnavailable, MissingExtra: no file can be made.
    """
    yield from planned.unreadable
    tasks = planned.tasks
    if not tasks:
        return
    if len(tasks) == 1:  # in this thread, where Ctrl-C ends a wait for standard input
        yield _finish(tasks[0], lambda: _fetch(tasks[0], load, overwrite), make, overwrite)
        return
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        following = reader.submit(_fetch, tasks[0], load, overwrite)
        for position, task in enumerate(tasks):
            fetched = following
            if position + 1 < len(tasks):
                following = reader.submit(_fetch, tasks[position + 1], load, overwrite)
            yield _finish(task, fetched.result, make, overwrite)


def read_bytes(source: Path | None) -> bytes:
    """Return the bytes of a file, or of standard input."""
    return sys.stdin.buffer.read() if source is None else source.read_bytes()


def message_of(error: Exception) -> str:
    """Return what an error says; of the system's, the reason alone."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _target_of(out: str) -> Path | None:
    """Return the file that OUT names; None for standard output, by any of its names."""
    return None if out == STANDARD or descriptor_of(Path(out)) == 1 else Path(out)


def _check_not_itself(task: Task) -> None:
    if task.source is None or task.target is None or not task.target.is_file():
        return
    if task.source.exists() and task.source.samefile(task.target):
        raise BadParameter(f"{task.source} would be replaced by its own result")


def _find_all(
    sources: Sequence[str], suffixes: frozenset[str]
) -> tuple[list[tuple[Path, Path]], list[OSError], list[str]]:
    """Return files with their paths below OUT, folders that cannot be listed, and what is left."""
    found: list[tuple[Path, Path]] = []
    unreadable: list[OSError] = []
    others: Counter[str] = Counter()
    passed_over: list[str] = []
    for root in map(Path, sources):
        if not root.is_dir():
            found.append((root, Path(root.name)))
            continue
        top = Path(root.resolve().name) if len(sources) > 1 else Path()
        listing = list_folder(root)
        for path in listing.files:
            if path.suffix.lower() in suffixes:
                found.append((path, top / path.relative_to(root)))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
        unreadable += listing.unreadable
        passed_over += [f"{path} {reason}" for path, reason in listing.passed_over]
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        passed_over.append(f"files of other kinds: {kinds}")
    return found, unreadable, passed_over


def _name(
    found: list[tuple[Path, Path]], out: Path, suffixes: frozenset[str], suffix: str
) -> list[Task]:
    """Give every file a target of its own."""
    paths = [out / path for _, path in found]
    short = [_without(path, suffixes) for path in paths]
    times = Counter(short)
    stems = [s if times[s] == 1 else path for s, path in zip(short, paths, strict=True)]
    targets = [stem.with_name(stem.name + suffix) for stem in stems]
    for target, count in Counter(targets).items():
        if count > 1:
            raise BadParameter(f"several inputs would become {target}")
    return [Task(source, target) for (source, _), target in zip(found, targets, strict=True)]


def _without(path: Path, suffixes: frozenset[str]) -> Path:
    """Return the path without its suffix, if that is one of the known."""
    return path.with_suffix("") if path.suffix.lower() in suffixes else path


def _fetch(task: Task, load: Callable[[bytes], Loaded], overwrite: bool) -> tuple[int, Loaded]:
    """Return the size of a source and what was loaded from it, unless its target is there."""
    with _writing(task.target):
        if task.target is not None:
            check_target(task.target, overwrite=overwrite)
    data = read_bytes(task.source)
    return len(data), load(data)


def _write(target: Path | None, data: bytes, overwrite: bool) -> None:
    """Write a file, if nothing has come to lie there since the task began; or standard output."""
    with _writing(target):
        if target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            check_target(target, overwrite=overwrite)
            write_whole(target, data)


@contextmanager
def _writing(target: Path | None) -> Iterator[None]:
    """Name the target in what the system says of it: a task's errors are told under its source."""
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
    make: Callable[[Loaded], Made],
    overwrite: bool,
) -> Outcome:
    """Make and write what one task asks for."""
    start = perf_counter()
    source, target = (STANDARD if p is None else str(p) for p in (task.source, task.target))
    try:
        input_bytes, loaded = fetch()
        made = make(loaded)
        _write(task.target, made.data, overwrite)
    except (*_STOPS_THE_RUN, BrokenPipeError):
        raise
    except (RankpressError, OSError) as error:
        return Outcome(source, target, perf_counter() - start, error=message_of(error))
    larger = larger_note(len(made.data), input_bytes) if made.is_stream else ()
    return Outcome(
        source,
        target,
        perf_counter() - start,
        None,
        input_bytes,
        len(made.data),
        made.width,
        made.height,
        made.rate,
        made.bpp,
        made.psnr_db,
        made.notes + larger,
        bool(larger),
    )
