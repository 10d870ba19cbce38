"""What a measurement was made on, to be kept beside its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A computer as results name it.

    Attributes:
        cpu: model name. cores: that this process may use.
        device: what the networks ran on. load: of the last minute, 0 idle.
    """

    cpu: str
    cores: int
    device: str
    load: float

    @property
    def busy(self) -> bool:
        """Whether other work took so much that timings mean little."""
        return self.load > self.cores / 2


def this_machine(device: str) -> Machine:
    """The computer we run on; `device` as the engine was given it, "auto" resolved."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(_cpu(), cores, device_name(device), round(os.getloadavg()[0], 2))


def device_name(device: str) -> str:
    """ "cpu", or the name of the GPU that `device` stands for."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def code_commit() -> str:
    """Commit of the checkout that this package runs from, "-dirty" if changed; else empty."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    folder = Path(__file__).parent
    try:
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
