"""Parts of a connection that replace those of Uvicorn: when it is read, and how it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class PausableFlow(FlowControl):
    """Uvicorn's flow control of a connection whose reading is paused at times."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._reading = transport
        self.is_paused = False

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self.is_paused = True
        self._reading.pause_reading()

    def resume(self) -> None:
        """Read again, unless Uvicorn itself has paused reading."""
        self.is_paused = False
        if not self.read_paused:
            self._reading.resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless this class has paused reading."""
        super().resume_reading()
        if self.is_paused:
            self._reading.pause_reading()


class ResponseTransport(asyncio.Transport):
    """The transport that an answer is written to; its protocol decides how it is closed."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport, self._close = transport, close

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection once everything has been sent."""
        self._close()
