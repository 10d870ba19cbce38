"""What a job is: the request, its progress, and the records that the database keeps.

The id of a job is a hash of everything that its result depends on, so that the same picture posted
twice is one job. The database keeps only hashes and numbers; bytes are in the object store.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from service.adapt.task import AdaptProgress
from service.engine.target import RATE_UNIT, Method, rate16_of, rate_unavailable, whole_rates
from service.engine.types import AutoencoderInfo, ModelInfo
from service.errors import ModelUnavailable
from service.picture import larger_note

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: Final[frozenset[State]] = frozenset({"succeeded", "failed", "cancelled"})
DEFAULT_PRIORITY: Final = 5
TUNE: Final = "psnr"
"""The training of the rates that adaptation uses."""

STREAM_FORMAT: Final = 1
"""Version of the stream format of results; a test compares it with the container's."""

_ID = re.compile(r"[0-9a-f]{32}")


class JobFailed(Exception):
    """Ends a job as failed; the message is kept and shown to everyone who asks for the job."""


@dataclass(frozen=True)
class JobSpec:
    """Everything that a job's result depends on.

    Attributes:
        image: SHA-256 of the image file, hex. image_bytes: its size.
        rate16: the rate in sixteenths, or the quality with the method "latent". effort: 0 to 4.
        model: `model_identity` of the weights, or `autoencoder_identity`.
        frame: frame or page of the file, None if it has only one.
        seed: of everything random. format: `STREAM_FORMAT`.
        method: how the picture is coded. autoencoder: its name, None with the method "model".
    """

    image: str
    rate16: int
    effort: int
    model: str
    width: int
    height: int
    image_bytes: int
    frame: int | None = None
    seed: int = 0
    format: int = STREAM_FORMAT
    method: Method = "model"
    autoencoder: str | None = None

    @property
    def level(self) -> float:
        """The rate or the quality, 1 to 8."""
        return self.rate16 / RATE_UNIT

    @property
    def rate(self) -> float | None:
        """The rate, 1 to 8; None with the method "latent"."""
        return None if self.method == "latent" else self.level

    @property
    def quality(self) -> float | None:
        """The quality, 1 to 8; None with the method "model"."""
        return self.level if self.method == "latent" else None

    @property
    def id(self) -> str:
        """Name of the job: the first 32 hex digits of a SHA-256 over all attributes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def folder(self) -> str:
        """Prefix of the keys of its objects."""
        return folder_of(self.id)

    @property
    def image_key(self) -> str:
        """Key of the image file."""
        return f"{self.folder}/image"


def folder_of(job_id: str) -> str:
    """Prefix of the keys of a job's objects."""
    return f"jobs/{job_id}"


def is_job_id(text: str) -> bool:
    """Whether a text could be the id of a job."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class StepRecord:
    """What is kept of a finished step.

    Attributes:
        stream: key of the best stream so far.
        checkpoint: key of the state that the next step starts from, None after the last step.
        seconds: of work on the job so far. done: whether the stream is the result.
    """

    progress: AdaptProgress
    stream: str
    checkpoint: str | None
    seconds: float
    done: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values; an infinite PSNR becomes null."""
        values = asdict(self)
        values["progress"] = {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in values["progress"].items()
        }
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepRecord:
        """The record with these values, which `to_json` made."""
        progress: dict[str, Any] = {
            name: math.inf if value is None else value for name, value in values["progress"].items()
        }
        return cls(**{**values, "progress": AdaptProgress(**progress)})


