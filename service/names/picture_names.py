"""Names of pictures that may change: versions in an object store, the last of which counts.

    names/blog/cat.jpg/@/00000007      the seventh version of `blog/cat.jpg`

Object stores have no update under a condition that all of them know, but they can create an object
only where there is none. So a version is changed by creating the object of the next number: of
several writers one succeeds, and the others read again. A deletion is a version too, so that no
writer who read an older one can undo it. The last `HISTORY` versions are kept.

A writer may stall so long that the number which it creates has been used and removed again. It
notices that, because its version is then not among the last `HISTORY`, and starts over.

Streams are shared objects (blobs.py), which versions name by hash. They are never removed here:
another name, or a program that knows the hash, may use them too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import structlog

from service.blobs import ObjectInfo, Objects, digest_of
from service.errors import (
    BadParameter,
    DamagedObject,
    NoSuchObject,
    NoSuchPicture,
    ObjectsUnavailable,
    Saturated,
)
from service.names.version import (
    MAX_NAME_CHARS,
    NamedStream,
    PictureVersion,
    check_name,
    deletion,
    improvement,
    put_version,
    read_version,
)

ROOT: Final = "names"
HISTORY: Final = 10
"""Versions of a name that are kept, the present one included."""

MAX_BYTES: Final = 4096
"""Bytes of the largest version that is read."""

TRIES: Final = 32
"""Times that a write starts over, because others wrote the same name meanwhile, before it fails."""

log = structlog.get_logger("rankpress.names")

_KEY = re.compile(rf"{ROOT}/(?P<name>.+)/@/(?P<number>[0-9]{{8,15}})")

Follow = Callable[[int, PictureVersion | None], PictureVersion | None]
"""Makes the version of a number that follows the last version, or None to leave that as it is.

