"""The choice of what torch.compile compiles in training, and whether it works on this machine.

"blocks" compiles each residual block and the drawing of crops: in two minutes on a CPU, in one on
an H200. "whole" compiles the forward pass and loss as one graph, in minutes on a CPU, where the
result is not faster than "blocks", and in over three minutes on an H200, where it was not measured.
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
"""Largest number of compiled variants of a block, by channels and size."""


def choose_compile(requested: Compile, device: torch.device) -> tuple[Compile, str]:
    """Choose what to compile; returns it, and a note for people if that is less than requested."""
    missing = missing_requirement(device)
    if requested != "off" and missing:
        return "off", f"training is not compiled, which is slower: this machine has no {missing}"
    return ("blocks" if requested == "auto" else requested), ""


def missing_requirement(device: torch.device) -> str:
    """The program or package that torch.compile lacks on a device; empty if it lacks none."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "C++ compiler"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return ""


def compile_blocks(model: nn.Module) -> None:
    """Make torch compile every block of a model when it is first called."""
    torch._dynamo.config.recompile_limit = SHAPES
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False)
