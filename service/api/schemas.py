"""Query parameters and JSON documents, with the descriptions that OpenAPI shows.

Documents list models, rates and adapters as the engine describes them (`engine/types.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from service.engine.comparison import PeerFormat
from service.engine.target import (
    DEFAULT_RATE,
    Method,
    Target,
    adaptation_level,
    rate_or_target,
)
from service.engine.types import AdapterInfo, AutoencoderInfo, ModelInfo, RateInfo
from service.errors import BadParameter
from service.http.problems import Document
from service.images.read import Metadata
from service.images.write import Format
from service.jobs.job import DEFAULT_PRIORITY, Job, State
from service.maps.request import MapRequest
from service.picture import Region, View

Tune = Literal["psnr", "ms-ssim"]
RateNumber = Annotated[float, Field(ge=1, le=8, allow_inf_nan=False)]
"""A rate that has a number, as every rate but `lossless`."""

TUNES: tuple[Tune, ...] = get_args(Tune)
"""In the order in which they are listed."""


class Query(BaseModel):
    """Query parameters; any that is not declared is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CompressQuery(Query):
    """Parameters of `POST /compress`."""

    rate: RateNumber | Literal["lossless"] | None = None
    """Quality and size, from 1 (smallest) to 8 (best), in steps of a sixteenth; or `lossless`, for
    a stream that holds every pixel exactly. The default is 4 if no target is given. See
    `/rates`."""

    tune: Tune = "psnr"
    """What the rate was trained for: `psnr` (least squared error) or `ms-ssim` (similar local
    structure: better skin, grass and skies at equal size, worse text, fewer dB)."""

    model: str | None = Field(default=None, min_length=1, max_length=100, examples=["light"])
    """Name of the model that compresses, one of `/models`; its `default` compresses without it."""

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
    """PSNR in dB, instead of `rate`: the answer is the smallest stream that reaches it, or a
    lossless one where no rate does. Errors are weighted by alpha."""

    def rate_or_target(self) -> float | Target:
        """What was asked for. Raises BadParameter for more than one of rate and targets."""
        return rate_or_target(self.rate, self.target_bpp, self.max_bytes, self.target_psnr)


class CompareQuery(Query):
    """Parameters of `POST /compare`: a format, and one target."""

    format: PeerFormat
    """Format to write the picture in: JPEG and AVIF with 4:2:0 chroma, or WebP."""

    max_bytes: int | None = Field(default=None, gt=0, le=2**53)
    """Bytes: the answer is the file of the best quality that has at most so many."""

    target_psnr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """PSNR in dB: the answer is the file of the lowest quality that reaches it. Errors are weighted
    by alpha."""

    frame: int | None = Field(default=None, ge=0, le=2**31)
    """Frame or page of an animated or multi-page file, from 0; without it the file is refused."""

    def target(self) -> Target:
        """What the file must meet. Raises BadParameter unless there is exactly one target."""
        if (self.max_bytes is None) == (self.target_psnr is None):
            raise BadParameter("expected one of max_bytes and target_psnr")
        return Target(max_bytes=self.max_bytes, psnr_db=self.target_psnr)


