"""How an exception ends a command: its message, its exit code, and a log line of a service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer

from service.cli.streams import reason_of
from service.errors import BadParameter, MissingExtra, RankpressError


def reason_and_code(error: Exception) -> tuple[str, int]:
    """Return the message and exit code of an exception that ends a command; 70 is a bug."""
    if isinstance(error, RankpressError):
        return str(error), 2 if isinstance(error, BadParameter) else 1
    if isinstance(error, OSError):
        return reason_of(error), 1
    return f"unexpected {type(error).__name__}: {error}", 70


def is_typer_exit(error: Exception) -> bool:
    """Return whether an exception is typer's own way to end a program."""
    return hasattr(error, "exit_code") or isinstance(error, typer.Abort)


@contextmanager
def logged_failure(event: str, log_format: str | None) -> Iterator[dict[str, str]]:
    """Write an exception that ends a service as one line of its log, not as plain text.

    The line includes the entries of the dictionary that is yielded. The exception of a missing
    extra is raised again, since the logging library may be missing. A format of None is read from
    the environment, because the settings themselves may be wrong.
    """
    details: dict[str, str] = {}
    try:
        yield details
    except MissingExtra:
        raise
    except Exception as error:
        if is_typer_exit(error) or find_spec("structlog") is None:
            raise
        import structlog

        from service.logs import configure_logs

        configure_logs(log_format or os.environ.get("RANKPRESS_LOG_FORMAT") or "json")
        reason, code = reason_and_code(error)
        log = structlog.get_logger("rankpress")
        log.critical(event, reason=reason, exit_code=code, **details, exc_info=code == 70)
        raise typer.Exit(code) from error
