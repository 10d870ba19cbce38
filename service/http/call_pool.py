"""Blocking calls made from the event loop, each kind in a pool of threads of its own.

A slow service then delays only the calls that need it. The kinds are: the jobs' database, the
jobs' files, the object store, the reading of image headers, the deriving of weights for web pages,
and the files of request bodies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from service.errors import Saturated

T = TypeVar("T")

MAX_CALLS: Final = 256
"""Calls of one pool that may wait or run. More than this come only if the service is stuck."""

CLOSE_TIMEOUT_S: Final = 1.0
"""Seconds that running calls get to end when a pool is closed."""


class CallPool:
    """A bounded pool of threads for one kind of call. Use from the event loop's thread."""

    def __init__(self, name: str, threads: int, timeout_error: Callable[[str], Exception]) -> None:
        """Make a pool that runs so many calls at the same time.

        Args:
            name: the service that is called, for messages and thread names: "object store".
            timeout_error: makes the exception for a call that took too long, given a message.
        """
        self._name, self._timeout_error = name, timeout_error
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._futures: set[asyncio.Future[Any]] = set()

    @property
    def pending(self) -> int:
        """Number of calls that wait or run."""
        return len(self._futures)

    async def __call__(self, call: Callable[[], T], timeout_s: float) -> T:
        """Run a call in a thread and return its result.

        A call that takes too long is not interrupted: it keeps its thread until it returns.

        Raises:
            Saturated: too many calls are pending.
            Exception: the call raised it, or `timeout_error` made it.
        """
        if self.pending >= MAX_CALLS:
            raise Saturated(f"{self.pending} calls of the {self._name} are already pending", 5)
        future = self.submit(call)
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_s)
        except TimeoutError:
            if future.done():  # the call itself raised TimeoutError
                raise
            message = f"the {self._name} gave no answer in {timeout_s:g} s"
            raise self._timeout_error(message) from None

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Start a call without waiting for it, however many are pending."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._futures.add(future)
        future.add_done_callback(self._forget)
        return future

    async def close(self) -> None:
        """Start no more calls and give running ones a moment to end; `pending` of them remain."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._futures:
            await asyncio.wait(self._futures, timeout=CLOSE_TIMEOUT_S)

    def _forget(self, future: asyncio.Future[T]) -> None:
        self._futures.discard(future)
        if not future.cancelled():
            future.exception()  # mark it as retrieved, in case nobody waits for it any more
