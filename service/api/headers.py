"""The headers of answers, in one table that sets them and documents them in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_NOTES_CHARS: Final = 1000


@dataclass(frozen=True)
class ResponseHeader:
    """A header of answers.

    Attributes:
        name: of the header. description: for OpenAPI. type: of its value, for OpenAPI.
        spec: how a value is formatted, see `format`.
    """

    name: str
    description: str
    type: str = "string"
    spec: str = ""


REQUEST_ID: Final = ResponseHeader(
    "X-Request-Id", "The id of the request in the log: the client's own, or a new one."
)
RATE: Final = ResponseHeader(
    "X-Rankpress-Rate", "The rate of the stream, or `lossless`; of a job, the rate requested."
)
TUNE: Final = ResponseHeader("X-Rankpress-Tune", "What that rate was trained for: psnr or ms-ssim.")
BPP: Final = ResponseHeader(
    "X-Rankpress-Bpp", "Bits of the stream, or of the file, per pixel.", "number", ".4f"
)
PSNR: Final = ResponseHeader(
    "X-Rankpress-Psnr", "PSNR in dB of the visible pixels; inf when exact.", spec=".3f"
)
QUALITY: Final = ResponseHeader(
    "X-Rankpress-Quality", "Quality that the file was written with, 1 to 100.", "integer"
)
GRAPHICS: Final = ResponseHeader(
    "X-Rankpress-Graphics",
    "Share of the picture's blocks that the graphics layer stores exactly, up to 1; absent where "
    "there are none.",
    "number",
    ".3f",
)
COMPLETE: Final = ResponseHeader(
    "X-Rankpress-Complete",
    "Share of the coded picture that the stream held, where it was cut.",
    "number",
    ".4f",
)
STEP: Final = ResponseHeader(
    "X-Rankpress-Step", "Steps of optimisation that made the stream.", "integer"
)
MODEL: Final = ResponseHeader(
    "X-Rankpress-Model", "The model that made the stream; `none` of a lossless stream."
)
SOURCE_BYTES: Final = ResponseHeader(
    "X-Rankpress-Source-Bytes", "Size of the image file.", "integer"
)
NOTES: Final = ResponseHeader(
    "X-Rankpress-Notes",
    "What reading the image file changed, or which parts of the stream's colour profile and Exif "
    "are left out, and whether the stream is larger than the image file; often absent.",
)
TIMING: Final = ResponseHeader(
    "Server-Timing",
    "Milliseconds of queue, swap, net, code, graphics, check and file work; and the number of "
    "encodes of a search.",
)
ETAG: Final = ResponseHeader(
    "ETag",
    "Of a stream or a file of weights its SHA-256 in hex and quotes, before -gzip where that is "
    "the content coding; of a picture a hash of what was requested, a dash, and a hash of the "
    "bytes. Strong.",
)
CACHE_CONTROL: Final = ResponseHeader(
    "Cache-Control",
    "A year, immutable: what a hash names never changes; of an image information document a day; "
    "no-cache for the index of the weights; of a named picture as the settings say, shortly.",
)
CONTENT_LOCATION: Final = ResponseHeader(
    "Content-Location", "Where what the name has now stays as it is: the stream's own path."
)
VARY: Final = ResponseHeader(
    "Vary", "Accept or Accept-Encoding, where that header may choose the form of the answer."
)
CONTENT_ENCODING: Final = ResponseHeader(
    "Content-Encoding", "gzip, where the client takes it and the file becomes smaller."
)
ACCEPT_RANGES: Final = ResponseHeader(
    "Accept-Ranges",
    "bytes; or none, for the pictures of names, which may change between two parts.",
)
CONTENT_RANGE: Final = ResponseHeader("Content-Range", "Which bytes these are, and of how many.")
LINK: Final = ResponseHeader(
    "Link", "The one canonical path of the picture, and the compliance level of the IIIF Image API."
)
LOCATION: Final = ResponseHeader("Location", "The URL of the job, object or picture.")
RETRY_AFTER: Final = ResponseHeader(
    "Retry-After", "Seconds after which to try again, or to look at the job again.", "integer"
)

EXPOSED: Final = (
    *("Accept-Ranges", "Allow", "Content-Length", "Content-Location", "Content-Range", "ETag"),
    "Link",
    *("Location", "Retry-After", "Server-Timing", "X-Rankpress-Bpp", "X-Rankpress-Complete"),
    "X-Rankpress-Graphics",
    *("X-Rankpress-Model", "X-Rankpress-Notes", "X-Rankpress-Psnr", "X-Rankpress-Quality"),
    "X-Rankpress-Rate",
    *("X-Rankpress-Source-Bytes", "X-Rankpress-Step", "X-Rankpress-Tune", "X-Request-Id"),
)
"""Headers that pages of other origins may read."""


def documented(*headers: ResponseHeader) -> dict[str, Any]:
    """These headers as an OpenAPI response lists them."""
    return {h.name: {"description": h.description, "schema": {"type": h.type}} for h in headers}


def header_values(values: Mapping[ResponseHeader, object]) -> dict[str, str]:
    """Headers with these values, formatted as the table says; None leaves a header out."""
    return {
        header.name: _printable(format(value, header.spec))
        for header, value in values.items()
        if value is not None
    }


def notes_text(notes: tuple[str, ...]) -> str | None:
    """The value of a header that lists notes; None without notes."""
    return "; ".join(notes)[:MAX_NOTES_CHARS] if notes else None


def _printable(text: str) -> str:
    """Printable ASCII only, so that no text can end or split a header."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
