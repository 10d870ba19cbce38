"""Which file becomes which: the plan of a command that takes files and folders and writes files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.errors import BadParameter
from service.files import descriptor_of, list_folder

STANDARD: Final = "-"
"""Standard input or output, in place of a path."""


@dataclass(frozen=True)
class Task:
    """One file to convert to another; None stands for standard input or output."""

    source: Path | None
    target: Path | None


@dataclass(frozen=True)
class BatchPlan:
    """The tasks of a command, in order, and what it skips.

    Attributes:
        folder: that gets all targets; None if there is only one task.
        unreadable: the errors of folders that cannot be listed; the command fails.
        skipped: sentences about other contents of folders: files of other kinds, loops.
    """

    tasks: Sequence[Task]
    folder: Path | None = None
    unreadable: Sequence[OSError] = ()
    skipped: Sequence[str] = ()


def plan_batch(
    sources: Sequence[str], out: str, suffixes: frozenset[str], suffix: str
) -> BatchPlan:
    """Plan which file becomes which.

    OUT is a folder if it exists as one, ends in a slash, or there are several files to write. The
    files of an input folder keep their paths in it; with several inputs, the folder's name comes
    first. `a.jpg` becomes `a` + suffix, or `a.jpg` + suffix if there is also an `a.png`.

    Args:
        sources: files, folders, or "-". out: a file, a folder, or "-".
        suffixes: of the files that are taken from folders, lower case, with the dot.
        suffix: of the files that are written to folders.

    Raises:
        BadParameter: the inputs and OUT do not fit together, or there is nothing to do.
    """
    folders = [source for source in sources if os.path.isdir(source)]
    into_folder = out.endswith(("/", os.sep)) or os.path.isdir(out)
    if not (into_folder or folders or len(sources) > 1):
        source = None if sources[0] == STANDARD else Path(sources[0])
        task = Task(source, target_of(out))
        _check_not_own_source(task)
        return BatchPlan([task])
    if target_of(out) is None:
        raise BadParameter("OUT is standard output for several files, expected a folder")
    if STANDARD in sources:
        raise BadParameter(
            "standard input is one of the inputs, expected it alone and a file for OUT"
        )
    if os.path.exists(out) and not into_folder:
        raise BadParameter(f"OUT is the file {out}, expected a folder for several files")
    files, unreadable, skipped = _list_sources(sources, suffixes)
    if not files and not unreadable:
        contents = "; ".join(skipped) or "no files"
        raise BadParameter(f"nothing to do in {', '.join(folders)}: {contents}")
    tasks = _assign_targets(files, Path(out), suffixes, suffix)
    for task in tasks:
        _check_not_own_source(task)
    return BatchPlan(tasks, Path(out), unreadable, skipped)


def target_of(out: str) -> Path | None:
    """Return the file that OUT names; None for standard output, by any of its names."""
    return None if out == STANDARD or descriptor_of(Path(out)) == 1 else Path(out)


def _check_not_own_source(task: Task) -> None:
    source, target = task.source, task.target
    if source and target and source.exists() and target.is_file() and source.samefile(target):
        raise BadParameter(f"{source} would be replaced by its own result")


def _list_sources(
    sources: Sequence[str], suffixes: frozenset[str]
) -> tuple[list[tuple[Path, Path]], list[OSError], list[str]]:
    """Return files with their paths below OUT, errors of folders, and notes on other contents."""
    files: list[tuple[Path, Path]] = []
    unreadable: list[OSError] = []
    others: Counter[str] = Counter()
    skipped: list[str] = []
    for root in map(Path, sources):
        if not root.is_dir():
            files.append((root, Path(root.name)))
            continue
        top = Path(root.resolve().name) if len(sources) > 1 else Path()
        listing = list_folder(root)
        for path in listing.files:
            if path.suffix.lower() in suffixes:
                files.append((path, top / path.relative_to(root)))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
        unreadable += listing.unreadable
        skipped += [f"{path} {reason}" for path, reason in listing.skipped]
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        skipped.append(f"files of other kinds: {kinds}")
    return files, unreadable, skipped


def _assign_targets(
    files: list[tuple[Path, Path]], out: Path, suffixes: frozenset[str], suffix: str
) -> list[Task]:
    """Return a task with a target of its own for every file."""
    paths = [out / path for _, path in files]
    short = [p.with_suffix("") if p.suffix.lower() in suffixes else p for p in paths]
    counts = Counter(short)
    stems = [s if counts[s] == 1 else path for s, path in zip(short, paths, strict=True)]
    targets = [stem.with_name(stem.name + suffix) for stem in stems]
    for target, count in Counter(targets).items():
        if count > 1:
            raise BadParameter(f"several inputs would become {target}")
    return [Task(source, target) for (source, _), target in zip(files, targets, strict=True)]
