"""The sizes of a backbone, as stored with a model: another size needs training, not new code.

There are two families of backbones: `conv` (nets/backbone.py) and `swin` (nets/swin.py). What the
entropy model needs to know is the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from service.codec.tiles import Box
from service.errors import BadParameter, StoreError


@dataclass(frozen=True)
class Sizes:
    """Channels of the latents and of the entropy networks; subclasses add those of the transforms.

    Attributes:
        M: channels of the latents y, a multiple of 4.
        Cz: channels of the hyper-latents z.
        c16: channels at 1/16 resolution that the transforms work on, at most M; the others go
            straight between 1/8 resolution and the latents.
        cp: channels of the features P.
        cc: channels of the step networks.
    """

    family: ClassVar[str]

    M: int = 320
    Cz: int = 128
    c16: int = 256
    cp: int = 192
    cc: int = 128

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Read the sizes of a family from a manifest.

        Raises:
            StoreError: a field is unknown or missing, or a value is out of range.
        """
        expected = {f.name for f in fields(cls)}
        if set(values) != expected:
            raise StoreError(f"sizes are {sorted(values)}, expected {sorted(expected)}")
        numbers: dict[str, int] = {}
        for name, value in values.items():
            if type(value) is not int or not 1 <= value <= 4096:
                raise StoreError(f"size {name} is {value!r}, expected an integer from 1 to 4096")
            numbers[name] = value
        if numbers["M"] % 4:
            raise StoreError(f"size M is {numbers['M']}, expected a multiple of 4")
        if numbers["c16"] > numbers["M"]:
            raise StoreError(f"size c16 is {numbers['c16']}, expected at most M = {numbers['M']}")
        return cls(**numbers)

    @property
    def halo(self) -> int:
        """Latents around a window that g_a or g_s reads."""
        raise NotImplementedError

    def read_by(self, inner: Box, within: Box) -> Box:
        """The latents that g_a or g_s reads to compute those in a box: it and a halo around it."""
        return inner.grown(self.halo, within)


@dataclass(frozen=True)
class ConvSizes(Sizes):
    """Sizes of a backbone of convolutions.

    Attributes:
        c8: channels at 1/8 resolution.
        ne8: blocks of the analysis g_a at 1/8.
        ne16: blocks of g_a at 1/16.
        nd8: blocks of the synthesis g_s at 1/8.
        nd16: blocks of g_s at 1/16.
    """

    family = "conv"

    c8: int = 192
    ne8: int = 3
    ne16: int = 2
    nd8: int = 3
    nd16: int = 2

    @property
    def halo(self) -> int:
        """See Sizes; half a latent for a block at 1/8, one for a block at 1/16."""
        return max(-(-self.ne8 // 2) + self.ne16, -(-self.nd8 // 2) + self.nd16)


def conv_sizes(sizes: Sizes) -> ConvSizes:
    """Sizes of a backbone of convolutions.

    Raises:
        BadParameter: they are those of another family.
    """
    if not isinstance(sizes, ConvSizes):
        raise BadParameter(f"the model is of family {sizes.family}, expected {ConvSizes.family}")
    return sizes


WINDOW = 8
"""Tokens along the side of an attention window, at every resolution."""

SHIFT = WINDOW // 2
"""Tokens by which the windows of every second layer are shifted."""

HEAD = 32
"""Channels of an attention head."""

FEATURES = 16
"""Channels of the picture's features that the first prompts are made of (nets/prompts.py)."""


@dataclass(frozen=True)
class SwinSizes(Sizes):
    """Sizes of a backbone of window attention.

    Attributes:
        c4: channels at 1/4 resolution, a multiple of HEAD.
        c8: channels at 1/8 resolution, likewise.
        layers: attention layers at each resolution, an even number: every second one is shifted.
    """

    family = "swin"

    M: int = 192
    Cz: int = 64
    c16: int = 128
    cp: int = 128
    cc: int = 96
    c4: int = 64
    c8: int = 128
    layers: int = 2

    @property
    def halo(self) -> int:
        """See Sizes; a shifted layer and the one before it read one window further, see swin.py.

        A window has 8 latents at 1/16 resolution, 4 at 1/8 and 2 at 1/4; the sum is rounded up to
        whole windows.
        """
        return 2 * WINDOW * (self.layers // 2)

    def read_by(self, inner: Box, within: Box) -> Box:
        """See Sizes; whole windows, because windows have their places in the picture."""
        whole = inner.cells(WINDOW).scaled(WINDOW)
        return whole.grown(self.halo, within)


def swin_sizes(sizes: Sizes) -> SwinSizes:
    """Sizes of a backbone of window attention.

    Raises:
        BadParameter: they are those of another family.
    """
    if not isinstance(sizes, SwinSizes):
        raise BadParameter(f"the model is of family {sizes.family}, expected {SwinSizes.family}")
    return sizes


FAMILIES: Mapping[str, type[Sizes]] = {s.family: s for s in (ConvSizes, SwinSizes)}
"""Sizes of each family by its name in manifests."""


def read_sizes(family: object, values: Mapping[str, object]) -> Sizes:
    """Read the sizes of a backbone from a manifest.

    Raises:
        StoreError: there is no such family, or see `Sizes.from_dict`.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise StoreError(f"family is {str(family)[:100]!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family].from_dict(values)


AUTOENCODER_CELL = 8
"""Pixels along the side of what one latent of the KL autoencoder stands for."""


@dataclass(frozen=True)
class AutoencoderSizes:
    """Sizes of a KL autoencoder (nets/autoencoder.py).

    Attributes:
        channels: of the latents.
        width: channels between the layers.
        encoder_blocks, decoder_blocks: residual blocks.
    """

    channels: int = 16
    width: int = 192
    encoder_blocks: int = 3
    decoder_blocks: int = 5