The last one is None if there is none, and then the number is 1, or if it cannot be read."""


@dataclass(frozen=True)
class Change:
    """The version that a name has after a write, and whether this write created it."""

    version: PictureVersion
    is_new: bool


class PictureNames:
    """The names of one object store; use from many threads and processes is allowed."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def present(self, name: str) -> PictureVersion:
        """The last version of a name, which has a stream.

        Raises:
            BadParameter: the name is malformed. NoSuchPicture: it has no picture, or no longer.
            ObjectsUnavailable: the store cannot be read. DamagedObject: the version is malformed.
        """
        _, last = self._last(name)
        if isinstance(last, DamagedObject):
            raise last
        if last is None or last.stream is None:
            raise NoSuchPicture(f"there is no picture {name!r}")
        return last

    def history(self, name: str) -> tuple[PictureVersion, ...]:
        """The versions of a name that are kept, the last one first; a deletion is one too.

        Raises:
            NoSuchPicture: it never had one. Others as `present`.
        """
        check_name(name)
        versions = []
        for info in reversed(self._infos(name)):
            try:
                versions.append(self._read(info))
            except NoSuchObject:  # just removed
                continue
        if not versions:
            raise NoSuchPicture(f"there is no picture {name!r}")
        return tuple(versions)

    def put(
        self, name: str, data: bytes, stream: NamedStream, source: str, lost: str | None = None
    ) -> Change:
        """Store a stream and give it a name, or leave its version if that has the same source.

        Args:
            data: the stream's bytes. stream: what is recorded of it. source: see `PictureVersion`.
            lost: token of a version that must not be left, because its stream is lost.

        Raises:
            BadParameter: the name is malformed. Saturated: too many others write it.
            ObjectsUnavailable: the store cannot be used.
        """

        def follow(number: int, last: PictureVersion | None) -> PictureVersion | None:
            is_same = last is not None and last.source == source and last.token != lost
            if is_same:
                return None
            self._objects.put(data)
            return put_version(number, stream, source)

        change = self._append(name, follow)
        assert change is not None  # without a last version one was created
        return change

    def delete(self, name: str) -> PictureVersion:
        """Remove a name's picture; return the version that says so.

        Raises:
            NoSuchPicture: it has none. Others as `put`.
        """

        def follow(number: int, last: PictureVersion | None) -> PictureVersion | None:
            if number == 1 or (last is not None and last.stream is None):
                raise NoSuchPicture(f"there is no picture {name!r}")
            return deletion(number)

        change = self._append(name, follow)
        assert change is not None
        return change.version

    def improve(
        self,
        name: str,
        put: str,
        data: bytes,
        mse: float,
        job: str,
        lmbda: float,
        plain_mse: float,
    ) -> PictureVersion | None:
        """Give a name the stream of a job if that is better; return None if the name keeps its own.

        The stream is better if its R + lmbda·D is lower. The name must still have what the same put
        gave it: the plain stream or another improvement.

        Args:
            put: token of that put. data: the stream's bytes, of the same picture and rate.
            mse: its error, see `NamedStream`. job: id of the job that made it.
            lmbda: weight of the error at the stream's rate, in bits per pixel and squared step.
            plain_mse: error of the plain stream, as the job measured it; used where the put did not
                measure it.

        Raises:
            As `put`.
        """

        def follow(_: int, last: PictureVersion | None) -> PictureVersion | None:
            if last is None or last.put != put or last.stream is None:
                return None
            present = last.stream
            if present.mse is None:
                present = present.model_copy(update={"mse": plain_mse})
            facts = {"sha256": digest_of(data), "size_bytes": len(data), "mse": mse}
            new = present.model_copy(update=facts)
            if new.loss(lmbda) >= present.loss(lmbda):
                return None
            self._objects.put(data)
            return improvement(last, new, job)

        change = self._append(name, follow)
        return change.version if change is not None and change.is_new else None

    def pictures(
        self, prefix: str = "", after: str = "", limit: int = 100
    ) -> tuple[tuple[str, PictureVersion], ...]:
        """The pictures whose names begin with a prefix, in the order of the store's keys.

        Args:
            after: the last name of the list before this one; empty for the first list.
            limit: pictures at most.

        Raises:
            BadParameter: the prefix begins no name, or `after` is none. Others as `present`.
        """
        if prefix:
            check_name(f"{prefix}x"[:MAX_NAME_CHARS])
        if after:
            check_name(after)
        out: list[tuple[str, PictureVersion]] = []
        for name in self._names(prefix, after):
            try:
                out.append((name, self.present(name)))
            except (NoSuchPicture, BadParameter):  # deleted, or a key that no name has
                continue
            except DamagedObject as error:
                log.warning("damaged version of a name", name=name, reason=str(error))
                continue
            if len(out) == limit:
                break
        return tuple(out)

    def _names(self, prefix: str, after: str) -> Iterator[str]:
        """The names that have versions, each once."""
        folder = "/".join((ROOT, *prefix.split("/")[:-1]))
        # "A" follows "@": all versions of `after` are passed over.
        infos = self._objects.list_sorted(folder, f"{ROOT}/{after}/A" if after else "")
        for name, _ in groupby(map(_name_of, infos)):
            if name is not None and name.startswith(prefix):
                yield name

    def _last(self, name: str) -> tuple[int, PictureVersion | DamagedObject | None]:
        """Number of the last version of a name, and the version or why it cannot be read.

        (0, None) if the name never had one. Raises BadParameter, ObjectsUnavailable: as `present`.
        """
        check_name(name)
        for _ in range(TRIES):
            infos = self._infos(name)
            if not infos:
                return 0, None
            number = _number_of(infos[-1])
            try:
                return number, self._read(infos[-1])
            except DamagedObject as error:
                return number, error
            except NoSuchObject:  # since then as many versions were created as are kept
                continue
        raise ObjectsUnavailable(f"the versions of {name!r} are listed and cannot be read")

    def _append(self, name: str, follow: Follow) -> Change | None:
        """Create the version that follows the last one, however many others try the same.

        A version that cannot be read is followed too, or else one damaged object would end the use
        of its name. None: there was nothing to leave as it is.
        """
        for _ in range(TRIES):
            number, last = self._last(name)
            if isinstance(last, DamagedObject):
                log.warning("damaged version of a name", name=name, reason=str(last))
                last = None
            version = follow(number + 1, last)
            if version is None:
                return None if last is None else Change(last, False)
            if self._create(name, version):
                return Change(version, True)
        raise Saturated(f"too many others write the name {name!r}", 1)

    def _create(self, name: str, version: PictureVersion) -> bool:
        """Create a version; return False if its number is or was that of another one."""
        key = f"{ROOT}/{name}/@/{version.number:08d}"
        is_created = self._objects.create(key, version.model_dump_json().encode())
        if not is_created and not self._is_ours(key, version):
            return False
        infos = self._infos(name)
        oldest = (_number_of(infos[-1]) if infos else version.number) - HISTORY + 1
        if version.number < oldest:
            self._objects.delete(key)
            return False
        # The oldest first: a number is missing only if all before it are.
        for info in infos:
            if _number_of(info) < oldest:
                self._objects.delete(info.key)
        return True

    def _is_ours(self, key: str, version: PictureVersion) -> bool:
        """Whether the object there is this version: the answer to an attempt may get lost."""
        info = self._objects.head(key)
        try:
            return info is not None and self._read(info).token == version.token
        except (NoSuchObject, DamagedObject):
            return False

    def _infos(self, name: str) -> list[ObjectInfo]:
        """The objects of the versions that are kept, in their order."""
        infos = self._objects.list(f"{ROOT}/{name}/@")
        return sorted((i for i in infos if _name_of(i) == name), key=_number_of)

    def _read(self, info: ObjectInfo) -> PictureVersion:
        if info.size_bytes > MAX_BYTES:
            size = f"{info.size_bytes} bytes"
            raise DamagedObject(f"{info.key} has {size}, expected {MAX_BYTES} at most")
        return read_version(self._objects.get(info.key), _number_of(info), info.key)


def _name_of(info: ObjectInfo) -> str | None:
    """The name that an object is a version of, None if it is none."""
    match = _KEY.fullmatch(info.key)
    return None if match is None else match["name"]


def _number_of(info: ObjectInfo) -> int:
    """The number of a version."""
    return int(info.key.rpartition("/")[2])
