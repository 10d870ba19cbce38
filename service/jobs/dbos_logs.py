"""DBOS' own log lines: where they go, and which are left out."""

from __future__ import annotations

import logging
import time
from typing import Final

DBOS_LOG: Final = "dbos"
"""Name of DBOS' logger."""

REPEATED_S: Final = 60.0
"""Seconds between two log lines of a look at the queue that fails time and again."""


def quiet_logs() -> None:
    """Send DBOS' log through the program's own; without a handler it would make one itself."""
    logger = logging.getLogger(DBOS_LOG)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.WARNING)


class Cancelled(logging.Filter):
    """Keeps DBOS from telling of a job that a user cancelled as of a crash."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the end of a cancelled workflow."""
        from dbos import error

        told = record.exc_info[1] if record.exc_info else None
        ends = (error.DBOSAwaitedWorkflowCancelledError, error.DBOSWorkflowCancelledError)
        return not isinstance(told, ends)


class Repeated(logging.Filter):
    """Lets DBOS tell once a minute of what its looks at the queue, two a second, all meet."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """False for the same failure of the same look again."""
        if record.levelno >= logging.ERROR:
            return True
        look, _, _ = record.getMessage().partition(":")
        if not look.startswith("Exception "):
            return True
        last_s, now_s = self._last_s.get(look), time.monotonic()
        if last_s is not None and now_s - last_s < REPEATED_S:
            return False
        self._last_s[look] = now_s
        return True
