"""Handles of adaptation jobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing

from . import calls
from .errors import RankpressClientError, TimedOutError
from .events import JobWatch, succeeded
from .files import Destination
from .results import JobState, StreamResult
from .sending import AsyncSender, Sender

OnProgress = Callable[[JobState], object]


class AdaptJob:
    """A job that adapts the codec to one image.

    Attributes:
        id: by which any client of the server finds the job.
        state: of the job when it was last seen.
    """

    def __init__(self, sender: Sender, state: JobState) -> None:
        """Take a job as a server has described it."""
        self._sender, self.id, self.state = sender, state.id, state

    def refresh(self) -> JobState:
        """Return the present state."""
        self.state = self._sender.send(calls.job(self.id))
        return self.state

    def wait(self, on_progress: OnProgress | None = None, timeout: float | None = None) -> JobState:
        """Wait until the job has succeeded, and return its last state.

        To stop waiting does not stop the job: `cancel` does.

        Args:
            on_progress: is called with the state now and after every change.
            timeout: seconds to wait at most; None for no limit.

        Raises:
            JobFailedError, JobCancelledError: the job ended so.
            WaitTimeoutError: it has not ended in time.
            RankpressClientError: the server cannot be asked about the job.
        """
        for state in self._watch(JobWatch(self.id, self._sender.clock, timeout)):
            if on_progress is not None:
                on_progress(state)
        return succeeded(self.state)

    def events(self) -> Generator[JobState, None, None]:
        """Yield the state now and after every change, until the job has ended.

        A stream of events that ends too early is continued. Raises RankpressClientError: the server
        cannot be asked about the job.
        """
        return self._watch(JobWatch(self.id, self._sender.clock))

    def result(self, into: Destination | None = None) -> StreamResult:
        """Return the stream of a job that has succeeded.

        Raises:
            JobUnfinishedError: it has not ended. JobEndedError: it ended otherwise.
        """
        return self._sender.send(calls.result_stream(self.id, into))

    def best(self, into: Destination | None = None) -> StreamResult:
        """Return the best stream so far, whatever has become of the job.

        Raises:
            JobUnfinishedError: there is none yet.
        """
        return self._sender.send(calls.best_stream(self.id, into))

    def cancel(self) -> JobState:
        """Stop the job and return its state. Its best stream so far is kept.

        Posting the image again resumes the work. Raises JobEndedError: the job has succeeded or
        failed.
        """
        self.state = self._sender.send(calls.cancel_job(self.id))
        return self.state

    def _watch(self, watch: JobWatch) -> Generator[JobState, None, None]:
        while not watch.has_ended:
            for state in self._stream(watch):
                self.state = state
                yield state
            if watch.has_ended:
                return
            for state in watch.see(self._state_for(watch)):
                self.state = state
                yield state
            if not watch.has_ended:
                self._sender.sleep(watch.pause_s())

    def _state_for(self, watch: JobWatch) -> JobState:
        watch.check_time()
        try:
            return self._sender.send(calls.job(self.id), watch.remaining_s)
        except TimedOutError:
            watch.check_time()
            raise

    def _stream(self, watch: JobWatch) -> Generator[JobState, None, None]:
        """Yield states from one stream of events, for as long as it lasts."""
        if not watch.may_stream:
            return
        try:
            with self._sender.pieces(watch.begin_stream(), watch.silence_s) as pieces:
                for piece in pieces:
                    yield from watch.feed(piece)
                    if watch.has_ended or not watch.may_stream:
                        return
        except RankpressClientError as error:
            watch.accept(error)


class AsyncAdaptJob:
    """A job that adapts the codec to one image.

    Attributes:
        id: by which any client of the server finds the job.
        state: of the job when it was last seen.
    """

    def __init__(self, sender: AsyncSender, state: JobState) -> None:
        """Take a job as a server has described it."""
        self._sender, self.id, self.state = sender, state.id, state

    async def refresh(self) -> JobState:
        """Return the present state."""
        self.state = await self._sender.send(calls.job(self.id))
        return self.state

    async def wait(
        self, on_progress: OnProgress | None = None, timeout: float | None = None
    ) -> JobState:
        """Wait until the job has succeeded, and return its last state.

        To stop waiting does not stop the job: `cancel` does.

        Args:
            on_progress: is called with the state now and after every change.
            timeout: seconds to wait at most; None for no limit.

        Raises:
            JobFailedError, JobCancelledError: the job ended so.
            WaitTimeoutError: it has not ended in time.
            RankpressClientError: the server cannot be asked about the job.
        """
        async with aclosing(self._watch(JobWatch(self.id, self._sender.clock, timeout))) as states:
            async for state in states:
                if on_progress is not None:
                    on_progress(state)
        return succeeded(self.state)

    def events(self) -> AsyncGenerator[JobState, None]:
        """Yield the state now and after every change, until the job has ended.

        A stream of events that ends too early is continued. Raises RankpressClientError: the server
        cannot be asked about the job.
        """
        return self._watch(JobWatch(self.id, self._sender.clock))

    async def result(self, into: Destination | None = None) -> StreamResult:
        """Return the stream of a job that has succeeded.

        Raises:
            JobUnfinishedError: it has not ended. JobEndedError: it ended otherwise.
        """
        return await self._sender.send(calls.result_stream(self.id, into))

    async def best(self, into: Destination | None = None) -> StreamResult:
        """Return the best stream so far, whatever has become of the job.

        Raises:
            JobUnfinishedError: there is none yet.
        """
        return await self._sender.send(calls.best_stream(self.id, into))

    async def cancel(self) -> JobState:
        """Stop the job and return its state. Its best stream so far is kept.

        Posting the image again resumes the work. Raises JobEndedError: the job has succeeded or
        failed.
        """
        self.state = await self._sender.send(calls.cancel_job(self.id))
        return self.state

    async def _watch(self, watch: JobWatch) -> AsyncGenerator[JobState, None]:
        while not watch.has_ended:
            async with aclosing(self._stream(watch)) as states:
                async for state in states:
                    self.state = state
                    yield state
            if watch.has_ended:
                return
            for state in watch.see(await self._state_for(watch)):
                self.state = state
                yield state
            if not watch.has_ended:
                await self._sender.sleep(watch.pause_s())

    async def _state_for(self, watch: JobWatch) -> JobState:
        watch.check_time()
        try:
            return await self._sender.send(calls.job(self.id), watch.remaining_s)
        except TimedOutError:
            watch.check_time()
            raise

    async def _stream(self, watch: JobWatch) -> AsyncGenerator[JobState, None]:
        """Yield states from one stream of events, for as long as it lasts."""
        if not watch.may_stream:
            return
        try:
            async with self._sender.pieces(watch.begin_stream(), watch.silence_s) as pieces:
                async for piece in pieces:
                    for state in watch.feed(piece):
                        yield state
                    if watch.has_ended or not watch.may_stream:
                        return
        except RankpressClientError as error:
            watch.accept(error)
