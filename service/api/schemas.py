"""Query parameters and JSON documents, with the descriptions that OpenAPI shows."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.engine.target import DEFAULT_RATE, Target, rate_or_target
from service.http.documents import Document
from service.images.read import Metadata
from service.images.write import Format
from service.picture import Region

Tune = Literal["psnr", "ms-ssim"]
TUNES: tuple[Tune, ...] = get_args(Tune)
"""In the order in which they are listed."""
LOSSLESS_ONLY: frozenset[Format] = frozenset({"png"})
"""Formats that have no quality setting."""


class Query(BaseModel):
    """Query parameters; any that is not declared is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CompressQuery(Query):
    """Parameters of `POST /compress`."""

    rate: float | None = Field(default=None, ge=1, le=8, allow_inf_nan=False)
    """Quality and size, from 1 (smallest) to 8 (best), in steps of a sixteenth. The default is 4 if
    no target is given. See `/rates`."""

    tune: Tune = "psnr"
    """What the rate was trained for: `psnr` (least squared error) or `ms-ssim` (similar local
    structure: better skin, grass and skies at equal size, worse text, fewer dB)."""

    metadata: Metadata = "icc"
    """What the stream keeps besides the pixels: the colour profile (`icc`), the profile and Exif,
    which may contain the place (`all`), or nothing (`none`), for which colours are converted to
    sRGB. The orientation is always applied to the pixels."""

    frame: int | None = Field(default=None, ge=0, le=2**31)
    """Frame or page of an animated or multi-page file, from 0; without it the file is refused."""

    target_bpp: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bits per pixel, instead of `rate`: the answer is the largest stream that does not exceed
    it."""

    max_bytes: int | None = Field(default=None, gt=0, le=2**53)
    """Bytes, instead of `rate`: the answer is the largest stream that has at most so many."""

    target_psnr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """PSNR in dB, instead of `rate`: the answer is the smallest stream that reaches it. Errors are
    weighted by alpha."""

    def rate_or_target(self) -> float | Target:
        """What was asked for. Raises BadParameter for more than one of rate and targets."""
        return rate_or_target(self.rate, self.target_bpp, self.max_bytes, self.target_psnr)


class DecompressQuery(Query):
    """Parameters of `POST /decompress`."""

    format: Format | None = None
    """Image format of the answer; takes precedence over the Accept header."""

    region: str | None = Field(default=None, max_length=100, examples=["0,0,256,256"])
    """Decode only this rectangle: left, top, width and height in pixels, as `x,y,w,h`."""

    max_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Shrink the picture (or region) until its longest side has at most this many pixels."""

    quality: int | None = Field(default=None, ge=1, le=100)
    """Quality of a lossy file: webp, jpeg or avif. Without it webp is lossless."""

    def parsed_region(self) -> Region | None:
        """The rectangle. Raises BadParameter for anything but four whole numbers."""
        return None if self.region is None else Region.parse(self.region)


class ObjectQuery(DecompressQuery):
    """Parameters of `GET /objects/{sha256}`."""

    format: Format | None = None
    """Image format of the answer; takes precedence over the Accept header. Without it Accept
    chooses, and lossy formats come first: AVIF, WebP, JPEG, PNG of those that it names; JPEG if it
    has only wildcards or is missing. A picture with alpha is WebP instead of JPEG, or PNG."""

    quality: int | None = Field(default=None, ge=1, le=100)
    """Quality of a lossy file: webp, jpeg or avif. It is ignored if Accept allows only PNG, and
    refused with `format=png`. With `format=webp` and no quality, webp is lossless."""


class Rate(Document):
    """One rate of a model, with averages over the 24 Kodak pictures recorded at publication."""

    rate: float
    """Value of the parameter `rate`."""

    tune: Tune
    """What it was trained for: value of the parameter `tune`."""

    lmbda: float | None
    """Weight of the error in its training; null for an adapter that was loaded at run time."""

    kodak_bpp: float | None
    """Bits per pixel."""

    kodak_psnr_db: float | None
    """PSNR in dB."""

    kodak_ms_ssim: float | None
    """MS-SSIM, 1 if equal."""

    sha256: str | None
    """Hash of its adapter's file; null for the base's own rate, which needs none."""

    file_bytes: int
    """Size of that file."""


class Model(Document):
    """A model that is loaded."""

    name: str
    """Its name in the store."""

    sha256: str
    """Hash of its base weights; streams contain its first bytes."""

    parameters: int
    """Number of weights."""

    file_bytes: int
    """Size of its files."""

    rates: tuple[Rate, ...]
    """Rates that it offers."""

    training: dict[str, object]
    """How it was trained."""

    same_machine: bool
    """Whether its streams decode only on the machine that made them (a CompressAI model)."""


class Models(Document):
    """Answer of `GET /models`."""

    models: tuple[Model, ...]
    """What is loaded."""


class ModelRate(Rate):
    """A rate and its model."""

    model: str
    """Name of the model."""


class Rates(Document):
    """Answer of `GET /rates`."""

    default: float = DEFAULT_RATE
    """The rate of a request without one."""

    rates: tuple[ModelRate, ...]
    """All rates, by tune and then from the smallest."""


class AdapterQuery(Query):
    """Parameters of `POST /adapters`."""

    base: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the base weights that the adapter is for: `sha256` of a model in `/models`."""

    rate: int = Field(ge=1, le=8)
    """The whole rate that it makes; a rate between two whole ones mixes both."""

    tune: Tune = "psnr"
    """What the rate was trained for."""


class Adapter(Document):
    """A rate adapter that is loaded."""

    sha256: str
    """Hash of its file: its address."""

    base: str
    """Hash of the base weights that it is for."""

    model: str
    """Name of the model with these base weights."""

    rate: int
    """The rate that it makes."""

    tune: Tune
    """What the rate was trained for."""

    file_bytes: int
    """Size of its file."""

    served: bool
    """Whether new requests use it; otherwise it only decodes streams that it made."""

    stored: bool
    """Whether it belongs to the store and so cannot be unloaded."""


class Adapters(Document):
    """Answer of `GET /adapters`."""

    adapters: tuple[Adapter, ...]
    """Adapters of the store, then those loaded since, oldest first."""


class StoredObject(Document):
    """Answer of `PUT /objects`: a stored stream."""

    sha256: str
    """Hash of the stream, which is its name."""

    bytes: int
    """Its size."""

    width: int
    """Pixels of the picture."""

    height: int
    """Pixels of the picture."""

    rate: float
    """The rate it was made at."""


class Health(Document):
    """Answer of `/livez`."""

    status: Literal["alive"]
    """The state."""


JobStorageState = Literal[
    "available", "database-unavailable", "objects-unavailable", "waiting", "unknown", "off"
]


class Readiness(Document):
    """Answer of `/readyz` if requests should be sent here."""

    status: Literal["ready"]
    """The state."""

    jobs: JobStorageState
    """Whether adaptation jobs can be stored; this never makes a server unready. `waiting`: a worker
    waits for storage that this server can use; `unknown`: not checked yet; `off`: no jobs are
    offered."""
