"""Listing a source into the manifest, in one go or in several."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from service.blobs import Objects, open_objects
from service.bulk.manifest import ManifestWriter, read_rows
from service.bulk.shards import Shard
from service.bulk.sources import BucketSource, FileSource, FolderSource, SourceFile, select
from service.errors import BadParameter, DamagedObject

KEYS = ["a b.png", "a-b.png", "a.png", "a/1.png", "a/b/2.png", "a0.png", "b.png", "ü#1%20.png"]


@pytest.fixture(params=["folder", "bucket"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> FileSource:
    if request.param == "bucket":
        objects = open_objects("memory:///")
        for key in KEYS:
            objects.put_named(key, key.encode())
        return BucketSource(objects)
    for key in KEYS:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(key.encode())
    return FolderSource(tmp_path)


@pytest.fixture
def dest() -> Objects:
    return open_objects("memory:///")


def refuse(kind: str) -> None:
    raise AssertionError(kind)


def objects_in(dest: Objects) -> dict[str, bytes]:
    return {info.key: dest.get(info.key) for info in dest.list("")}


def test_folders_and_buckets_are_listed_in_one_order(source: FileSource) -> None:
    files = [*source.files(refuse)]
    assert files == [SourceFile(key, len(key.encode())) for key in KEYS]
    for place, key in enumerate(KEYS):
        assert [*source.files(refuse, key)] == files[place + 1 :]
        assert source.read(key) == key.encode()


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".hidden.png", "a.txt", "b.txt", "none", "new\nline.png", "c.rkp", "d.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "below" / "back").symlink_to(tmp_path)
    (tmp_path / "_rankpress").mkdir()
    (tmp_path / "_rankpress" / "x.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    skipped: Counter[str] = Counter()

    def skip(kind: str) -> None:
        skipped[kind] += 1

    def selected(streams: bool) -> list[str]:
        files = FolderSource(tmp_path).files(skip)
        return [file.key for file in select(files, skip, streams)]

    assert selected(streams=False) == ["d.png"]
    assert skipped == {
        "hidden names": 1,
        "links to a parent folder": 1,
        "no plain files": 1,
        "names with control characters": 1,
        ".txt": 2,
        ".rkp": 1,
        "no suffix": 1,
    }
    assert selected(streams=True) == ["c.rkp", "d.png"]


def write(dest: Objects, files: Iterator[SourceFile]) -> ManifestWriter:
    manifest = ManifestWriter(dest, 3)
    manifest.write(files)
    return manifest


@pytest.mark.parametrize("cut", range(9))
def test_a_manifest_that_was_cut_becomes_the_same(
    source: FileSource, dest: Objects, cut: int
) -> None:
    whole = open_objects("memory:///")
    assert write(whole, source.files(refuse)).sums.complete

    def cut_listing() -> Iterator[SourceFile]:
        yield from islice(source.files(refuse), cut)
        raise OSError("the listing was cut")

    first = write(dest, cut_listing())
    assert (first.sums.shards, first.sums.complete) == (cut // 3, False)
    with pytest.raises(OSError, match="was cut"):
        [*first.follow()]
    second = ManifestWriter(dest, 3)
    second.write(source.files(refuse, second.last_key))
    assert objects_in(dest) == objects_in(whole)
    assert [*second.follow()] == [Shard(0), Shard(1), Shard(2)]
    rows = [file.key for shard in second.follow() for file in read_rows(dest, shard).files]
    assert rows == KEYS


def test_a_complete_manifest_lists_nothing_again(source: FileSource, dest: Objects) -> None:
    sums = write(dest, source.files(refuse)).sums
    again = write(dest, iter([SourceFile("zzz.png", 1)]))
    assert (again.sums, sums.rows, sums.bytes) == (sums, 8, sum(len(k.encode()) for k in KEYS))


def test_an_empty_source_is_an_error_and_may_be_listed_again(dest: Objects) -> None:
    manifest = ManifestWriter(dest, 3)
    manifest.skip(".txt")
    manifest.write(iter(()))
    with pytest.raises(BadParameter, match="nothing to do in the source: 1 .txt"):
        [*manifest.follow()]
    assert write(dest, iter([SourceFile("a.png", 1)])).sums.rows == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"a.png", b"b.png"),
        lambda data: data[:-1],
        lambda data: data.partition(b"\n")[2],
        lambda data: b"[1]\n" + data,
        lambda data: data[:0],
    ],
)
def test_a_damaged_manifest_is_refused(source: FileSource, dest: Objects, change: object) -> None:
    write(dest, source.files(refuse))
    key = Shard(0).manifest_key
    assert callable(change)
    dest.put_named(key, change(dest.get(key)))
    with pytest.raises(DamagedObject):
        read_rows(dest, Shard(0))


@pytest.mark.parametrize("key", ["../x.png", "/etc/x.png", "a/../../x.png", "a//b.png", ""])
def test_a_manifest_cannot_name_what_is_outside_of_the_source(dest: Objects, key: str) -> None:
    write(dest, iter([SourceFile(key, 1)]))
    with pytest.raises(DamagedObject, match="leaves the source"):
        read_rows(dest, Shard(0))
