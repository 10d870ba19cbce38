"""DBOS' own log lines: where they are written, and which of them are dropped."""

from __future__ import annotations

import logging
import time
from typing import Final

DBOS_LOG: Final = "dbos"
"""Name of DBOS' logger."""

REPEATED_S: Final = 60.0
"""Seconds between two log lines about the same failure to read the queue."""


def quiet_logs() -> None:
    """Send DBOS' log through the program's own. Without a handler DBOS would add one itself."""
    logger = logging.getLogger(DBOS_LOG)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.WARNING)


class CancelledFilter(logging.Filter):
    """Drops the lines in which DBOS reports a job that a user cancelled as a crash."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the end of a cancelled workflow."""
        from dbos import error

        exception = record.exc_info[1] if record.exc_info else None
        cancelled = (error.DBOSAwaitedWorkflowCancelledError, error.DBOSWorkflowCancelledError)
        return not isinstance(exception, cancelled)


class RepeatedFilter(logging.Filter):
    """Lets through one line a minute of the same failure to read the queue, which is frequent."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a failure of the same operation within a minute."""
        if record.levelno >= logging.ERROR:
            return True
        operation, _, _ = record.getMessage().partition(":")
        if not operation.startswith("Exception "):
            return True
        last_s, now_s = self._last_s.get(operation), time.monotonic()
        if last_s is not None and now_s - last_s < REPEATED_S:
            return False
        self._last_s[operation] = now_s
        return True
