"""Bytes that outlive a process, by name or by hash: a folder, or a bucket on S3, GCS or Azure.

Keys:
    objects/ab/abcd…        bytes shared by anyone, named by their SHA-256 in hex (`shared_key`)
    jobs/JOB/image          the file a job was posted with (`put_named`: JOB is a hash over it)
    jobs/JOB/abcd…          a job's checkpoints and streams, named by their SHA-256

What is written is there whole or not at all: obstore writes a folder's files under a temporary
name (`NAME#1`) that is renamed, or linked where the name must be new; buckets are atomic by
themselves. Bytes named by hash are hashed again when they are read. Nothing here knows of HTTP, and
every call may block: none belongs on an event loop.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import structlog

from service.errors import (
    BadParameter,
    DamagedObject,
    NoSuchObject,
    ObjectsFull,
    ObjectsUnavailable,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES: Final = ("file", "s3", "gs", "az", "memory")
"""URLs that `open_objects` takes; memory is for tests of one process."""

TIMEOUT_S: Final = 30.0
"""Seconds that an attempt to call a bucket may take, where nothing else is set."""

REFRESH_S: Final = 3600.0
"""A hash put again is written again when it is older, so that expiry by age sees it is wanted."""

LITTER_S: Final = 24 * 3600.0
"""Temporary files of writers that were killed are swept from a folder after so long."""

CHECKS: Final = "check"
"""Prefix of the objects of `check`; a process that is killed in one leaves its object."""

_CLIENT_OPTIONS: Final = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only",
    "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes",
    "proxy_url", "user_agent",
)  # fmt: skip

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk or a quota has no room left."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How obstore writes the number of the system's error; its exceptions carry none."""

log = structlog.get_logger("rankpress.objects")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LITTER = re.compile(r".*#\d+")


@dataclass(frozen=True)
class ObjectInfo:
    """An object's key, size, and Unix time of its last write."""

    key: str
    size_bytes: int
    written_s: float


