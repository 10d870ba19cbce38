"""Outages of what jobs are stored in: told from errors of a job's own, and waited for.

An outage is nobody's fault who posted a job: whoever meets one waits, with growing pauses and for
as long as it takes, and no attempt of the job is used up.
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
"""Pauses between two looks whether an outage is over double up to this."""

SQLITE_OUTAGES: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)
"""What SQLite says where its file, or the disk below it, cannot be used."""


def growing_pauses() -> Iterator[float]:
    """Seconds to wait, without end: each twice the one before, up to `LONGEST_PAUSE_S`."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def lacks_room(error: Exception) -> bool:
    """Whether an error says that a disk is full, also one that an adapter met by itself."""
    return isinstance(error, ObjectsFull) or (isinstance(error, OSError) and is_full(error))


def is_outage(error: Exception, objects: Objects) -> bool:
    """Whether an error is the store's and not of one object: nothing else can be stored either."""
    if lacks_room(error):
        return True
    if not isinstance(error, ObjectsUnavailable):
        return False
    try:
        objects.check()
    except RankpressError:
        return True
    return False


def wait_out_sqlite_outages() -> None:
    """Have DBOS wait where SQLite's file cannot be used, as it does where PostgreSQL is away."""
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "handle_error", _mark_outage):
        event.listen(Engine, "handle_error", _mark_outage)


def _mark_outage(context: ExceptionContext) -> None:
    """Call an outage of SQLite a lost connection: DBOS repeats what failed with one, for ever.

    A full disk would otherwise end the workflow whose step was to be recorded.
    """
    code = getattr(context.original_exception, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in SQLITE_OUTAGES:  # the rest tells kinds of each apart
        context.is_disconnect = True
