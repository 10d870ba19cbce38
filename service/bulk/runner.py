"""What a runner is, a scheduler that has shards done by workers, and the one of this machine.

The manifest, the work on a shard and its report do not depend on the runner, so all runners give
the same objects and reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Final, Protocol

from service.bulk.process import Opened, ShardProcess, Stopped
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.bulk.work import ShardWork
from service.errors import RunStopped

MOST_FAILED_STARTS: Final = 3
"""Workers, one after the other, that may die before they have opened their engine."""

TICK_S: Final = 0.5
"""Seconds between two calls about progress at most."""


class Runner(Protocol):
    """Has shards done by workers, each a process with an engine of its own.

    A worker process may die in the middle of a shard. The runner then starts another one and gives
    it the shard again; `ShardWorker.do` sees to it that this ends.
    """

    def run(self, shards: Iterable[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        """Do the work on every shard and yield outcomes in the order in which they end.

        Shards are taken only as workers become free, so memory does not grow with their number.
        The workers end when the iterator is closed.

        Raises:
            RankpressError: raised by `ShardWork.open` or `ShardWorker.do`; the run cannot go on.
        """


@dataclass(eq=False)
class _Slot:
    """A worker process and what it is doing.

    Attributes:
        shard: that it does. done: totals over the rows of it that are done.
        is_open: whether it has opened its engine.
    """

    process: ShardProcess
    shard: Shard | None = None
    done: Totals = Totals()
    is_open: bool = False


class LocalRunner:
    """Runs worker processes, each with an engine of its own; implements `Runner`."""

    def __init__(
        self, workers: int, on_progress: Callable[[Totals], None] = lambda _: None
    ) -> None:
        """Run so many workers at a time.

        Args:
            workers: at least one. on_progress: is called at least every `TICK_S` seconds with the
                totals over the rows that are done in shards that are not.
        """
        self._workers, self._on_progress = workers, on_progress

    def run(self, shards: Iterable[Shard], work: ShardWork) -> Iterator[ShardOutcome]:
        """Have every shard done, see `Runner`."""
        pool = _Pool(self._workers, iter(shards), work)
        try:
            while pool.give_out():
                yield from pool.receive()
                self._on_progress(pool.in_progress)
        finally:
            pool.stop()


class _Pool:
    """The workers of one run."""

    def __init__(self, workers: int, shards: Iterator[Shard], work: ShardWork) -> None:
        self._workers, self._shards, self._work = workers, shards, work
        self._again: deque[Shard] = deque()
        self._slots: list[_Slot] = []
        self._failed_starts = 0

    @property
    def in_progress(self) -> Totals:
        """Totals over the rows that are done in shards that are not."""
        return sum((slot.done for slot in self._slots), Totals())

    def give_out(self) -> bool:
        """Give a shard to every idle worker, starting those that are missing; False at the end."""
        for slot in self._slots:
            if slot.shard is None and (shard := self._next()) is not None:
                self._give(slot, shard)
        while len(self._slots) < self._workers and (shard := self._next()) is not None:
            self._slots.append(_Slot(ShardProcess(self._work)))
            self._give(self._slots[-1], shard)
        return any(slot.shard is not None for slot in self._slots)

    def receive(self) -> Iterator[ShardOutcome]:
        """Wait for messages, and yield the outcomes among them."""
        slots = {slot.process.connection: slot for slot in self._slots}
        for connection in wait(list(slots), TICK_S):
            assert isinstance(connection, Connection)
            slot = slots[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                self._replace(slot)
                continue
            if isinstance(message, Stopped):
                raise message.error()
            if isinstance(message, Opened):
                slot.is_open, self._failed_starts = True, 0
            elif isinstance(message, Totals):
                slot.done += message
            elif isinstance(message, ShardOutcome):
                slot.shard, slot.done = None, Totals()
                yield message

    def stop(self) -> None:
        """End all workers."""
        for slot in self._slots:
            slot.process.ask_to_stop()
        for slot in self._slots:
            slot.process.stop()

    def _next(self) -> Shard | None:
        return self._again.popleft() if self._again else next(self._shards, None)

    def _give(self, slot: _Slot, shard: Shard) -> None:
        slot.shard = shard
        slot.process.submit(shard)

    def _replace(self, slot: _Slot) -> None:
        """Drop a worker that has died; its shard is the next to be given out."""
        how = slot.process.how_it_ended()
        if not slot.is_open:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise RunStopped(f"worker processes die as they start: the last one {how}")
        slot.process.stop()
        self._slots.remove(slot)
        if slot.shard is not None:
            self._again.append(slot.shard)
