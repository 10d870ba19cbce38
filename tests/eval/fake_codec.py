"""A codec of a few lines whose sizes and distances are known: pixels cut to `rate` bits."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np

from service.engine.types import Compressed, Decompressed, ModelInfo, RateInfo, Timings
from service.errors import RateUnavailable
from service.picture import Picture, Region


@dataclass
class CutBits:
    """Keeps the highest `rate` bits of each sample and pads the stream to `padding` bytes."""

    calls: list[float] = field(default_factory=list)
    padding: int = 0

    def models(self) -> tuple[ModelInfo, ...]:
        rates = tuple(RateInfo(float(r), 0.01, None, None) for r in (4, 6))
        return (ModelInfo("cut", "00" * 32, 1, 1, rates, {}),)

    def compress(self, picture: Picture, rate: float) -> Compressed:
        if rate not in (4, 6):
            raise RateUnavailable(f"rate {rate:g}", (4.0, 6.0))
        self.calls.append(rate)
        out = io.BytesIO()
        np.savez_compressed(out, rgb=picture.rgb >> (8 - int(rate)), rate=int(rate))
        data = out.getvalue()
        return Compressed(
            data, picture.width, picture.height, rate, 0.0, None, Timings(check_s=0.001)
        )

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        del region
        with np.load(io.BytesIO(data)) as found:
            shift = 8 - int(found["rate"])
            rgb = (found["rgb"] << shift) + (1 << shift >> 1)
        return Decompressed(Picture(rgb.astype(np.uint8)), 4.0, "cut", Timings())

    def self_test(self) -> None:
        return