@dataclass(frozen=True)
class Job:
    """A job as it is now.

    Times are Unix times; those of what has not happened are None.

    Attributes:
        priority: 1 is served first, 9 last.
        steps, record: number and record of the last recorded step, 0 and None before the first.
        expires_s: when its result is deleted.
        attempts: number of times that a worker has begun it. worker: the last one that did.
        error: why it failed, None otherwise.
        waiting_since_s: since when it waits for storage within a step.
        queued_since_s: since when it waits for a worker.
        again_after: number of the step after which it was last begun again because it had failed,
            None if it has done another step since.
        trace: of the request that posted it, see tracing/spans.py; None if that was not traced.
    """

    id: str
    state: State
    spec: JobSpec
    priority: int
    steps: int
    record: StepRecord | None
    created_s: float
    ended_s: float | None
    expires_s: float | None
    attempts: int
    worker: str | None
    error: str | None
    waiting_since_s: float | None
    queued_since_s: float | None
    again_after: int | None
    trace: Mapping[str, str] | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about the best stream so far."""
        if self.record is None:
            return ()
        return larger_note(self.record.progress.bytes, self.spec.image_bytes)


def summary_of(job: Job) -> dict[str, Any]:
    """JSON values that tell a program how a job has ended; none are of its picture."""
    spec = job.spec
    names = ("bytes", "bpp", "psnr_db", "first_bytes", "first_bpp", "first_psnr_db")
    values = {} if job.record is None else job.record.to_json()["progress"]
    return {
        "job": job.id,
        "status": job.state,
        "method": spec.method,
        "rate": spec.rate,
        "quality": spec.quality,
        "autoencoder": spec.autoencoder,
        "effort": spec.effort,
        "source_sha256": spec.image,
        "source_bytes": spec.image_bytes,
        "sha256": None if job.record is None else job.record.stream.rpartition("/")[2],
        **{name: values.get(name) for name in names},
        "error": job.error,
    }


def spec_of(
    image: bytes,
    width: int,
    height: int,
    rate: float,
    effort: int,
    models: tuple[ModelInfo, ...],
    frame: int | None = None,
) -> JobSpec:
    """The job for an image file, by the first of the models that are loaded.

    Raises:
        BadParameter: the rate does not exist.
        RateUnavailable: the model has no weights for the rate.
    """
    rate16 = check_rate(rate, models)
    return JobSpec(
        image=hashlib.sha256(image).hexdigest(),
        rate16=rate16,
        effort=effort,
        model=model_identity(models[0], rate16),
        width=width,
        height=height,
        image_bytes=len(image),
        frame=frame,
    )


def latent_spec_of(
    image: bytes,
    width: int,
    height: int,
    quality: float,
    effort: int,
    autoencoder: AutoencoderInfo,
    frame: int | None = None,
) -> JobSpec:
    """The job that fits latents of an autoencoder to an image file.

    Raises:
        BadParameter: the quality is no number from 1 to 8.
    """
    return JobSpec(
        image=hashlib.sha256(image).hexdigest(),
        rate16=rate16_of(quality, "quality"),
        effort=effort,
        model=autoencoder_identity(autoencoder),
        width=width,
        height=height,
        image_bytes=len(image),
        frame=frame,
        method="latent",
        autoencoder=autoencoder.name,
    )


def autoencoder_named(
    name: str | None, autoencoders: tuple[AutoencoderInfo, ...]
) -> AutoencoderInfo:
    """The autoencoder of that name, the first for None. Raises ModelUnavailable: there is none."""
    for autoencoder in autoencoders:
        if name in (None, autoencoder.name):
            return autoencoder
    names = ", ".join(one.name for one in autoencoders)
    if not names:
        raise ModelUnavailable("no autoencoder is loaded")
    raise ModelUnavailable(f"autoencoder is {str(name)[:100]!r}, expected one of {names}")


def autoencoder_identity(autoencoder: AutoencoderInfo) -> str:
    """SHA-256 over an autoencoder's identity, hex."""
    return hashlib.sha256(autoencoder.sha256.encode()).hexdigest()


def check_rate(rate: float, models: tuple[ModelInfo, ...]) -> int:
    """The rate in sixteenths. Raises BadParameter, RateUnavailable: see `spec_of`."""
    rate16 = rate16_of(rate)
    model_identity(models[0], rate16)
    return rate16


def model_identity(model: ModelInfo, rate16: int) -> str:
    """SHA-256 over a model's weights at a rate, hex. Raises RateUnavailable: it has none for it."""
    ladder = {info.rate: info for info in model.rates if info.tune == TUNE}
    needed = whole_rates(rate16)
    if not ladder.keys() >= set(needed):
        raise rate_unavailable(model.name, rate16 / RATE_UNIT, ladder)
    digests = (model.sha256, *(ladder[rate].sha256 or "base" for rate in needed))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def lmbda_of(model: ModelInfo, rate16: int) -> float | None:
    """Weight of the error in the loss of a job at a rate, as `StoredModel.lmbda_at` has it.

    In bits per pixel and squared 8-bit step; between two rates their weighted geometric mean. None
    if the model has no such rate, or it does not say its weight.
    """
    ladder = {info.rate: info.lmbda for info in model.rates if info.tune == TUNE}
    weights = [ladder.get(rate) for rate in whole_rates(rate16)]
    logs = [math.log(weight) for weight in weights if weight is not None]
    if len(logs) < len(weights):
        return None
    share = rate16 % RATE_UNIT / RATE_UNIT
    return math.exp(logs[0] * (1 - share) + logs[-1] * share)
