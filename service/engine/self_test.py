"""The self-test: does this machine decode a model's golden stream as recorded at publication."""

from __future__ import annotations

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.errors import BadStream, SelfTestFailed, UnsupportedStream
from service.runtime.pipeline import LoadedModel, decode_latents, paint

GOLDEN_TOLERANCE = 6
"""8-bit steps that a golden pixel may differ by: bfloat16 against float32 synthesis gives 3."""


def check_golden_stream(model: LoadedModel) -> None:
    """Raise SelfTestFailed unless the golden stream decodes to equal latents and like pixels.

    Pixels are not compared where the synthesis of the model's family cannot run here.
    """
    name = f"model {model.stored.name}"
    try:
        _check(model, name)
    except BadStream as error:
        raise SelfTestFailed(f"{name}: the golden stream does not decode: {error}") from error


def _check(model: LoadedModel, name: str) -> None:
    golden = model.stored.golden
    stream = container.read_stream(golden.stream)
    if stream.header.model != model.stored.identity[:4]:
        raise SelfTestFailed(
            f"{name}: its golden stream is of {stream.header.model.hex()}, "
            f"its weights are {model.stored.identity[:4].hex()}"
        )
    everything = Box(0, 0, stream.header.height, stream.header.width)
    latents = decode_latents(model, stream, everything)
    if not np.array_equal(latents.y_hat, golden.y_hat):
        raise SelfTestFailed(f"{name}: the golden latents differ on this machine")
    try:
        rgb = paint(model, latents, everything, False).astype(np.int16)
    except UnsupportedStream:  # without ONNX Runtime: the other models serve
        return
    if rgb.shape != golden.rgb.shape:
        raise SelfTestFailed(
            f"{name}: golden pixels are {golden.rgb.shape}, the stream gives {rgb.shape}"
        )
    difference = int(np.abs(rgb - golden.rgb).max())
    if difference > GOLDEN_TOLERANCE:
        raise SelfTestFailed(
            f"{name}: a golden pixel is off by {difference}, at most {GOLDEN_TOLERANCE} expected"
        )
