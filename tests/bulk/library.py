"""Pictures for bulk runs, places for them, and what a run has left in its destination."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet
from small_model import photo_like, small_stored_model

from service.blobs import Objects, open_objects
from service.bulk.shards import RUN_FOLDER
from service.images.write import write_image
from service.picture import Picture
from service.store.write import write_model

BUCKET = "rankpress"
MARKERS, BEGUN = f"{RUN_FOLDER}/done", f"{RUN_FOLDER}/begun"
S3 = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def write_store(root: Path) -> Path:
    """A store with the small model; returns its folder."""
    stored, base, _ = small_stored_model()
    write_model(root / "small", stored, base)
    return root


def write_library(root: Path, count: int) -> int:
    """Write so many small pictures in folders, and poisoned files among them; return of these.

    The pictures are 16 to 72 pixels long on a side, in three formats.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"{number % 7}" / f"a b{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = (int(n) for n in rng.integers(16, 72, 2))
        kind = ("png", "jpeg", "webp")[number % 3]
        data = write_image(Picture(photo_like(height, width, number)), kind)
        (folder / f"ü {number:05d}.{kind}").write_bytes(data)
    poisoned = poisoned_files()
    for name, data in poisoned.items():
        (root / f"{len(name) % 7}" / name).write_bytes(data)
    return len(poisoned)


def poisoned_files() -> dict[str, bytes]:
    """Files with names of pictures that are none, or harmful ones."""
    png, jpeg = (write_image(Picture(photo_like(40, 56)), kind) for kind in ("png", "jpeg"))
    return {
        "empty.jpg": b"",
        "text.png": b"not a picture\n" * 50,
        "cut.png": png[: len(png) // 2],
        "cut in the header.jpeg": jpeg[:30],
        "bomb.png": bomb(20_000, 20_000),
        "no width.png": bomb(0, 10),
        "page.webp": b"<html><body>404</body></html>",
        "flipped.png": png[:60] + bytes(255 - b for b in png[60:90]) + png[90:],
        "random.avif": np.random.default_rng(1).bytes(500),
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(40),
    }


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@contextmanager
def s3_server(log: Path) -> Iterator[dict[str, str]]:
    """An S3 server in a process of its own; yields the variables that programs need to use it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}"
    variables = S3 | {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            wait_for_port(port)
            client = boto3.client(
                "s3", endpoint_url=url, region_name="us-east-1",
                aws_access_key_id="test", aws_secret_access_key="test",
            )  # fmt: skip
            client.create_bucket(Bucket=BUCKET)
            yield variables
        finally:
            server.kill()


def wait_for_port(port: int) -> None:
    """Wait until something listens."""
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing listens at port {port}")


def upload(folder: Path, objects: Objects) -> None:
    """Put the files of a folder into a store."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        objects.put_named(str(path.relative_to(folder)), path.read_bytes())


@dataclass(frozen=True)
class Left:
    """What a run has left.

    Attributes:
        objects: SHA-256 of each object outside of the run's folder, by key.
        reports: rows of the reports, without their seconds, by shard.
        manifest: SHA-256 of each object of the manifest.
        attempts: shards that were begun and not finished. others: other keys of the run's folder.
    """

    objects: dict[str, str]
    reports: dict[str, list[dict[str, object]]]
    manifest: dict[str, str]
    attempts: list[str]
    others: list[str]

    @property
    def failures(self) -> dict[str, str]:
        """Error of each row that failed, by source."""
        rows = (row for report in self.reports.values() for row in report)
        return {str(r["source"]): str(r["error"]) for r in rows if r["status"] == "failed"}


def left_in(objects: Objects) -> Left:
    """Read all of a destination."""
    left = Left({}, {}, {}, [], [])
    for info in objects.list(""):
        key = info.key
        if not key.startswith(f"{RUN_FOLDER}/"):
            left.objects[key] = hashlib.sha256(objects.get(key)).hexdigest()
        elif key.startswith(f"{RUN_FOLDER}/reports/"):
            table = pyarrow.parquet.read_table(io.BytesIO(objects.get(key)))
            left.reports[key] = table.drop_columns("seconds").to_pylist()
        elif key.startswith(f"{RUN_FOLDER}/manifest"):
            left.manifest[key] = hashlib.sha256(objects.get(key)).hexdigest()
        elif not key.startswith(BEGUN):
            left.others.append(key)
    return replace(left, attempts=open_shards(objects))


def open_shards(objects: Objects) -> list[str]:
    """The shards that were begun and are not finished.

    A run that is killed just after it has written a marker leaves the note of its attempt; such
    shards are finished.
    """
    begun = {info.key.split("/")[2] for info in objects.list(BEGUN)}
    return sorted(begun - {Path(key).stem for key in report_times(objects)})


def report_times(objects: Objects) -> dict[str, float]:
    """When the marker of each finished shard was written."""
    return {info.key: info.written_s for info in objects.list(MARKERS)}


def open_with(place: str, variables: dict[str, str]) -> Objects:
    """Open a store with variables of the environment, for this process too."""
    os.environ.update(variables)
    return open_objects(place)


def processes_with(variable: str, value: str) -> list[int]:
    """All processes that were started with a value of a variable of the environment."""
    mark, living = f"{variable}={value}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                living.append(int(path.parent.name))
        except OSError:
            continue
    return living


def as_json(value: object) -> str:
    """A value as stable text."""
    return json.dumps(value, sort_keys=True, default=str)
