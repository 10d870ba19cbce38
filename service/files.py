"""Files written whole or not at all, and the files of a folder: nothing is passed over in silence.

A plain file, or a new one, gets its bytes under a temporary name in its folder and then its own
name. Links are followed to what they lead to. What is no plain file (a device, a pipe, a descriptor
of this process such as /dev/stdout) is written to and never replaced.

Everything that reads folders of pictures finds their files here. Links to folders are followed,
names that begin with a dot are left out.
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
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from service.errors import BadParameter

_READ: Final = (
    ".avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif "
    ".tiff .webp"
)
_REFUSED: Final = (
    ".apng .arw .cr2 .cr3 .dng .exr .hdr .j2c .j2k .jp2 .jpf .jpx .jxl .jxr .nef .orf .pam .qoi "
    ".raf .rw2 .tga .wdp"
)
IMAGE_SUFFIXES: Final = frozenset(f"{_READ} {_REFUSED}".split())
"""Files of folders that are pictures; those of kinds that are not read fail with the reason."""

_STANDARD: Final = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d{1,9})")


@dataclass(frozen=True)
class Listing:
    """The files of a folder and of the folders in it.

    Attributes:
        files: in order of their paths. Names that lead nowhere are among them: reading says why.
        unreadable: for each folder that could not be listed, with its name in `filename`.
        passed_over: what was found and is no file, with the reason.
    """

    files: tuple[Path, ...]
    unreadable: tuple[OSError, ...]
    passed_over: tuple[tuple[Path, str], ...]


def list_folder(folder: Path) -> Listing:
    """Return what lies in a folder and in all folders below it, hidden names left out."""
    files: list[Path] = []
    unreadable: list[OSError] = []
    passed_over: list[tuple[Path, str]] = []
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = place.stat()
            names = [name for name in os.listdir(place) if not name.startswith(".")]
        except OSError as error:
            unreadable.append(error)
            continue
        here = status.st_dev, status.st_ino
        if here in above:
            passed_over.append((place, "leads back to a folder that it is in"))
            continue
        for path in (place / name for name in names):
            kind = _kind_of(path)
            if stat.S_ISDIR(kind):
                waiting.append((path, above | {here}))
            elif stat.S_ISREG(kind):
                files.append(path)
            else:
                passed_over.append((path, "is no plain file"))
    return Listing(tuple(sorted(files)), tuple(unreadable), tuple(sorted(passed_over)))


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder and of the folders in it, in order, hidden names left out.

    Raises:
        BadParameter: it is no folder. OSError: it, or a folder in it, cannot be listed.
    """
    if not folder.is_dir():
        raise BadParameter(f"{folder} is not a folder of pictures")
    found = list_folder(folder)
    for error in found.unreadable:
        raise error
    return found.files


def _kind_of(path: Path) -> int:
    """Return the mode of what a path leads to; that of a file where it leads nowhere."""
    try:
        return path.stat().st_mode
    except OSError:
        return stat.S_IFREG


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
