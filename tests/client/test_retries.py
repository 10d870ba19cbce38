"""When calls are tried again, by a clock of the test."""

from __future__ import annotations

import time
from email.utils import formatdate

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankpress_client.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    DamagedAnswerError,
    RankpressClientError,
    TimedOutError,
    UnexpectedAnswerError,
    transport_error,
)
from rankpress_client.events import MAX_LINE_BYTES, EventParser
from rankpress_client.retries import Attempts, Repeat, RetryPolicy, may_repeat, retry_after_s


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def attempts(clock: Time, jitter: float = 1.0, **policy: float) -> Attempts:
    return Attempts(RetryPolicy(**policy), Repeat.ALWAYS, clock, lambda: jitter)  # type: ignore[arg-type]


def refused(retry_after_s: float | None = None) -> RankpressClientError:
    return UnexpectedAnswerError("busy", 503, retry_after_s)


def test_pauses_double_up_to_a_limit() -> None:
    ours = attempts(Time(), first_pause_s=1.0, longest_pause_s=5.0)
    assert [ours.pause_s(refused()) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_pauses_are_a_random_part_of_their_limit() -> None:
    ours = attempts(Time(), jitter=0.25, first_pause_s=1.0)
    assert [ours.pause_s(refused()) for _ in range(3)] == [0.25, 0.5, 1.0]


def test_a_pause_is_never_shorter_than_retry_after() -> None:
    assert attempts(Time(), jitter=0.0).pause_s(refused(17.0)) == 17
    assert attempts(Time(), jitter=1.0, first_pause_s=2.0).pause_s(refused(17.0)) == 19


def test_the_error_is_raised_after_the_last_retry() -> None:
    ours, error = attempts(Time(), max_retries=2), refused()
    ours.pause_s(refused())
    ours.pause_s(refused())
    with pytest.raises(UnexpectedAnswerError) as raised:
        ours.pause_s(error)
    assert raised.value is error


def test_nobody_waits_for_an_attempt_that_would_be_too_late() -> None:
    clock = Time()
    ours = attempts(clock, jitter=0.0, max_seconds=20.0)
    assert ours.pause_s(refused(12.0)) == 12
    clock.now_s += 12
    assert ours.remaining_s == 8
    with pytest.raises(UnexpectedAnswerError):
        ours.pause_s(refused(8.0))
    clock.now_s += 8
    with pytest.raises(TimedOutError):
        ours.check()


def test_no_time_limit_of_an_attempt_is_longer_than_what_is_left() -> None:
    limits = attempts(Time(), max_seconds=20.0).limited(httpx.Timeout(5.0, read=150.0, pool=None))
    assert limits.as_dict() == {"connect": 5.0, "read": 20.0, "write": 5.0, "pool": 20.0}


@pytest.mark.parametrize("repeat", Repeat)
@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (ConnectionFailedError(), {Repeat.ALWAYS, Repeat.UNDONE}),
        (refused(), {Repeat.ALWAYS, Repeat.UNDONE}),
        (UnexpectedAnswerError("", 429), {Repeat.ALWAYS, Repeat.UNDONE}),
        (UnexpectedAnswerError("", 502), {Repeat.ALWAYS}),
        (UnexpectedAnswerError("", 504), {Repeat.ALWAYS}),
        (ConnectionLostError(), {Repeat.ALWAYS}),
        (TimedOutError(), {Repeat.ALWAYS}),
        (DamagedAnswerError(), {Repeat.ALWAYS}),
        (UnexpectedAnswerError("", 500), set()),
        (UnexpectedAnswerError("", 200), set()),
        (UnexpectedAnswerError("", 422), set()),
    ],
)
def test_what_may_have_been_done_is_repeated_only_where_twice_is_once(
    error: RankpressClientError, tried: set[Repeat], repeat: Repeat
) -> None:
    assert may_repeat(error, repeat) is (repeat in tried)


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    def read(**headers: str) -> float | None:
        return retry_after_s(httpx.Headers({n.replace("_", "-"): v for n, v in headers.items()}))

    assert read() is None
    assert read(Retry_After="30") == 30
    assert read(Retry_After="soon") is None
    assert read(Retry_After="-3") is None
    date = "Fri, 31 Dec 1999 23:59:59 GMT"
    assert read(Retry_After=date, Date="Fri, 31 Dec 1999 23:59:29 GMT") == 30
    assert read(Retry_After=date, Date="Sat, 01 Jan 2000 00:00:09 GMT") == 0
    later = read(Retry_After=formatdate(time.time() + 100, usegmt=True))
    assert later is not None and 90 < later <= 100


def test_errors_of_httpx_become_ours() -> None:
    kinds = {
        httpx.ConnectError: ConnectionFailedError,
        httpx.ConnectTimeout: ConnectionFailedError,
        httpx.ReadTimeout: TimedOutError,
        httpx.WriteTimeout: TimedOutError,
        httpx.ReadError: ConnectionLostError,
        httpx.RemoteProtocolError: ConnectionLostError,
        httpx.UnsupportedProtocol: UnexpectedAnswerError,
    }
    for theirs, ours in kinds.items():
        error = transport_error(theirs("why"))
        assert type(error) is ours and "why" in str(error)


STREAM = (
    b"retry: 2000\n\n: still here\r\n\r\nid: 4.running\nevent: x\ndata: {\n"
    b"data:  1\xe2\x80\xa8}\n\nid: 5.succeeded\nevent: end\ndata: two\n\ndata: cut"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=9))
def test_events_do_not_depend_on_how_their_bytes_arrive(cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(STREAM)]
    parser, events = EventParser(), list[str]()
    for start, end in zip([0, *ends], ends, strict=False):
        events += parser.feed(STREAM[start:end])
    assert events == ["{\n 1\u2028}", "two"]
    assert (parser.last_id, parser.retry_s) == ("5.succeeded", 2.0)
    parser.begin()
    assert list(parser.feed(b"data: new\n\n")) == ["new"]


def test_an_endless_line_is_no_event() -> None:
    with pytest.raises(UnexpectedAnswerError):
        list(EventParser().feed(b"x" * (MAX_LINE_BYTES + 1)))
