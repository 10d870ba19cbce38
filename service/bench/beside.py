"""What an adaptation job costs the requests of the server it runs beside.

One client compresses, one spell without a job and one beside it in turn, so that both see the
machine in the same state. The server is `rankpress serve` as it comes: one worker process of one
thread at low priority.
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

from service.bench.load import SIZE, Request, ServerFailed, ask, closed_loop, fetch, server
from service.bench.memory import as_png
from service.eval.machine import this_machine
from service.eval.pictures import generate

SCHEMA: Final = 1
SECONDS: Final = 15.0
TURNS: Final = 3
EFFORT: Final = 4
JOB_TIMEOUT_S: Final = 120.0


def beside_a_job(
    rate: float, device: str, threads: int, store: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Latency of compress without and beside a job, and the job's pace, as JSON values.

    Raises:
        ServerFailed: the server or the job did not start.
    """
    before = this_machine(device)
    if before.busy:
        say(f"load is {before.load}: the timings below say little")
    with TemporaryDirectory(prefix="rankpress-") as folder:
        settings = {"RANKPRESS_JOBS": "true", "RANKPRESS_STATE": folder}
        with server(device, threads, store, settings) as port:
            model = _json(port, "/models")["models"][0]
            found = _in_turn(port, rate, say)
    return {
        "what": "jobs",
        "schema": SCHEMA,
        "model": {"name": model["name"], "sha256": model["sha256"]},
        "machine": asdict(before),
        "threads": threads,
        "width": SIZE[0],
        "height": SIZE[1],
        "rate": rate,
        "effort": EFFORT,
        **found,
        "load_at_end": this_machine(device).load,
    }


def _in_turn(port: int, rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    png = as_png(generate(*SIZE).rgb)
    compress = Request(f"/compress?rate={rate:g}", png)
    post = Request(f"/adapt?rate={rate:g}&effort={EFFORT}", png)
    fetch(port, compress)
    loads: dict[str, list[dict[str, Any]]] = {"without": [], "beside": []}
    steps, seconds = 0, 0.0
    for turn in range(TURNS):
        say(f"turn {turn + 1} of {TURNS}")
        loads["without"].append(closed_loop(port, repeat(compress), 1, SECONDS))
        link = _begin(port, post)
        first, begun = _steps(port, link), time.monotonic()
        loads["beside"].append(closed_loop(port, repeat(compress), 1, SECONDS))
        steps += _steps(port, link) - first
        seconds += time.monotonic() - begun
        ask(port, "DELETE", link)
    return {
        **{
            name: {key: median(load[key] for load in spells)
                   for key in ("per_second", "median_ms", "p95_ms")}
            for name, spells in loads.items()
        },
        "failures": sum(
            load["answered_503"] + load["answered_otherwise"]
            for spells in loads.values()
            for load in spells
        ),
        "job_steps_per_second": steps / seconds,
    }  # fmt: skip


def _begin(port: int, post: Request) -> str:
    """Post the job, which goes on where it was cancelled; its path once it makes steps."""
    status, body = ask(port, "POST", post.path, post.body)
    if status not in (200, 202):
        raise ServerFailed(f"POST {post.path} was answered {status}: {body[:200]!r}")
    link = str(json.loads(body)["links"]["self"])
    first = _steps(port, link)
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while _steps(port, link) <= first:
        if time.monotonic() > deadline:
            raise ServerFailed(f"the job made no step in {JOB_TIMEOUT_S:g} s: {_json(port, link)}")
        time.sleep(0.2)
    return link


def _steps(port: int, link: str) -> int:
    return int(_json(port, link)["step"] or 0)


def _json(port: int, path: str) -> Any:
    status, body = ask(port, "GET", path)
    if status != 200:
        raise ServerFailed(f"GET {path} was answered {status}: {body[:200]!r}")
    return json.loads(body)
