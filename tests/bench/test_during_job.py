"""The benchmark of requests during a job, against a server that counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.bench import during_job, report
from service.bench.server_load import ServerFailed
from service.settings import Settings

from .stand_in import answering


class Stand:
    """Requests that a stand-in server got, and its behaviour."""

    def __init__(self, works: bool) -> None:
        self.works, self.step, self.running = works, 0, False
        self.asked: list[tuple[str, bool]] = []

    def answer(self, method: str, path: str) -> tuple[int, bytes]:
        self.asked.append((f"{method} {path.partition('?')[0]}", self.running))
        if path.startswith("/compress"):
            return 200, b"stream"
        if path.startswith("/adapt"):
            self.running = True
            return 202, b'{"links": {"self": "/jobs/x"}}'
        if path == "/models":
            return 200, json.dumps({"models": [{"name": "m", "sha256": "0" * 64}]}).encode()
        if method == "DELETE":
            self.running = False
        elif self.running and self.works:
            self.step += 1
        return 200, json.dumps({"step": self.step or None}).encode()


def measured(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> tuple[dict[str, object], str]:
    given: list[str] = []

    @contextmanager
    def run_server(_: Settings, **variables: str) -> Iterator[int]:
        given.append(variables["RANKPRESS_JOBS"])
        with answering(stand.answer) as port:
            yield port

    for name, value in (("run_server", run_server), ("SECONDS", 0.1), ("JOB_TIMEOUT_S", 0.0)):
        monkeypatch.setattr(during_job, name, value)
    result = during_job.bench_during_job(Settings(device="cpu", threads=1), 4.0, lambda _: None)
    return result, given[0]


def test_compress_is_measured_with_and_without_a_running_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand(works=True)
    result, jobs = measured(monkeypatch, stand)
    assert jobs == "true" and result["failures"] == 0
    spells = [running for what, running in stand.asked[2:] if what == "POST /compress"]
    changes = [a for a, b in zip(spells, [*spells[1:], None], strict=True) if a != b]
    assert changes == [False, True] * during_job.TURNS
    assert sum(what == "DELETE /jobs/x" for what, _ in stand.asked) == during_job.TURNS
    assert result["job_steps_per_second"] > 0  # type: ignore[operator]
    table = report.jobs_table(json.loads(json.dumps(result)))
    assert "beside a job" in table and "effort 4" in table


def test_a_job_that_makes_no_step_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerFailed, match="no step"):
        measured(monkeypatch, Stand(works=False))
