"""Outages of the database and the object store: how they are recognised and waited out.

An outage is not the fault of a job, so it uses up none of its attempts: the worker waits with
growing pauses until the outage is over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from service.blobs import Objects, is_full
from service.errors import ObjectsFull, ObjectsUnavailable, RankpressError

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""The pause between two tries doubles up to this."""

SQLITE_OUTAGES: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)
"""SQLite's error codes for a file or disk that cannot be used."""


def growing_pauses() -> Iterator[float]:
    """Endless pauses in seconds: each is twice the one before, up to `LONGEST_PAUSE_S`."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def lacks_room(error: Exception) -> bool:
    """Whether an error says that a disk is full, in the object store or in the adaptation."""
    return isinstance(error, ObjectsFull) or (isinstance(error, OSError) and is_full(error))


def is_outage(error: ObjectsUnavailable, objects: Objects) -> bool:
    """Whether an error concerns the whole store and not one object: nothing can be stored."""
    if lacks_room(error):
        return True
    try:
        objects.check()
    except RankpressError:
        return True
    return False


def wait_out_sqlite_outages() -> None:
    """Make DBOS wait while SQLite's file cannot be used, as it does while PostgreSQL is away."""
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "handle_error", mark_outage):
        event.listen(Engine, "handle_error", mark_outage)


def mark_outage(context: ExceptionContext) -> None:
    """Mark an outage of SQLite as a lost connection, for DBOS repeats what fails with one.

    A full disk would otherwise end the workflow whose step was to be recorded.
    """
    code = getattr(context.original_exception, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in SQLITE_OUTAGES:  # the upper bits are details
        context.is_disconnect = True
