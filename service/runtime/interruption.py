"""Points where long work can stop or pause: between tiles and windows, and before writing a file.

Work runs in a thread, which nothing can interrupt from outside. So code that may take long calls
`allow_interruption` where it can stop, and the code that runs the work sets with `interruptible`
what happens there. Where nothing is set, as on the command line, nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