class DecompressQuery(Query):
    """Parameters of `GET /objects/{sha256}`, and of `POST /decompress`."""

    format: Format | None = None
    """Image format of the answer. Without it the Accept header chooses: of equal weights,
    `/decompress` takes an exact format, `/objects` a small file."""

    region: str | None = Field(default=None, max_length=100, examples=["0,0,256,256"])
    """Decode only this rectangle: left, top, width and height in pixels, as `x,y,w,h`."""

    max_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Shrink the picture (or region) until its longest side has at most this many pixels."""

    quality: int | None = Field(default=None, ge=1, le=100)
    """Quality of a lossy file: webp, jpeg or avif. A webp that is requested without it, by `format`
    or from `/decompress`, is lossless."""

    def view(self) -> View:
        """The part and size. Raises BadParameter for a region that is not four whole numbers."""
        region = None if self.region is None else Region.parse(self.region)
        return View(region, self.max_size)


class PartialQuery(DecompressQuery):
    """Parameters of `POST /decompress`."""

    partial: bool = False
    """Decode what there is of a stream that is cut, which is an error otherwise."""

    def view(self) -> View:
        """See `DecompressQuery.view`."""
        return replace(super().view(), partial=self.partial)


class MapsQuery(Query):
    """Parameters of `POST /maps`; a stream takes none of them."""

    rates: str | None = Field(default=None, max_length=100, examples=["1,4,8"])
    """Rates to show side by side, up to eight numbers from 1 to 8. The default is the lowest rate,
    the one nearest to 4 and the highest."""

    model: str | None = Field(default=None, max_length=100)
    """Name of the model that compresses the picture; the default is the first of `/models`."""

    attention: bool = False
    """Show what a token of the picture attends to in its window, in place of bits; for models of
    window attention alone."""

    at: str | None = Field(default=None, max_length=30, examples=["384,256"])
    """With `attention`: the pixel whose token is shown, as `x,y`; the default is the middle."""

    def request(self) -> MapRequest:
        """What the figure is to show. Raises BadParameter: see `MapRequest.parse`."""
        return MapRequest.parse(self.rates, self.model, self.attention, self.at)


class ObjectMapsQuery(Query):
    """Parameters of `GET /maps`."""

    object: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of a stored stream in lower-case hex."""


