"""Loading of models to compress and decompress; decode_only.py loads them without torch.

A fixed rule, and no measurement, decides which library runs the networks, so that a machine always
writes the same bytes. GPUs, and CPUs with instructions for bfloat16, run them in torch. Any other
CPU runs them in float32 through ONNX Runtime, where that can be imported: for 768×512 pixels on one
core of a Zen 4, g_a takes 125 ms, h_a 10 and g_s 132, while torch takes 136, 12 and 140 in float32,
but 78, 7 and 85 in bfloat16. Only one library has work, so its threads never wait for the other's.

On CPUs torch works on two tiles at once where it has several threads, so that the entropy coding of
one takes place during the networks of the other: with two cores, 2048×2048 pixels take 1,057 ms to
analyse and encode instead of 1,342, and their latents 331 to decode instead of 364. With ONNX
Runtime encoding gained nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from service.codec.entropy_model import EntropyModel
from service.codec.fixed_point import ArrayBackend
from service.errors import BadParameter
from service.runtime.decode_only import Build, builder, by_family
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel

if TYPE_CHECKING:
    import torch


def load_models(
    stored: tuple[StoredModel, ...], device_name: str, dtype: torch.dtype | None, threads: int = 0
) -> tuple[LoadedModel, ...]:
    """Make models resident.

    Args:
        stored: from the store.
        device_name: "auto", "cpu" or "cuda".
        dtype: working type of the transforms in torch; None takes what the rule above says.
        threads: CPU threads, 0 leaves the library's own choice.

    Raises:
        BadParameter: no such device.
    """
    import torch

    from service.transforms.synthesis_torch import best_dtype, pick_device

    if threads:
        torch.set_num_threads(threads)
    try:
        device = pick_device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]  # after a fork CUDA's names the way out
        raise BadParameter(f"device {device_name!r} cannot be used here: {reason}") from error
    working = best_dtype(device)
    build = None
    if dtype is None and device.type == "cpu" and working == torch.float32:
        build = _onnx_builder(threads)
    build = build or _torch_builder(device, dtype or working)
    return tuple(map(build, stored))


def _torch_builder(device: torch.device, dtype: torch.dtype) -> Build:
    """What makes models ready with torch."""
    import torch

    from service.transforms.swin_torch import TorchSwinSynthesis, TorchSwinTransforms
    from service.transforms.synthesis_torch import TorchSynthesis, TorchTransforms

    # Only true float32 products are exact: GPUs may round to TF32, and CPUs to bfloat16 when asked.
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    backend = ArrayBackend(torch, torch.float32 if exact else torch.float64, device)
    return builder(
        lambda model: EntropyModel(model.sizes, model.entropy, backend),
        by_family(
            partial(TorchSynthesis, device=device, dtype=dtype),
            partial(TorchSwinSynthesis, device=device, dtype=dtype),
        ),
        by_family(
            partial(TorchTransforms, device=device, dtype=dtype),
            partial(TorchSwinTransforms, device=device, dtype=dtype),
        ),
        2 if device.type == "cpu" and torch.get_num_threads() > 1 else 1,
    )


def _onnx_builder(threads: int) -> Build | None:
    """What makes models ready with ONNX Runtime; None where it cannot be imported."""
    try:
        from service.transforms.analysis_onnx import OnnxTransforms
        from service.transforms.entropy_onnx import OnnxEntropyModel
        from service.transforms.swin_onnx import OnnxSwinSynthesis, OnnxSwinTransforms
        from service.transforms.synthesis_onnx import OnnxSynthesis
    except ImportError:
        return None
    return builder(
        partial(OnnxEntropyModel, threads=threads),
        by_family(
            partial(OnnxSynthesis, threads=threads), partial(OnnxSwinSynthesis, threads=threads)
        ),
        by_family(
            partial(OnnxTransforms, threads=threads), partial(OnnxSwinTransforms, threads=threads)
        ),
    )


def transforms_of(model: LoadedModel) -> str:
    """The library and type of a model's transforms, for records: torch.bfloat16, ..."""
    return str(getattr(model.synthesis, "dtype", "onnxruntime.float32"))


def batch_for(model: LoadedModel) -> int:
    """Requests to work on in one call on the device that a model runs on.

    It is one on a CPU. Measured with the shipped model, a picture takes these milliseconds of one
    core alone, in batches of two and of four: 177, 174, 182 at 768x512; 38, 34, 32 at 256x256. A
    service of thumbnails may gain by setting more. On a GPU the entropy networks of one picture
    leave most of it idle; eight is a guess that was not measured.
    """
    if model.analysis is None:
        return 1
    from service.transforms.synthesis_torch import device_and_dtype

    return 8 if device_and_dtype(model.analysis)[0].type == "cuda" else 1
