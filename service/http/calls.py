"""Blocking calls from the event loop, each kind in threads of its own, so that one stalls no other.

The kinds are the database of the jobs, the files of the jobs, the object store, the reading of
image headers, and the files of bodies that arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.errors import Saturated

T = TypeVar("T")

MAX_CALLS = 256
"""Calls of one kind that may wait or run; more come only when what they ask does not answer."""

LAST_S = 1.0
"""Seconds in which calls that run may end once no more are begun."""


class BlockingCalls:
    """A bounded pool of threads for one kind of call. Use from the event loop's thread."""

    def __init__(self, name: str, threads: int, late: Callable[[str], Exception]) -> None:
        """Make the pool.

        Args:
            name: what is asked, for messages and thread names, such as "object store".
            threads: calls that run at a time.
            late: makes the exception for a call without an answer in time, given a message.
        """
        self._name, self._late = name, late
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._asked: set[asyncio.Future[Any]] = set()

    @property
    def waiting(self) -> int:
        """Calls that wait or run."""
        return len(self._asked)

    async def __call__(self, call: Callable[[], T], timeout_s: float) -> T:
        """What a call returns. A call that nobody waits for any more keeps its thread.

        Raises:
            Saturated: too many calls wait. Exception: what `late` makes, or the call raises.
        """
        if self.waiting >= MAX_CALLS:
            raise Saturated(f"{self.waiting} calls of the {self._name} wait already", 5)
        asked = self.begin(call)
        try:
            return await asyncio.wait_for(asyncio.shield(asked), timeout_s)
        except TimeoutError:
            if asked.done():  # the call itself raised it
                raise
            raise self._late(f"the {self._name} gave no answer in {timeout_s:g} s") from None

    def begin(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call, however many wait, and do not wait for it."""
        asked = asyncio.get_running_loop().run_in_executor(self._pool, call)
        self._asked.add(asked)
        asked.add_done_callback(self._note_answer)
        return asked

    async def close(self) -> None:
        """Begin no further call, and give those that run a moment; `waiting` are left."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._asked:
            await asyncio.wait(self._asked, timeout=LAST_S)

    def _note_answer(self, asked: asyncio.Future[T]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()  # of one that nobody waits for any more
