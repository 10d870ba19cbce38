"""The light decoder: a stored model made ready to decode without torch.

g_s runs through ONNX Runtime, or in numpy where ONNX Runtime cannot be imported (there are no
wheels of it for every platform): the same pixels to within rounding, in twice the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.fixed_point import NUMPY, Numbers
from service.codec.latents import LatentCoder
from service.engine.pipeline import LoadedModel, Synthesis
from service.errors import StoreError
from service.store import ENTROPY, StoredModel


def load_light(stored: tuple[StoredModel, ...], threads: int = 0) -> tuple[LoadedModel, ...]:
    """Make models ready to decode.

    Args:
        stored: from the store. threads: CPU threads of g_s, 0 takes all cores.
    """
    synthesis = _synthesis(threads)

    def build(model: StoredModel) -> LoadedModel:
        coder = coder_of(model, NUMPY)
        return LoadedModel(model, coder, synthesis(model), None, build, synthesis)

    return tuple(build(model) for model in stored)


def coder_of(model: StoredModel, numbers: Numbers) -> LatentCoder:
    """The entropy model and its coder.

    Raises:
        StoreError: a tensor is missing or does not fit.
    """
    if "tables" not in model.entropy:
        raise StoreError(f"model {model.name} has no tensor {ENTROPY}tables")
    entropy = EntropyModel(model.sizes, model.entropy, numbers)
    return LatentCoder(entropy, Tables(model.entropy["tables"]))


def _synthesis(threads: int) -> Callable[[StoredModel], Synthesis]:
    """What runs g_s here."""
    try:
        from service.engine.synthesis_onnx import OnnxSynthesis
    except ImportError:
        from service.engine.synthesis_numpy import NumpySynthesis

        return NumpySynthesis
    return partial(OnnxSynthesis, threads=threads)
