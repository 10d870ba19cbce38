"""Objects that outlive a process, by name or hash: in a folder, or a bucket of S3, GCS or Azure.

Keys:
    objects/ab/abcd…        objects shared by all, named by their SHA-256 in hex (`shared_key`)
    jobs/JOB/image          the image file of a job (`put_named`: JOB is a hash over it)
    jobs/JOB/abcd…          checkpoints and streams of a job, named by their SHA-256
    names/NAME/@/00000001   versions of a name, each written once (`create`)
    followups/JOB/…         what is to be done when a job has ended

Objects are written whole or not at all: obstore writes a folder's files under a temporary name
(`NAME#1`) and renames them, or links them where the name must be new; buckets are atomic. Objects
named by hash are hashed again when they are read. This module knows nothing of HTTP. Every call may
block, so none belongs on an event loop.
"""

from __future__ import annotations

import errno
import glob
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

BUCKETS: Final = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""Schemes of buckets' URLs, and how the environment variables begin that obstore reads for them."""

REFRESH_S: Final = 3600.0
"""Age in seconds from which `put` writes an object again, so that expiry by age keeps it."""

TEMPORARY_FILE_S: Final = 24 * 3600.0
"""Age in seconds from which temporary files of killed writers are removed from a folder."""

CHECKS: Final = "check"
"""Prefix of the objects that `check` writes; a process that is killed meanwhile leaves one."""

_CLIENT_OPTIONS: Final = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only",
    "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes",
    "proxy_url", "user_agent",
)  # fmt: skip

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the system's errors where a disk or a quota has no room left."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""The number of the system's error in a message of obstore; its exceptions have no attribute."""

log = structlog.get_logger("rankpress.objects")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_NAME = re.compile(r".*#\d+")


@dataclass(frozen=True)
class ObjectInfo:
    """Key and size of an object, and the Unix time of its last write."""

    key: str
    size_bytes: int
    written_s: float


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def shared_key(digest: str) -> str:
    """Return the key of the shared object with a SHA-256 in hex. Raises BadParameter otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise BadParameter(f"{digest[:80]!r} is not a SHA-256 of 64 lower-case hex digits")
    return f"objects/{digest[:2]}/{digest}"


