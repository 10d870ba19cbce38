"""The calls of the HTTP interface, each described once, for both kinds of clients.

A call says what is sent, how its answer is read, and whether it may be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from urllib.parse import quote

from . import answers
from .answers import (
    ServerAnswer,
    compared_result,
    figure_result,
    from_document,
    picture_result,
    stored_stream,
    stream_result,
)
from .files import BodySource, Destination
from .options import (
    AdaptOptions,
    CompareOptions,
    CompressOptions,
    DecompressOptions,
    MapsOptions,
    PictureOptions,
    PutOptions,
    query_of,
)
from .results import (
    ComparedResult,
    FigureResult,
    JobState,
    NameVersion,
    OfferedModel,
    OfferedRate,
    PictureResult,
    PutResult,
    ServerHealth,
    StoredStream,
    StreamResult,
)
from .retries import Repeat

T = TypeVar("T")

NOT_FOUND: Final = 404
NOT_READY: Final = 503

PAGE_NAMES: Final = 1000
"""Names that are asked for at a time."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        read: turns the answer into the result.
        body: what is sent. into: where the bytes of the answer go; None for memory.
        repeat: when it may be sent again.
        also_read: statuses that are read as an answer, besides those of success.
    """

    method: str
    path: str
    read: Callable[[ServerAnswer], T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: BodySource | None = None
    into: Destination | None = None
    repeat: Repeat = Repeat.ALWAYS
    also_read: frozenset[int] = frozenset()


def compress(
    source: BodySource, into: Destination | None, options: CompressOptions
) -> Call[StreamResult]:
    """The call that compresses an image file; it changes nothing on the server."""
    params = query_of(CompressOptions, options)
    return Call("POST", "/compress", stream_result, params, body=source, into=into)


def decompress(
    source: BodySource, into: Destination | None, options: DecompressOptions
) -> Call[PictureResult]:
    """The call that decompresses a stream; it changes nothing on the server."""
    params, headers = query_of(DecompressOptions, options), _accept(options)
    return Call("POST", "/decompress", picture_result, params, headers, source, into)


def compare(
    source: BodySource, format: str, into: Destination | None, options: CompareOptions
) -> Call[ComparedResult]:
    """The call that writes an image file in another format; it changes nothing on the server."""
    params = query_of(CompareOptions, options) | {"format": format}
    return Call("POST", "/compare", compared_result, params, body=source, into=into)


def maps(source: BodySource, into: Destination | None, options: MapsOptions) -> Call[FigureResult]:
    """The call that draws where bits are spent; it changes nothing on the server."""
    params = query_of(MapsOptions, options)
    return Call("POST", "/maps", figure_result, params, body=source, into=into)


def adapt(source: BodySource, options: AdaptOptions) -> Call[JobState]:
    """The call that queues a job; the same picture with the same options is the same job."""
    return Call("POST", "/adapt", _job_state, query_of(AdaptOptions, options), body=source)


def job(job_id: str) -> Call[JobState]:
    """The call for the present state of a job."""
    return Call("GET", _job_path(job_id), _job_state)


def cancel_job(job_id: str) -> Call[JobState]:
    """The call that cancels a job; one that is cancelled already stays so."""
    return Call("DELETE", _job_path(job_id), _job_state)


def best_stream(job_id: str, into: Destination | None) -> Call[StreamResult]:
    """The call for the best stream of a job so far."""
    return Call("GET", f"{_job_path(job_id)}/stream", stream_result, into=into)


def result_stream(job_id: str, into: Destination | None) -> Call[StreamResult]:
    """The call for the stream of a job that has succeeded."""
    return Call("GET", f"{_job_path(job_id)}/result", stream_result, into=into)


def job_events(job_id: str, last_id: str | None) -> Call[None]:
    """The call for the events of a job after the last one that is known."""
    headers = {"Accept": "text/event-stream"}
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    return Call("GET", f"{_job_path(job_id)}/events", lambda _: None, headers=headers)


def object_picture(
    sha256: str, into: Destination | None, options: PictureOptions
) -> Call[PictureResult]:
    """The call that decodes a stored stream."""
    params, headers = query_of(PictureOptions, options), _accept(options)
    return Call("GET", f"/objects/{_quoted(sha256)}", picture_result, params, headers, None, into)


def object_stream(
    sha256: str, into: Destination | None, first_bytes: int | None
) -> Call[StreamResult]:
    """The call for a stored stream, or its beginning."""
    headers = {} if first_bytes is None else {"Range": f"bytes=0-{first_bytes - 1}"}
    path = f"/objects/{_quoted(sha256)}/stream"
    return Call("GET", path, stream_result, headers=headers, into=into)


def object_size(sha256: str) -> Call[int | None]:
    """The call for the size of a stored stream."""
    path, also_read = f"/objects/{_quoted(sha256)}/stream", frozenset({NOT_FOUND})
    return Call("HEAD", path, _size_bytes, also_read=also_read)


def put_object(source: BodySource, sha256: str | None) -> Call[StoredStream]:
    """The call that stores a stream under its hash; storing it twice is storing it once."""
    path = "/objects" if sha256 is None else f"/objects/{_quoted(sha256)}"
    return Call("PUT", path, stored_stream, body=source)


def put_picture(source: BodySource, name: str, options: PutOptions) -> Call[PutResult]:
    """The call that gives a picture a name; the server knows the same put when it comes again."""
    params = query_of(PutOptions, options)
    return Call("PUT", _picture_path(name), answers.put_result, params, body=source)


def named_picture(
    name: str, into: Destination | None, options: PictureOptions
) -> Call[PictureResult]:
    """The call that decodes what a name has now."""
    params, headers = query_of(PictureOptions, options), _accept(options)
    return Call("GET", _picture_path(name), picture_result, params, headers, None, into)


def named_stream(name: str, into: Destination | None) -> Call[StreamResult]:
    """The call for the stream that a name has now."""
    return Call("GET", f"{_picture_path(name)}/@stream", stream_result, into=into)


def name_history(name: str) -> Call[tuple[NameVersion, ...]]:
    """The call for the last versions of a name."""
    return Call("GET", f"{_picture_path(name)}/@history", answers.name_history)


def name_page(prefix: str, after: str) -> Call[tuple[tuple[NameVersion, ...], str | None]]:
    """The call for some names that begin with a prefix and come after another."""
    params = {"prefix": prefix, "after": after, "limit": str(PAGE_NAMES)}
    return Call("GET", "/pictures", answers.name_page, params)


def delete_picture(name: str) -> Call[None]:
    """The call that deletes the picture of a name; a second one could delete a later picture."""
    return Call("DELETE", _picture_path(name), lambda _: None, repeat=Repeat.UNDONE)


MODELS: Final[Call[tuple[OfferedModel, ...]]] = Call("GET", "/models", answers.models)
RATES: Final[Call[tuple[OfferedRate, ...]]] = Call("GET", "/rates", answers.rates)
HEALTH: Final[Call[ServerHealth]] = Call(
    "GET",
    "/readyz",
    lambda answer: _health(answer),
    repeat=Repeat.NEVER,
    also_read=frozenset({NOT_READY}),
)


def _job_state(answer: ServerAnswer) -> JobState:
    return from_document(JobState, answer.json())


def _health(answer: ServerAnswer) -> ServerHealth:
    ready = answer.status != NOT_READY
    return ServerHealth(ready=ready, jobs=answer.json().get("jobs") if ready else None)


def _size_bytes(answer: ServerAnswer) -> int | None:
    length = answer.number("Content-Length")
    return None if answer.status == NOT_FOUND or length is None else int(length)


def _accept(options: PictureOptions | DecompressOptions) -> dict[str, str]:
    accept = options.get("accept")
    return {} if accept is None else {"Accept": accept}


def _job_path(job_id: str) -> str:
    return f"/jobs/{_quoted(job_id)}"


def _picture_path(name: str) -> str:
    return "/pictures/" + "/".join(map(_quoted, name.split("/")))


def _quoted(part: str) -> str:
    """Return a part of a path. Raises ValueError: it would name another place."""
    if part in ("", ".", ".."):
        raise ValueError(f"a part of the name is {part!r}, which is none")
    return quote(part, safe="")
