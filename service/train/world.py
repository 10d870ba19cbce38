"""Training on several devices: one process each, started by torchrun.

    torchrun --nproc-per-node 4 -m service train base PICTURES --run runs/mine --minutes 60

Every process makes the random draws of the whole batch and takes its own part of each group, so
that a step does not depend on the number of processes; gradients are averaged before they are used.
Only the first process writes the run's folder and reads the clock.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from service.errors import BadParameter


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def share(self, items: int) -> int:
        """Return how many of a group's items each process takes.

        Raises:
            BadParameter: the number of items is not a multiple of the number of processes.
        """
        if items % self.size:
            raise BadParameter(
                f"a step has {items} crops of each rate, expected a multiple of the "
                f"{self.size} processes"
            )
        return items // self.size

    def part(self, whole: Tensor, groups: int) -> Tensor:
        """Return this process's items of a tensor over the whole batch, [groups · n, ...]."""
        if self.size == 1:
            return whole
        grouped = whole.reshape(groups, -1, *whole.shape[1:])
        count = self.share(grouped.shape[1])
        return grouped[:, self.rank * count : (self.rank + 1) * count].flatten(0, 1)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace the tensors of every process by those of the first one."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agree(self, value: Any) -> Any:
        """Return the first process's value, a small Python object, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE: Final = World()
"""The world of a process that trains alone."""


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """Join the processes that torchrun started, if it did, and choose this process's device."""
    if "WORLD_SIZE" not in os.environ:
        return ALONE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size()), device
