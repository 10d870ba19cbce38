"""Files written whole or not at all, for everything that writes files.

A plain file, or a new one, gets its bytes under a temporary name in its folder and then its own
name. Links are followed to what they lead to. What is no plain file (a device, a pipe, a descriptor
of this process such as /dev/stdout) is written to and never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

_STANDARD: Final = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d{1,9})")


def descriptor_of(path: Path) -> int | None:
    """Return the descriptor of this process that a path names, None if it names none."""
    text = str(path)
    named = _DESCRIPTOR.fullmatch(text)
    if named is None:
        return _STANDARD.get(text)
    process = text.split("/")[2]
    own = not process.isdigit() or int(process) == os.getpid()
    return int(named[1]) if own else None


def write_whole(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file, see `whole_file`."""
    with whole_file(path, sync=sync) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write; it has its name once the block is left without an error.

    Folders on the way are made. What is replaced keeps its mode, and its owner where that is
    allowed.

    Args:
        path: of the file. sync: wait until a plain file's bytes are on the disk.

    Raises:
        OSError: as the system says.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            yield stream
        return
    old = _status(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the name may be long
    mode = 0o666 if old is None else 0o600
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if old is not None:
                _take_after(temporary, target, old)
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse, before there is work to lose, a place where `whole_file` could not write.

    Args:
        path: of the file to come. overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: there is a file, or a disk, and it may not be overwritten.
        OSError: it is a folder or a socket, its name is too long, or it or its folder cannot be
            written.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        os.write(descriptor, b"")  # fails where it is closed, or open to read alone
        return
    old, target = _status(path), Path(os.path.realpath(path))
    if old is None:
        _check_access(_nearest_folder(target))
        return
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, expected a file", str(path))
    if stat.S_ISSOCK(old.st_mode):
        raise OSError(errno.ENXIO, "it is a socket, expected a file or a pipe", str(path))
    if not overwrite and (stat.S_ISREG(old.st_mode) or stat.S_ISBLK(old.st_mode)):
        raise FileExistsError(errno.EEXIST, "it exists; --overwrite replaces it", str(path))
    _check_access(target.parent if stat.S_ISREG(old.st_mode) else path)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file, None if there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _nearest_folder(target: Path) -> Path:
    """Return the nearest folder on the way to a new file that is there; check the names below it.

    Raises:
        OSError: a name is too long for its file system, or something on the way is no folder.
    """
    folder = next(parent for parent in target.parents if parent.exists())
    for name in target.relative_to(folder).parts:
        with suppress(FileNotFoundError):
            (folder / name).lstat()
    return folder


def _check_access(place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _take_after(temporary: Path, target: Path, old: os.stat_result) -> None:
    """Give a temporary file, still empty, the owner and mode of what it will replace."""
    with suppress(OSError):
        os.chown(temporary, old.st_uid, old.st_gid)
    shutil.copymode(target, temporary)
