"""What an autoencoder offers to latent streams, whichever network it is, and whole pictures of it.

An autoencoder turns pixels into latents and back, and knows nothing of bits. Latent streams
(codec/overfit.py) name it by the first bytes of its identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec.overfit import LatentNetworks
from service.codec.tiles import Box, windows
from service.errors import TooManyPixels
from service.picture import U8, Picture
from service.runtime.interruption import allow_interruption
from service.runtime.pipeline import greyed, pixels_under

if TYPE_CHECKING:
    from torch import Tensor

F32 = NDArray[np.float32]

WINDOW_PIXELS = 512
"""Pixels along the side of a window, about."""

MAX_WHOLE_PIXELS = 2**23
"""Most pixels of a picture for an autoencoder that reads whole pictures."""


class Autoencoder(Protocol):
    """An autoencoder, safe to share between threads."""

    @property
    def name(self) -> str:
        """Its name in requests."""

    @property
    def identity(self) -> bytes:
        """SHA-256 over the weights and the default networks."""

    @property
    def cell(self) -> int:
        """Pixels along the side of a latent."""

    @property
    def channels(self) -> int:
        """Channels of the latents."""

    @property
    def halo(self) -> int | None:
        """Latents around a window that encoder and decoder read; None: the whole picture."""

    @property
    def networks(self) -> LatentNetworks:
        """What the networks of every latent stream start from."""

    def encode(self, pixels: U8) -> F32:
        """Pixels [H, W, 3], multiples of `cell` -> latents [H/cell, W/cell, C].

        Raises MissingExtra: it can only decode here.
        """

    def decode(self, latents: F32, inner: Box | None = None) -> U8:
        """A window of latents [h, w, C] -> pixels under `inner`, a part of it, or under all."""


class DifferentiableAutoencoder(Autoencoder, Protocol):
    """An autoencoder whose decoder has gradients."""

    def decode_tensor(self, latents: Tensor) -> Tensor:
        """Latents [B, h, w, C] -> pixels [B, cell·h, cell·w, 3] of 0–1, not clamped."""


def latents_shape(autoencoder: Autoencoder, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of the latents of a picture.

    Raises:
        TooManyPixels: it is too large for an autoencoder that reads whole pictures.
    """
    if autoencoder.halo is None and width * height > MAX_WHOLE_PIXELS:
        raise TooManyPixels(
            f"the picture is {width}x{height}; autoencoder {autoencoder.name} reads whole pictures "
            f"of at most {MAX_WHOLE_PIXELS} pixels"
        )
    return -(-height // autoencoder.cell), -(-width // autoencoder.cell)


def encode_picture(autoencoder: Autoencoder, picture: Picture) -> F32:
    """The latents of a picture, [ceil(H / cell), ceil(W / cell), C], window by window.

    Colours under alpha 0 are replaced (`alpha.fill_hidden`), and edge pixels are repeated beyond
    the picture.

    Raises:
        MissingExtra: the autoencoder can only decode here.
        TooManyPixels: see `latents_shape`.
    """
    rows, columns = latents_shape(autoencoder, picture.width, picture.height)
    cell, whole = autoencoder.cell, Box(0, 0, rows, columns)
    out = np.empty((rows, columns, autoencoder.channels), np.float32)
    for inner in _windows(autoencoder, whole):
        allow_interruption()
        window = inner.grown(autoencoder.halo or 0, whole)
        rgb = pixels_under(picture, window, cell)
        out[inner.slices] = autoencoder.encode(rgb)[inner.relative(window).slices]
    return out


def paint(autoencoder: Autoencoder, latents: F32, pixels: Box, grey: bool) -> U8:
    """The pixels in a box, [pixels.height, pixels.width, 3]; grey where the picture is.

    Args:
        latents: of the whole picture.
    """
    cell, whole = autoencoder.cell, Box(0, 0, *latents.shape[:2])
    out = np.empty((pixels.height, pixels.width, 3), np.uint8)
    for inner in _windows(autoencoder, pixels.cells(cell)):
        allow_interruption()
        window = whole if autoencoder.halo is None else inner.grown(autoencoder.halo, whole)
        rgb = autoencoder.decode(latents[window.slices], inner.relative(window))
        box = inner.scaled(cell).cut(pixels)
        rgb = rgb[box.relative(inner.scaled(cell)).slices]
        out[box.relative(pixels).slices] = greyed(rgb) if grey else rgb
    return out


def _windows(autoencoder: Autoencoder, box: Box) -> list[Box]:
    """Windows of a box of latents to work on one at a time."""
    if autoencoder.halo is None:
        return [box]
    return list(windows(box, max(1, WINDOW_PIXELS // autoencoder.cell)))
