"""Every test of jobs that takes `place` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from jobs.machines import Place, PostgresServer, postgres_or_skip

MakePlace = Callable[..., Place]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("RANKPRESS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests; each test uses a database of its own."""
    with postgres_or_skip() as (programs, folder):
        server = PostgresServer(programs, folder)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def make_place(
    request: pytest.FixtureRequest, tmp_path: Path, _numbers: Iterator[int]
) -> Iterator[MakePlace]:
    """Makes places with given settings, all on one kind of database."""
    wants_server = getattr(request, "param", "sqlite") == "postgres"
    server = request.getfixturevalue("postgres_server") if wants_server else None
    with ExitStack() as closing:

        def make(**settings: Any) -> Place:
            number = next(_numbers)
            folder = tmp_path / f"place-{number}"
            folder.mkdir()
            place = Place(folder, server, f"jobs{number}", **settings)
            closing.callback(place.close)
            return place

        yield make


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place()
