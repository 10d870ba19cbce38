"""Loading of models that only decode, without torch.

The entropy networks and g_s run through ONNX Runtime, or in numpy where ONNX Runtime cannot be
imported (there are no wheels of it for every platform): the same latents, and the same pixels to
within rounding, in twice the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.latents import LatentCoder
from service.errors import StoreError
from service.runtime.pipeline import AnalysisTransform, LoadedModel, SynthesisTransform
from service.runtime.synthesis_numpy import NumpyPreviews, NumpySynthesis
from service.store.model import ENTROPY, StoredModel

Build = Callable[[StoredModel], LoadedModel]


class BothTransforms(AnalysisTransform, SynthesisTransform, Protocol):
    """g_a, h_a and g_s of one model."""


def load_decode_only(stored: tuple[StoredModel, ...], threads: int = 0) -> tuple[LoadedModel, ...]:
    """Make models ready to decode; 0 threads of ONNX Runtime take all cores."""
    try:
        from service.runtime.entropy_onnx import OnnxEntropyModel
        from service.runtime.synthesis_onnx import OnnxSynthesis
    except ImportError:
        build = builder(lambda m: EntropyModel(m.sizes, m.entropy), NumpySynthesis)
    else:
        build = builder(
            partial(OnnxEntropyModel, threads=threads), partial(OnnxSynthesis, threads=threads)
        )
    return tuple(map(build, stored))


def builder(
    entropy: Callable[[StoredModel], EntropyModel],
    synthesis: Callable[[StoredModel], SynthesisTransform],
    transforms: Callable[[StoredModel], BothTransforms] | None = None,
    tiles_at_once: int = 1,
) -> Build:
    """What makes models ready with these networks; without `transforms` they only decode.

    `tiles_at_once` is that of LoadedModel. What is returned raises StoreError where a tensor is
    missing or does not fit.
    """

    def build(model: StoredModel) -> LoadedModel:
        if "tables" not in model.entropy:
            raise StoreError(f"model {model.name} has no tensor {ENTROPY}tables")
        coder = LatentCoder(entropy(model), Tables(model.entropy["tables"]))
        both = None if transforms is None else transforms(model)
        previews = NumpyPreviews(model.previews) if model.previews else None
        g_s = both or synthesis(model)
        return LoadedModel(model, coder, g_s, both, build, synthesis, tiles_at_once, previews)

    return build
