"""Points where long work can stop or pause: between tiles and windows, and before writing a file.

Work runs in a thread, which nothing can interrupt from outside. So code that may take long calls
`allow_interruption` where it can stop, and the code that runs the work sets with `interruptible`
what happens there. Where nothing is set, as on the command line, nothing happens.

`map_tiles` has such a point before each tile, also where it works on several tiles at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

TileT = TypeVar("TileT")
ResultT = TypeVar("ResultT")

_hook: ContextVar[Callable[[], None] | None] = ContextVar("interruption hook", default=None)


class WorkAbandoned(Exception):
    """Nobody waits for the result of this work any more; no client sees this error."""


def allow_interruption() -> None:
    """Let the code that runs this work pause it here, or stop it.

    Raises:
        WorkAbandoned: nobody waits for the result any more.
    """
    hook = _hook.get()
    if hook is not None:
        hook()


@contextmanager
def interruptible(hook: Callable[[], None]) -> Iterator[None]:
    """Call `hook` at every interruption point that this thread reaches inside the block."""
    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)


def map_tiles(
    work: Callable[[TileT], ResultT], tiles: Sequence[TileT], at_once: int
) -> Iterator[ResultT]:
    """Yield the result of the work on each tile, in order; at most `at_once` are worked on at once.

    One more result may wait to be taken, so memory is bounded by that of `at_once` tiles and the
    results of one. The work runs in threads of its own, without the hook of `interruptible`, unless
    there is one tile or `at_once` is 1.

    Raises:
        WorkAbandoned: see `allow_interruption`. Whatever the work raises: the error of the first
            tile in order. Both wait for the tiles that are being worked on.
    """
    if min(at_once, len(tiles)) < 2:
        for tile in tiles:
            allow_interruption()
            yield work(tile)
        return
    results: deque[Future[ResultT]] = deque()
    threads = ThreadPoolExecutor(at_once, thread_name_prefix="rankpress-tile")
    try:
        for tile in tiles:
            allow_interruption()
            results.append(threads.submit(work, tile))
            if len(results) > at_once:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
