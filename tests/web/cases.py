"""Streams to decode in a browser, and what Python decodes them to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from image_files import profile
from make_golden import drawing, hashes_of, matte, page_with_photo
from small_model import photo_like

from service.adapt.plan import AdaptationPlan
from service.codec import container
from service.codec.container import LOSSLESS
from service.engine.opening import open_engine
from service.picture import U8, WHOLE, Picture, View
from service.settings import Settings
from service.store.model import StoredModel
from service.store.read import load_store

SETTINGS = (
    (4, "psnr"),
    (1, "psnr"),
    (2.25, "ms-ssim"),
    (8, "psnr"),
    (5.5, "psnr"),
    (3, "ms-ssim"),
    (6.0625, "psnr"),
    (7, "ms-ssim"),
)
"""Rates and tunes that pictures take in turn."""


@dataclass(frozen=True)
class Case:
    """A stream of the shipped model."""

    name: str
    data: bytes


@dataclass(frozen=True, eq=False)
class Reference:
    """What Python decodes a stream to.

    Attributes:
        rgba: [H, W, 4] uint8, the stored samples, not premultiplied.
        y_hat: sha256 of the latents as make_golden.hashes_of has it; None where there are none.
    """

    rgba: U8
    y_hat: str | None


class Maker:
    """Makes streams with the shipped model, and decodes them as the base install does."""

    def __init__(self) -> None:
        self._encoder = open_engine(Settings(device="cpu", check=False, threads=1))
        self._plain = open_engine(Settings(device="cpu", check=False, threads=1, graphics=False))
        self._decoder = open_engine(Settings(decode_only=True, threads=1))
        self._stored: StoredModel = load_store()[0]

    def case(self, name: str, picture: Picture, rate: float, tune: str = "psnr") -> Case:
        """The stream of a picture."""
        return Case(name, self._encoder.compress(picture, rate, tune).data)

    def ready(self, name: str, picture: Picture, number: int) -> Case:
        """A stream at rate 4 without a graphics layer that names a ready update of the store."""
        updates = self._stored.updates
        stream = container.read_stream(self._plain.compress(picture, 4).data)
        reference = updates[number % len(updates)].reference
        return Case(name, container.write_stream(replace(stream, ready=reference)))

    def adapted(self, name: str, picture: Picture, rate: float) -> Case:
        """A stream with an update of its own and no graphics layer."""
        plan = AdaptationPlan(decoder_steps=150, latent_steps=20)
        adaptation = self._plain.adapt(picture, rate, effort=plan)
        adaptation.advance(math.inf)
        case = Case(name, adaptation.best())
        assert any(kind == "update" for kind, _ in container.describe(case.data).sections), name
        return case

    def reference(self, data: bytes, view: View = WHOLE) -> Reference:
        """What a view of a stream is; the latents are always those of the whole."""
        picture = self._decoder.decompress(data, view).picture
        alpha = picture.alpha
        if alpha is None:
            alpha = np.full(picture.rgb.shape[:2], 255, np.uint8)
        rgba = np.concatenate([picture.rgb, alpha[..., None]], axis=2)
        y_hat = None if view.partial else hashes_of(self._stored, data)["y_hat"]
        return Reference(rgba, y_hat)


def coded(maker: Maker, pictures: Iterable[tuple[str, Picture]]) -> Iterator[Case]:
    """Pictures at rates and tunes that take turns."""
    for (name, picture), (rate, tune) in zip(pictures, cycle(SETTINGS), strict=False):
        yield maker.case(f"{name}-r{rate:g}-{tune}", picture, rate, tune)


def sized(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[str, Picture]]:
    """Colour pictures of widths and heights."""
    for seed, (width, height) in enumerate(sizes):
        yield f"{width}x{height}", Picture(photo_like(height, width, seed))


def see_through(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[str, Picture]]:
    """Pictures with an alpha plane."""
    for seed, (width, height) in enumerate(sizes):
        rgb = photo_like(height, width, seed + 100)
        yield f"alpha-{width}x{height}", Picture(rgb, matte(height, width))


def grey(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[str, Picture]]:
    """Grey pictures."""
    for seed, (width, height) in enumerate(sizes):
        rgb = np.repeat(photo_like(height, width, seed + 200)[..., :1], 3, axis=2)
        yield f"grey-{width}x{height}", Picture(rgb, grey=True)


def few_cases(maker: Maker) -> Iterator[Case]:
    """A stream of every kind, small enough for every run of the tests."""
    yield from coded(maker, sized([(1, 1), (1, 40), (40, 1), (16, 16), (17, 15), (1, 1030)]))
    yield from coded(maker, sized([(1030, 5), (65, 129), (110, 70)]))
    yield from coded(maker, see_through([(33, 20), (1, 1)]))
    yield from coded(maker, grey([(30, 47)]))
    yield maker.ready("ready", Picture(photo_like(40, 56, 7)), 1)
    yield maker.case("part", Picture(page_with_photo()), 3.5)
    yield maker.case("profile", Picture(photo_like(24, 31, 8), icc=profile()), 4)
    yield maker.case("lossless", Picture(drawing()[:50, :70]), LOSSLESS)
    yield maker.case("lossless-alpha", Picture(drawing()[:50, :70], matte(50, 70)), LOSSLESS)
