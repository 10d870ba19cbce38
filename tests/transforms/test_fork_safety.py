"""Models in a process that was forked after they were loaded are refused at once."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

import pytest

from service.engine.engine import Engine
from service.engine.target import Target
from service.errors import ForkedProcess
from service.picture import Picture
from service.transforms.fork_safety import ForkSafeSession


@pytest.mark.parametrize(
    "work",
    [
        lambda engine, picture, _: engine.compress(picture, 4),
        lambda engine, picture, _: engine.compress(picture, Target(None, 9000, None)),
        lambda engine, picture, _: engine.adapt(picture, 4, effort=1),
        lambda engine, picture, _: engine.fit_latents(picture, 4, effort=1),
        lambda engine, _, data: engine.decompress(data),
        lambda engine, _, __: engine.self_test(),
        lambda engine, _, __: engine.warm(),
    ],
    ids=["compress", "compress_to", "adapt", "fit_latents", "decompress", "self_test", "warm"],
)
def test_an_engine_refuses_in_another_process_than_its_own(
    work: Callable[[Engine, Picture, bytes], object],
    engine: Engine,
    photo: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = engine.compress(photo, 4).data
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    with pytest.raises(ForkedProcess, match=rf"loaded in process {here}, .* process {here + 1}"):
        work(engine, photo, data)


def test_a_batch_of_streams_is_refused_each_with_the_reason(
    engine: Engine, photo: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = engine.compress(photo, 4).data
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    assert [type(one) for one in engine.decompress_batch([data, data])] == [ForkedProcess] * 2


def test_a_session_is_freed_in_the_process_that_opened_it() -> None:
    class Opened:
        def run(self, names: list[str], feeds: dict[str, int]) -> list[int]:
            return [feeds[name] for name in names]

    opened = Opened()
    gone = weakref.ref(opened)
    session = ForkSafeSession(opened)
    del opened
    assert session.run(["a"], {"a": 3}) == [3]
    del session
    assert gone() is None
