"""Checkpoints of an adaptation as safetensors: its state, variables, moments and best stream.

A checkpoint belongs to one task and one set of weights, whose hash it carries. It may come back
from untrusted storage, so it is checked before any of it is used.
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
"""Errors that reading a damaged checkpoint can raise."""

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Tensors that Adam keeps for every variable."""


@dataclass
class AdaptationState:
    """Where an adaptation is; all of it goes into a checkpoint. Losses are in bits per pixel.

    Attributes:
        step: steps done. elapsed_s: seconds of work on them. done: whether none is left.
        bytes_before, psnr_before: of the plain stream, PSNR in dB.
        psnr_best, loss_best: of the best stream.
        trend: running mean of lmbda·D while the update is fitted.
        first_loss: of the plain stream. last_loss: as last measured.
        ready: hex name of the ready update that streams without a fitted one name, or "".
        slow: measurements in a row that hardly lowered the loss. spared: steps that were skipped.
    """

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
    last_loss: float = math.inf
    slow: int = 0
    spared: int = 0


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        with_update: whether an update of g_s is among the variables.
        tensors: as they were given to `write_checkpoint`, on the CPU, by name.
        moments: of Adam, by variable and by the names in MOMENTS.
    """

    state: AdaptationState
    with_update: bool
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]

    @property
    def best(self) -> bytes:
        """The best stream so far."""
        return self.tensors["best"].numpy().tobytes()


def write_checkpoint(
    digest: str,
    state: AdaptationState,
    best: bytes,
    tensors: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    with_update: bool,
) -> bytes:
    """A checkpoint as safetensors.

    Args:
        digest: hash of the task and the weights. best: stream so far.
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
    """Read a checkpoint. Raises BadParameter: it is damaged, or its digest is another."""
    try:
        stored = load_tensors(data)  # checks all of the file
        meta = _metadata(data)
        values = json.loads(meta["state"])
        if meta["digest"] != digest:
            raise BadParameter("the checkpoint is of another picture, rate, plan or model")
        state = AdaptationState(**{f.name: values[f.name] for f in fields(AdaptationState)})
        with_update = meta["update"] == "True"
    except DAMAGED as error:
        raise damaged(error) from error
    tensors = {n: t for n, t in stored.items() if not n.startswith("adam.")}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        if name.startswith("adam."):
            _, part, variable = name.split(".", 2)
            moments.setdefault(variable, {})[part] = tensor
    return Checkpoint(state, with_update, tensors, moments)


def damaged(error: Exception) -> BadParameter:
    """The error for a damaged checkpoint."""
    return BadParameter(f"the checkpoint is damaged: {error}")


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    if not isinstance(metadata, dict):
        raise ValueError("the file has no metadata")
    return metadata
