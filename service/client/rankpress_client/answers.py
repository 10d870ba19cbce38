"""A whole answer of a server, and how it is read into a result.

A field that an answer lacks is None where that is allowed; one that this version does not know is
ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from datetime import datetime
from typing import Any, TypeVar

import httpx

from .errors import DamagedAnswerError, UnexpectedAnswerError
from .options import Rate
from .results import (
    ComparedResult,
    FigureResult,
    NameVersion,
    OfferedModel,
    OfferedRate,
    PictureResult,
    PutResult,
    StoredStream,
    StreamResult,
)

T = TypeVar("T")

_SHA256_TAG = re.compile(r'"([0-9a-f]{64})"')
_STAGE = re.compile(r"([\w-]+);dur=([\d.]+)")
_ENCODES = re.compile(r'search;desc="(\d+) encodes"')


@dataclass(frozen=True)
class ServerAnswer:
    """A whole answer of a server that is a success.

    Attributes:
        content: its bytes; None where they were written elsewhere.
        size_bytes, sha256: of its bytes.
    """

    status: int
    headers: httpx.Headers
    content: bytes | None
    size_bytes: int
    sha256: str

    def number(self, name: str) -> float | None:
        """Return the number in a header; None without one."""
        text = self.headers.get(name)
        try:
            return None if text is None else float(text)
        except ValueError as error:
            raise UnexpectedAnswerError(f"the header {name} is {text!r}, not a number") from error

    def json(self) -> Any:
        """Return the document. Raises UnexpectedAnswerError: the answer is no JSON."""
        try:
            return json.loads(self.content or b"")
        except ValueError as error:
            raise UnexpectedAnswerError(
                "the answer is no JSON document, as one of Rankpress would be", self.status
            ) from error


def stream_result(answer: ServerAnswer) -> StreamResult:
    """Read a stream. Raises DamagedAnswerError: it does not have the hash that is its tag."""
    tag = _SHA256_TAG.fullmatch(answer.headers.get("ETag", ""))
    if tag is not None and answer.status == 200 and tag[1] != answer.sha256:
        raise DamagedAnswerError(f"the stream's hash is {answer.sha256}, expected {tag[1]}")
    return StreamResult(
        **_file_fields(answer),
        rate=_rate_of(answer),
        tune=answer.headers.get("X-Rankpress-Tune"),
        model=answer.headers.get("X-Rankpress-Model"),
        bpp=answer.number("X-Rankpress-Bpp"),
        psnr_db=answer.number("X-Rankpress-Psnr"),
        graphics_share=answer.number("X-Rankpress-Graphics") or 0.0,
        source_bytes=_whole(answer.number("X-Rankpress-Source-Bytes")),
        step=_whole(answer.number("X-Rankpress-Step")),
        encodes=_encodes_of(answer),
    )


def picture_result(answer: ServerAnswer) -> PictureResult:
    """Read a decoded picture."""
    complete = answer.number("X-Rankpress-Complete")
    return PictureResult(
        **_file_fields(answer),
        rate=_rate_of(answer),
        model=answer.headers.get("X-Rankpress-Model"),
        complete=1.0 if complete is None else complete,
    )


def compared_result(answer: ServerAnswer) -> ComparedResult:
    """Read a file to compare with."""
    return ComparedResult(
        **_file_fields(answer),
        quality=_whole(answer.number("X-Rankpress-Quality")),
        bpp=answer.number("X-Rankpress-Bpp"),
        psnr_db=answer.number("X-Rankpress-Psnr"),
        source_bytes=_whole(answer.number("X-Rankpress-Source-Bytes")),
        encodes=_encodes_of(answer),
    )


def figure_result(answer: ServerAnswer) -> FigureResult:
    """Read a figure."""
    return FigureResult(**_file_fields(answer))


def stored_stream(answer: ServerAnswer) -> StoredStream:
    """Read what is known of a stream that was stored."""
    return from_document(StoredStream, answer.json() | {"is_new": answer.status == 201})


def put_result(answer: ServerAnswer) -> PutResult:
    """Read the version that a name has after a put."""
    return from_document(PutResult, answer.json() | {"is_new": answer.status == 201})


def name_history(answer: ServerAnswer) -> tuple[NameVersion, ...]:
    """Read the versions of a name."""
    return _name_versions(answer.json(), "versions")


def name_page(answer: ServerAnswer) -> tuple[tuple[NameVersion, ...], str | None]:
    """Read a part of a list of names, and the name after which the next part begins, if any."""
    document = answer.json()
    return _name_versions(document, "pictures"), document.get("next")


def _name_versions(document: Any, part: str) -> tuple[NameVersion, ...]:
    return tuple(from_document(NameVersion, version) for version in _listed(document, part))


def models(answer: ServerAnswer) -> tuple[OfferedModel, ...]:
    """Read the models that are loaded."""
    return tuple(map(_model, _listed(answer.json(), "models")))


def _model(document: Any) -> OfferedModel:
    model = from_document(OfferedModel, document)
    rates = (from_document(OfferedRate, {"model": model.name} | r) for r in document["rates"])
    return replace(model, rates=tuple(rates))


def rates(answer: ServerAnswer) -> tuple[OfferedRate, ...]:
    """Read the rates that are offered."""
    return tuple(from_document(OfferedRate, rate) for rate in _listed(answer.json(), "rates"))


def _listed(document: Any, name: str) -> list[Any]:
    if not (isinstance(document, dict) and isinstance(document.get(name), list)):
        raise UnexpectedAnswerError(f"the answer is no document with {name}")
    return list(document[name])


def from_document(kind: type[T], document: Any) -> T:
    """Return a dataclass with the fields of a JSON document.

    Lists become tuples, and texts become dates where the field is one.

    Raises:
        UnexpectedAnswerError: the document is none, or a field is missing.
    """
    try:
        return kind(**{f.name: _value(f, document) for f in fields(kind)})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswerError(f"the answer is no document of a {kind.__name__}") from error


def _value(part: Field[Any], document: Mapping[str, Any]) -> Any:
    if part.name not in document and "None" in part.type:
        return None
    value = document[part.name]
    if isinstance(value, str) and "datetime" in part.type:
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value


def _file_fields(answer: ServerAnswer) -> dict[str, Any]:
    headers = answer.headers
    timing, notes = headers.get("Server-Timing", ""), headers.get("X-Rankpress-Notes")
    return {
        "content": answer.content,
        "size_bytes": answer.size_bytes,
        "sha256": answer.sha256,
        "etag": headers.get("ETag"),
        "media_type": headers.get("Content-Type", ""),
        "notes": tuple(notes.split("; ")) if notes else (),
        "timings_ms": {name: float(value) for name, value in _STAGE.findall(timing)},
        "request_id": headers.get("X-Request-Id"),
    }


def _rate_of(answer: ServerAnswer) -> Rate | None:
    text = answer.headers.get("X-Rankpress-Rate")
    return "lossless" if text == "lossless" else answer.number("X-Rankpress-Rate")


def _encodes_of(answer: ServerAnswer) -> int:
    encodes = _ENCODES.search(answer.headers.get("Server-Timing", ""))
    return int(encodes[1]) if encodes else 1


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
