"""Protection of loaded models against forks: a child has their memory but not their threads.

PyTorch and ONNX Runtime divide a call among threads that they started. `os.fork` copies only the
thread that calls it, so in the child such a call would wait for ever, and so would the end of an
ONNX Runtime session. A child must load its own models.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from service.errors import ForkedProcess


def check_process(opened_in: int) -> None:
    """Refuse models that were loaded before this process was forked.

    Args:
        opened_in: id of the process that loaded them.

    Raises:
        ForkedProcess: it is another process than this one.
    """
    here = os.getpid()
    if here != opened_in:
        raise ForkedProcess(
            f"the models were loaded in process {opened_in}, and this is process {here}, a fork of "
            "it without its threads: load them in this process (gunicorn without --preload), or "
            "start it by 'spawn' (multiprocessing.get_context, DataLoader's "
            "multiprocessing_context)"
        )


class ForkSafeSession:
    """An ONNX Runtime session that a forked child can drop and end without waiting."""

    def __init__(self, session: Any, weights: object = None) -> None:
        """Wrap an onnxruntime.InferenceSession that this process has just opened.

        The session reads some of its weights where they are, so they are kept as long.
        """
        self._session, self._weights, self._process = session, weights, os.getpid()
        self._kept = ctypes.py_object(session)

    def run(self, names: list[str], feeds: dict[str, Any]) -> Any:
        """Return the outputs of those names, see InferenceSession.run."""
        return self._session.run(names, feeds)

    # Defaults, because at the end of the interpreter the module's own names may be gone.
    def __del__(self, getpid: Any = os.getpid, keep: Any = ctypes.pythonapi.Py_IncRef) -> None:
        """Keep the session for ever in a fork: its end waits for threads that are not there."""
        if getpid() != self._process:
            keep(self._kept)
