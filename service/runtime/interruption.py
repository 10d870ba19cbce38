"""Where long work can be stopped or paused: between tiles and windows, and before writing a file.

Work runs in a thread, which nothing can interrupt from outside. So code that may take long calls
`allow_interruption` at points where it could stop, and whoever runs the work says with
`interruptible` what happens there. Without one, as on the command line, nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_hook: ContextVar[Callable[[], None] | None] = ContextVar("interruption hook", default=None)


class WorkAbandoned(Exception):
    """Nobody waits for the result of this work any more; it never reaches a caller."""


def allow_interruption() -> None:
    """Let whoever runs this work pause it here, or stop it.

    Raises:
        WorkAbandoned: the result is not wanted any more.
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
