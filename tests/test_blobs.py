"""Objects are written whole or not at all, and are read back as they were written."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from obstore.exceptions import GenericError
from obstore.store import LocalStore, ObjectStore
from structlog.testing import capture_logs

from service.blobs import TEMPORARY_FILE_S, Objects, digest_of, is_full, open_objects, shared_key
from service.errors import BadParameter, DamagedObject, NoSuchObject, ObjectsUnavailable

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture(params=["folder", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    yield open_objects(tmp_path / "made" / "here" if request.param == "folder" else "memory:///")


def test_bytes_come_back_under_their_hash(objects: Objects) -> None:
    assert objects.put(b"") == f"objects/e3/{EMPTY}" == shared_key(EMPTY)
    assert objects.get(shared_key(EMPTY)) == b""
    key = objects.put(b"12345", "jobs/j")
    assert key == f"jobs/j/{digest_of(b'12345')}"
    assert objects.get(key) == b"12345"
    info = objects.head(key)
    assert info is not None and (info.key, info.size_bytes) == (key, 5)
    assert abs(info.written_s - time.time()) < 10


def test_what_is_missing_is_said_to_be(objects: Objects) -> None:
    assert objects.head("a/b") is None
    objects.delete("a/b")
    with pytest.raises(NoSuchObject, match="a/b"):
        objects.get("a/b")


def test_some_bytes_are_read_alone(objects: Objects) -> None:
    key = objects.put(b"0123456789")
    assert objects.get_range(key, range(2, 5)) == b"234"
    assert objects.get_range(key, range(10)) == b"0123456789"
    objects.put_named(key, b"0123x")
    assert objects.get_range(key, range(2, 5)) == b"23x"  # the hash is of all bytes
    with pytest.raises(DamagedObject, match=key):
        objects.get_range(key, range(2, 6))
    with pytest.raises(NoSuchObject, match="a/b"):
        objects.get_range("a/b", range(1))


def test_a_name_takes_other_bytes_and_a_hash_does_not(objects: Objects) -> None:
    objects.put_named("jobs/j/image", b"one")
    objects.put_named("jobs/j/image", b"two")
    assert objects.get("jobs/j/image") == b"two"
    key = shared_key(digest_of(b"right"))
    objects.put_named(key, b"wrong!")
    with pytest.raises(DamagedObject, match=key):
        objects.get(key)
    objects.put(b"right")
    assert objects.get(key) == b"right"


def test_a_name_is_taken_once(objects: Objects) -> None:
    assert objects.create("a/name", b"one")
    assert not objects.create("a/name", b"two")
    assert objects.get("a/name") == b"one"


def damaged(data: bytes) -> dict[str, bytes]:
    """Damage that may happen to bytes on a disk."""
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return {"flipped": bytes(flipped), "cut": data[:-1], "empty": b"", "longer": data + b"\0"}


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "longer"])
@pytest.mark.parametrize("under", [None, "jobs/j"])
def test_damaged_bytes_are_replaced_when_they_are_put_again(
    objects: Objects, harm: str, under: str | None
) -> None:
    data = bytes(range(200))
    key = objects.put(data, under)
    objects.put_named(key, damaged(data)[harm])
    assert not objects.is_whole(key)
    with pytest.raises(DamagedObject, match=key):
        objects.get(key)
    with capture_logs() as lines:
        assert objects.put(data, under) == key
    assert [line["event"] for line in lines] == ["damaged object replaced"]
    assert objects.get(key) == data and objects.is_whole(key)
    assert not objects.is_whole(shared_key(EMPTY))


class BrokenStore:
    """An obstore store of which one call raises an exception of a system or a bucket."""

    def __init__(self, whole: Any, call: str, error: Exception) -> None:
        self._whole, self._call, self._error = whole, call, error

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise self._error

        return fail if name == self._call else getattr(self._whole, name)


def test_a_file_that_the_disk_cannot_read_is_replaced(tmp_path: Path) -> None:
    key, folder = open_objects(tmp_path).put(b"here"), LocalStore(tmp_path)
    bad_sector = BrokenStore(folder, "get", OSError(errno.EIO, "Input/output error"))
    objects = Objects(cast(ObjectStore, bad_sector), tmp_path)
    assert not objects.is_whole(key)
    before = (tmp_path / key).stat().st_ino
    objects.put(b"here")
    assert (tmp_path / key).stat().st_ino != before, "written anew"


def test_a_bucket_that_is_gone_is_no_missing_object(tmp_path: Path) -> None:
    gone = BrokenStore(LocalStore(tmp_path), "put", FileNotFoundError("NoSuchBucket"))
    objects = Objects(cast(ObjectStore, gone))
    for put in (objects.put, lambda data: objects.put_named("a", data)):
        with pytest.raises(ObjectsUnavailable, match="no such place"):
            put(b"1")


def test_bytes_that_are_whole_are_not_written_again(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    key = objects.put(b"once")
    before = (tmp_path / key).stat()
    objects.put(b"once")
    after = (tmp_path / key).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("key", ["../out", "a/../../out", "a//b", "a/./b"])
def test_no_key_leads_out_of_the_store(objects: Objects, key: str) -> None:
    with pytest.raises((ObjectsUnavailable, NoSuchObject)):
        objects.get(key)


@pytest.mark.parametrize("digest", ["", "ab", EMPTY.upper(), EMPTY + "0", "../" + EMPTY[3:]])
def test_a_shared_key_is_made_of_a_hash_only(digest: str) -> None:
    with pytest.raises(BadParameter):
        shared_key(digest)


def test_listing_and_deleting_by_prefix_and_age(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    old = objects.put(b"old", "jobs/a")
    new = objects.put(b"new", "jobs/a")
    other = objects.put(b"other", "jobs/ab")
    os.utime(tmp_path / old, (1e9, 1e9))
    assert {o.key for o in objects.list("jobs/a")} == {old, new}
    assert [o.key for o in objects.list("jobs", older_than_s=60)] == [old]
    assert objects.delete_all("jobs/a", older_than_s=60) == 1
    assert objects.delete_all("jobs/a") == 1
    assert {o.key for o in objects.list("jobs")} == {other}
    assert not (tmp_path / "jobs" / "a").exists()


def test_bytes_put_again_after_long_count_as_new(tmp_path: Path) -> None:
    """Otherwise expiry by age could remove an object that was just written."""
    objects = open_objects(tmp_path)
    key = objects.put(b"again")
    os.utime(tmp_path / key, (1e9, 1e9))
    objects.put(b"again")
    assert not list(objects.list("objects", older_than_s=60))


def test_a_reader_never_sees_half_an_object(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    sizes = (10, 7_000_000)
    objects.put_named("a/b", bytes(sizes[0]))
    done = threading.Event()

    def write() -> None:
        for turn in range(30):
            objects.put_named("a/b", bytes(sizes[turn % 2]))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    lengths = set()
    while not done.is_set():
        lengths.add(len(objects.get("a/b")))
    writer.join()
    assert lengths <= set(sizes)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    key = objects.put(b"whole")
    left = tmp_path / f"{key}#1"
    left.write_bytes(b"wh")
    assert [o.key for o in objects.list("objects")] == [key]
    assert objects.remove_temporary_files() == 0
    assert objects.remove_temporary_files(older_than_s=-TEMPORARY_FILE_S) == 1
    assert not left.exists() and objects.get(key) == b"whole"


@pytest.mark.timeout(60)
def test_a_bucket_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the bucket accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        objects = open_objects("s3://bucket/below", timeout_s=0.2)
        for call in (lambda: objects.head("x"), lambda: objects.put_named("x", b"y")):
            with pytest.raises(ObjectsUnavailable, match="error sending request"):
                call()
        asked, _ = server.accept()
        assert asked.recv(4) == b"HEAD", "and it was asked"
        asked.close()


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjectsUnavailable, match="file"):
        open_objects(tmp_path / "file" / "below").check()
    with pytest.raises(BadParameter, match="ftp"):
        open_objects("ftp://host/x")
    open_objects(tmp_path / "good").check()
    open_objects(f"file://{tmp_path}/good").check()


def test_a_full_disk_or_quota_is_told_apart_from_a_store_that_is_away() -> None:
    text = "Generic LocalFileSystem error: Unable to copy data to file: {} (os error {})\n\nDebug"
    for error, full in (
        (GenericError(text.format("No space left on device", errno.ENOSPC)), True),
        (GenericError(text.format("Disk quota exceeded", errno.EDQUOT)), True),
        (GenericError(text.format("Permission denied", errno.EACCES)), False),
        (GenericError("the bucket does not answer"), False),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (ValueError("no number"), False),
    ):
        assert is_full(error) == full, error
