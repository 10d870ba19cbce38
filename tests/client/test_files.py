"""What goes up and comes down: paths, bytes and file objects, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from rankpress_client import AsyncRankpress, Rankpress, RetryPolicy
from rankpress_client.errors import ConnectionLostError, TimedOutError, UnexpectedAnswerError
from rankpress_client.files import MEMORY_BYTES, PIECE_BYTES

BODY = os.urandom(3 * PIECE_BYTES + 7)


class Echo(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers with the body of the request, after it has failed as often as it should.

    Attributes:
        failures: what is done before. lengths: Content-Length of every request.
    """

    def __init__(self, *failures: Callable[[], httpx.Response]) -> None:
        self.failures, self.lengths = list(failures), list[int]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request, request.read())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.answer(request, await request.aread())

    def answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        assert "transfer-encoding" not in request.headers
        self.lengths.append(int(request.headers["content-length"]))
        assert self.lengths[-1] == len(body)
        if self.failures:
            return self.failures.pop(0)()
        return httpx.Response(200, content=body)


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that ends too early."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"some"
        raise httpx.RemoteProtocolError("cut")

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


def refuse() -> httpx.Response:
    return httpx.Response(503)


def cut() -> httpx.Response:
    return httpx.Response(200, stream=Cut())


def never() -> httpx.Response:
    raise AssertionError("a whole request has arrived")


class Unseekable(io.RawIOBase):
    """A pipe."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(buffer)


def both(
    failures: Sequence[Callable[[], httpx.Response]],
    source: Callable[[], Any],
    into: Any = None,
    retries: int = 3,
) -> list[Any]:
    """What `compress` returns to threads and to asyncio, each after the same failures."""
    policy = RetryPolicy(max_retries=retries, first_pause_s=0)

    async def law() -> Any:
        http = httpx.AsyncClient(transport=Echo(*failures))
        async with http, AsyncRankpress("http://test", http=http, retries=policy) as client:
            return await client.compress(source(), into)

    transport = Echo(*failures)
    with (
        httpx.Client(transport=transport) as http,
        Rankpress("http://test", http=http, retries=policy) as client,
    ):
        result = client.compress(source(), into)
    assert len(transport.lengths) == len(failures) + 1
    return [result, asyncio.run(law())]


@pytest.mark.parametrize(
    "kind", ["path", "text", "bytes", "view", "file", "middle", "pipe", "none"]
)
def test_every_source_is_sent_whole_and_again_after_a_failure(kind: str, tmp_path: Path) -> None:
    path, expected = tmp_path / "body", BODY
    path.write_bytes(BODY)

    def middle() -> io.BytesIO:
        file = io.BytesIO(b"before" + BODY)
        file.seek(6)
        return file

    sources: dict[str, Callable[[], Any]] = {
        "path": lambda: path,
        "text": lambda: str(path),
        "bytes": lambda: BODY,
        "view": lambda: memoryview(BODY),
        "file": lambda: io.BytesIO(BODY),
        "middle": middle,
        "pipe": lambda: io.BufferedReader(Unseekable(BODY)),
        "none": lambda: b"",
    }
    expected = b"" if kind == "none" else BODY
    for failures in ((), (refuse, cut), (cut, refuse, cut)):
        for result in both(failures, sources[kind]):
            assert result.data == expected
            assert result.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_file_is_read_piece_by_piece() -> None:
    sizes = list[int]()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            sizes.append(-1 if size is None else size)
            return super().read(size)

    class Counting(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.SyncByteStream)
            return httpx.Response(200, text=str(sum(map(len, request.stream))))

    with httpx.Client(transport=Counting()) as http, Rankpress("http://test", http=http) as client:
        assert client.compress(Watched(BODY)).data == str(len(BODY)).encode()
    assert sizes and 0 < min(sizes) <= max(sizes) <= PIECE_BYTES


def test_an_answer_is_written_whole_and_keeps_the_mode_of_what_it_replaces(tmp_path: Path) -> None:
    target = tmp_path / "link"
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o600)
    target.symlink_to(tmp_path / "old")
    for result in both((cut, refuse), lambda: BODY, target):
        assert (tmp_path / "old").read_bytes() == BODY and target.is_symlink()
        assert (tmp_path / "old").stat().st_mode & 0o777 == 0o600
        assert result.size_bytes == len(BODY)
        with pytest.raises(ValueError, match="destination"):
            result.data  # noqa: B018
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("failure", [cut, lambda: httpx.Response(500)])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: Callable[[], httpx.Response]
) -> None:
    target, file = tmp_path / "target", io.BytesIO()
    target.write_bytes(b"old")
    for into in (target, file):
        with pytest.raises((ConnectionLostError, UnexpectedAnswerError)):
            both((failure,), lambda: b"x", into, retries=0)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    assert file.getvalue() == b""


def test_large_answers_go_to_file_objects_and_to_pipes_whole(tmp_path: Path) -> None:
    file, large = io.BytesIO(), BODY * (1 + MEMORY_BYTES // len(BODY))
    both((cut,), lambda: large, file)
    assert file.getvalue() == large * 2
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read_bytes)
        with httpx.Client(transport=Echo()) as http, Rankpress("http://test", http=http) as client:
            client.compress(large, pipe)
        assert received.result() == large and pipe.is_fifo()


def test_what_cannot_be_read_or_written_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    for source, into, error in (
        (tmp_path / "missing", None, FileNotFoundError),
        (b"x", tmp_path / "missing" / "target", FileNotFoundError),
        (3, None, TypeError),
        (b"x", 3, TypeError),
    ):
        with pytest.raises(error):
            both((never,), lambda source=source: source, into)
    with pytest.raises(TypeError, match="bytes"):
        both((never,), lambda: io.StringIO("text"))


def test_a_file_that_shrinks_is_not_sent_half() -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return b"" if self.tell() else super().read(size)

    with pytest.raises(OSError, match="shorter"):
        both((never,), lambda: Shrinking(BODY))


def test_the_time_limit_of_a_call_holds_during_its_transfers() -> None:
    now_s = iter(range(0, 10_000, 10))
    policy = RetryPolicy(max_seconds=45)
    with httpx.Client(transport=Echo()) as http:
        client = Rankpress(
            "http://test", http=http, retries=policy, clock=lambda: float(next(now_s))
        )
        with pytest.raises(TimedOutError):
            client.compress(BODY)


def test_only_urls_of_http_are_taken() -> None:
    wrong = ("localhost:8000", "ftp://host", "http://", "file:///etc", "http://a:b", "http://a/?b=c")
    for url in wrong:
        with pytest.raises(ValueError, match="the URL is"):
            Rankpress(url)
