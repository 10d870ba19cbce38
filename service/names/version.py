"""One version of a named picture: which stream the name had, and where that came from.

A version is a small JSON document that is written once and never changed. It comes from a store
that others may write to, so all of it is checked when it is read.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import BadParameter, DamagedObject

MAX_NAME_CHARS: Final = 200
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,7}$"
"""One to eight parts; `check_name` also refuses the parts "." and ".."."""

PEAK: Final = 255.0
"""Largest value of a sample."""

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Token = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=1, le=2**53)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """Part of a version; it has no other fields and converts no types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NamedStream(Record):
    """A stream that a name has, and how good it is.

    Attributes:
        sha256: of its bytes, hex: the name of the shared object. size_bytes: their number.
        width, height: of the picture in pixels.
        rate: 1 to 8, None for a lossless stream. tune: what the rate was trained for.
        mse: mean squared error of the decoded samples in squared 8-bit steps, each weighted by
            (alpha / 255)^2, as PSNR counts it; None if it was not measured.
        visible: mean of (alpha / 255)^2 over the picture, 1 where it is opaque.
    """

    sha256: Hash
    size_bytes: Count
    width: Count
    height: Count
    rate: Annotated[float, Field(ge=1, le=8)] | None
    tune: str = Field(max_length=20)
    mse: Number | None
    visible: Annotated[float, Field(ge=0, le=1)]

    @property
    def bpp(self) -> float:
        """Bits of the stream per pixel."""
        return 8 * self.size_bytes / (self.width * self.height)

    @property
    def psnr_db(self) -> float | None:
        """PSNR in dB, inf when exact; None if it was not measured."""
        if self.mse is None:
            return None
        return 10 * math.log10(PEAK**2 / self.mse) if self.mse else math.inf

    def loss(self, lmbda: float) -> float:
        """R + lmbda·D in bits per pixel, as adaptation defines it (adapt/measurement.py).

        D is the mean squared error over all samples, the invisible ones included. The error must
        have been measured.
        """
        assert self.mse is not None
        return self.bpp + lmbda * self.visible * self.mse


class PictureVersion(Record):
    """What a name means from the creation of this version until that of the next one.

    Attributes:
        number: from 1. event: `put`, `improved` by the stream of a job, or `deleted`.
        token: random, of this version alone.
        put: token of the put or deletion that it goes back to; an improvement has that of the
            version that it improves.
        created_s: Unix time.
        source: hash of the image file and all that determined the plain stream of `put`.
        stream: None after a deletion. job: id of the job that made the stream, if one did.
    """

    number: Count
    event: Literal["put", "improved", "deleted"]
    token: Token
    put: Token
    created_s: Number
    source: Hash | None
    stream: NamedStream | None
    job: Token | None

    @model_validator(mode="after")
    def _check_event(self) -> PictureVersion:
        """Raise ValueError for a picture without a stream, or a deletion with one."""
        is_deleted = self.event == "deleted"
        if (self.stream is None) != is_deleted or (self.source is None) != is_deleted:
            raise ValueError(f"a version {self.event!r} has a stream and a source or not")
        return self


def put_version(number: int, stream: NamedStream, source: str) -> PictureVersion:
    """A version of that number in which a user gives the name a stream."""
    token = secrets.token_hex(16)
    return PictureVersion(
        number=number,
        event="put",
        token=token,
        put=token,
        created_s=time.time(),
        source=source,
        stream=stream,
        job=None,
    )


def deletion(number: int) -> PictureVersion:
    """A version of that number in which the name has no stream."""
    token = secrets.token_hex(16)
    return PictureVersion(
        number=number,
        event="deleted",
        token=token,
        put=token,
        created_s=time.time(),
        source=None,
        stream=None,
        job=None,
    )


def improvement(last: PictureVersion, stream: NamedStream, job: str) -> PictureVersion:
    """The version after the last one, in which a job has made a better stream."""
    changes = {"number": last.number + 1, "event": "improved", "token": secrets.token_hex(16)}
    more = {"created_s": time.time(), "stream": stream, "job": job}
    return last.model_copy(update=changes | more)


def read_version(data: bytes, number: int, key: str) -> PictureVersion:
    """The version in the bytes of an object.

    Raises:
        DamagedObject: they are not a version of that number.
    """
    try:
        version = PictureVersion.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedObject(f"{key} is no version of a name: {place}: {first['msg']}") from error
    if version.number != number:
        raise DamagedObject(f"{key} holds version {version.number}, expected {number}")
    return version


def check_name(name: str) -> None:
    """Raise BadParameter unless a text can be the name of a picture."""
    is_good = re.fullmatch(NAME_PATTERN, name) and len(name) <= MAX_NAME_CHARS
    if not is_good or {".", ".."} & set(name.split("/")):
        raise BadParameter(
            f"name is {name[:MAX_NAME_CHARS]!r}, expected one to eight parts of A-Z, a-z, 0-9, "
            f"'.', '_' and '-', joined by '/', none of them '.' or '..', and {MAX_NAME_CHARS} "
            "characters at most"
        )


def mse_of(psnr_db: float) -> float:
    """The mean squared error in squared 8-bit steps for a PSNR in dB, 0 for inf."""
    return PEAK**2 * float(10 ** (-psnr_db / 10))
