"""The database of the jobs: an SQLite file, or PostgreSQL by URL, through DBOS.

Everything is written as portable JSON; nothing here pickles.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from service.errors import BadParameter, JobsUnavailable, MissingExtra
from service.jobs.dbos_logs import quiet_logs
from service.settings import Settings

if TYPE_CHECKING:
    from dbos import DBOSClient

APPLICATION: Final = "rankpress"
VERSION: Final = "jobs-1"
"""Version of the meaning of steps: a worker takes only jobs of its own version."""

QUEUE: Final = "adapt"
WORKFLOW: Final = "adapt"
ADVANCE: Final = "advance"
"""Name of the steps that optimise; their outputs are the records of a job's steps."""

SQLITE: Final = "sqlite:///"
CONNECT_S: Final = 10
CHECK_S: Final = 1.0
"""Seconds that a check of an SQLite file waits for those who write to it."""


def check_places(settings: Settings) -> None:
    """Raise BadParameter unless the settings name every place that a server's jobs need."""
    if settings.jobs:
        database_url(settings)
        if settings.jobs_worker or not settings.objects_url:
            _ = settings.state_folder


def database_url(settings: Settings) -> str:
    """The URL in the settings, or that of the SQLite file in the state folder.

    Raises BadParameter: not an SQLite or PostgreSQL URL, or no state folder.
    """
    url = settings.jobs_url
    if not url:
        return f"{SQLITE}{settings.state_folder / 'jobs.sqlite'}"
    if not url.startswith((SQLITE, "postgresql://", "postgres://")):
        raise BadParameter("jobs_url has an unknown scheme, expected postgresql://… or sqlite:///…")
    if url.startswith(SQLITE):
        return url
    url = url.replace("postgres://", "postgresql://", 1)
    if "connect_timeout" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}connect_timeout={CONNECT_S}"


def place_of(settings: Settings) -> str:
    """The URL of the database without its password and its parameters, which may be secret."""
    scheme, _, rest = database_url(settings).partition("?")[0].partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}"


def prepare(settings: Settings) -> str:
    """Make the database or bring its tables up to date, and return its URL.

    Raises JobsUnavailable: it cannot be reached or written. BadParameter: as `database_url`.
    """
    url = database_url(settings)
    with reported():
        from dbos import DBOS

        quiet_logs()
        if not settings.jobs_url:
            _make_folder(settings.state_folder)
        if url.startswith(SQLITE):
            # Write-ahead logging, which the file keeps: readers then never wait for a writer.
            with closing(sqlite3.connect(url.removeprefix(SQLITE), timeout=30)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        DBOS.migrate(url)
    return url


def open_client(url: str) -> DBOSClient:
    """A client of a prepared database. Raises exceptions that `reported` converts."""
    from dbos import DBOSClient, DBOSPortableJSONSerializer

    return DBOSClient(
        system_database_url=url,
        serializer=DBOSPortableJSONSerializer(),
        application_name=APPLICATION,
        retry_connection_errors=False,
    )


@contextmanager
def reported() -> Iterator[None]:
    """Convert exceptions of the database's libraries to JobsUnavailable, without the password."""
    try:
        from dbos import error as dbos_error
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as error:
        raise MissingExtra(f"jobs need {error.name}: pip install 'rankpress[server]'") from error
    try:
        yield
    except (dbos_error.DBOSException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise JobsUnavailable(f"the jobs' database does not answer: {reason}") from error


def check_file(url: str) -> None:
    """Raise sqlite3.Error if the file of an SQLite URL cannot be written; it is not changed."""
    if not url.startswith(SQLITE):
        return
    path = quote(url.removeprefix(SQLITE))
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=CHECK_S)) as connection:
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version={version}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # another one writes to it
                raise


def _make_folder(folder: Path) -> None:
    """Make the state folder. Raises JobsUnavailable: it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise JobsUnavailable(
            f"jobs cannot be kept in {folder} ({error.strerror}): set RANKPRESS_STATE to another "
            "folder"
        ) from error
