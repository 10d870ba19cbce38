"""The machine that a measurement ran on, to be kept with its numbers."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A computer as it is described in results.

    Attributes:
        cpu: model name. cores: how many this process may use.
        device: "cpu", or the name of the GPU that runs the networks.
        load: mean number of running programs in the last minute; 0 means idle.
    """

    cpu: str
    cores: int
    device: str
    load: float


def this_machine(device: str) -> Machine:
    """Return this computer. `device` is that of the settings; "auto" is resolved."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Machine(_cpu_model(), cores, device_name(device), round(os.getloadavg()[0], 2))


def device_name(device: str) -> str:
    """Return "cpu", or the name of the GPU that `device` selects."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def code_commit() -> str:
    """Return the commit of this checkout, with "-dirty" if it was changed; "" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    folder = Path(__file__).parent
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", path.read_text() if path.is_file() else "", re.M)
    return name[1] if name else platform.processor() or platform.machine()
