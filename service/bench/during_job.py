"""How much an adaptation job slows down the requests that the same server answers meanwhile.

One client compresses, for a while without a job and for a while during one, in turn, so that both
see the machine in the same state. The server is `rankpress serve` with its default of one worker
process of one thread at low priority.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from service.bench import timing
from service.bench.memory import as_png
from service.bench.server_load import (
    SIZE,
    LoadRequest,
    ServerFailed,
    closed_loop,
    fetch,
    run_server,
    send,
)
from service.eval.pictures import generate
from service.settings import Settings

SECONDS: Final = 15.0
TURNS: Final = 3
EFFORT: Final = 4
JOB_TIMEOUT_S: Final = 120.0


def bench_during_job(
    settings: Settings, rate: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the latency of compress without and during a job, and the job's steps per second.

    Raises:
        ServerFailed: the server or the job did not start.
    """

    def run() -> dict[str, Any]:
        with TemporaryDirectory(prefix="rankpress-") as folder:
            with run_server(settings, RANKPRESS_JOBS="true", RANKPRESS_STATE=folder) as port:
                model = json.loads(fetch(port, "GET", "/models"))["models"][0]
                figures = _measure_in_turns(port, rate, progress)
        return {
            "model": {"name": model["name"], "sha256": model["sha256"]},
            "width": SIZE[0],
            "height": SIZE[1],
            "rate": rate,
            "effort": EFFORT,
            **figures,
        }

    return timing.measure("jobs", settings, progress, run)


def _measure_in_turns(port: int, rate: float, progress: Callable[[str], None]) -> dict[str, Any]:
    png = as_png(generate(*SIZE).rgb)
    compress = LoadRequest(f"/compress?rate={rate:g}", png)
    post_job = LoadRequest(f"/adapt?rate={rate:g}&effort={EFFORT}", png)
    fetch(port, "POST", compress.path, png)
    loads: dict[str, list[dict[str, Any]]] = {"without": [], "beside": []}
    steps, seconds = 0, 0.0
    for turn in range(TURNS):
        progress(f"turn {turn + 1} of {TURNS}")
        loads["without"].append(closed_loop(port, repeat(compress), 1, SECONDS))
        job = _start_job(port, post_job)
        first_step, begin = _steps_of(port, job), time.monotonic()
        loads["beside"].append(closed_loop(port, repeat(compress), 1, SECONDS))
        steps += _steps_of(port, job) - first_step
        seconds += time.monotonic() - begin
        send(port, "DELETE", job)
    every = loads["without"] + loads["beside"]
    return {
        **{name: _medians(turns) for name, turns in loads.items()},
        "failures": sum(load["answered_503"] + load["answered_otherwise"] for load in every),
        "job_steps_per_second": steps / seconds,
    }


def _medians(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("per_second", "median_ms", "p95_ms")
    return {key: median(load[key] for load in turns) for key in keys}


def _start_job(port: int, post_job: LoadRequest) -> str:
    """Post the job, which continues where it was cancelled; return its path once it makes steps."""
    answer = json.loads(fetch(port, "POST", post_job.path, post_job.body))
    job = str(answer["links"]["self"])
    first_step = _steps_of(port, job)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while _steps_of(port, job) <= first_step:
        if time.monotonic() > deadline:
            state = fetch(port, "GET", job)
            raise ServerFailed(f"the job made no step in {JOB_TIMEOUT_S:g} s: {state!r}")
        time.sleep(0.2)
    return job


def _steps_of(port: int, job: str) -> int:
    return int(json.loads(fetch(port, "GET", job))["step"] or 0)
