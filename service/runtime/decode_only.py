"""Loading of models that only decode, without torch.

The entropy networks and g_s run through ONNX Runtime, or in numpy where ONNX Runtime cannot be
imported (there are no wheels of it for every platform): the same latents, and the same pixels to
within rounding, in twice the time. g_s of the Swin family does not run in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.latents import LatentCoder
from service.codec.sizes import ConvSizes, SwinSizes
from service.codec.tiles import Box
from service.errors import StoreError, UnsupportedStream
from service.picture import U8
from service.runtime.pipeline import LoadedModel
from service.store.model import ENTROPY, StoredModel
from service.transforms.interfaces import BothTransforms, SynthesisTransform
from service.transforms.synthesis_numpy import NumpyPreviews, NumpySynthesis

Build = Callable[[StoredModel], LoadedModel]
Made = TypeVar("Made")


class NoSynthesis:
    """Stands for a g_s that cannot run here."""

    def synthesise(self, y_hat: NDArray[np.int16], inner: Box | None = None) -> U8:  # noqa: ARG002
        """Raise UnsupportedStream."""
        raise UnsupportedStream(
            "streams of a model of family swin need ONNX Runtime or torch to decode: "
            "pip install onnxruntime"
        )


def load_decode_only(stored: tuple[StoredModel, ...], threads: int = 0) -> tuple[LoadedModel, ...]:
    """Make models ready to decode; 0 threads of ONNX Runtime take all cores."""
    try:
        from service.transforms.entropy_onnx import OnnxEntropyModel
        from service.transforms.swin_onnx import OnnxSwinSynthesis
        from service.transforms.synthesis_onnx import OnnxSynthesis
    except ImportError:
        build = builder(
            lambda m: EntropyModel(m.sizes, m.entropy),
            by_family(NumpySynthesis, lambda _: NoSynthesis()),
        )
    else:
        build = builder(
            partial(OnnxEntropyModel, threads=threads),
            by_family(
                partial(OnnxSynthesis, threads=threads), partial(OnnxSwinSynthesis, threads=threads)
            ),
        )
    return tuple(map(build, stored))


def by_family(
    conv: Callable[[StoredModel], Made], swin: Callable[[StoredModel], Made]
) -> Callable[[StoredModel], Made]:
    """What makes the transforms of a model of either family."""
    makers: Mapping[str, Callable[[StoredModel], Made]]
    makers = {ConvSizes.family: conv, SwinSizes.family: swin}
    return lambda model: makers[model.sizes.family](model)


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
