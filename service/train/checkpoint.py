"""A run's state on disk: safetensors shards of at most 16 MiB, and run.json that names them.

Shards are named by their hash. New ones are written beside the old, run.json replaces its
predecessor in one step, and what nothing names any more is deleted last: whenever a writer is cut
off, what lies there is the old state or the new one.
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
"""Left in each shard for its header."""


def write_state(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Replace a run's state; returns the number of shards.

    Args:
        folder: of the run; made where it is missing.
        tensors: by name, on any device. about: JSON values kept beside them.

    Raises:
        BadParameter: a tensor that no shard can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = {}
    for names in plan_shards(tensors):
        # copies: what two names share (the averages' scale vectors are the model's) is kept twice
        data = save({name: tensors[name].detach().cpu().clone() for name in names})
        digest = hashlib.sha256(data).hexdigest()
        name = f"state-{digest[:16]}.safetensors"
        write_whole(folder / name, data)
        shards[name] = digest
    told = {**about, "schema": SCHEMA, "shards": shards}
    write_whole(folder / "run.json", (json.dumps(told, indent=2) + "\n").encode())
    for path in folder.glob("state-*.safetensors"):
        if path.name not in shards:
            path.unlink()
    return len(shards)


def has_state(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "run.json").is_file()


def read_about(folder: Path) -> dict[str, Any]:
    """What was kept beside the tensors of a run. Raises BadParameter: no run, or a damaged one."""
    path = folder / "run.json"
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadParameter(f"{folder} holds no run: {path} cannot be read") from error
    if not isinstance(told, dict) or told.get("schema") != SCHEMA or "shards" not in told:
        raise BadParameter(f"{path} is not the record of a run of schema {SCHEMA}")
    return told


def read_tensors(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a run whose names start with a prefix, on the CPU, the prefix taken off.

    Raises:
        BadParameter: a shard is missing or is not the one that was written.
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
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        out |= found
    return out


def plan_shards(tensors: Mapping[str, Tensor]) -> Sequence[Sequence[str]]:
    """Names of the tensors of each shard: in order, a new shard where the last one is full."""
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
    """Floating-point tensors in another type, the others as they are."""
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
