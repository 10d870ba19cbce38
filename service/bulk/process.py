"""A worker process of this machine: it opens its engine once and does shards, or single rows.

It ends when the process that started it ends, however that is. Objects between the two go through
a pipe that no other process has.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from service.bulk.reports import RowReport
from service.bulk.shards import Shard, Totals
from service.bulk.sources import SourceFile
from service.errors import BadParameter, MissingExtra, RankpressError, RunStopped

if TYPE_CHECKING:
    from service.bulk.work import ShardWork, ShardWorker

WATCHDOG_EXIT_CODE: Final = 1
"""The exit code of a process that its watchdog has ended, as faulthandler has it."""

STOP_S: Final = 10.0
"""Seconds that a process may take to end when it is asked to, before it is killed."""

_FIRST_TO_KILL: Final = "1000"
"""Highest wish of a Linux process to be ended where there is no memory left."""


@dataclass(frozen=True)
class Opened:
    """A message: the process has opened its engine."""


@dataclass(frozen=True)
class Stopped:
    """A message: the run cannot go on, for this reason."""

    kind: str
    reason: str

    @classmethod
    def of(cls, error: Exception) -> Stopped:
        """Return the message for an error."""
        if isinstance(error, RankpressError):
            kinds = (k for k in (BadParameter, MissingExtra) if isinstance(error, k))
            return cls(next((k.__name__ for k in kinds), ""), str(error))
        return cls("", f"unexpected {type(error).__name__}: {error}")

    def error(self) -> RankpressError:
        """Return the error to raise where the message arrives."""
        kinds = {k.__name__: k for k in (BadParameter, MissingExtra)}
        return kinds.get(self.kind, RunStopped)(self.reason)


@dataclass(frozen=True)
class _RowRequest:
    file: SourceFile
    replace: bool


class ShardProcess:
    """A worker process, as the process that started it has it.

    Attributes:
        connection: to wait for what comes from it: Opened, Stopped, the Totals of rows and the
            ShardOutcomes of shards. It ends with EOFError when the process has ended.
    """

    def __init__(self, work: ShardWork, *, expendable: bool = False) -> None:
        """Start a process for some work; an expendable one is killed first without memory."""
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._timeout_s = work.timeout_s
        # A daemonic process may have no children, and a worker may need some.
        self._process = context.Process(
            target=_serve, args=(theirs, work, expendable), name="bulk-worker", daemon=expendable
        )
        self._process.start()
        theirs.close()

    def submit(self, shard: Shard) -> None:
        """Give it a shard."""
        with suppress(BrokenPipeError):  # it has ended, which reading tells
            self.connection.send(shard)

    def wait_until_open(self) -> None:
        """Wait for its engine. Raises RunStopped, or what `ShardWork.open` has raised."""
        message = self._receive()
        if isinstance(message, Stopped):
            raise message.error()
        if message is None:
            raise RunStopped(f"a worker process {self.how_it_ended()} while it opened its engine")

    def do_row(self, file: SourceFile, replace: bool) -> RowReport | None:
        """Have a row done, see `ShardWorker.do_row`; None if the process has died of it."""
        with suppress(BrokenPipeError):
            self.connection.send(_RowRequest(file, replace))
        message = self._receive()
        if isinstance(message, Stopped):
            raise message.error()
        assert message is None or isinstance(message, RowReport)
        return message

    def how_it_ended(self) -> str:
        """Say how a process that died has ended, after "the process"."""
        self._process.join(STOP_S)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"was ended by {name}{hint}"
        if code == WATCHDOG_EXIT_CODE:
            return f"made no progress for {self._timeout_s:g} s"
        return f"ended with exit code {code}"

    def ask_to_stop(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._process.terminate()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()

    def _receive(self) -> Any:
        """Return the next message; None if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None


class Watchdog:
    """Ends the process unless it is restarted in time, also in the middle of a call into C.

    It watches inside `with`. A process has one at a time: it is faulthandler's.
    """

    def __init__(self, timeout_s: float) -> None:
        """Allow so many seconds without a restart."""
        self._timeout_s = timeout_s
        self._out: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._out = open(os.devnull, "wb")  # the traceback of a hang is of no use to users
        self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self._out is not None:
            self._out.close()
            self._out = None

    def restart(self) -> None:
        """Begin to count anew."""
        if self._out is not None:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._out)

    def stop(self) -> None:
        """Count no longer."""
        faulthandler.cancel_dump_traceback_later()


def _serve(connection: Connection, work: ShardWork, expendable: bool) -> None:
    """Answer requests until there are no more: the work of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the one that started it as well
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    if expendable:
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_KILL)
    try:
        worker = work.open()
        if expendable:  # so that the engine is not taken for the first row's death
            worker.prepare()
        connection.send(Opened())
        while True:
            connection.send(_answer(worker, connection.recv(), connection.send))
    except (EOFError, BrokenPipeError):  # the one that started it has ended
        pass
    except Exception as error:
        connection.send(Stopped.of(error))


def _answer(worker: ShardWorker, request: object, on_row: Callable[[Totals], None]) -> object:
    if isinstance(request, _RowRequest):
        return worker.do_row(request.file, request.replace)
    assert isinstance(request, Shard)
    return worker.do(request, on_row)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is the end
    raise SystemExit
