"""Loading of models that only decode, without torch.

The entropy networks and g_s run through ONNX Runtime, or in numpy where ONNX Runtime cannot be
imported (there are no wheels of it for every platform): the same latents, and the same pixels to
within rounding, in twice the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.latents import LatentCoder
from service.codec.sizes import Sizes
from service.errors import StoreError
from service.runtime.pipeline import LoadedModel, SynthesisTransform
from service.store.model import ENTROPY, StoredModel

BuildEntropy = Callable[[Sizes, Mapping[str, NDArray[Any]]], EntropyModel]
"""(sizes, stored tensors) -> the entropy model."""


def load_decode_only(stored: tuple[StoredModel, ...], threads: int = 0) -> tuple[LoadedModel, ...]:
    """Make models ready to decode.

    Args:
        stored: from the store. threads: CPU threads of one call in ONNX Runtime, 0 takes all cores.
    """
    entropy, synthesis = _networks(threads)

    def build(model: StoredModel) -> LoadedModel:
        coder = coder_of(model, entropy)
        return LoadedModel(model, coder, synthesis(model), None, build, synthesis)

    return tuple(build(model) for model in stored)


def coder_of(model: StoredModel, build: BuildEntropy) -> LatentCoder:
    """The entropy model and its coder.

    Raises:
        StoreError: a tensor is missing or does not fit.
    """
    if "tables" not in model.entropy:
        raise StoreError(f"model {model.name} has no tensor {ENTROPY}tables")
    return LatentCoder(build(model.sizes, model.entropy), Tables(model.entropy["tables"]))


def _networks(threads: int) -> tuple[BuildEntropy, Callable[[StoredModel], SynthesisTransform]]:
    """The implementations of the entropy networks and of g_s that this machine has."""
    try:
        from service.runtime.entropy_onnx import OnnxEntropyModel
        from service.runtime.synthesis_onnx import OnnxSynthesis
    except ImportError:
        from service.runtime.synthesis_numpy import NumpySynthesis

        return EntropyModel, NumpySynthesis
    return partial(OnnxEntropyModel, threads=threads), partial(OnnxSynthesis, threads=threads)
