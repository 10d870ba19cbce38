"""How much an adaptation job slows down the requests that the same server answers meanwhile.

One client compresses, for a while without a job and for a while during one, in turn, so that both
see the machine in the same state. The server is `rankpress serve` with its default of one worker
process of one thread at low priority.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

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
from service.eval.machine import machine_for_timing, this_machine
from service.eval.pictures import generate

SCHEMA: Final = 1
SECONDS: Final = 15.0
TURNS: Final = 3
EFFORT: Final = 4
JOB_TIMEOUT_S: Final = 120.0


def bench_during_job(
    rate: float, device: str, threads: int, store: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return the latency of compress without and during a job, and the job's steps per second.

    Raises:
        ServerFailed: the server or the job did not start.
    """
    machine = machine_for_timing(device, progress)
    with TemporaryDirectory(prefix="rankpress-") as folder:
        settings = {"RANKPRESS_JOBS": "true", "RANKPRESS_STATE": folder}
        with run_server(device, threads, store, settings) as port:
            model = _get_json(port, "/models")["models"][0]
            measurements = _measure_in_turns(port, rate, progress)
    return {
        "what": "jobs",
        "schema": SCHEMA,
        "model": {"name": model["name"], "sha256": model["sha256"]},
        "machine": asdict(machine),
        "threads": threads,
        "width": SIZE[0],
        "height": SIZE[1],
        "rate": rate,
        "effort": EFFORT,
        **measurements,
        "load_at_end": this_machine(device).load,
    }


def _measure_in_turns(port: int, rate: float, progress: Callable[[str], None]) -> dict[str, Any]:
    png = as_png(generate(*SIZE).rgb)
    compress = LoadRequest(f"/compress?rate={rate:g}", png)
    post_job = LoadRequest(f"/adapt?rate={rate:g}&effort={EFFORT}", png)
    fetch(port, compress)
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
    return {
        **{
            name: {key: median(load[key] for load in turns)
                   for key in ("per_second", "median_ms", "p95_ms")}
            for name, turns in loads.items()
        },
        "failures": sum(
            load["answered_503"] + load["answered_otherwise"]
            for turns in loads.values()
            for load in turns
        ),
        "job_steps_per_second": steps / seconds,
    }  # fmt: skip


def _start_job(port: int, post_job: LoadRequest) -> str:
    """Post the job, which continues where it was cancelled; return its path once it makes steps."""
    status, body = send(port, "POST", post_job.path, post_job.body)
    if status not in (200, 202):
        raise ServerFailed(f"POST {post_job.path} was answered {status}: {body[:200]!r}")
    job = str(json.loads(body)["links"]["self"])
    first_step = _steps_of(port, job)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while _steps_of(port, job) <= first_step:
        if time.monotonic() > deadline:
            state = _get_json(port, job)
            raise ServerFailed(f"the job made no step in {JOB_TIMEOUT_S:g} s: {state}")
        time.sleep(0.2)
    return job


def _steps_of(port: int, job: str) -> int:
    return int(_get_json(port, job)["step"] or 0)


def _get_json(port: int, path: str) -> Any:
    status, body = send(port, "GET", path)
    if status != 200:
        raise ServerFailed(f"GET {path} was answered {status}: {body[:200]!r}")
    return json.loads(body)
