"""What is done to the colours of an image file: kept with a profile, or converted to sRGB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from PIL import ImageCms
from PIL.Image import Image

from service.images import colour
from service.images.colour import SRGB_CURVE, TransferCurve
from service.images.colour_tags import ColourDescription
from service.images.limits import MAX_METADATA_BYTES

Metadata = Literal["none", "icc", "all"]

_SPACES: Final[Mapping[colour.Mode, str]] = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Conversion:
    """How colours are converted.

    Attributes:
        mode: Pillow's mode of the colours without alpha, before the transform.
        transform: to sRGB; None keeps the colours.
        icc: the profile that the picture keeps, if any.
        notes: sentences for the user on what is changed.
        curve: of samples that are recoded to sRGB's curve before anything else; None keeps them.
    """

    mode: colour.Mode
    transform: ImageCms.ImageCmsTransform | None = None
    icc: bytes | None = None
    notes: tuple[str, ...] = ()
    curve: TransferCurve | None = None


def plan_conversion(
    image: Image,
    description: ColourDescription | None,
    metadata: Metadata,
    *,
    grey: bool,
) -> Conversion:
    """Return how to convert the colours of a loaded image, and which profile to keep.

    Args:
        image: loaded. grey: whether it has one colour channel.
        description: of the colours, from tags other than a profile; it overrides the profile.
        metadata: what the picture keeps, see `read_image`.
    """
    mode: colour.Mode = "CMYK" if image.mode == "CMYK" else "L" if grey else "RGB"
    if description is not None and mode != "CMYK":
        return _plan_described(description, mode, metadata != "none")
    icc = image.info.get("icc_profile")
    cmyk_note = ("CMYK without a profile converted to RGB",) if mode == "CMYK" else ()
    if not isinstance(icc, bytes) or not icc:
        return Conversion(mode, notes=cmyk_note)
    space = colour.space(icc)
    fits = space == _SPACES[mode]
    if mode == "L" and space == "RGB":
        mode = "RGB"
    transform = colour.to_srgb(icc, mode) if space == _SPACES[mode] else None
    if transform is None:
        dropped = "the colour profile is damaged or of another colour space and was left out"
        return Conversion(mode, notes=(dropped, *cmyk_note))
    if mode == "CMYK":
        return Conversion(mode, transform, notes=("CMYK converted to sRGB by its profile",))
    same_as_srgb = colour.is_srgb(transform, mode)
    is_kept = metadata == "all" or (metadata == "icc" and not same_as_srgb)
    if is_kept and fits and len(icc) <= MAX_METADATA_BYTES:
        return Conversion(mode, icc=icc)
    if same_as_srgb:
        return Conversion(mode)
    return Conversion(mode, transform, notes=("colours converted to sRGB by the file's profile",))


def _plan_described(
    description: ColourDescription, mode: Literal["L", "RGB"], keep: bool
) -> Conversion:
    """Return how to convert colours that are described without a profile.

    Colours of a wider space than sRGB get a profile. Others are converted: that loses no colour and
    saves the bytes of a profile. Linear samples are recoded to sRGB's curve, because the codec
    would code them badly.
    """
    source = description.source
    if description.space is None:
        note = f"the colour space that {source} names is not known and was left out"
        return Conversion(mode, notes=(note,))
    space, curve = description.space, None
    if space.curve.is_far_from_srgb:
        space, curve = replace(space, curve=SRGB_CURVE), space.curve
    icc = space.profile(grey=mode == "L")
    transform = colour.to_srgb(icc, mode)
    if transform is None:
        return Conversion(mode, notes=(f"the colour space that {source} names cannot be used",))
    if colour.is_srgb(transform, mode):
        if curve is None:
            return Conversion(mode)
        transform = None
    elif keep and mode == "RGB" and space.is_wider:
        notes: tuple[str, ...] = (f"colour profile made from {source}",)
        if curve is not None:
            notes += ("samples converted to the transfer curve of sRGB",)
        return Conversion(mode, icc=icc, notes=notes, curve=curve)
    notes = (f"colours converted to sRGB from {source}",)
    return Conversion(mode, transform, notes=notes, curve=curve)
