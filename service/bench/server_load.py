"""A real server under load: throughput by number of clients, and answers at twice its capacity.

The server is a process of its own (`rankpress serve`), the clients are threads of this process with
one connection each, and requests go over loopback. Clients and server share the machine, so the
throughput is that of both together.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from statistics import median
from typing import Any, Final

import numpy as np

from service.bench import timing
from service.bench.memory import as_png
from service.errors import RankpressError
from service.eval.pictures import generate
from service.settings import Settings

CONCURRENCIES: Final = (1, 2, 4, 8)
SECONDS: Final = 6.0
START_TIMEOUT_S: Final = 120.0
REQUEST_TIMEOUT_S: Final = 300.0
MAX_WAITING: Final = 64
"""Requests that may wait for the server's workers; it answers 503 to more."""

VARIABLES: Final[Mapping[str, str]] = {
    "RANKPRESS_MAX_WAITING": str(MAX_WAITING),
    "RANKPRESS_CLIENT_SHARE": "1",
    "RANKPRESS_JOBS": "false",
}
"""Settings of the server: its one client address stands for many, so it may take every place."""

MAX_OVERLOAD_S: Final = 60.0
OVERLOAD_CLIENTS: Final = MAX_WAITING + 32
SIZE: Final = (768, 512)

LoadAnswer = tuple[int, float]
"""Status of an answer, 0 if the connection broke, and its milliseconds."""


class ServerFailed(RankpressError):
    """The server did not start, or ended by itself."""


@dataclass(frozen=True)
class LoadRequest:
    """A POST request to send: path with query, and a body."""

    path: str
    body: bytes


def bench_server(
    settings: Settings, rate: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return requests per second by number of clients, and at twice the capacity of the server.

    Raises:
        ServerFailed: the server did not start.
    """

    def run() -> dict[str, Any]:
        progress("server under load")
        compress = LoadRequest(f"/compress?rate={rate:g}", as_png(generate(*SIZE).rgb))
        results: dict[str, Any] = {"width": SIZE[0], "height": SIZE[1]}
        with run_server(settings) as port:
            stream = fetch(port, "POST", compress.path, compress.body)
            decompress = LoadRequest("/decompress?format=png", stream)
            for name, request in (("compress", compress), ("decompress", decompress)):
                same = itertools.repeat(request)
                closed = [closed_loop(port, same, clients, SECONDS) for clients in CONCURRENCIES]
                capacity = max(float(c["per_second"]) for c in closed)
                seconds = min(MAX_OVERLOAD_S, max(10.0, 2 * MAX_WAITING / capacity))
                overload = open_loop(port, request, 2 * capacity, seconds)
                results[name] = {"closed_loop": closed, "overload": overload}
        return {"rate": rate, "service": results}

    return timing.measure("service", settings, progress, run)


@contextmanager
def run_server(settings: Settings, **variables: str) -> Iterator[int]:
    """Start a server process, yield its port once it is ready, and stop it afterwards.

    It gets the store, device and threads of the settings, VARIABLES, and `variables`.

    Raises:
        ServerFailed: it was not ready within START_TIMEOUT_S.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    command += ["--device", settings.device, "--threads", str(settings.threads)]
    command += ["--log-level", "error"]
    command += ["--store", str(settings.store)] if settings.store else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RANKPRESS_")}
    process = subprocess.Popen(command, env={**environment, **VARIABLES, **variables})
    try:
        _await_ready(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fetch(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    """Return the body of the answer. Raises ServerFailed if its status is not 200 or 202."""
    status, answer = send(port, method, path, body)
    if status not in (200, 202):
        raise ServerFailed(f"{method} {path} was answered {status}: {answer[:200]!r}")
    return answer


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return the status and body of the answer."""
    with _connect(port, timeout_s) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def closed_loop(
    port: int, requests: Iterator[LoadRequest], clients: int, seconds: float
) -> dict[str, Any]:
    """Let clients send requests, each as soon as its last one is answered; return the throughput.

    Args:
        requests: an endless iterator that all clients take from in turn.
    """

    def run_client(_: int) -> list[LoadAnswer]:
        answers = []
        with _connect(port) as connection:
            while (now := time.monotonic()) < begin + seconds:
                answers.append(_post(connection, next(requests), since=now))
        return answers

    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for each in pool.map(run_client, range(clients)) for answer in each]
    return {"clients": clients, **_summarise(answers, time.monotonic() - begin)}


def open_loop(port: int, request: LoadRequest, per_second: float, seconds: float) -> dict[str, Any]:
    """Send requests at fixed times, however slow the answers are; return the throughput."""
    idle: queue.SimpleQueue[HTTPConnection] = queue.SimpleQueue()

    def send_due(due: float) -> LoadAnswer:
        connection = idle.get()
        answer = _post(connection, request, since=due)
        idle.put(connection)
        return answer

    with ExitStack() as stack, ThreadPoolExecutor(OVERLOAD_CLIENTS) as pool:
        for _ in range(OVERLOAD_CLIENTS):
            idle.put(stack.enter_context(_connect(port)))
        begin = time.monotonic()
        pending = []
        for i in range(int(per_second * seconds)):
            due = begin + i / per_second
            time.sleep(max(0.0, due - time.monotonic()))
            pending.append(pool.submit(send_due, due))
        answers = [each.result() for each in pending]
    return {"offered_per_second": per_second, **_summarise(answers, time.monotonic() - begin)}


def _connect(port: int, timeout_s: float = REQUEST_TIMEOUT_S) -> closing[HTTPConnection]:
    """Return a connection, which opens at its first request, and again after it was closed."""
    return closing(HTTPConnection("127.0.0.1", port, timeout=timeout_s))


def _post(connection: HTTPConnection, request: LoadRequest, since: float) -> LoadAnswer:
    """Send a request and read the whole answer; its time counts from `since`."""
    status = _try(connection, request)
    status = status or _try(connection, request)  # a kept connection may have expired
    return status, 1000 * (time.monotonic() - since)


def _try(connection: HTTPConnection, request: LoadRequest) -> int:
    """Return the status of the answer; 0 if the connection broke."""
    try:
        connection.request("POST", request.path, request.body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, HTTPException):
        connection.close()
        return 0


def _summarise(answers: Sequence[LoadAnswer], seconds: float) -> dict[str, Any]:
    good = [ms for status, ms in answers if status == 200]
    refused = sum(status == 503 for status, _ in answers)
    return {
        "seconds": seconds,
        "per_second": len(good) / seconds,
        "median_ms": median(good) if good else None,
        "p95_ms": float(np.percentile(good, 95)) if good else None,
        "answered_200": len(good),
        "answered_503": refused,
        "answered_otherwise": len(answers) - len(good) - refused,
    }


def _await_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with {process.returncode} before it was ready")
        with suppress(OSError):  # the server does not listen yet
            if send(port, "GET", "/readyz", timeout_s=5)[0] == 200:
                return
        time.sleep(0.1)
    raise ServerFailed(f"the server was not ready after {START_TIMEOUT_S:g} s")
