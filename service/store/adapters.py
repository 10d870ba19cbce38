"""A folder of adapters that were loaded at run time, so that they outlive a restart.

An adapter is a file `<sha256>.safetensors` and a note `<sha256>.json` about its base and rate. The
note is written last and removed first, so whenever the process dies, the folder holds an adapter
completely or not at all. Processes that share a folder read one another's adapters when they start.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import StoreError
from service.files import write_whole
from service.store.read import read_json


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter's file and its place.

    Attributes:
        data: bytes of the safetensors file.
        base_sha256: hex sha256 of the base weights that it updates.
        rate: whole rate, 1–8.
        tune: ladder of the rate.
    """

    data: bytes
    base_sha256: str
    rate: int
    tune: str


class AdapterFiles:
    """Adapters on disk, in the order in which they were loaded."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created when the first adapter is added."""
        self._folder = folder

    def read(self) -> list[StoredAdapter]:
        """Read all adapters, oldest first.

        Raises:
            StoreError: a file or note is damaged.
        """
        notes = {path: _note(path) for path in self._folder.glob("*.json")}
        oldest_first = sorted(notes.items(), key=lambda entry: entry[1]["number"])
        return [_read_adapter(path, note) for path, note in oldest_first]

    def add(self, adapter: StoredAdapter) -> None:
        """Write an adapter.

        Raises:
            OSError: it could not be written; the folder does not hold it.
        """
        name = hashlib.sha256(adapter.data).hexdigest()
        number = 1 + max((_note(p)["number"] for p in self._folder.glob("*.json")), default=0)
        note = {"base": adapter.base_sha256, "rate": adapter.rate, "tune": adapter.tune}
        content = json.dumps(note | {"number": number}).encode()
        write_whole(self._folder / f"{name}.safetensors", adapter.data, sync=True)
        write_whole(self._folder / f"{name}.json", content, sync=True)

    def remove(self, sha256: str) -> None:
        """Remove an adapter; nothing happens if the folder does not hold it."""
        for suffix in ("json", "safetensors"):
            (self._folder / f"{sha256}.{suffix}").unlink(missing_ok=True)


def _read_adapter(path: Path, note: dict[str, Any]) -> StoredAdapter:
    file = path.with_suffix(".safetensors")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} is there, but its adapter {file.name} cannot be read") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != path.stem:
        raise StoreError(f"{file} has sha256 {digest}, expected the one in its name")
    return StoredAdapter(data, note["base"], note["rate"], note["tune"])


def _note(path: Path) -> dict[str, Any]:
    """The note of an adapter; its number grows with every adapter that is added."""
    note = read_json(path)
    kinds = {"base": str, "rate": int, "tune": str, "number": int}
    if not isinstance(note, dict) or {k: type(v) for k, v in note.items()} != kinds:
        raise StoreError(f"{path} must hold base, rate, tune and number")
    return note
