"""When a request is sent again, and after how long.

After an answer with Retry-After, the pause is so long and a random part more. Otherwise it is a
random part of a time that doubles ("full jitter", Brooker, "Exponential Backoff And Jitter", 2015).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

import httpx

from .errors import ConnectionFailedError, RankpressClientError, TimedOutError, TransportError

REFUSED: Final = frozenset({429, 503})
"""Statuses with which a server says that it has not done the work, and to try again."""

LOST: Final = frozenset({502, 504})
"""Statuses of a proxy that lost the server's answer, so that the work may have been done."""


class Repeat(Enum):
    """When a call may be sent again.

    Attributes:
        ALWAYS: doing it twice is the same as doing it once.
        UNDONE: only where the server cannot have done it, or says that it has not.
        NEVER: the first answer counts.
    """

    ALWAYS = "always"
    UNDONE = "undone"
    NEVER = "never"


@dataclass(frozen=True)
class RetryPolicy:
    """How often and for how long calls are tried.

    Attributes:
        max_retries: attempts of one call after the first.
        max_seconds: for all attempts of one call and the pauses between them, transfers included.
        first_pause_s: the longest pause before the second attempt; it doubles with every attempt.
        longest_pause_s: that a pause without Retry-After has at most.
    """

    max_retries: int = 6
    max_seconds: float = 900.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0


class Attempts:
    """The attempts of one call, from the first on."""

    def __init__(
        self,
        policy: RetryPolicy,
        repeat: Repeat,
        clock: Callable[[], float],
        random: Callable[[], float],
        max_seconds: float | None = None,
    ) -> None:
        """Begin now.

        Args:
            clock: returns seconds that only grow. random: returns a number from 0 up to 1.
            max_seconds: a limit for this call, where it is below that of the policy.
        """
        self._policy, self._repeat, self._clock, self._random = policy, repeat, clock, random
        limit_s = (
            policy.max_seconds if max_seconds is None else min(max_seconds, policy.max_seconds)
        )
        self._end_s = clock() + limit_s
        self._failures = 0

    @property
    def remaining_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self._end_s - self._clock())

    def check(self) -> None:
        """Raise TimedOutError if no time is left."""
        if self.remaining_s <= 0:
            raise TimedOutError("the time limit of the whole call was reached")

    def limited(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """Return time limits that do not exceed the time that is left."""
        limits = {name: self._limited(limit) for name, limit in timeout.as_dict().items()}
        return httpx.Timeout(**limits)

    def pause_s(self, error: RankpressClientError) -> float:
        """Return the seconds until the next attempt. Raises the error if there is none."""
        self._failures += 1
        pause_s = self._jitter_s() + (error.retry_after_s or 0.0)
        is_last = self._failures > self._policy.max_retries or pause_s >= self.remaining_s
        if is_last or not may_repeat(error, self._repeat):
            raise error
        return pause_s

    def _limited(self, limit_s: float | None) -> float:
        remaining_s = max(0.001, self.remaining_s)
        return remaining_s if limit_s is None else min(limit_s, remaining_s)

    def _jitter_s(self) -> float:
        doubled_s = self._policy.first_pause_s * 2.0 ** min(self._failures - 1, 60)
        return self._random() * min(self._policy.longest_pause_s, doubled_s)


def may_repeat(error: RankpressClientError, repeat: Repeat) -> bool:
    """Return whether the same call may succeed later, and may be made again."""
    if repeat is Repeat.NEVER:
        return False
    if isinstance(error, ConnectionFailedError) or error.status in REFUSED:
        return True
    is_lost = isinstance(error, TransportError) or error.status in LOST
    return is_lost and repeat is Repeat.ALWAYS


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, as a number or as a date; None if it has none.

    A date is compared with the answer's own Date, if there is one: clocks may differ.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until_s = _unix_s(text)
    if until_s is None:
        return None
    now_s = _unix_s(headers.get("Date", ""))
    return max(0.0, until_s - (time.time() if now_s is None else now_s))


def _unix_s(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None
