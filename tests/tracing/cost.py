"""What traces cost a server: milliseconds of processor and of time for a request of a tiny picture.

Servers without and with traces, and one of another checkout if it is named, take turns in blocks
of requests, so that what else the machine does meets all of them:

    python tests/tracing/cost.py [CHECKOUT]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from api.client import png_of  # noqa: E402
from served import RANKPRESS, serving  # noqa: E402

from tracing.receiver import receiving  # noqa: E402

SECONDS = 110.0
BLOCK = 20
PICTURE = png_of(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
VARIABLES = {"RANKPRESS_WARM": "false", "RANKPRESS_THREADS": "1", "OMP_NUM_THREADS": "1"}
VARIABLES |= {"RANKPRESS_GRAPHICS": "false", "RANKPRESS_BATCH_WINDOW_S": "0"}


def processor_ms(pid: int) -> float:
    """Milliseconds that the threads of a process have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e6


def pid_of(folder: Path) -> int:
    text = (folder / "log").read_text()
    return int(text.partition("Started server process [")[2].partition("]")[0])


def main(other: str | None) -> None:
    with ExitStack() as closing:
        receiver = closing.enter_context(receiving())
        arms = {"off": {}, "on": {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}}
        arms |= {"away": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}}
        arms |= {"other": {"PYTHONPATH": other}} if other else {}
        servers = {}
        for name, variables in arms.items():
            folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
            # `python -m` looks into its working folder first, which PYTHONPATH would not precede.
            command = (sys.executable, "-P", *RANKPRESS[1:]) if name == "other" else RANKPRESS
            url = closing.enter_context(
                serving(folder, command=command, **{**VARIABLES, **variables})
            )
            client = closing.enter_context(httpx.Client(base_url=url, timeout=60))
            servers[name] = (client, pid_of(folder))
        busy: dict[str, list[float]] = {name: [] for name in arms}
        taken: dict[str, list[float]] = {name: [] for name in arms}
        names = list(arms)
        end_s = time.monotonic() + SECONDS
        while time.monotonic() < end_s:
            names.append(names.pop(0))
            for name in names:
                client, pid = servers[name]
                before = processor_ms(pid)
                for _ in range(BLOCK):
                    begun_s = time.perf_counter()
                    assert client.post("/compress?rate=4", content=PICTURE).status_code == 200
                    taken[name].append(1000 * (time.perf_counter() - begun_s))
                busy[name].append((processor_ms(pid) - before) / BLOCK)
        for name in arms:
            cpu, ms = statistics.median(busy[name][1:]), statistics.median(taken[name][BLOCK:])
            blocks = len(busy[name]) - 1
            print(f"{name:6} {cpu:.2f} ms of processor, {ms:.2f} ms, {blocks} blocks")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
