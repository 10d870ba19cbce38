"""Settings: defaults, environment, and errors that name the field."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from service.codec.container import LOSSLESS
from service.engine.opening import open_engine
from service.errors import BadParameter
from service.picture import Picture
from service.server.app import create_app
from service.settings import Settings

from .fake_codec import FakeCodec


def test_every_field_has_a_default_and_a_sentence() -> None:
    Settings()
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert field.description is not None and field.description.endswith("."), name


def test_the_environment_overrides_defaults_and_arguments_override_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANKPRESS_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


def test_graphics_layers_can_be_turned_off(
    monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    """All but lossless streams, which are asked for by name, are then without one."""
    picture = Picture(np.full((40, 70, 3), 200, np.uint8))
    rates = {}
    for value in ("true", "false"):
        monkeypatch.setenv("RANKPRESS_GRAPHICS", value)
        engine = open_engine(Settings(store=store, device="cpu"))
        made = [engine.compress(picture, rate) for rate in (4, LOSSLESS)]
        rates[value] = [(m.rate, m.graphics_share) for m in made]
    assert rates == {
        "true": [(LOSSLESS, 1), (LOSSLESS, 1)],
        "false": [(4, 0), (LOSSLESS, 1)],
    }


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKPRESS_STORE", "")
    assert Settings().store is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("device", "tpu"),
        ("max_pixels", "0"),
        ("stall_timeout_s", "nan"),
        ("body_timeout_s", "inf"),
        ("log_level", "loud"),
        ("check", "perhaps"),
        ("graphics", "webp"),
        ("allowed_hosts", "localhost:8000"),
        ("allowed_hosts", "http://localhost"),
        ("allowed_hosts", "*"),
        ("client_share", "0"),
    ],
)
def test_a_bad_value_is_refused_naming_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"RANKPRESS_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_a_limit_that_no_body_could_meet_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_waiting_bytes is 10"):
        Settings(max_body_bytes=11, max_waiting_bytes=10)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_settings_need_neither_torch_nor_a_web_framework() -> None:
    code = "import sys, service.settings; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert not {"torch", "fastapi", "starlette", "uvicorn"} & set(result.stdout.split())


@pytest.mark.parametrize(
    ("files", "connections"),
    [(256, 64), (1024, 416), (20_000, 4096), (resource.RLIM_INFINITY, 4096)],
)
def test_connections_leave_open_files_to_the_rest_of_the_program(
    monkeypatch: pytest.MonkeyPatch, files: int, connections: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert Settings().connection_limit == connections
    assert Settings(max_connections=7).connection_limit == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "RANKPRESS_STATE"), ({"state": "x", "jobs_url": "mysql://host/db"}, "jobs_url")],
)
def test_a_server_whose_settings_name_no_place_for_jobs_does_not_start(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadParameter, match=message):
        create_app(FakeCodec(), Settings(**settings))
    create_app(FakeCodec(), Settings(**settings, jobs=False))
    elsewhere = {"jobs_url": "postgresql://host/db", "objects_url": "memory://"}
    create_app(FakeCodec(), Settings(**settings | elsewhere, jobs_worker=False))
    create_app(FakeCodec(), Settings(state=Path("folder")))
