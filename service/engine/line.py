"""Who is next: the line of requests in front of the worker threads, and the rule that reads it.

Oldest first, with one exception: requests for the weights that ran last go before older requests
for others, so that a rate's weights stay live and its requests can share a batch. No request is
ever overtaken more than OVERTAKES times, so no flood of one rate keeps another waiting. What is
taken together is of one group, so a batch never mixes rates. A batch that could still grow is held
back until its oldest request has waited for the window.

Knows no clock and no threads: times are given, and `batching.Admission` runs what is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

OVERTAKES: Final = 8
"""Later requests that may go before an earlier one."""


@dataclass(frozen=True)
class Group:
    """What a request may run beside.

    Attributes:
        weights: the weights it needs.
        batch: requests with equal weights and batch may be worked on in one call; None: alone.
    """

    weights: Hashable
    batch: Hashable = None


@dataclass(eq=False)
class Entry:
    """A request in the line: its work, its answer, when it came, and how many passed it since.

    Attributes:
        size: how much work it is, in a unit that is one for all.
        abandoned: whether nobody waits for the answer any more.
    """

    work: Callable[[], Any]
    done: asyncio.Future[Any]
    since_s: float
    group: Group | None = None
    size: float = 1.0
    overtaken: int = 0
    abandoned: bool = False

    @property
    def batches(self) -> bool:
        """Whether it may be worked on together with others."""
        return self.group is not None and self.group.batch is not None


class Line:
    """Requests that wait, in order of arrival.

    Args:
        max_batch: requests that are taken together at most.
        window_s: seconds that a request may wait for others of its batch.
    """

    def __init__(self, max_batch: int = 1, window_s: float = 0.0) -> None:
        self._max_batch, self._window_s = max_batch, window_s
        self._entries: list[Entry] = []
        self._weights: Hashable = None

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """The requests in order of arrival."""
        return iter(self._entries)

    def append(self, entry: Entry) -> None:
        """Let a request join the end."""
        self._entries.append(entry)

    def discard(self, entry: Entry) -> None:
        """Let a request leave, if it is still here."""
        if entry in self._entries:
            self._entries.remove(entry)

    def take(self, now_s: float) -> list[Entry]:
        """The requests to work on next, removed; empty when none waits or none is due yet."""
        self._entries = [e for e in self._entries if not e.done.done()]
        due = [e for e in self._entries if self._due_s(e) <= now_s]
        if not due:
            return []
        live = [e for e in due if e.group is not None and e.group.weights == self._weights]
        taken = self._batch_of(live[0]) if live else []
        taken = taken or self._batch_of(due[0]) or self._batch_of(self._entries[0])
        self._count_overtaken(taken)
        self._entries = [e for e in self._entries if e not in taken]
        if taken[0].group is not None:
            self._weights = taken[0].group.weights
        return taken

    def due_s(self) -> float | None:
        """When the next request is due, on the clock of `since_s`; None when none waits."""
        return min((self._due_s(e) for e in self._entries), default=None)

    def _due_s(self, entry: Entry) -> float:
        """When an entry need no longer wait for others: at once if its batch is full."""
        if self._max_batch == 1 or not entry.batches or len(self._same(entry)) >= self._max_batch:
            return entry.since_s
        return entry.since_s + self._window_s

    def _same(self, entry: Entry) -> list[Entry]:
        """The entries that an entry can share a batch with, itself among them, oldest first."""
        if not entry.batches:
            return [entry]
        return [e for e in self._entries if e.group == entry.group]

    def _batch_of(self, entry: Entry) -> list[Entry]:
        """An entry's batch, short of what would pass another entry once too often."""
        batch = self._same(entry)[: self._max_batch]
        others = [e for e in self._entries if e not in batch]
        if not others:
            return batch
        passed = self._entries.index(others[0])  # the oldest; it has been passed most often
        before = [e for e in batch if self._entries.index(e) < passed]
        after = [e for e in batch if self._entries.index(e) > passed]
        return before + after[: OVERTAKES - others[0].overtaken]

    def _count_overtaken(self, taken: list[Entry]) -> None:
        later = 0
        for entry in reversed(self._entries):
            if entry in taken:
                later += 1
            else:
                entry.overtaken += later
