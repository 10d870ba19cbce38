"""The options of the calls, which are the parameters of the HTTP interface.

What is left out, or None, has the default of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Rate = float | Literal["lossless"]
Tune = Literal["psnr", "ms-ssim"]
Method = Literal["model", "latent"]
PictureFormat = Literal["png", "webp", "jpeg", "avif"]
ComparedFormat = Literal["jpeg", "webp", "avif"]
Rectangle = tuple[int, int, int, int]
"""Left, top, width and height in pixels."""


class FrameOption(TypedDict, total=False):
    """The option of every call that takes an image file."""

    frame: int | None
    """Frame or page of a file that has several, from 0; without it such a file is refused."""


class CompressOptions(FrameOption, total=False):
    """Options of `compress`: at most one of the rate and the three targets."""

    rate: Rate | None
    """1 (smallest) to 8 (best), in steps of a sixteenth, or "lossless"."""

    target_bpp: float | None
    """Bits per pixel: the largest stream that does not exceed them."""

    max_bytes: int | None
    """Bytes: the largest stream that has at most so many."""

    target_psnr: float | None
    """PSNR in dB: the smallest stream that reaches it."""

    tune: Tune | None
    """What the rate was trained for."""

    model: str | None
    """Name of the model that compresses, of those that `models()` lists."""

    metadata: Literal["none", "icc", "all"] | None
    """What the stream keeps besides the pixels: "icc" the colour profile, "all" also Exif."""


class AdaptOptions(FrameOption, total=False):
    """Options of `adapt`."""

    method: Method | None
    """How the picture is coded: by the default model at a rate ("model"), or by small networks that
    are fitted to its latents in an autoencoder ("latent")."""

    rate: float | None
    """1 (smallest) to 8 (best), in steps of a sixteenth; not with the method "latent"."""

    quality: float | None
    """The same of the method "latent", which needs it."""

    autoencoder: str | None
    """Name of the autoencoder of the method "latent"."""

    effort: int | None
    """How much work is done, from 0 (seconds) to 4 (many minutes)."""

    priority: int | None
    """Order among the waiting jobs, from 1 (first) to 9 (last)."""

    webhook: str | None
    """URL that gets a signed POST when the job has ended."""


class PutOptions(CompressOptions, total=False):
    """Options of `pictures.put`: those of `compress`, and of a job that makes the stream better."""

    effort: int | None
    """How much work the job does, from 0 (seconds) to 4 (many minutes); None for no job."""

    priority: int | None
    """Order among the waiting jobs, from 1 (first) to 9 (last)."""

    webhook: str | None
    """URL that gets a signed POST when the job has ended."""


class CompareOptions(FrameOption, total=False):
    """Options of `compare`: exactly one of the two targets."""

    max_bytes: int | None
    """Bytes: the file of the best quality that has at most so many."""

    target_psnr: float | None
    """PSNR in dB: the file of the lowest quality that reaches it."""


class MapsOptions(TypedDict, total=False):
    """Options of `maps`, for an image file; a stream takes none of them."""

    rates: str | None
    """Rates to show side by side, such as "1,4,8"."""

    model: str | None
    """Name of the model that compresses the picture."""

    attention: bool | None
    """Show what a token attends to in its window, in place of bits."""

    at: tuple[int, int] | None
    """Column and row of the pixel whose token is shown; without it the middle."""


class PictureOptions(TypedDict, total=False):
    """Options of every call that decodes a stream to a picture."""

    format: PictureFormat | None
    """Format of the picture; without it `accept` chooses."""

    accept: str | None
    """Value of the Accept header, such as "image/avif,image/webp"."""

    region: Rectangle | None
    """Decode only this rectangle."""

    max_size: int | None
    """Shrink the picture until its longest side has at most so many pixels."""

    quality: int | None
    """1 to 100, of a lossy format."""


class DecompressOptions(PictureOptions, total=False):
    """Options of `decompress`."""

    partial: bool | None
    """Decode what there is of a stream that is cut, which is an error otherwise."""


def query_of(kind: Any, options: Mapping[str, object]) -> dict[str, str]:
    """Return options as query parameters.

    Args:
        kind: the TypedDict that lists the options.

    Raises:
        TypeError: there is no such option.
    """
    known = kind.__annotations__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"unexpected option {unknown[0]!r}, expected some of {', '.join(known)}")
    return {
        name: _text_of(value)
        for name, value in options.items()
        if value is not None and name != "accept"
    }


def _text_of(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
