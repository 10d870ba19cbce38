"""Writes tests/golden anew with the shipped store: `python tests/make_golden.py [NAME ...]`.

For a new model or a changed format, until 1.0: from then on these files stay as they are. Streams
of the default model are in v1, those of the other in swin. With names, only these streams are
written, and the files of all others are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from small_model import decode_only, photo_like

from service.adapt.plan import AdaptationPlan
from service.codec import alpha, container
from service.codec.container import LOSSLESS
from service.codec.sizes import SwinSizes
from service.codec.tiles import Box
from service.datasets.colours import Rng
from service.datasets.pages import page
from service.engine.engine import Engine
from service.images.write import write_image
from service.picture import U8, Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel, decode_latents
from service.store.model import StoredModel
from service.store.read import load_store

GOLDEN = Path(__file__).parent / "golden"
V1 = GOLDEN / "v1"
FOLDERS = {"light": V1, "swin": GOLDEN / "swin"}
"""Folder of the streams of each model of the store."""


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


def page_with_photo() -> U8:
    """A page of text with a photograph in it."""
    rgb = np.asarray(page(Rng(np.random.PCG64(1)), 256)).copy()
    rgb[40:168, 56:232] = photo_like(128, 176, 5)
    return rgb


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
        "segments-r2": (Picture(drawing(528, 560)), 2, "psnr"),
    }


def graphic_pictures() -> dict[str, tuple[Picture, float, str]]:
    """Likewise, of streams with a graphics layer: over a part, over all, and with alpha."""
    return {
        "graphics-part-r4": (Picture(page_with_photo()), 4, "psnr"),
        "graphics-drawing-r5": (Picture(drawing()), 5, "psnr"),
        "graphics-lossless-alpha": (Picture(drawing(), matte(96, 128)), LOSSLESS, "psnr"),
    }


def swin_pictures() -> dict[str, tuple[Picture, float, str]]:
    """Likewise, of the family swin: with prompts, without, and with two mixes of both kinds."""
    photo = Picture(photo_like(75, 106, 1))
    return {
        **{f"swin-r{rate:g}": (photo, rate, "psnr") for rate in (1, 2.25, 4, 4.5, 8)},
        "swin-two-tiles-r6": (Picture(photo_like(40, 1100, 4)), 6, "psnr"),
    }


def adapted(engine: Engine) -> bytes:
    """A drawing with an update of its own."""
    plan = AdaptationPlan(decoder_steps=400, latent_steps=60)
    adaptation = engine.adapt(Picture(drawing()), 6, effort=plan)
    adaptation.advance(math.inf)
    return adaptation.best()


def recipes(loaded: LoadedModel) -> dict[str, Callable[[], bytes]]:
    """Name -> what makes each stream of a model."""
    if isinstance(loaded.stored.sizes, SwinSizes):
        only = Engine((loaded,))
        return {name: partial(compress, only, *one) for name, one in swin_pictures().items()}
    plain, graphic = Engine((loaded,)), Engine((loaded,), graphics=True)
    return {
        **{name: partial(compress, plain, *one) for name, one in pictures().items()},
        **{name: partial(compress, graphic, *one) for name, one in graphic_pictures().items()},
        "drawing-adapted-r6": partial(adapted, plain),
    }


def compress(engine: Engine, picture: Picture, rate: float, tune: str) -> bytes:
    """The stream of a picture."""
    return engine.compress(picture, rate, tune).data


def hashes_of(stored: StoredModel, data: bytes) -> dict[str, str | None]:
    """What a stream decodes to exactly; y_hat is None where it has no latents."""
    stream = container.read_stream(data)
    header = stream.header
    everything = Box(0, 0, header.height, header.width)
    y_hat = plane = None
    if not stream.is_lossless:
        decoder = decode_only(stored.at_rate(header.rate16, header.tune))
        y_hat = decode_latents(decoder, stream, everything).y_hat.astype("<i2").tobytes()
    if stream.alpha is not None:
        plane = alpha.unpack(stream.alpha, header.height, header.width, everything).tobytes()
    if stream.graphics is not None and stream.graphics.has_alpha:
        plane = stream.graphics.alpha_plane(everything).tobytes()
    return {
        name: None if raw is None else hashlib.sha256(raw).hexdigest()
        for name, raw in (("y_hat", y_hat), ("alpha", plane))
    }


def main() -> None:
    """Write every stream, or those named as arguments, and what it decodes to."""
    torch.set_num_threads(1)
    for stored in load_store():
        write_folder(FOLDERS[stored.name], stored, sys.argv[1:])


def write_folder(folder: Path, stored: StoredModel, names: list[str]) -> None:
    """Write the streams of one model, or those of these names that are of it."""
    (loaded,) = load_models((stored,), "cpu", torch.float32)
    make, decoder = recipes(loaded), Engine((loaded,))
    streams = {name: one() for name, one in make.items() if name in (names or make)}
    folder.mkdir(exist_ok=True)
    for path in () if names else folder.glob("*"):
        path.unlink()
    for name, data in streams.items():
        (folder / f"{name}.rkp").write_bytes(data)
        (folder / f"{name}.json").write_text(json.dumps(hashes_of(stored, data), indent=1) + "\n")
        rgb = decoder.decompress(data).picture.rgb
        (folder / f"{name}.png").write_bytes(write_image(Picture(rgb), "png"))
        info = container.describe(data)
        print(f"{name}: {len(data)} bytes, graphics {info.graphics_share:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
