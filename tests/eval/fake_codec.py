"""A codec of known sizes and errors: it keeps the highest `rate` bits of each sample."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np

from service.codec.alpha import fill_hidden
from service.engine.target import Target
from service.engine.types import Compressed, Decompressed, ModelInfo, RateInfo, Timings
from service.errors import RateUnavailable
from service.picture import WHOLE, Picture, View


@dataclass
class CutBits:
    """Keeps the highest `rate` bits of each sample; streams of tune ms-ssim are twice as long."""

    calls: list[float] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    def models(self) -> tuple[ModelInfo, ...]:
        rates = tuple(RateInfo(float(r), "psnr", 0.01, None, None, None) for r in (4, 6))
        return (ModelInfo("cut", "00" * 32, 1, 1, rates, {}, "conv"),)

    def compress(self, picture: Picture, rate: float | Target, tune: str = "psnr") -> Compressed:
        if isinstance(rate, Target):
            assert rate.max_bytes is not None
            self.limits.append(rate.max_bytes)
            return self.compress(picture, 4, tune)
        if rate not in (4, 6):
            raise RateUnavailable(f"rate {rate:g}", (4.0, 6.0))
        self.calls.append(rate)
        out = io.BytesIO()
        rgb, alpha = picture.rgb, picture.alpha
        planes = {} if alpha is None else {"alpha": alpha}
        rgb = rgb if alpha is None else fill_hidden(rgb, alpha)
        np.savez_compressed(out, rgb=rgb >> (8 - int(rate)), rate=int(rate), **planes)
        data = out.getvalue() * (2 if tune == "ms-ssim" else 1)
        size = picture.width, picture.height
        return Compressed(data, *size, rate, 0.0, None, Timings(check_s=0.001), tune=tune)

    def decompress(self, data: bytes, view: View = WHOLE) -> Decompressed:
        del view
        with np.load(io.BytesIO(data)) as result:
            shift = 8 - int(result["rate"])
            rgb = ((result["rgb"] << shift) + (1 << shift >> 1)).astype(np.uint8)
            alpha = result.get("alpha")
        return Decompressed(Picture(rgb, alpha), 4.0, "cut", Timings())

    def self_test(self) -> None:
        return
