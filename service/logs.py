"""Log lines of the service and its libraries, through one structlog pipeline to standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Final

import structlog
from structlog.typing import Processor

QUIET_S: Final = 10.0
"""Seconds in which a `RareWarning` is written at most once."""

log = structlog.get_logger("rankpress.server")


def configure_logs(log_format: str, log_level: str = "info") -> None:
    """Send log lines of a level or above to standard error: as JSON, or as text for "text"."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if log_format == "text"
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(log_level.upper())


class RareWarning:
    """A warning that is written at most every `QUIET_S` seconds, with the number of its calls."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event, self._clock = event, clock
        self._next_s = -float("inf")
        self._calls = 0

    def __call__(self, **facts: object) -> None:
        """Write the warning, or count the call for the next one."""
        self._calls += 1
        if self._clock() >= self._next_s:
            log.warning(self._event, times=self._calls, **facts)
            self._next_s, self._calls = self._clock() + QUIET_S, 0
