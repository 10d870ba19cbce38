"""A run's state on disk: safetensors shards of at most 16 MiB, and run.json that names them.

Shards are named by their hash. New shards are written first, then run.json is replaced in one step,
and shards that it no longer names are deleted last. So a writer that is interrupted at any point
leaves either the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from service.errors import BadParameter
from service.files import write_whole

SHARD_BYTES: Final = 16 << 20
SCHEMA: Final = 1
_ROOM: Final = 256 << 10
"""Bytes of each shard that are reserved for its header."""


def write_state(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Replace a run's tensors and its record, JSON values, and return the number of shards.

    Raises:
        BadParameter: a tensor is too large for a shard.
    """
    shards = {}
    for names in plan_shards(tensors):
        # copies, because safetensors refuses tensors that share memory, and the averaged weights
        # share the model's scale vectors
        data = save({name: tensors[name].detach().cpu().clone() for name in names})
        digest = hashlib.sha256(data).hexdigest()
        name = f"state-{digest[:16]}.safetensors"
        write_whole(folder / name, data)
        shards[name] = digest
    record = {**about, "schema": SCHEMA, "shards": shards}
    write_whole(folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())
    for path in folder.glob("state-*.safetensors"):
        if path.name not in shards:
            path.unlink()
    return len(shards)


def has_state(folder: Path) -> bool:
    """Whether a folder contains a run."""
    return (folder / "run.json").is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """Return the record of a run.

    Raises:
        BadParameter: the folder contains no run, or a damaged one.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadParameter(f"{folder} contains no run: {path} cannot be read") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "shards" not in record:
        raise BadParameter(f"{path} is not the record of a run of schema {SCHEMA}")
    return record


def training_record(about: Mapping[str, Any]) -> dict[str, object]:
    """Return the part of a run's record that goes into the manifest of an exported model."""
    sessions = about["pieces"]
    return {
        "data": about["data"],
        "started_from": about["started_from"],
        "recipe": about["recipe"],
        "steps": about["step"],
        "pixels": about["pixels"],
        "skipped": about["skipped"],
        "decay": about["decay"],
        "minutes": round(sum(s["minutes"] for s in sessions), 1),
        "devices": sorted({s["device"] for s in sessions}),
        "commits": sorted({s["commit"] for s in sessions if s["commit"]}),
        "measured": about["measured"],
    }


def read_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the tensors of a run whose names start with a prefix, without the prefix, on the CPU.

    Raises:
        BadParameter: a shard is missing or was changed.
    """
    out: dict[str, Tensor] = {}
    for name, digest in read_about(folder)["shards"].items():
        path = folder / Path(name).name
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise BadParameter(f"{path} is not the shard that {folder / 'run.json'} names")
            tensors = load(data)
        except (OSError, safetensors.SafetensorError) as error:
            raise BadParameter(f"{path}, a shard of the run, cannot be read") from error
        out |= {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return out


def plan_shards(tensors: Mapping[str, Tensor]) -> Sequence[Sequence[str]]:
    """Return the names of each shard's tensors, in order; a full shard is followed by another."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > SHARD_BYTES - _ROOM:
            raise BadParameter(f"{name} has {size} bytes, a shard holds at most {SHARD_BYTES}")
        if filled + size > SHARD_BYTES - _ROOM:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def as_type(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert floating-point tensors to another type, and return the others as they are."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
