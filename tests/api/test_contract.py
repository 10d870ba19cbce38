"""Requests that Schemathesis makes up from the OpenAPI document get answers that it describes.

Half of them follow the document; the others have parameters, headers and bodies that do not.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, checks
from schemathesis.openapi import media_type

from service.picture import Picture

from .client import PIXELS, PNG
from .fake_codec import FakeCodec
from .test_server import served

EXAMPLES = 8
"""Requests made up of each operation, as the document says, otherwise, and of what is there."""

RUN = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TOKEN = "a token of sixteen letters"
STREAM = FakeCodec().compress(Picture(PIXELS), 2.0).data
GOOD = {
    "/compress": PNG,
    "/compare": PNG,
    "/maps": PNG,
    "/adapt": PNG,
    "/decompress": STREAM,
    "/objects": STREAM,
    "/objects/{sha256}": STREAM,
    "/pictures/{name}": PNG,
    "/adapters": b"good adapter",
}
"""Bodies that are taken."""

BODIES = strategies.sampled_from((*GOOD.values(), STREAM[:-9])) | strategies.binary()

checks.load_all_checks()
CHECKS = checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "allow_header_conformance",
    ]
)
for name in ("application/octet-stream", "application/vnd.rankpress", "image/*"):
    media_type(name, BODIES)


@pytest.mark.filterwarnings("default")  # of Schemathesis and of what it is made of
def test_what_is_answered_is_documented(tmp_path: Path) -> None:
    everything: dict[str, Any] = {
        "state": tmp_path,
        "jobs": True,
        "jobs_worker": False,
        "objects_url": str(tmp_path / "objects"),
        "objects_write": True,
        "admin_token": TOKEN,
    }
    statuses: Counter[tuple[str, int]] = Counter()
    with served(FakeCodec(), **everything) as (_, port):
        url = f"http://127.0.0.1:{port}"

        def check(case: Case) -> None:
            answer = case.call(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"})
            statuses[case.operation.label, answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        known = {
            "region": "square",
            "size": "!8,8",
            "rotation": "90",
            "quality": "gray",
            "format": "jpg",
            "sha256": httpx.put(f"{url}/objects", content=STREAM).json()["sha256"],
            "file": next(iter(FakeCodec().decoder_files().files)),
            "name": "a/b",
            "job_id": httpx.post(f"{url}/adapt", content=PNG).json()["id"],
        }
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in (each.ok() for each in schema.get_all_operations()):
            for mode in GenerationMode:
                with suppress(Unsatisfiable):  # nothing that is not in the document can be sent
                    RUN(given(operation.as_strategy(mode))(check))()
            if "{name}" in operation.path:  # again for each: one of them deletes it
                httpx.put(f"{url}/pictures/{known['name']}?effort=1", content=PNG)
            names = re.findall(r"{(\w+)}", operation.path)
            good: dict[str, Any] = {"path_parameters": {name: known[name] for name in names}}
            if operation.method in ("post", "put"):
                good |= {"body": GOOD[operation.path], "media_type": "application/octet-stream"}
            if operation.label == "GET /maps":
                good |= {"query": {"object": known["sha256"]}}
            if operation.path == "/compare":
                good |= {"query": {"format": "jpeg", "max_bytes": 10_000}}
            RUN(given(operation.as_strategy(**good))(check))()
    assert {status for _, status in statuses} >= {200, 202, 400, 404, 409, 415, 422}, statuses
    assert {label for label, status in statuses if status < 400} >= {
        "POST /compress", "POST /decompress", "POST /adapt", "POST /adapters", "PUT /objects",
        "PUT /pictures/{name}", "GET /pictures/{name}", "GET /pictures/{name}/@stream",
        "GET /pictures/{name}/@history", "GET /pictures", "DELETE /pictures/{name}",
        "GET /objects/{sha256}", "GET /objects/{sha256}/stream", "GET /iiif/{sha256}/info.json",
        "GET /iiif/{sha256}/{region}/{size}/{rotation}/{quality}.{format}",
        "GET /jobs/{job_id}", "GET /adapters", "POST /compare", "GET /weights/{file}",
        "POST /maps", "GET /maps",
    }, statuses  # fmt: skip
