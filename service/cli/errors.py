"""What ends a command: a reason and an exit code, and of a service one line of its log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer

from service.cli.streams import reason_of
from service.errors import BadParameter, MissingExtra, RankpressError


def reason_and_code(error: Exception) -> tuple[str, int]:
    """Return what to say of an exception that ends a command, and the exit code; 70 is a bug."""
    if isinstance(error, RankpressError):
        return str(error), 2 if isinstance(error, BadParameter) else 1
    if isinstance(error, OSError):
        return reason_of(error), 1
    return f"unexpected {type(error).__name__}: {error}", 70


def is_typers(error: Exception) -> bool:
    """Return whether an exception is typer's own way to end."""
    return hasattr(error, "exit_code") or isinstance(error, typer.Abort)


@contextmanager
def logged_end(event: str, log_format: str | None) -> Iterator[dict[str, str]]:
    """Have an exception that ends a service be one line of its log, and not a text beside it.

    Yields a dictionary: what is put into it is said in that line, such as the place of a database.
    A missing extra is left to be printed, for the library that logs may be what is missing.

    Args:
        event: of the line. log_format: as given to the command, None where it was not; what the
            environment says is asked for here because settings may be what is wrong.
    """
    places: dict[str, str] = {}
    try:
        yield places
    except MissingExtra:
        raise
    except Exception as error:
        if is_typers(error) or find_spec("structlog") is None:
            raise
        import structlog

        from service.logs import configure_logs

        configure_logs(log_format or os.environ.get("RANKPRESS_LOG_FORMAT") or "json")
        reason, code = reason_and_code(error)
        log = structlog.get_logger("rankpress")
        log.critical(event, reason=reason, exit_code=code, **places, exc_info=code == 70)
        raise typer.Exit(code) from error