class Objects:
    """A store of objects; safe to use from many threads and processes."""

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        """Use an obstore store; `folder` is where it keeps its files, None for a bucket."""
        self._store, self._folder = store, folder

    def put(self, data: bytes, under: str | None = None) -> str:
        """Write an object named by its hash and return its key.

        An existing whole object is left as it is, unless it is older than `REFRESH_S`. A damaged
        one is replaced.

        Args:
            data: of the object. under: prefix of the key, such as "jobs/JOB"; None: a shared one.

        Raises:
            ObjectsUnavailable: the store cannot be written.
        """
        from obstore.exceptions import AlreadyExistsError

        digest = digest_of(data)
        key = shared_key(digest) if under is None else f"{under}/{digest}"
        with _translate_errors(f"put {key}"):
            try:
                self._store.put(key, data, mode="create")
            except AlreadyExistsError:
                info, whole = self.head(key), self.is_whole(key)
                if info is not None and whole and time.time() - info.written_s < REFRESH_S:
                    return key
                if not whole:
                    log.warning("damaged object replaced", key=key)
                self._store.put(key, data)
            self._sync(key)
        return key

    def is_whole(self, key: str) -> bool:
        """Return whether an object named by its hash can be read and matches the hash.

        Raises:
            ObjectsUnavailable: a bucket cannot be read.
        """
        if self.head(key) is None:
            return False
        try:
            self.get(key)
        except (NoSuchObject, DamagedObject):
            return False
        except ObjectsUnavailable:  # a disk may fail to read a damaged file
            if self._folder is None:
                raise
            return False
        return True

    def put_named(self, key: str, data: bytes) -> None:
        """Write an object under a name, or replace it. Raises ObjectsUnavailable."""
        with _translate_errors(f"put {key}"):
            self._store.put(key, data)
            self._sync(key)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object under a name that none has yet; return False if one has it.

        Of several writers of one key exactly one gets True. A bucket's answer may get lost, and
        the repeated call then finds the object of the first one: compare the bytes to know.

        Raises:
            ObjectsUnavailable: the store cannot be written.
        """
        from obstore.exceptions import AlreadyExistsError

        with _translate_errors(f"put {key}"):
            try:
                self._store.put(key, data, mode="create")
            except AlreadyExistsError:
                return False
            self._sync(key)
        return True

    def get(self, key: str) -> bytes:
        """Return the bytes of an object.

        Raises:
            NoSuchObject: there is no such object. ObjectsUnavailable: the store cannot be read.
            DamagedObject: the key is a hash that the bytes do not match.
        """
        with _translate_errors(f"get {key}"):
            data = bytes(self._store.get(key).bytes())
        name = key.rpartition("/")[2]
        if _DIGEST.fullmatch(name) and digest_of(data) != name:
            raise DamagedObject(f"the {len(data)} bytes of object {key} do not match its hash")
        return data

    def get_range(self, key: str, span: range) -> bytes:
        """Return some bytes of an object, which are not checked against its hash.

        Args:
            span: positions of consecutive bytes, at least one.

        Raises:
            NoSuchObject, ObjectsUnavailable: as `get`.
            DamagedObject: the object ends before the last of them.
        """
        with _translate_errors(f"get {key}"):
            data = bytes(self._store.get_range(key, start=span.start, end=span.stop))
        if len(data) != len(span):
            raise DamagedObject(f"object {key} ends before byte {span.stop}")
        return data

    def head(self, key: str) -> ObjectInfo | None:
        """Return key, size and time of an object without reading it; None if there is none."""
        try:
            with _translate_errors(f"head {key}"):
                meta = self._store.head(key)
        except NoSuchObject:
            return None
        return ObjectInfo(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Remove an object, if there is one. Raises ObjectsUnavailable."""
        with suppress(NoSuchObject), _translate_errors(f"delete {key}"):
            self._store.delete(key)

    def list_sorted(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix by key in code point order, those after a key alone.

        A bucket lists them so, page by page; the files of a folder are all read and sorted.
        """
        if self._folder is None:
            yield from self._list(prefix, after)
        else:
            yield from sorted(self._list(prefix, after), key=lambda info: info.key)

    def list(self, prefix: str, *, older_than_s: float = 0.0) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix of whole path parts that are at least of an age."""
        latest_s = time.time() - older_than_s
        for info in self._list(prefix):
            if not older_than_s or info.written_s <= latest_s:
                yield info

    def _list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        with _translate_errors(f"list {prefix}"):
            for page in self._store.list(prefix, offset=after or None):
                for meta in page:
                    written_s = meta["last_modified"].timestamp()
                    yield ObjectInfo(meta["path"], meta["size"], written_s)

    def delete_all(self, prefix: str, *, older_than_s: float = 0.0) -> int:
        """Remove the objects below a prefix that are at least of an age; return how many."""
        keys = [info.key for info in self.list(prefix, older_than_s=older_than_s)]
        for key in keys:
            self.delete(key)
        return len(keys)

    def remove_temporary_files(self, older_than_s: float = TEMPORARY_FILE_S) -> int:
        """Remove temporary files that killed writers left in a folder; return how many.

        They are in no listing. Buckets have lifecycle rules for unfinished uploads instead.
        """
        if self._folder is None:
            return 0
        latest_s, removed = time.time() - older_than_s, 0
        for path in self._folder.rglob("*#*"):
            with suppress(OSError):
                if _TEMPORARY_NAME.fullmatch(path.name) and path.stat().st_mtime <= latest_s:
                    path.unlink()
                    removed += 1
        return removed

    def remove_unfinished(self, key: str) -> None:
        """Remove the temporary files of writers of one key in a folder, who were all killed."""
        if self._folder is None:
            return
        path = self._folder / key
        for temporary in path.parent.glob(f"{glob.escape(path.name)}#*"):
            if _TEMPORARY_NAME.fullmatch(temporary.name):
                with suppress(OSError):
                    temporary.unlink()

    def check(self) -> None:
        """Write, read and remove an object. Raises ObjectsUnavailable."""
        key, data = f"{CHECKS}/{secrets.token_hex(8)}", datetime.now(UTC).isoformat().encode()
        self.put_named(key, data)
        try:
            read = self.get(key)
        except NoSuchObject as error:
            raise ObjectsUnavailable(f"the object store lost {key}") from error
        self.delete(key)
        if read != data:
            raise ObjectsUnavailable(f"the object store returned other bytes for {key}")

    def _sync(self, key: str) -> None:
        """Sync a new file of a folder to the disk against power cuts, as obstore does not."""
        if self._folder is None:
            return
        path = self._folder / key
        for each in (path, path.parent):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def open_objects(place: str | Path, timeout_s: float = 30.0) -> Objects:
    """Open a store: a folder, made if missing, or a URL (s3://bucket/prefix, gs://, az://, file://).

    Credentials of buckets come from the environment variables that obstore reads
    (AWS_ACCESS_KEY_ID, …).

    Args:
        place: the folder or URL.
        timeout_s: seconds that an attempt to call a bucket may take, and after which no further
            attempt begins. So a call takes at most twice as long.

    Raises:
        BadParameter: the URL is of another scheme. ObjectsUnavailable: it cannot be opened.
    """
    from obstore.store import LocalStore, from_url

    scheme, separator, rest = str(place).partition("://")
    with _translate_errors(f"open {place}"):
        if not separator or scheme == "file":
            folder = Path(rest if separator else place).absolute()
            return Objects(LocalStore(folder, mkdir=True, automatic_cleanup=True), folder)
        if scheme == "memory":  # for tests in one process
            return Objects(from_url(str(place)))
        if scheme not in BUCKETS:
            known = ", ".join(f"{s}://" for s in ("file", *BUCKETS))
            raise BadParameter(f"objects are at {place}, expected a folder or one of {known}")
        options = _client_options(scheme) | {"timeout": f"{timeout_s}s"}
        retries: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=timeout_s)}
        client = cast("ClientConfig", options)
        return Objects(from_url(str(place), client_options=client, retry_config=retries))


def _client_options(scheme: str) -> dict[str, str]:
    """Return the connection options in the environment, which obstore ignores if any are passed."""
    given = {name: os.environ.get(BUCKETS[scheme] + name.upper()) for name in _CLIENT_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def _translate_errors(action: str) -> Iterator[None]:
    """Turn exceptions of obstore and of the system into those of errors.py."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        call, _, key = action.partition(" ")
        if call in ("put", "open"):
            raise ObjectsUnavailable(f"the object store cannot {action}: no such place") from error
        raise NoSuchObject(f"there is no object {key}") from error
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        kind = ObjectsFull if is_full(error) else ObjectsUnavailable
        raise kind(f"the object store cannot {action}: {reason}") from error


def is_full(error: Exception) -> bool:
    """Return whether an exception of the system or obstore is about a full disk or quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    number = _OS_ERROR.search(str(error))
    return number is not None and int(number[1]) in _FULL