class AdapterQuery(Query):
    """Parameters of `POST /adapters`."""

    base: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the base weights that the adapter is for: `sha256` of a model in `/models`."""

    rate: int = Field(ge=1, le=8)
    """The whole rate that it makes; a rate between two whole ones mixes both."""

    tune: Tune = "psnr"
    """What the rate was trained for."""


class AdaptQuery(Query):
    """Parameters of `POST /adapt`."""

    method: Method = "model"
    """How the picture is coded: by the default model at a rate (`model`), or by small networks that
    are fitted to its latents in an autoencoder (`latent`), at any quality from one model."""

    rate: RateNumber | None = None
    """Quality and size, from 1 (smallest) to 8 (best), in steps of a sixteenth. The default is 4;
    the method `latent` takes none."""

    quality: RateNumber | None = None
    """The same of the method `latent`, which needs it: from 1 (smallest) to 8 (best)."""

    autoencoder: str | None = Field(default=None, min_length=1, max_length=100, examples=["kl"])
    """Name of the autoencoder of the method `latent`, one of `/models`; without it the first."""

    effort: int = Field(default=2, ge=0, le=4)
    """How much work is done, from 0 (seconds; of a model, a ready update is chosen) to 4 (many
    minutes)."""

    frame: int | None = Field(default=None, ge=0, le=2**31)
    """Frame or page of an animated or multi-page file, from 0; without it the file is refused."""

    priority: int = Field(default=DEFAULT_PRIORITY, ge=1, le=9)
    """Order among the waiting jobs, from 1 (first) to 9 (last)."""

    webhook: str | None = Field(default=None, max_length=2000, examples=["https://example.org/"])
    """URL, http or https, that gets a signed POST when the job has ended, in whatever way."""

    def level(self) -> float:
        """The rate or the quality. Raises BadParameter: see `adaptation_level`."""
        return adaptation_level(self.method, self.rate, self.quality, self.autoencoder)


class Models(Document):
    """Answer of `GET /models`: what is loaded."""

    default: str
    """Name of the model that compresses where a request names none: the first of them."""

    models: tuple[ModelInfo, ...]

    autoencoders: tuple[AutoencoderInfo, ...]
    """Those that the method `latent` of `/adapt` can use; the first is the default."""


@dataclass(frozen=True, kw_only=True)
class ModelRate(RateInfo):
    """A `RateInfo` and the name of its model; its averages are over the 24 Kodak pictures."""

    model: str


class Rates(Document):
    """Answer of `GET /rates`."""

    default: float = DEFAULT_RATE
    """The rate of a request without one."""

    rates: tuple[ModelRate, ...]
    """All rates of all models, by tune and then from the smallest."""


class Adapters(Document):
    """Answer of `GET /adapters`."""

    adapters: tuple[AdapterInfo, ...]
    """Adapters of the store, then those loaded since, oldest first."""


class StoredObject(Document):
    """Answer of `PUT /objects`: a stored stream."""

    sha256: str
    """Hash of the stream, which is its name."""

    bytes: int
    width: int
    height: int
    rate: float | None
    """Rate of the stream; null when it is lossless."""


class JobLinks(Document):
    """URLs of a job."""

    self: str
    events: str
    """The job as server-sent events."""

    stream: str | None
    """The best stream so far; null before the first step."""

    result: str | None
    """The result; null unless the job has succeeded."""


class JobDocument(Document):
    """A job in its present state."""

    id: str
    """Its name: a hash of the image and of all parameters."""

    status: State
    method: Method
    rate: float | None
    """Of the method `model`; null otherwise."""

    quality: float | None
    """Of the method `latent`; null otherwise."""

    autoencoder: str | None
    """Name of the autoencoder of the method `latent`; null otherwise."""

    effort: int
    priority: int
    """Its priority when it was first posted."""

    width: int
    height: int
    frame: int | None
    """Frame or page of the file; null if it has only one."""

    source_bytes: int
    """Size of the image file."""

    phase: str | None = None
    """Present part of the work: `latents`, `decoder`, or `done`; null before the first step."""

    step: int | None = None
    """Steps of optimisation done."""

    total: int | None = None
    """Steps planned; fewer may be run."""

    bytes: int | None = None
    """Size of the best stream so far."""

    bpp: float | None = None
    """Bits per pixel of the best stream so far."""

    psnr_db: float | None = None
    """PSNR in dB of the 8-bit picture of the best stream; null when exact."""

    first_bytes: int | None = None
    """Size of the stream without adaptation; of the method `latent`, of the first stream."""

    first_bpp: float | None = None
    """Bits per pixel of that stream."""

    first_psnr_db: float | None = None
    """PSNR in dB of its 8-bit picture; null when exact."""

    seconds: float
    """Seconds of work so far."""

    created_at: datetime
    """When it was first posted."""

    ended_at: datetime | None
    expires_at: datetime | None
    """When it and its streams are deleted; null before it has ended."""

    notes: tuple[str, ...]
    """Warnings about the best stream so far, such as that it is larger than its source."""

    error: str | None
    """Why it failed; null otherwise."""

    links: JobLinks


def document_of(job: Job, root_path: str) -> JobDocument:
    """The document of a job; its links begin with the root path."""
    spec, record = job.spec, job.record
    url = f"{root_path}/jobs/{job.id}"
    links = JobLinks(
        self=url,
        events=f"{url}/events",
        stream=f"{url}/stream" if record else None,
        result=f"{url}/result" if job.state == "succeeded" else None,
    )
    return JobDocument(
        **record.to_json()["progress"] if record else {},
        id=job.id,
        status=job.state,
        method=spec.method,
        rate=spec.rate,
        quality=spec.quality,
        autoencoder=spec.autoencoder,
        effort=spec.effort,
        priority=job.priority,
        width=spec.width,
        height=spec.height,
        frame=spec.frame,
        source_bytes=spec.image_bytes,
        seconds=round(record.seconds, 3) if record else 0.0,
        created_at=date_of(job.created_s),
        ended_at=None if job.ended_s is None else date_of(job.ended_s),
        expires_at=None if job.expires_s is None else date_of(job.expires_s),
        notes=job.notes,
        error=job.error,
        links=links,
    )


def date_of(unix_s: float) -> datetime:
    """The date and time of a Unix time."""
    return datetime.fromtimestamp(unix_s, UTC)


class Health(Document):
    """Answer of `/livez`."""

    status: Literal["alive"] = "alive"


JobStorageState = Literal[
    "available", "database-unavailable", "objects-unavailable", "waiting", "unknown", "off"
]


class Readiness(Document):
    """Answer of `/readyz` if requests should be sent here."""

    status: Literal["ready"] = "ready"

    jobs: JobStorageState
    """Whether adaptation jobs can be stored; this never makes a server unready. `waiting`: a worker
    waits for storage that this server can use; `unknown`: not checked yet; `off`: no jobs are
    offered."""
