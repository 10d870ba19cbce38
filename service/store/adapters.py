"""The folder that keeps adapters loaded at run time, so that a restart finds them.

An adapter is `<sha256>.safetensors` and a note `<sha256>.json` that says what it belongs to. The
note is written last and removed first, both by rename: whenever the process dies, an adapter is
there whole or not at all. Processes that share a folder see one another's adapters when they start.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from service.errors import StoreError
from service.files import write_whole


@dataclass(frozen=True, eq=False)
class Kept:
    """An adapter's file, and what it was loaded for: base weights, whole rate, ladder."""

    data: bytes
    base_sha256: str
    rate: int
    tune: str


@dataclass(frozen=True)
class _Note:
    """What the note beside a file says; `number` grows with every adapter that is kept."""

    base: str
    rate: int
    tune: str
    number: int


class AdapterFiles:
    """Adapters on disk, in the order in which they were loaded."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made when the first adapter is kept."""
        self._folder = folder

    def read(self) -> list[Kept]:
        """All that is there, oldest first. Raises StoreError: a damaged file or note."""
        notes = [(_note(path), path) for path in self._folder.glob("*.json")]
        notes.sort(key=lambda found: found[0].number)
        return [self._kept(note, path) for note, path in notes]

    def keep(self, adapter: Kept) -> None:
        """Write an adapter. Raises OSError: it could not be written, and is not there."""
        name = hashlib.sha256(adapter.data).hexdigest()
        number = 1 + max((_note(p).number for p in self._folder.glob("*.json")), default=0)
        note = _Note(adapter.base_sha256, adapter.rate, adapter.tune, number)
        write_whole(self._folder / f"{name}.safetensors", adapter.data, sync=True)
        write_whole(self._folder / f"{name}.json", json.dumps(asdict(note)).encode(), sync=True)

    def drop(self, sha256: str) -> None:
        """Remove an adapter, if it is there."""
        for suffix in ("json", "safetensors"):
            (self._folder / f"{sha256}.{suffix}").unlink(missing_ok=True)

    def _kept(self, note: _Note, path: Path) -> Kept:
        try:
            data = path.with_suffix(".safetensors").read_bytes()
        except OSError as error:
            raise StoreError(f"{path} has no adapter beside it") from error
        if hashlib.sha256(data).hexdigest() != path.stem:
            raise StoreError(f"{path.with_suffix('.safetensors')} is not what its name says")
        return Kept(data, note.base, note.rate, note.tune)


def _note(path: Path) -> _Note:
    try:
        note = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not JSON") from error
    kinds = {"base": str, "rate": int, "tune": str, "number": int}
    if not isinstance(note, dict) or {k: type(v) for k, v in note.items()} != kinds:
        raise StoreError(f"{path} must hold base, rate, tune and number")
    return _Note(**note)