def digest_of(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def shared_key(digest: str) -> str:
    """Key of the shared object with that SHA-256 in hex. Raises BadParameter if it is none."""
    if not _DIGEST.fullmatch(digest):
        raise BadParameter(f"{digest[:80]!r} is not a SHA-256 of 64 lower-case hex digits")
    return f"objects/{digest[:2]}/{digest}"


class Objects:
    """A store of objects; safe to use from many threads and processes."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        """Use an obstore store; `folder` is where it keeps its files, if it does."""
        self._store, self._folder = store, folder

    def put(self, data: bytes, under: str | None = None) -> str:
        """Keep bytes under their hash and return the key.

        The same bytes that are there already are left as they are, unless they are older than
        `REFRESH_S`. Damaged ones are replaced.

        Args:
            data: the bytes. under: prefix of the key, such as "jobs/JOB"; None makes it shared.

        Raises:
            ObjectsUnavailable: the store cannot be written.
        """
        from obstore.exceptions import AlreadyExistsError

        digest = digest_of(data)
        key = shared_key(digest) if under is None else f"{under}/{digest}"
        with _reported(f"put {key}"):
            try:
                self._store.put(key, data, mode="create")
            except AlreadyExistsError:
                found, whole = self.head(key), self.is_whole(key)
                if found is not None and whole and time.time() - found.written_s < REFRESH_S:
                    return key
                if not whole:
                    log.warning("damaged object replaced", key=key)
                self._store.put(key, data)
            self._settle(key)
        return key

    def is_whole(self, key: str) -> bool:
        """Whether the bytes under a hash can be read and are those of the hash.

        Raises:
            ObjectsUnavailable: the store cannot be reached at all.
        """
        if self.head(key) is None:
            return False
        try:
            self.get(key)
        except (NoSuchObject, DamagedObject):
            return False
        except ObjectsUnavailable:  # a folder's disk may not read a damaged file
            if self._folder is None:
                raise
            return False
        return True

    def put_named(self, key: str, data: bytes) -> None:
        """Keep bytes under a name, in place of what has it. Raises ObjectsUnavailable."""
        with _reported(f"put {key}"):
            self._store.put(key, data)
            self._settle(key)

    def get(self, key: str) -> bytes:
        """The bytes under a key.

        Raises:
            NoSuchObject: there are none. ObjectsUnavailable: the store cannot be read.
            DamagedObject: the key is a hash, and not theirs.
        """
        with _reported(f"get {key}"):
            data = bytes(self._store.get(key).bytes())
        name = key.rpartition("/")[2]
        if _DIGEST.fullmatch(name) and digest_of(data) != name:
            raise DamagedObject(f"object {key} has {len(data)} bytes of another hash")
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on, fewer where the object ends; not hashed.

        Raises:
            BadParameter: negative. NoSuchObject, ObjectsUnavailable: as `get`.
        """
        if start < 0 or length < 0:
            raise BadParameter(f"range is {start}+{length}, expected no negative numbers")
        found = self.head(key)
        if found is None:
            raise NoSuchObject(f"there is no object {key}")
        end = min(start + length, found.size_bytes)
        if start >= end:
            return b""
        with _reported(f"get {key}"):
            return bytes(self._store.get_range(key, start=start, end=end))

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object without reading it, None if there is none."""
        try:
            with _reported(f"head {key}"):
                found = self._store.head(key)
        except NoSuchObject:
            return None
        return ObjectInfo(found["path"], found["size"], found["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens if there is none. Raises ObjectsUnavailable."""
        with suppress(NoSuchObject), _reported(f"delete {key}"):
            self._store.delete(key)

    def list(self, prefix: str, *, older_than_s: float = 0.0) -> Iterator[ObjectInfo]:
        """Objects below a prefix of whole path parts, last written at least so long ago."""
        latest_s = time.time() - older_than_s
        with _reported(f"list {prefix}"):
            for page in self._store.list(prefix):
                for found in page:
                    written_s = found["last_modified"].timestamp()
                    if not older_than_s or written_s <= latest_s:
                        yield ObjectInfo(found["path"], found["size"], written_s)

    def delete_all(self, prefix: str, *, older_than_s: float = 0.0) -> int:
        """Remove objects below a prefix, last written at least so long ago; return how many."""
        keys = [found.key for found in self.list(prefix, older_than_s=older_than_s)]
        for key in keys:
            self.delete(key)
        return len(keys)

    def sweep_litter(self, older_than_s: float = LITTER_S) -> int:
        """Remove a folder's temporary files that killed writers left; return how many.

        No listing shows them. Buckets have lifecycle rules for unfinished uploads instead.
        """
        if self._folder is None:
            return 0
        latest_s, swept = time.time() - older_than_s, 0
        for path in self._folder.rglob("*#*"):
            with suppress(OSError):
                if _LITTER.fullmatch(path.name) and path.stat().st_mtime <= latest_s:
                    path.unlink()
                    swept += 1
        return swept

    def check(self) -> None:
        """Write, read and remove an object. Raises ObjectsUnavailable."""
        key, data = f"{CHECKS}/{secrets.token_hex(8)}", datetime.now(UTC).isoformat().encode()
        self.put_named(key, data)
        try:
            found = self.get(key)
        except NoSuchObject as error:
            raise ObjectsUnavailable(f"the object store lost {key}") from error
        self.delete(key)
        if found != data:
            raise ObjectsUnavailable(f"the object store returned other bytes for {key}")

    def _settle(self, key: str) -> None:
        """Make a folder's new file outlive a power cut: obstore does not call fsync."""
        if self._folder is None:
            return
        path = self._folder / key
        for each in (path, path.parent):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def open_objects(place: str | Path, timeout_s: float = TIMEOUT_S) -> Objects:
    """Open a store: a folder, made if missing, or a URL (s3://bucket/prefix, gs://, az://, file://).

    Credentials of buckets come from the environment, as obstore reads it (AWS_ACCESS_KEY_ID, …).

    Args:
        place: the folder or URL.
        timeout_s: seconds that an attempt to call a bucket may take, and after which no other is
            begun: a call takes no longer than two of them.

    Raises:
        BadParameter: a URL of another kind. ObjectsUnavailable: it cannot be opened.
    """
    from obstore.store import LocalStore, from_url

    scheme, separator, rest = str(place).partition("://")
    with _reported(f"open {place}"):
        if separator and scheme != "file":
            if scheme not in SCHEMES:
                known = ", ".join(f"{s}://" for s in SCHEMES[:-1])
                raise BadParameter(f"objects are at {place}, expected a folder or one of {known}")
            if scheme == "memory":
                return Objects(from_url(str(place)))
            limit = _client_options(scheme) | {"timeout": f"{timeout_s}s"}
            retries: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=timeout_s)}
            options = cast("ClientConfig", limit)
            return Objects(from_url(str(place), client_options=options, retry_config=retries))
        folder = Path(rest if separator else place).absolute()
        return Objects(LocalStore(folder, mkdir=True, automatic_cleanup=True), folder)


def _client_options(scheme: str) -> dict[str, str]:
    """What the environment says of connections; obstore reads it only where nothing is given."""
    prefix = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}[scheme]
    given = {name: os.environ.get(prefix + name.upper()) for name in _CLIENT_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _reported(doing: str) -> Iterator[None]:
    """Raise what obstore and the system raise as our own errors."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        call, _, key = doing.partition(" ")
        if call in ("put", "open"):
            raise ObjectsUnavailable(f"the object store cannot {doing}: no such place") from error
        raise NoSuchObject(f"there is no object {key}") from error
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        kind = ObjectsFull if is_full(error) else ObjectsUnavailable
        raise kind(f"the object store cannot {doing}: {reason}") from error


def is_full(error: Exception) -> bool:
    """Whether an exception of the system or of obstore says that a disk or quota has no room."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    number = _OS_ERROR.search(str(error))
    return number is not None and int(number[1]) in _FULL
