"""The client offers what the server offers, and the same to threads and to asyncio."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import rankpress_client
from rankpress_client import AdaptJob, AsyncAdaptJob, AsyncRankpress, Rankpress, options, results
from rankpress_client.errors import ProblemError, UnexpectedAnswerError
from rankpress_client.objects import AsyncStoredObjects, StoredObjects
from rankpress_client.pictures import AsyncNamedPictures, NamedPictures
from rankpress_client.problems import PROBLEMS, error_of

from service.api import picture_schemas, schemas
from service.engine.types import ModelInfo
from service.http.problems import KINDS, Problem

PAIRS: list[tuple[type, type]] = [
    (Rankpress, AsyncRankpress),
    (AdaptJob, AsyncAdaptJob),
    (StoredObjects, AsyncStoredObjects),
    (NamedPictures, AsyncNamedPictures),
]
OF_EACH_KIND = {"http", "sleep", "sender"}
"""Parameters whose types belong to threads or to asyncio."""


def methods(kind: type) -> dict[str, Any]:
    """The public methods of a class, and its constructor."""
    own = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    return {n: f for n, f in own.items() if n == "__init__" or not n.startswith("_")}


def parameters(method: Any) -> dict[str, tuple[Any, Any, Any]]:
    """Kind, default and annotation of every parameter."""
    return {
        name: (p.kind, p.default, p.annotation)
        for name, p in inspect.signature(method).parameters.items()
        if name not in OF_EACH_KIND
    }


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_threads_and_asyncio_have_the_same_methods(pair: tuple[type, type]) -> None:
    threads, asyncio = map(methods, pair)
    assert list(threads) == list(asyncio)
    for name, method in threads.items():
        other = asyncio[name]
        assert parameters(method) == parameters(other), name
        assert list(inspect.signature(method).parameters) == list(
            inspect.signature(other).parameters
        )
        assert method.__doc__ and method.__doc__ == other.__doc__, name
        returned = inspect.signature(other).return_annotation
        expected = inspect.signature(method).return_annotation
        assert returned.replace("Async", "").split("[")[0] == expected.split("[")[0], name
    assert pair[0].__doc__ is not None and pair[1].__doc__ is not None
    assert pair[0].__doc__.replace("`with`", "`async with`").replace("a `async", "an `async") == (
        pair[1].__doc__
    )


@pytest.mark.parametrize(
    ("kind", "query", "others"),
    [
        (options.CompressOptions, schemas.CompressQuery, set()),
        (options.DecompressOptions, schemas.PartialQuery, {"accept"}),
        (options.PictureOptions, schemas.DecompressQuery, {"accept"}),
        (options.CompareOptions, schemas.CompareQuery, set()),
        (options.MapsOptions, schemas.MapsQuery, set()),
        (options.AdaptOptions, schemas.AdaptQuery, set()),
        (options.PutOptions, picture_schemas.PictureQuery, set()),
    ],
)
def test_every_parameter_of_the_server_is_an_option(
    kind: Any, query: Any, others: set[str]
) -> None:
    required = {name for name, field in query.model_fields.items() if field.is_required()}
    assert set(kind.__annotations__) == (set(query.model_fields) - required) | others


@pytest.mark.parametrize(
    ("kind", "documented", "missing"),
    [
        (results.JobState, schemas.JobDocument, {"links"}),
        (results.StoredStream, schemas.StoredObject, set()),
        (results.NameVersion, picture_schemas.PictureDocument, {"links"}),
        (results.PutResult, picture_schemas.StoredPicture, {"links"}),
        (results.OfferedRate, schemas.ModelRate, set()),
        (results.OfferedModel, ModelInfo, set()),
    ],
)
def test_every_field_of_a_document_is_a_field_of_its_result(
    kind: Any, documented: Any, missing: set[str]
) -> None:
    ours = {field.name for field in dataclasses.fields(kind)} - {"is_new"}
    if dataclasses.is_dataclass(documented):
        theirs = {field.name for field in dataclasses.fields(documented)}
    else:
        theirs = set(documented.model_fields)
    assert ours == theirs - missing


def test_every_type_of_problem_is_an_exception_and_no_other() -> None:
    assert set(PROBLEMS) == {kind.slug for kind in KINDS}
    for kind in KINDS:
        words = PROBLEMS[kind.slug]
        assert words.__doc__ == f"{kind.status}: {kind.title}."
        assert words.__name__ == kind.slug.title().replace("-", "") + "Error"


def test_an_exception_carries_every_field_of_the_answer() -> None:
    document = Problem(
        type="urn:rankpress:problem:rate-unavailable",
        title="There are no weights",
        status=422,
        detail="rate is 3",
        instance="urn:rankpress:request:1",
        available=(2.0, 4.0),
        found=1.5,
        asked=1.0,
        invalid=({"parameter": "rate", "reason": "none"},),  # type: ignore[arg-type]
    )
    error = error_of(422, "application/problem+json", document.model_dump(), 7.0)
    assert type(error) is PROBLEMS["rate-unavailable"]
    assert set(vars(error)) == set(Problem.model_fields) | {"retry_after_s"}
    assert (error.available, error.found, error.asked) == ((2.0, 4.0), 1.5, 1.0)
    assert error.invalid is not None and error.invalid[0].parameter == "rate"
    assert (error.status, error.retry_after_s, error.instance[-1]) == (422, 7.0, "1")
    assert str(error) == "There are no weights: rate is 3"


def test_an_unknown_type_is_the_base_class_and_no_document_an_unexpected_answer() -> None:
    known = {"type": "urn:rankpress:problem:new", "title": "New", "status": 418, "detail": "x"}
    assert type(error_of(418, "application/problem+json", known, None)) is ProblemError
    for media_type, document in (
        ("text/html", known),
        ("application/problem+json", None),
        ("application/problem+json", {"type": "urn:rankpress:problem:saturated"}),
        ("application/problem+json", [1]),
    ):
        error = error_of(503, media_type, document, 2.0)
        assert type(error) is UnexpectedAnswerError
        assert (error.status, error.retry_after_s) == (503, 2.0)


def test_the_client_needs_httpx_alone() -> None:
    used: set[str] = set()
    for path in Path(rankpress_client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add(str(node.module).split(".")[0])
    assert used - set(sys.stdlib_module_names) == {"httpx"}
