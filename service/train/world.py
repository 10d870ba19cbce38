"""Training on several devices: one process each, started by torchrun.

    torchrun --nproc-per-node 4 -m service train base PICTURES --run runs/mine --minutes 60

Every process draws what the whole batch needs and takes its own part of each group, so a step does
the same whatever the number of processes; gradients are averaged before they are used. The first
process alone writes the run's folder and looks at the clock.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from service.errors import BadParameter


@dataclass(frozen=True)
class World:
    """The processes of a run and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.rank == 0

    def share(self, items: int) -> int:
        """How many of a group's items are this process's.

        Raises:
            BadParameter: the processes cannot share them equally.
        """
        if items % self.size:
            raise BadParameter(
                f"a step has {items} crops of each rate, expected a multiple of the "
                f"{self.size} processes"
            )
        return items // self.size

    def part(self, whole: Tensor, groups: int) -> Tensor:
        """This process's items of a tensor over the whole batch, [groups · n, ...]."""
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
        """Replace tensors by the first process's, in all of them."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agree(self, value: Any) -> Any:
        """The first process's value, a small Python object, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """Join the processes that torchrun started, until this one ends, and take one of the devices.

    Args:
        device: kind of device to train on.
    """
    if "WORLD_SIZE" not in os.environ:
        return World(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size()), device
