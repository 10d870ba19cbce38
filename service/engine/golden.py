"""The golden stream of a model: whether this machine decodes what was recorded at publication."""

from __future__ import annotations

import numpy as np

from service.codec import container
from service.codec.tiles import Box
from service.errors import SelfTestFailed
from service.runtime.pipeline import LoadedModel, decode_latents, paint

GOLDEN_TOLERANCE = 6
"""8-bit steps that a golden pixel may differ by: bfloat16 against float32 synthesis gives 3."""


def decode_golden(model: LoadedModel) -> None:
    """Raise BadStream or SelfTestFailed unless the golden stream of a model reproduces."""
    golden, name = model.stored.golden, model.stored.name
    stream = container.read_stream(golden.stream)
    if stream.header.model != model.stored.identity[:4]:
        raise SelfTestFailed(
            f"model {name}: its golden stream is of {stream.header.model.hex()}, "
            f"its weights are {model.stored.identity[:4].hex()}"
        )
    everything = Box(0, 0, stream.header.height, stream.header.width)
    latents = decode_latents(model, stream, everything)
    if not np.array_equal(latents.y_hat, golden.y_hat):
        raise SelfTestFailed(f"model {name}: golden latents differ here")
    rgb = paint(model, latents, everything, False).astype(np.int16)
    if rgb.shape != golden.rgb.shape:
        raise SelfTestFailed(
            f"model {name}: golden pixels are {golden.rgb.shape}, the stream gives {rgb.shape}"
        )
    off = int(np.abs(rgb - golden.rgb).max())
    if off > GOLDEN_TOLERANCE:
        raise SelfTestFailed(
            f"model {name}: a golden pixel is off by {off}, at most {GOLDEN_TOLERANCE} expected"
        )
