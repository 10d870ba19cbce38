"""Warnings of what may happen a thousand times a second, as one line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

QUIET_S: Final = 10.0
"""Seconds in which a line about too many connections is written once."""

log = structlog.get_logger("rankpress.server")


class RareWarning:
    """A warning that is written at most every `QUIET_S` seconds, with how often it was meant."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event, self._clock = event, clock
        self._next_s = -float("inf")
        self._times = 0

    def __call__(self, **facts: object) -> None:
        """Write it, or count it for the next time."""
        self._times += 1
        if self._clock() >= self._next_s:
            log.warning(self._event, times=self._times, **facts)
            self._next_s, self._times = self._clock() + QUIET_S, 0
