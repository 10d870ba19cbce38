"""Writes tests/golden/v1 anew with the shipped store: `python tests/make_golden.py`.

For a new model or a changed format, until 1.0: from then on these files stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from small_model import decode_only, photo_like

from service.adapt.plan import AdaptationPlan
from service.codec import alpha, container
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.images.write import write_image
from service.picture import U8, Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import decode_latents
from service.store.read import load_store

V1 = Path(__file__).parent / "golden" / "v1"


def drawing(height: int = 96, width: int = 128) -> U8:
    """Flat colours, boxes and a thin frame."""
    rgb = np.full((height, width, 3), 255, np.uint8)
    rgb[8:60, 12:70], rgb[30:90, 50:110] = (230, 20, 40), (10, 90, 200)
    rgb[4:92, 4], rgb[4:92, 123], rgb[4, 4:124], rgb[91, 4:124] = 0, 0, 0, 0
    return rgb


def matte(height: int, width: int) -> U8:
    """A soft disc."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height / 2, x - width / 2)
    out: U8 = (255 * (1.2 - distance / 40).clip(0, 1)).astype(np.uint8)
    return out


def pictures() -> dict[str, tuple[Picture, float, str]]:
    """Name -> picture, rate and tune of each stream that one call of `compress` gives."""
    photo = Picture(photo_like(75, 106, 1))
    grey = np.repeat(photo_like(64, 80, 2)[..., :1], 3, -1)
    return {
        **{f"photo-r{rate:g}": (photo, rate, "psnr") for rate in (1, 2.25, 4, 6.5, 8)},
        **{f"photo-ms-ssim-r{rate:g}": (photo, rate, "ms-ssim") for rate in (3, 7.25)},
        "alpha-r4": (Picture(photo_like(90, 100, 3), matte(90, 100)), 4, "psnr"),
        "grey-r4": (Picture(grey, grey=True), 4, "psnr"),
        "one-pixel-r4": (Picture(np.array([[[255, 0, 0]]], np.uint8)), 4, "psnr"),
        "two-tiles-r4": (Picture(photo_like(40, 1100, 4)), 4, "psnr"),
        "drawing-r5": (Picture(drawing()), 5, "psnr"),
    }


def main() -> None:
    """Write every stream and what it decodes to."""
    torch.set_num_threads(1)
    (stored,) = load_store()
    (loaded,) = load_models((stored,), "cpu", torch.float32)
    engine = Engine((loaded,))
    streams = {n: engine.compress(p, rate, tune).data for n, (p, rate, tune) in pictures().items()}
    adaptation = engine.adapt(
        Picture(drawing()), 6, effort=AdaptationPlan(decoder_steps=400, latent_steps=60)
    )
    adaptation.advance(math.inf)
    streams["drawing-adapted-r6"] = adaptation.best()
    for path in V1.glob("*"):
        path.unlink()
    for name, data in streams.items():
        stream = container.read_stream(data)
        header = stream.header
        everything = Box(0, 0, header.height, header.width)
        decoder = decode_only(stored.at_rate(header.rate16, header.tune))
        y_hat = decode_latents(decoder, stream, everything).y_hat.astype("<i2").tobytes()
        plane = None
        if stream.alpha is not None:
            plane = alpha.unpack(stream.alpha, header.height, header.width).tobytes()
        hashes = {
            "y_hat": hashlib.sha256(y_hat).hexdigest(),
            "alpha": None if plane is None else hashlib.sha256(plane).hexdigest(),
        }
        (V1 / f"{name}.rkp").write_bytes(data)
        (V1 / f"{name}.json").write_text(json.dumps(hashes, indent=1) + "\n")
        rgb = engine.decompress(data).picture.rgb
        (V1 / f"{name}.png").write_bytes(write_image(Picture(rgb), "png"))
        print(f"{name}: {len(data)} bytes, update {stream.update is not None}")  # noqa: T201


if __name__ == "__main__":
    main()
