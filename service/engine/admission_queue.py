"""The queue of requests in front of the worker threads, and the rule that says which run next.

Requests run in order of arrival, with one exception: a request for the weights that ran last goes
before older requests for other weights, so that a rate's weights stay live and its requests can
share a batch. No request is overtaken more than OVERTAKES times, so no flood of requests for one
rate keeps another waiting. Requests that run together are of one group, so a batch never mixes
rates. A batch that could still grow waits until its oldest request has waited for the window.

This module knows no clock and no threads: times are given, and worker_pool.py runs the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

OVERTAKES: Final = 8
"""Later requests that may go before an earlier one."""


@dataclass(frozen=True)
class RequestGroup:
    """Which other requests a request may share weights or a call with.

    Attributes:
        weights: equal for requests that need the same weights.
        batch: requests with equal weights and batch may share one call; None: each runs alone.
    """

    weights: Hashable
    batch: Hashable = None


@dataclass(eq=False)
class QueuedWork:
    """A request in the queue.

    Attributes:
        arrived_s: when it came. size: how much work it is, in a unit that is the same for all.
        overtaken: later requests that went before it.
        abandoned: whether nobody waits for the result any more.
    """

    work: Callable[[], Any]
    result: asyncio.Future[Any]
    arrived_s: float
    group: RequestGroup | None = None
    size: float = 1.0
    overtaken: int = 0
    abandoned: bool = False

    @property
    def batches(self) -> bool:
        """Whether it may run together with others."""
        return self.group is not None and self.group.batch is not None


class AdmissionQueue:
    """Requests in order of arrival, of which at most `max_batch` run together.

    A request waits for others of its batch for at most `window_s` seconds.
    """

    def __init__(self, max_batch: int = 1, window_s: float = 0.0) -> None:
        self._max_batch, self._window_s = max_batch, window_s
        self._entries: list[QueuedWork] = []
        self._last_weights: Hashable = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._entries)

    def __iter__(self) -> Iterator[QueuedWork]:
        """The requests in order of arrival."""
        return iter(self._entries)

    def append(self, entry: QueuedWork) -> None:
        """Add a request at the end."""
        self._entries.append(entry)

    def discard(self, entry: QueuedWork) -> None:
        """Remove a request, if it is still here."""
        if entry in self._entries:
            self._entries.remove(entry)

    def take(self, now_s: float) -> list[QueuedWork]:
        """The requests to run next, removed from the queue; empty when none is due yet."""
        self._entries = [e for e in self._entries if not e.result.done()]
        due = [e for e in self._entries if self._due_s(e) <= now_s]
        if not due:
            return []
        live = [e for e in due if e.group is not None and e.group.weights == self._last_weights]
        batch = self._batch_of(live[0]) if live else []
        batch = batch or self._batch_of(due[0]) or self._batch_of(self._entries[0])
        self._count_overtaken(batch)
        self._entries = [e for e in self._entries if e not in batch]
        if batch[0].group is not None:
            self._last_weights = batch[0].group.weights
        return batch

    def due_s(self) -> float | None:
        """When the next request is due, on the clock of `arrived_s`; None when none waits."""
        return min((self._due_s(e) for e in self._entries), default=None)

    def _due_s(self, entry: QueuedWork) -> float:
        """When a request need no longer wait for others: at once if its batch is full."""
        full = len(self._same_batch(entry)) >= self._max_batch
        if self._max_batch == 1 or not entry.batches or full:
            return entry.arrived_s
        return entry.arrived_s + self._window_s

    def _same_batch(self, entry: QueuedWork) -> list[QueuedWork]:
        """The requests that one can share a batch with, itself among them, oldest first."""
        if not entry.batches:
            return [entry]
        return [e for e in self._entries if e.group == entry.group]

    def _batch_of(self, entry: QueuedWork) -> list[QueuedWork]:
        """A request's batch, without those that would overtake another request once too often."""
        batch = self._same_batch(entry)[: self._max_batch]
        others = [e for e in self._entries if e not in batch]
        if not others:
            return batch
        oldest = self._entries.index(others[0])  # it has been overtaken most often
        before = [e for e in batch if self._entries.index(e) < oldest]
        after = [e for e in batch if self._entries.index(e) > oldest]
        return before + after[: OVERTAKES - others[0].overtaken]

    def _count_overtaken(self, batch: list[QueuedWork]) -> None:
        later = 0
        for entry in reversed(self._entries):
            if entry in batch:
                later += 1
            else:
                entry.overtaken += later
