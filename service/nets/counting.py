"""Multiply-adds of networks, counted while they run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def kmac(call: Callable[[], object]) -> float:
    """Return the thousand multiply-adds of a call, counted while it runs once."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 2e3
