"""What the calls return, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from .options import Rate

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """The bytes of an answer, and what its headers say of every kind of file.

    Attributes:
        content: the bytes; None where they were written to a file. `data` is for daily use.
        size_bytes, sha256: of the bytes.
        etag: entity tag; None without one. media_type: such as "image/png".
        notes: warnings. timings_ms: milliseconds of each part of the work.
        request_id: under which the server's log has the request.
    """

    content: bytes | None = field(repr=False)
    size_bytes: int
    sha256: str
    etag: str | None
    media_type: str
    notes: tuple[str, ...]
    timings_ms: Mapping[str, float]
    request_id: str | None

    @property
    def data(self) -> bytes:
        """The bytes. Raises ValueError: they were written to the destination that was given."""
        if self.content is None:
            raise ValueError("the bytes are not in memory: they were written to a destination")
        return self.content


@dataclass(frozen=True, kw_only=True)
class StreamResult(FileResult):
    """A Rankpress stream.

    Attributes:
        rate: that was used, or "lossless"; of a job, the rate that was requested.
        tune: what the rate was trained for.
        model: name of the one that made the stream, "none" where decoding needs none; None where
            the answer does not say, as that of a job.
        bpp: bits per pixel. psnr_db: PSNR in dB, inf where the picture is exact.
        graphics_share: share of the picture's blocks that are stored exactly, 0 to 1.
        source_bytes: size of the image file.
        step: steps of optimisation that made the stream of a job.
        encodes: how many encodes a search for a target took; 1 without a search.
    """

    rate: Rate | None
    tune: str | None
    model: str | None
    bpp: float | None
    psnr_db: float | None
    graphics_share: float
    source_bytes: int | None
    step: int | None
    encodes: int


@dataclass(frozen=True, kw_only=True)
class PictureResult(FileResult):
    """A decoded picture, as an image file.

    Attributes:
        rate: of the stream. model: that made the stream; "none" for a lossless one.
        complete: share of the coded picture that the stream had, below 1 where it was cut.
    """

    rate: Rate | None
    model: str | None
    complete: float


@dataclass(frozen=True, kw_only=True)
class FigureResult(FileResult):
    """A figure, as a PNG file."""


@dataclass(frozen=True, kw_only=True)
class ComparedResult(FileResult):
    """A picture as JPEG, WebP or AVIF, to compare with a stream.

    Attributes:
        quality: that it was written with, 1 to 100.
        bpp, psnr_db, source_bytes, encodes: as of a StreamResult.
    """

    quality: int | None
    bpp: float | None
    psnr_db: float | None
    source_bytes: int | None
    encodes: int


@dataclass(frozen=True, kw_only=True)
class StoredStream:
    """A stream in the object store.

    Attributes:
        sha256: its name. bytes: its size. rate: None for a lossless one.
        is_new: whether it was stored by this call.
    """

    sha256: str
    bytes: int
    width: int
    height: int
    rate: float | None
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class NameVersion:
    """A version of a named picture; what is None is so after a deletion.

    Attributes:
        version: its number, from 1. event: what began it; "improved" by a job.
        sha256: of the stream. rate: None for a lossless one, too.
        psnr_db: PSNR in dB; None where it is exact or was not measured, too.
        made_by: id of the job that made the stream; None for a plain one.
    """

    name: str
    version: int
    event: Literal["put", "improved", "deleted"]
    created_at: datetime
    sha256: str | None
    bytes: int | None
    width: int | None
    height: int | None
    rate: float | None
    bpp: float | None
    psnr_db: float | None
    made_by: str | None


@dataclass(frozen=True, kw_only=True)
class PutResult(NameVersion):
    """The version that a name has after a put.

    Attributes:
        job: id of the job that tries to make a better stream; None without one.
        notes: warnings, and why there is no job although one was asked for.
        is_new: whether the name had no picture before.
    """

    job: str | None
    notes: tuple[str, ...]
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A job at one moment; what is None is not known yet.

    Attributes:
        id: a hash of the image and of everything that the result depends on.
        method: "model" or "latent". rate: of the first, otherwise None.
        quality, autoencoder: of the second, otherwise None.
        frame: of the file. source_bytes: size of the image file.
        phase: present part of the work. step, total: steps of optimisation, done and planned.
        bytes, bpp, psnr_db: of the best stream so far; psnr_db is None where it is exact.
        first_bytes, first_bpp, first_psnr_db: of the stream without adaptation, or of the first
            one with the method "latent".
        seconds: of work so far. expires_at: when the job and its streams are deleted.
        notes: warnings about the best stream. error: why the job failed.
    """

    id: str
    status: JobStatus
    method: str
    rate: float | None
    quality: float | None
    autoencoder: str | None
    effort: int
    priority: int
    width: int
    height: int
    frame: int | None
    source_bytes: int
    phase: str | None
    step: int | None
    total: int | None
    bytes: int | None
    bpp: float | None
    psnr_db: float | None
    first_bytes: int | None
    first_bpp: float | None
    first_psnr_db: float | None
    seconds: float
    created_at: datetime
    ended_at: datetime | None
    expires_at: datetime | None
    notes: tuple[str, ...]
    error: str | None

    @property
    def has_ended(self) -> bool:
        """Whether the job has succeeded, failed or been cancelled."""
        return self.status in ENDED


@dataclass(frozen=True, kw_only=True)
class OfferedRate:
    """A rate that can be requested, with averages over the Kodak photographs.

    Attributes:
        lmbda: weight of the error in training. sha256, file_bytes: of its weights' file.
    """

    model: str
    rate: float
    tune: str
    lmbda: float | None
    kodak_bpp: float | None
    kodak_psnr_db: float | None
    kodak_ms_ssim: float | None
    sha256: str | None
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class OfferedModel:
    """A model that is loaded.

    Attributes:
        sha256: of its base weights. parameters: number of weights. training: record of it.
        family: of its backbone, such as "conv" or "swin".
        same_machine: whether its streams decode only on the machine that made them.
    """

    name: str
    sha256: str
    parameters: int
    file_bytes: int
    rates: tuple[OfferedRate, ...]
    training: Mapping[str, Any]
    family: str
    same_machine: bool


@dataclass(frozen=True, kw_only=True)
class ServerHealth:
    """Whether a server is ready.

    Attributes:
        ready: whether requests should be sent. jobs: whether jobs can be stored, such as
            "available" or "off"; None where the server is not ready.
    """

    ready: bool
    jobs: str | None
