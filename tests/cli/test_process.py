"""An exception that ends a service is one line of its log, in the format of the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer

from service.cli.process import logged_failure
from service.errors import BadParameter, JobsUnavailable, MissingExtra, StoreError


@pytest.fixture
def logs_of_others() -> Iterator[None]:
    """Restore the configuration of logs after the test."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**config)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (JobsUnavailable("it does not\nanswer"), 1, "it does not\nanswer"),
        (StoreError("no model in /store"), 1, "no model in /store"),
        (BadParameter("port: too large"), 2, "port: too large"),
        (PermissionError(13, "Permission denied", "/state"), 1, "/state: Permission denied"),
        (KeyError("weights"), 70, "unexpected KeyError: 'weights'"),
    ],
)
@pytest.mark.usefixtures("logs_of_others")
def test_whatever_ends_a_service_is_one_json_line_with_reason_and_place(
    capfd: pytest.CaptureFixture[str], error: Exception, code: int, reason: str
) -> None:
    with pytest.raises(typer.Exit) as ended, logged_failure("worker failed", None) as places:
        places["database"] = "sqlite:////state/jobs.sqlite"
        raise error
    assert ended.value.exit_code == code
    (line,) = capfd.readouterr().err.splitlines()
    message = json.loads(line)
    assert (message["event"], message["level"]) == ("worker failed", "critical")
    assert (message["reason"], message["exit_code"]) == (reason, code)
    assert message["database"] == "sqlite:////state/jobs.sqlite"
    assert ("exception" in message) == (code == 70), "a bug is told with its place in the code"


@pytest.mark.usefixtures("logs_of_others")
def test_where_the_log_is_text_it_is_a_line_of_text(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, variable in (("text", "json"), (None, "text")):
        monkeypatch.setenv("RANKPRESS_LOG_FORMAT", variable)
        with pytest.raises(typer.Exit), logged_failure("server failed", given):
            raise StoreError("no model in /store")
        message = capfd.readouterr().err
        assert message.count("\n") == 1 and "no model in /store" in message
        with pytest.raises(json.JSONDecodeError):
            json.loads(message)


@pytest.mark.parametrize("error", [typer.Exit(3), typer.Abort(), MissingExtra("pip install it")])
def test_what_is_no_failure_of_the_service_is_left_to_the_command_line(error: Exception) -> None:
    with pytest.raises(type(error)), logged_failure("server failed", None):
        raise error


def lines_of(variables: dict[str, str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code of a command and the JSON lines of its standard error."""
    ended = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=os.environ | variables,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return ended.returncode, [json.loads(line) for line in ended.stderr.splitlines()]


def test_a_worker_whose_database_is_away_names_it_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/jobs?password=hunter3"
    variables = {"RANKPRESS_JOBS_URL": url, "RANKPRESS_STATE": str(tmp_path)}
    code, lines = lines_of(variables, "worker")
    (fatal,) = [line for line in lines if line["level"] == "critical"]
    assert (code, fatal["event"]) == (1, "worker failed") and lines[-1] == fatal
    assert fatal["database"] == "postgresql://user@127.0.0.1:1/jobs"
    assert fatal["objects"] == str(tmp_path / "objects")
    assert "Connection refused" in fatal["reason"] and "hunter" not in str(lines)


def test_a_worker_whose_database_is_damaged_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 1000)
    code, (fatal,) = lines_of({"RANKPRESS_STATE": str(tmp_path)}, "worker")
    assert code == 1 and "file is not a database" in fatal["reason"]
    assert fatal["database"] == f"sqlite:///{tmp_path}/jobs.sqlite"


def test_a_server_that_cannot_start_says_why_in_one_json_line(tmp_path: Path) -> None:
    for options, code, reason in (
        (["--port", "70000"], 2, "port: Input should be less than or equal to 65535"),
        (["--store", str(tmp_path)], 1, f"no model in {tmp_path}"),
    ):
        ended, (fatal,) = lines_of({}, "serve", *options)
        assert (ended, fatal["event"], fatal["exit_code"]) == (code, "server failed", code)
        assert reason in fatal["reason"]
