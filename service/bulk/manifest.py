"""The manifest: which files a run works on, as shards of rows, written while the source is listed.

A shard is an object of JSON lines: a header with its range of rows, the SHA-256 of the lines that
follow, and the entries of the source skipped so far, and then a row [key, bytes] for each file.
Keys are in order, so a manifest that was cut goes on after its last key, and no row comes twice
even where files have come or gone meanwhile. Once the source is listed, `manifest.json` holds the
sums, and later runs list nothing: files that come after that need a run of their own.

Only the present shard is in memory, on the writing and the reading side.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Final

from service.blobs import Objects, digest_of
from service.bulk.shards import RUN_FOLDER, Shard
from service.bulk.sources import MOST_KINDS, SourceFile
from service.errors import BadParameter, DamagedObject, NoSuchObject

SUMS_KEY: Final = f"{RUN_FOLDER}/manifest.json"
"""Key of the sums over a whole manifest."""

FOLLOW_S: Final = 1.0
"""Seconds after which somebody who waits for the next shard can be interrupted."""


@dataclass(frozen=True)
class ManifestSums:
    """Sums over the shards that are written.

    Attributes:
        shards, rows: their numbers. bytes: of the files of the source.
        skipped: number of entries of the source that are no rows, by kind.
        complete: whether the whole source is listed.
    """

    shards: int = 0
    rows: int = 0
    bytes: int = 0
    skipped: dict[str, int] | None = None
    complete: bool = False


@dataclass(frozen=True)
class ManifestRows:
    """The rows of one shard.

    Attributes:
        first_row: number of its first row. sha256: hex, of the lines of the rows.
        sums: of the manifest up to the end of this shard.
    """

    first_row: int
    files: tuple[SourceFile, ...]
    sha256: str
    sums: ManifestSums


def read_rows(objects: Objects, shard: Shard) -> ManifestRows:
    """Return the rows of a shard.

    Raises:
        DamagedObject: it is no shard of a manifest, or does not match its hash.
        NoSuchObject, ObjectsUnavailable: as `Objects.get`.
    """
    data = objects.get(shard.manifest_key)
    head, _, lines = data.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(head)
        files = tuple(SourceFile(str(k), int(n)) for k, n in map(json.loads, lines.splitlines()))
        first_row, digest = int(header["first_row"]), str(header["sha256"])
        total_bytes, skipped = int(header["bytes"]), dict(header["skipped"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedObject(f"{shard.manifest_key} is no shard of a manifest: {error}") from error
    if digest_of(lines) != digest:
        raise DamagedObject(f"the rows of {shard.manifest_key} do not match their hash")
    if not all(map(_is_safe, files)):
        raise DamagedObject(f"{shard.manifest_key} has a key that leaves the source")
    sums = ManifestSums(shard.number + 1, first_row + len(files), total_bytes, skipped)
    return ManifestRows(first_row, files, digest, sums)


def _is_safe(file: SourceFile) -> bool:
    """Return whether a key stays below the place that it is joined to."""
    return not {"", ".", ".."} & set(file.key.split("/")) and "\0" not in file.key


class ManifestWriter:
    """Writes the manifest of a run in a thread, while others follow the shards that are written."""

    def __init__(self, dest: Objects, shard_rows: int) -> None:
        """Go on with the manifest of a destination, or begin one.

        Raises:
            DamagedObject: what is there of it cannot be read. ObjectsUnavailable: the store fails.
        """
        self._dest, self._shard_rows = dest, shard_rows
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._stopped = False
        self._sums, self._last_key = _state_of(dest)
        self._skipped = Counter(self._sums.skipped)

    @property
    def sums(self) -> ManifestSums:
        """Sums so far."""
        return self._sums

    @property
    def last_key(self) -> str:
        """The key after which the source must be listed; empty at the beginning."""
        return self._last_key

    def skip(self, kind: str) -> None:
        """Count an entry of the source that is no row."""
        if kind not in self._skipped and len(self._skipped) >= MOST_KINDS:
            kind = "files of more kinds"
        self._skipped[kind] += 1

    def write(self, files: Iterator[SourceFile]) -> None:
        """Write the shards of the files that come after `last_key`, and the sums at the end."""
        if self._sums.complete:
            return
        try:
            while (batch := tuple(islice(files, self._shard_rows))) and not self._stopped:
                self._write_shard(batch)
            if not self._stopped:
                self._write_sums()
        except Exception as error:  # who follows raises it
            self._error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def stop(self) -> None:
        """Stop after the present shard."""
        self._stopped = True

    def follow(self) -> Iterator[Shard]:
        """Yield every shard from the first, waiting for those that are not yet written.

        Raises:
            RankpressError: listing the source or writing the manifest has failed.
        """
        number = 0
        while True:
            with self._changed:
                while number >= self._sums.shards and not self._ended:
                    self._changed.wait(FOLLOW_S)
            if number >= self._sums.shards:
                if self._error is not None:
                    raise self._error
                return
            yield Shard(number)
            number += 1

    @property
    def _ended(self) -> bool:
        return self._sums.complete or self._stopped or self._error is not None

    def _write_shard(self, files: tuple[SourceFile, ...]) -> None:
        sums, shard = self._sums, Shard(self._sums.shards)
        lines = b"".join(json.dumps([f.key, f.size_bytes]).encode() + b"\n" for f in files)
        total_bytes = sums.bytes + sum(file.size_bytes for file in files)
        header = {
            "first_row": sums.rows,
            "rows": len(files),
            "sha256": digest_of(lines),
            "bytes": total_bytes,
            "skipped": self._skipped,
        }
        data = json.dumps(header).encode() + b"\n" + lines
        # A store's client may try again what had been written, so the same bytes are ours.
        if not (
            self._dest.create(shard.manifest_key, data)
            or self._dest.get(shard.manifest_key) == data
        ):
            raise DamagedObject(
                f"{shard.manifest_key} was written by another run meanwhile; start one run at a "
                "time, and this one again"
            )
        self._last_key = files[-1].key
        self._set(ManifestSums(sums.shards + 1, sums.rows + len(files), total_bytes))

    def _write_sums(self) -> None:
        if not self._sums.rows:
            others = ", ".join(f"{count} {kind}" for kind, count in self._skipped.items())
            raise BadParameter(f"there is nothing to do in the source: {others or 'no files'}")
        sums = replace(self._sums, skipped=dict(self._skipped), complete=True)
        self._dest.put_named(SUMS_KEY, json.dumps(asdict(sums)).encode())
        self._set(sums)

    def _set(self, sums: ManifestSums) -> None:
        with self._changed:
            self._sums = sums
            self._changed.notify_all()


def _state_of(dest: Objects) -> tuple[ManifestSums, str]:
    """Return the sums of what there is of a manifest, and the last key in it."""
    try:
        sums = ManifestSums(**json.loads(dest.get(SUMS_KEY)))
    except NoSuchObject:
        pass
    except (ValueError, TypeError) as error:
        raise DamagedObject(f"{SUMS_KEY} holds no sums of a manifest: {error}") from error
    else:
        return sums, ""
    names = (info.key for info in dest.list(f"{RUN_FOLDER}/manifest"))
    last = max((key for key in names if key.endswith(".jsonl")), default=None)
    if last is None:
        return ManifestSums(), ""
    number = last.rpartition("/")[2].removesuffix(".jsonl")
    if not number.isdecimal():
        raise DamagedObject(f"{last} is no shard of a manifest")
    rows = read_rows(dest, Shard(int(number)))
    return rows.sums, rows.files[-1].key if rows.files else ""
