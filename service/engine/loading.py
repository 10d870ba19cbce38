"""Stored models made resident with torch on a device; light.py does it without torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from service.codec.entropy_model import EntropyModel
from service.codec.fixed_point import Numbers
from service.engine.light import coder_of
from service.engine.pipeline import LoadedModel
from service.errors import BadParameter
from service.stored import StoredModel

if TYPE_CHECKING:
    import torch


def load_models(
    stored: tuple[StoredModel, ...], device_name: str, dtype: torch.dtype | None, threads: int = 0
) -> tuple[LoadedModel, ...]:
    """Make models resident with torch.

    Args:
        stored: from the store. device_name: "auto", "cpu" or "cuda".
        dtype: working type of the transforms; None takes `best_dtype`.
        threads: CPU threads, 0 leaves torch's own choice.

    Raises:
        BadParameter: no such device.
    """
    import torch

    from service.engine.synthesis_torch import (
        TorchSynthesis,
        TorchTransforms,
        best_dtype,
        pick_device,
    )

    if threads:
        torch.set_num_threads(threads)
    try:
        device = pick_device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadParameter(f"device {device_name!r} cannot be used here") from error
    # Only true float32 products are exact: GPUs may round to TF32, and CPUs to bfloat16 when asked.
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    numbers = Numbers(torch, torch.float32 if exact else torch.float64, device)
    working = dtype or best_dtype(device)

    def build(model: StoredModel) -> LoadedModel:
        transforms = TorchTransforms(model, device, working)
        coder = coder_of(model, partial(EntropyModel, numbers=numbers))
        return LoadedModel(model, coder, transforms, transforms, build, build_synthesis)

    def build_synthesis(model: StoredModel) -> TorchSynthesis:
        return TorchSynthesis(model, device, working)

    return tuple(build(model) for model in stored)


def batch_for(model: LoadedModel) -> int:
    """What suits the device that a model runs on."""
    if model.analysis is None:
        return 1
    from service.engine.synthesis_torch import TorchTransforms, best_batch

    assert isinstance(model.analysis, TorchTransforms)
    return best_batch(model.analysis.device)
