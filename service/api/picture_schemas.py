"""Query parameters and JSON documents of `/pictures`, with the descriptions that OpenAPI shows."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.api.schemas import CompressQuery, Query, date_of
from service.engine.target import LOSSLESS_NAME
from service.errors import BadParameter
from service.http.problems import Document
from service.jobs.job import DEFAULT_PRIORITY, TUNE
from service.names.version import MAX_NAME_CHARS, PictureVersion


class PictureQuery(CompressQuery):
    """Parameters of `PUT /pictures/{name}`."""

    effort: int | None = Field(default=None, ge=0, le=4)
    """Start a job that makes the stream better, with so much work: see `POST /adapt`. Without it
    the plain stream stays. It needs a rate or target, the tune `psnr` and the metadata `icc`."""

    priority: int = Field(default=DEFAULT_PRIORITY, ge=1, le=9)
    """Order of that job among those that wait, from 1 (first) to 9 (last)."""

    webhook: str | None = Field(default=None, max_length=2000, examples=["https://example.org/"])
    """URL, http or https, that gets a signed POST when that job has ended, in whatever way."""

    def check(self) -> None:
        """Raise BadParameter for parameters that exclude each other."""
        self.rate_or_target()
        if self.effort is None:
            if self.webhook is not None:
                raise BadParameter("webhook: no job ends without effort")
        elif self.rate == LOSSLESS_NAME or self.tune != TUNE or self.metadata != "icc":
            raise BadParameter(
                f"effort is {self.effort}, which needs a rate or target that is not lossless, "
                f"tune {TUNE} and metadata icc"
            )


class PicturesQuery(Query):
    """Parameters of `GET /pictures`."""

    prefix: str = Field(default="", max_length=MAX_NAME_CHARS, examples=["blog/2024-"])
    """List the names that begin so."""

    after: str = Field(default="", max_length=MAX_NAME_CHARS)
    """List the names after this one: `next` of the list before."""

    limit: int = Field(default=100, ge=1, le=1000)
    """Pictures at most."""


class PictureLinks(Document):
    """URLs of a version of a named picture."""

    picture: str
    """What the name has at the time of the request."""

    object: str | None
    """The picture of this version, which never changes; null after a deletion."""

    stream: str | None
    """The stream of this version."""


class PictureDocument(Document):
    """A version of a named picture."""

    name: str
    version: int
    """Number of the version, from 1; there may be gaps."""

    event: Literal["put", "improved", "deleted"]
    """What began the version: a user's put or deletion, or a job that made a better stream."""

    created_at: datetime
    sha256: str | None
    """Hash of the stream, which is the name of its object; null after a deletion, as are all below
    it."""

    bytes: int | None
    width: int | None
    height: int | None
    rate: float | None
    """Rate of the stream; null when it is lossless."""

    bpp: float | None
    """Bits of the stream per pixel."""

    psnr_db: float | None
    """PSNR in dB of the visible pixels; null when exact, or not measured."""

    made_by: str | None
    """Id of the job that made the stream; null for a plain one."""

    links: PictureLinks


class StoredPicture(PictureDocument):
    """Answer of `PUT /pictures/{name}`: the version that the name has now."""

    job: str | None
    """Id of the job that tries to make a better stream: its state is at `/jobs/{id}`."""

    notes: tuple[str, ...]
    """What reading the image file changed, and why there is no job although one was asked for."""


class PictureList(Document):
    """Answer of `GET /pictures`: names and what they have."""

    pictures: tuple[PictureDocument, ...]
    """In the order of the store's keys, in which `a.jpg` precedes `a/b.jpg`, and `a/1` precedes
    `a` itself."""

    next: str | None
    """The parameter `after` for the next list; null if there is none."""


class PictureHistory(Document):
    """Answer of `GET /pictures/{name}/@history`."""

    versions: tuple[PictureDocument, ...]
    """The last versions, the present one first."""


def picture_values(name: str, version: PictureVersion, root_path: str) -> dict[str, Any]:
    """The fields of `PictureDocument`; links begin with the root path."""
    stream, place = version.stream, None
    if stream is not None:
        place = f"{root_path}/objects/{stream.sha256}"
    psnr_db = None if stream is None else stream.psnr_db
    return {
        "name": name,
        "version": version.number,
        "event": version.event,
        "created_at": date_of(version.created_s),
        "sha256": stream and stream.sha256,
        "bytes": stream and stream.size_bytes,
        "width": stream and stream.width,
        "height": stream and stream.height,
        "rate": stream and stream.rate,
        "bpp": stream and stream.bpp,
        "psnr_db": None if psnr_db == math.inf else psnr_db,
        "made_by": version.job,
        "links": PictureLinks(
            picture=f"{root_path}/pictures/{name}",
            object=place,
            stream=place and f"{place}/stream",
        ),
    }
