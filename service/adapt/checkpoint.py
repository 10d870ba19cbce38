"""Where an adaptation is, as safetensors: its state, variables, moments and best stream.

A checkpoint is of one job and one set of weights, whose hash it carries. It may come back from
anywhere, so it is checked before anything of it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from service.errors import BadParameter

DAMAGED = (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError)
"""What reading a checkpoint that was tampered with can raise."""

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of every variable."""


@dataclass
class State:
    """Where the run is; all of it goes into a checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    done: bool = False
    bytes_before: int = 0
    psnr_before: float = 0.0
    psnr_best: float = 0.0
    loss_best: float = math.inf
    trend: float = math.inf
    first_loss: float = 0.0
    ready: str = ""
    """Name of the ready update that the stream has without one of its own, in hex; or none."""
    last_loss: float = math.inf
    slow: int = 0
    spared: int = 0
    """The loss last measured, how often running it gained little, and steps left out."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was read.

    Attributes:
        state: see State. with_update: whether an update of g_s is still being fitted.
        tensors: as they were given to `write_checkpoint`, on the CPU.
        moments: of the optimiser, by variable and by MOMENTS.
    """

    state: State
    with_update: bool
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]

    @property
    def best(self) -> bytes:
        """The best stream so far."""
        return self.tensors["best"].numpy().tobytes()


def write_checkpoint(
    digest: str,
    state: State,
    best: bytes,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    with_update: bool,
) -> bytes:
    """Everything needed to go on.

    Args:
        digest: hash of the job and the weights. state: where it is. best: stream so far.
        tensors: to keep, by name, among them all that the optimiser moves.
        optimiser: whose moments are kept. with_update: see Checkpoint.
    """
    kept = {**tensors, "best": torch.frombuffer(bytearray(best), dtype=torch.uint8)}
    names = {id(t): n for n, t in kept.items()}
    for variable, moments in optimiser.state.items():
        for part, value in moments.items():
            kept[f"adam.{part}.{names[id(variable)]}"] = value
    meta = {"digest": digest, "state": json.dumps(asdict(state)), "update": str(with_update)}
    plain = {n: t.detach().cpu().contiguous().clone() for n, t in kept.items()}
    return save_tensors(plain, meta)


def read_checkpoint(data: bytes, digest: str) -> Checkpoint:
    """What `write_checkpoint` wrote.

    Raises:
        BadParameter: it is damaged, or of another job.
    """
    try:
        found = load_tensors(data)  # checks the whole of it
        meta = _metadata(data)
        told = {"ready": ""} | json.loads(meta["state"])  # what was before ready updates
        if meta["digest"] != digest:
            raise BadParameter("the checkpoint is of another picture, rate, plan or model")
        state = State(**{f.name: told[f.name] for f in fields(State)})
        with_update = meta["update"] == "True"
    except DAMAGED as error:
        raise damaged(error) from error
    tensors = {n: t for n, t in found.items() if not n.startswith("adam.")}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        if name.startswith("adam."):
            _, part, variable = name.split(".", 2)
            moments.setdefault(variable, {})[part] = tensor
    return Checkpoint(state, with_update, tensors, moments)


def damaged(error: Exception) -> BadParameter:
    """The error for a checkpoint that does not hold what it should."""
    return BadParameter(f"the checkpoint is damaged: {error}")


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory."""
    length = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + length])["__metadata__"]
    if not isinstance(found, dict):
        raise ValueError("no metadata")
    return found
