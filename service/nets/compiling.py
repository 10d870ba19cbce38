"""What torch.compile is asked for, and whether it can work here at all.

"blocks" compiles each residual block and the making of crops: under two minutes on a CPU, one on an
H200. "whole" compiles the forward pass and loss as one graph: minutes on a CPU, where it is no
quicker than blocks, and more than three on an H200, where it was not waited for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Final, Literal

import torch
from torch import nn

from service.nets.backbone import Block

Compile = Literal["auto", "off", "blocks", "whole"]
SHAPES: Final = 64
"""Kinds of block, by channels and size, that one model may have compiled."""


def choose(wanted: Compile, device: torch.device) -> tuple[Compile, str]:
    """What to compile, and a note for people where that is less than was wanted."""
    lacking = lacks(device)
    if wanted != "off" and lacking:
        return "off", f"not compiled, which is slower: there is no {lacking} here"
    return ("blocks" if wanted == "auto" else wanted), ""


def lacks(device: torch.device) -> str:
    """What torch.compile would need on a device and does not find; empty if nothing."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "C++ compiler"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return ""


def compile_blocks(model: nn.Module) -> None:
    """Have every block of a model compiled when it is first called."""
    torch._dynamo.config.recompile_limit = SHAPES
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
